"""Removes paths and UIDs, which may identify patients, from reasons and errors."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from twostage_jax import io
from twostage_jax.ct.dicom import hashed
from twostage_jax.ct.series import TOGETHER
from twostage_jax.errors import UserError
from twostage_jax.folders import every_path
from twostage_jax.io import inert

# (name of the file, reason)
Hidden = list[tuple[str, str]]
# Number of reasons in a message about skipped files.
_MOST_REASONS = 3
_UID = re.compile(r"\b[0-2](\.\d+){4,}\b")


def file_hash(path: Path, salt: str) -> str:
    """Returns the salted hash of a path; see `hashed`."""
    return hashed("file", str(path), salt)


def hide(
    skipped: Iterable[tuple[Path, str]], roots: Sequence[Path], salt: str
) -> Hidden:
    """Returns (hash of the path, reason without paths and UIDs) of skipped files.

    Args:
      skipped: (path, reason) of each file.
      roots: Folders that contain the files.
      salt: Secret mixed into the hashes.
    """
    return [(file_hash(path, salt), _plain(path, why, roots)) for path, why in skipped]


def first_reasons(skipped: Sequence[tuple[Path, str]], roots: Sequence[Path]) -> str:
    """Returns the number of skipped files and the most frequent reasons, as text.

    Args:
      skipped: (path, reason) of each file; if empty, the text is ''.
      roots: Folders that contain the files.
    """
    listed = [(str(path), _plain(path, why, roots)) for path, why in skipped]
    verb = "files were" if len(listed) > 1 else "file was"
    return f"{len(listed)} {verb} skipped: {counted(listed)}." if listed else ""


def counted(listed: Hidden) -> str:
    """Returns the most frequent reasons, each with its count and the first name."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in listed:
        reason = reason if reason.endswith("...") else reason.removesuffix(".")
        by_reason.setdefault(reason, []).append(name)
    # The reason to refuse a series comes before the slices that are skipped with it.
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
    """Writes `out/skipped.csv`: name and reason of each skipped file."""
    rows = ({"file": inert(name), "reason": inert(why)} for name, why in skipped)
    io.write_csv(out / "skipped.csv", ("file", "reason"), rows)


@contextlib.contextmanager
def errors(roots: Mapping[str, Path], salt: str) -> Iterator[None]:
    """Removes paths and UIDs from the errors of a block.

    Args:
      roots: Files and folders, by the flag that gives each.
      salt: Secret mixed into the hashes of the paths below them.

    Raises:
      UserError, OSError: If the block raises them.
      RuntimeError: For all other exceptions, whose tracebacks may contain paths.
    """
    # Without 'from None', Python would show the original error as the context.
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
    """Returns a message with hashes for paths below `roots`, and flags for `roots`.

    Args:
      text: The message.
      roots: Files and folders, by the flag that gives each.
      salt: Secret mixed into the hashes.
    """
    names = {path: flag for flag, path in roots.items()}
    for root in roots.values():
        for path in every_path(root):
            for above in (path, *path.parents):
                if above.is_relative_to(root):
                    names.setdefault(above, file_hash(above, salt))
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
    # Where a path ends in a sentence is unknown, because it may contain blanks.
    before, found, _ = text.partition(path)
    return f"{before}..." if found else before
