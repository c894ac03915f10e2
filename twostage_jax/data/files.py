"""Lists of names and stamps of files, for recipes that read a user's folders."""

from collections.abc import Iterable
from pathlib import Path

from twostage_jax import tables
from twostage_jax.errors import UserError
from twostage_jax.walk import check_folder

Stamp = tuple[str, int, int]


def stamps(root: Path, paths: Iterable[Path]) -> list[Stamp]:
    """Returns (name below `root`, bytes, time of change in ns) of files, by name.

    Raises:
      UserError: A file is not there.
    """
    found = []
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read: {error.strerror}.", where=path
            ) from None
        name = path.relative_to(root).as_posix()
        found.append((name, status.st_size, status.st_mtime_ns))
    return sorted(found)


def below(root: Path, setting: str) -> Path:
    """Returns the folder that a setting names, as a full path.

    Raises:
      UserError: There is no such folder.
    """
    folder = Path(root).expanduser().absolute()
    check_folder(folder, f"{setting} = '{root}'")
    return folder


def split_names(names: str, setting: str) -> tuple[str, ...]:
    """Returns the parts of 'a, b, c'.

    Raises:
      UserError: A name is empty or doubled.
    """
    parts = tuple(tables.composed(part).strip() for part in names.split(","))
    if not all(parts) or len(set(parts)) != len(parts):
        raise UserError(f"{setting} = '{names}': names, all unlike, between commas.")
    return parts
