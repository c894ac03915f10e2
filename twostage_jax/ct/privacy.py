"""What was left out or went wrong, without the names that paths and messages may hold."""

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from twostage_jax import io
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.ct.series import TOGETHER
from twostage_jax.errors import UserError
from twostage_jax.folders import every_path
from twostage_jax.io import inert

# (name of the file, reason)
Hidden = list[tuple[str, str]]
# Reasons that a message gives for what was left out.
_MOST_REASONS = 3
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


def first_reasons(skipped: Sequence[tuple[Path, str]], roots: Sequence[Path]) -> str:
    """Returns how many files were left out, and the commonest reasons; '' for none.

    Args:
      skipped: (path, reason).
      roots: Folders below which the paths lie.
    """
    listed = [(str(path), _plain(path, why, roots)) for path, why in skipped]
    verb = "files were" if len(listed) > 1 else "file was"
    return f"{len(listed)} {verb} left out: {counted(listed)}." if listed else ""


def counted(listed: Hidden) -> str:
    """Returns the commonest reasons, each with how many and the first name, in words."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in listed:
        reason = reason if reason.endswith("...") else reason.removesuffix(".")
        by_reason.setdefault(reason, []).append(name)
    # The reason of a series comes before the sound slices that it takes along.
    order = sorted(
        by_reason.items(), key=lambda item: (item[0] in TOGETHER, -len(item[1]))
    )
    parts = [
        f"{len(names)} because: {reason} (such as {names[0]})"
        for reason, names in order[:_MOST_REASONS]
    ]
    if len(order) > _MOST_REASONS:
        rest = sum(len(names) for _, names in order[_MOST_REASONS:])
        parts.append(f"{rest} for other reasons")
    return "; ".join(parts)


def write_skipped(out: Path, skipped: Hidden) -> None:
    """Writes `out/skipped.csv`: what was left out, a file a line, and why."""
    with io.replacing(out / "skipped.csv") as path:
        # Names of files need not be UTF-8.
        with path.open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            writer = csv.writer(file)
            writer.writerow(["file", "reason"])
            writer.writerows([inert(name), inert(why)] for name, why in skipped)


@contextlib.contextmanager
def errors(roots: Mapping[str, Path], salt: str) -> Iterator[None]:
    """Takes paths and UIDs out of the errors of a block.

    Args:
      roots: Files and folders, each by the flag that gives it.
      salt: Of the hashes that stand for what lies below them.

    Raises:
      UserError, OSError: As the block did.
      RuntimeError: For all other exceptions, whose tracebacks may hold paths.
    """
    # Python would show the hidden error, as the context, without the 'from None'.
    try:
        yield
    except UserError as error:
        text = without_paths(str(error), roots, salt)
        if text != str(error):
            text = f"{_ended(text)} Run again with --show_paths to see the names."
        where = without_paths(error.where, roots, salt)
        raise UserError(text, where=where) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            name = without_paths(str(error.filename), roots, salt)
            raise OSError(error.errno, error.strerror, name) from None
        text = without_paths(f"{type(error).__name__}: {error}", roots, salt)
        raise RuntimeError(
            f"{_ended(text)} Run again with --show_paths to see all of it."
        ) from None


def without_paths(text: str, roots: Mapping[str, Path], salt: str) -> str:
    """Returns a message with hashes for what lies below `roots` and flags for them.

    Args:
      text: The message.
      roots: Files and folders, each by the flag that gives it.
      salt: Of the hashes.
    """
    names = {path: flag for flag, path in roots.items()}
    for root in roots.values():
        for path in every_path(root):
            for place in (path, *path.parents):
                if place.is_relative_to(root):
                    names.setdefault(place, file_hash(place, salt))
    found = [path for path in names if str(path) in text]
    for path in sorted(found, key=lambda path: len(str(path)), reverse=True):
        text = re.sub(rf"{re.escape(str(path))}(?![\w/-])", names[path], text)
    for root in roots.values():
        text = _cut(text, f"{root}/")
    return _UID.sub("UID", text)


def _plain(path: Path, reason: str, roots: Sequence[Path]) -> str:
    reason = reason.removeprefix(str(path)).lstrip(":, ")
    for root in roots:
        reason = _cut(reason, str(root))
    return _UID.sub("UID", " ".join(reason.split()))


def _ended(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _cut(text: str, path: str) -> str:
    # Where a path ends in a sentence cannot be told: blanks may be part of it.
    before, found, _ = text.partition(path)
    return f"{before}..." if found else before


def series_hash(uid: str, salt: str) -> str:
    """Returns a short name of a series that does not give its UID away."""
    return "series-" + patient_hash(uid, salt).removeprefix("patient-")
