"""Contents of a user's folders: which files are read, which are skipped, and why.

`io` reads and writes single files. Only this module decides whether a link, a hidden
folder or a file that was not fetched belongs to the data, so that all readers of folders
(DICOM, images, masks) skip the same files.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from twostage_jax.errors import UserError

# (path, reason) of each path that is not read.
Skipped = list[tuple[Path, str]]
# (name below the root, bytes, time of change in ns) of a file.
Stamp = tuple[str, int, int]
# Folders created by operating systems, NAS devices and archives.
_FOREIGN = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found")
_FOREIGN += ("System Volume Information",)
# Text of git-annex and Git LFS in place of content that was not fetched.
_POINTERS = (b"/annex/objects/", b"version https://git-lfs.github.com/spec/")
_MOST_POINTER_BYTES = 1024


class Tree(NamedTuple):
    """Contents of a folder tree.

    Attributes:
      files: Readable regular files and links to such, in the order of names; those of
        a folder come before those of its sub-folders.
      litter: (path, reason) of hidden files; of hidden and foreign folders, once each
        and without their contents; of pipes, sockets and devices; and of links to
        folders that are read already.
      lost: (path, reason) of what may belong to the data but cannot be read: links to
        nothing, unreadable files and folders, content that was not fetched.
    """

    files: list[Path]
    litter: Skipped
    lost: Skipped

    @property
    def skipped(self) -> Skipped:
        """(path, reason) of every path that is not among the files, by path."""
        return sorted(self.litter + self.lost)


def walk(folder: Path) -> Tree:
    """Returns the files below a folder, and what is skipped, with the reason.

    Links to files and to folders are followed. Each real folder is read once: under its
    own name if it lies below `folder`, else under that of the first link to it.

    Args:
      folder: Folder to search, with its sub-folders; may be a link.

    Raises:
      UserError: The folder does not exist or cannot be read.
    """
    check_folder(folder)
    tree, links = Tree([], [], []), [folder]
    above = {_identity(parent) for parent in folder.resolve().parents}
    seen: dict[tuple[int, int], Path] = {}
    # Links wait until all real folders below the last one are read.
    while links:
        link = links.pop(0)
        if _identity(link) in above:
            tree.litter.append((link, "a link to a folder that holds the whole tree"))
            continue
        below = [link]
        while below:
            here = below.pop()
            first = seen.setdefault(_identity(here), here)
            if first is not here:
                reason = f"the same folder as {first}, which is read already"
                tree.litter.append((here, reason))
                continue
            for path in _folders(here, tree):
                (links if path.is_symlink() else below).append(path)
        links.sort(key=_order)
    if tree.lost and tree.lost[0][0] == folder:
        raise UserError.at(folder, f"{tree.lost[0][1]}.")
    for entries in (tree.files, tree.litter, tree.lost):
        entries.sort(key=lambda e: _order(e if isinstance(e, Path) else e[0]))
    return tree


def check_folder(folder: Path, setting: str = "") -> None:
    """Raises a UserError if a path, perhaps that of a setting, is not a folder."""
    if folder.is_dir():
        return
    wrong = "is a file, but must be a folder" if folder.exists() else "does not exist"
    raise UserError(f"{setting or folder} {wrong}.", where=setting or folder)


def every_path(root: Path) -> list[Path]:
    """Returns all files below a folder, also skipped ones; none for a file."""
    if not root.is_dir():
        return []
    tree = walk(root)
    return [*tree.files, *(path for path, _ in tree.skipped)]


def stamps(root: Path, paths: Iterable[Path]) -> list[Stamp]:
    """Returns (full name, bytes, time of change in ns) of files, by name.

    Their contents count as unchanged while these are. The name is that without links, and
    full because an archive may give the files of two folders the same times.

    Raises:
      UserError: A file is not there.
    """
    found, home = [], root.resolve()
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            raise UserError.at(path, f"cannot be read: {error.strerror}.") from None
        name = (home / path.relative_to(root)).as_posix()
        found.append((name, status.st_size, status.st_mtime_ns))
    return sorted(found)


def below(root: Path, setting: str) -> Path:
    """Returns the folder that a setting names, as a full path.

    Raises:
      UserError: The folder does not exist.
    """
    folder = Path(root).expanduser().absolute()
    check_folder(folder, f"{setting} = '{root}'")
    return folder


def _folders(folder: Path, tree: Tree) -> list[Path]:
    """Returns the folders in a folder, and adds everything else in it to `tree`."""
    found = []
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        tree.lost.append((folder, f"a folder that cannot be read: {error.strerror}"))
        return []
    for name in names:
        path = folder / name
        try:
            mode = path.stat().st_mode
        except OSError as error:
            if name.startswith("."):
                tree.litter.append((path, "a hidden file"))
            elif path.is_symlink() and isinstance(error, FileNotFoundError):
                reason = "a link to what is not here (not fetched?)"
                tree.lost.append((path, reason))
            else:
                tree.lost.append((path, f"cannot be read: {error.strerror}"))
            continue
        if not stat.S_ISDIR(mode):
            _add_file(path, mode, tree)
        elif name.startswith(".") or name in _FOREIGN:
            kind = "a hidden" if name.startswith(".") else "a system"
            tree.litter.append((path, f"{kind} folder, which is not searched"))
        else:
            found.append(path)
    return found


def _add_file(path: Path, mode: int, tree: Tree) -> None:
    """Adds what is not a folder to one of the lists of `tree`."""
    if path.name.startswith(".") and path.suffix == ".icloud":
        tree.lost.append((path, "not downloaded from iCloud"))
    elif path.name.startswith("._"):
        tree.litter.append((path, "a hidden file that macOS wrote"))
    elif path.name.startswith("."):
        tree.litter.append((path, "a hidden file"))
    elif not stat.S_ISREG(mode):
        tree.litter.append((path, "a pipe, socket or device, not a file"))
    elif reason := unreadable(path):
        tree.lost.append((path, reason))
    else:
        tree.files.append(path)


def unreadable(path: Path) -> str:
    """Returns why a regular file cannot be read, or ''."""
    try:
        if not os.access(path, os.R_OK):
            return "cannot be read: Permission denied"
        if path.stat().st_size > _MOST_POINTER_BYTES:
            return ""
        head = path.read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if any(pointer in head for pointer in _POINTERS):
        return "a pointer to a file that is not here (git-annex or Git LFS: fetch it)"
    return ""


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _order(path: Path) -> tuple[tuple[bool, str], ...]:
    """Returns the key that sorts the files of a folder before its sub-folders."""
    parts = path.parts
    return *((True, part) for part in parts[:-1]), (False, parts[-1])
