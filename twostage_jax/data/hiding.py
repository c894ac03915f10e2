"""What was left out, without the names that paths and messages may hold."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from twostage_jax.ct.dicom import patient_hash

# (name of the file, reason)
Hidden = list[tuple[str, str]]
_UID = re.compile(r"\b[0-2](\.\d+){4,}\b")


def file_hash(path: Path, salt: str) -> str:
    """Returns a short name of a file that does not give its path away."""
    return "file-" + patient_hash(str(path), salt).removeprefix("patient-")


def hide(
    skipped: Iterable[tuple[Path, str]], roots: Sequence[Path], salt: str
) -> Hidden:
    """Returns (hash of the path, reason without paths and UIDs) of files left out.

    Args:
      skipped: (path, reason).
      roots: Folders below which the paths lie.
      salt: Of the hashes.
    """
    return [(file_hash(path, salt), _plain(path, why, roots)) for path, why in skipped]


def _plain(path: Path, reason: str, roots: Sequence[Path]) -> str:
    reason = reason.removeprefix(str(path)).lstrip(":, ")
    for root in roots:
        # Where a path ends in a sentence cannot be told: blanks may be part of it.
        before, found, _ = reason.partition(str(root))
        reason = f"{before}..." if found else before
    return _UID.sub("UID", " ".join(reason.split()))
