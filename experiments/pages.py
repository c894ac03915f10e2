"""Writes the results of an experiment."""

from pathlib import Path
from typing import Any

from twostage_jax import io


def leave(out: Path | None, numbers: dict[str, Any], page: str) -> None:
    """Prints a page; writes it to `out`, if given, and the numbers as JSON next to it."""
    print(page)
    if out:
        io.write_json(out.with_suffix(".json"), numbers)
        io.write_text(out, page)
