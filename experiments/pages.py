"""How an experiment leaves what it measured."""

from pathlib import Path
from typing import Any

from twostage_jax import atomic


def leave(out: Path | None, numbers: dict[str, Any], page: str) -> None:
    """Prints a page; writes it to `out`, if given, and the numbers as JSON beside it."""
    print(page)
    if out:
        atomic.write_json(out.with_suffix(".json"), numbers)
        atomic.write_text(out, page)
