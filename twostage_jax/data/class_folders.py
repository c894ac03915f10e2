"""Finds the class folders of a data set, and the folders of its splits.

Class folders are in the folder of the data set, or inside folders of splits, whose names
contain a word for 'train', 'validation' or 'test' (`seg_train`, `Training Data`,
`val_set`):

    fibrosis/001.png          train/fibrosis/001.png          fibrosis/train/001.png
    normal/p7/001.png         test/fibrosis/002.png           fibrosis/test/002.png

A folder that contains only one folder is replaced by it. Folders without images whose
sub-folders have equal names are not accepted as classes: they may be folds, sites, or
images and their masks.
"""

import dataclasses
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from twostage_jax import folders
from twostage_jax.data import spelling
from twostage_jax.errors import UserError
from twostage_jax.io import alike, composed, shown, split_names

# Size in bytes and modification time in ns.
Stamp = tuple[int, int]
_PICTURES = ".apng .avif .bmp .dib .gif .j2k .jfif .jif .jp2 .jpe .jpeg .jpg .pbm .pgm"
_PICTURES += " .png .pnm .ppm .tga .tif .tiff .webp"
PICTURES = frozenset(_PICTURES.split())
SUFFIXES = PICTURES | {".npy", ".nii", ".nii.gz"}
# Images that cannot be read: without them, a class would be incomplete.
_UNREADABLE = ".arw .cr2 .dcm .dicom .dng .exr .heic .heif .ima .mha .mhd .nef .npz"
UNREADABLE = frozenset((*_UNREADABLE.split(), ".nrrd", ".psd", ".svg"))
_TAIL = r"(s|set|sets|data|dataset|images?|imgs?|split|folder|patches)?"
SPLIT_WORDS = {
    "train": re.compile(rf"(train|training){_TAIL}"),
    "validation": re.compile(rf"(val|valid|validation|validate){_TAIL}"),
    "test": re.compile(rf"(test|testing){_TAIL}"),
}
# Words that say nothing about the content of a folder of images.
_PLAIN = "all data dataset final folder image images img imgs jpeg jpg new org original"
_PLAIN += (
    " part parts patch patches pictures png resized roi rois seg set sets tif tiff"
)
PLAIN = frozenset(_PLAIN.split())
IMAGES = frozenset("ct hu image images img imgs original picture pictures scan".split())
_MASKS = "annotation annotations gt groundtruth label labels lungs mask masks"
MASKS = frozenset((*_MASKS.split(), "segmentation", "segmentations"))
# Name of a mask: that of its image, and '_mask', '-seg', ' label 2' or '/gt'.
_APART, _MASK_WORDS = r"[\s_./-]", "|".join([*sorted(MASKS), "seg"])
_MASK_NAME = re.compile(rf"(?i)(.+?){_APART}+({_MASK_WORDS})({_APART}*\d+)?")
FOLDS = frozenset("cv fold folds partition split subset".split())
# Fraction of common sub-folders from which two folders may be parts of one set.
SHARED = 2 / 3

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class File:
    """Image file below a class folder.

    Attributes:
      path: Path relative to the folder of the data set, with '/' between its parts.
      id: Path as printable text in Unicode NFC.
      name: Part of the id from the class folder on, 'class/name.png'.
      label: Index of the class.
      group: Name of the group that must not be split, or ''.
      split: 'train', 'validation' or 'test'.
      stamp: Size in bytes and modification time in ns.
    """

    path: str
    id: str
    name: str
    label: int
    group: str
    split: str
    stamp: Stamp


class Found(NamedTuple):
    """Images of a data set.

    Attributes:
      class_names: Names of the classes, sorted.
      files: Image files without groups, sorted by path within each class folder.
      notes: Sentences on skipped files and ambiguous folders.
    """

    class_names: tuple[str, ...]
    files: list[File]
    notes: tuple[str, ...]


@dataclasses.dataclass
class _Folder:
    """Folder of the tree.

    Attributes:
      path: Path relative to the root; '' for the root.
      images: Stamps of the images, by file name.
      folders: Sub-folders by name.
    """

    path: str
    images: dict[str, Stamp] = dataclasses.field(default_factory=dict)
    folders: dict[str, "_Folder"] = dataclasses.field(default_factory=dict)

    def below(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def all_images(self) -> Iterable[tuple[str, Stamp]]:
        """Yields (path, stamp) of the images at any depth."""
        entries = sorted([*self.images, *self.folders])
        for name in entries:
            if name in self.folders:
                yield from self.folders[name].all_images()
            else:
                yield self.below(name), self.images[name]


class _Part(NamedTuple):
    """Class folder, or the folder of one split of a class."""

    folder: _Folder
    class_name: str
    split: str


def find(root: Path, classes: str = "") -> Found:
    """Returns the classes and images below a folder.

    Args:
      root: Folder of the data set.
      classes: Names of the class folders in `root`, 'a,b', which are classes whatever
        they contain; if empty, classes are found as described by the module.

    Raises:
      UserError: Class folders are missing, empty or ambiguous, or an image cannot be
        read.
    """
    if not root.is_dir():
        raise UserError(
            f"data folder {shown(root)} does not exist or is not a folder.", where=root
        )
    skipped: dict[str, str] = {}
    tree = _read(root, skipped)
    _check_empty(root, tree)
    notes: list[str] = []
    wanted = set(split_names(classes, "classes")) if classes else set()
    parts = _parts(tree, root, wanted, notes)
    _check_masks({part.class_name: part.folder for part in parts}, root)
    class_names = tuple(sorted({p.class_name for p in parts if p.split == "train"}))
    if not class_names:
        raise UserError(
            f"data folder {shown(root)} lacks class folders: put the images into one "
            "folder per class.",
            where=shown(root),
        )
    for one, other in spelling.pairs(class_names):
        raise UserError(
            f"data folder {shown(root)}: the classes {one!a} and {other!a} differ in "
            "spelling only: join or rename them.",
            where=shown(root),
        )
    files: list[File] = []
    for part in parts:
        at = shown(root / part.folder.path)
        if part.class_name not in class_names:
            raise UserError(
                f"class folder {at}: the train folder lacks class '{part.class_name}'; it "
                f"has {', '.join(class_names)}.",
                where=at,
            )
        own = list(part.folder.all_images())
        _check_mask_files([path for path, _ in own], at)
        within = f"{part.folder.path}/"
        others = [kind for path, kind in skipped.items() if path.startswith(within)]
        unread = [kind for kind in others if kind in UNREADABLE]
        if unread:
            raise UserError(
                f"class folder {at}: {_counted(unread)} files cannot be read as images. "
                "Convert them to PNG, TIFF, .npy or NIfTI, or remove them; DICOM is read "
                "by python -m twostage_jax.prepare.",
                where=at,
            )
        if not own:
            held = f" but has {_counted(others)} files" if others else ""
            raise UserError(
                f"class folder {at} lacks images{held}: add images, or remove it.",
                where=at,
            )
        label = class_names.index(part.class_name)
        above = len(composed(shown(part.folder.path)))
        ids = alike(path for path, _ in own)
        for (path, stamp), id in zip(own, ids, strict=True):
            name = part.class_name + id[above:]
            files.append(File(path, id, name, label, "", part.split, stamp))
    used = {file.path for file in files}
    outside = [path for path, _ in tree.all_images() if path not in used]
    if outside:
        notes.append(f"Images skipped outside the class folders: {len(outside)}.")
    if skipped:
        notes.append(f"Files skipped: {_counted(skipped.values())}.")
    if skipped or outside:
        listed = [shown(path) for path in sorted([*outside, *skipped])]
        log.warning(
            "%s: skipped %s%s", shown(root),
            ", ".join(listed[:10]), ", ..." if len(listed) > 10 else "",
        )  # fmt: skip
    return Found(class_names, files, tuple(notes))


def _read(root: Path, skipped: dict[str, str]) -> _Folder:
    """Returns the tree below `root`; adds the kinds of other files to `skipped`, by path.

    Raises:
      UserError: An image cannot be read, or a folder is linked twice.
    """
    walked = folders.walk(root)
    home = _Folder("")
    start = len(f"{root}/") if str(root) != "." else 0
    for path in walked.files:
        below = str(path)[start:]
        folder = _folder(home, below)
        if suffix(below) in SUFFIXES:
            status = path.stat()
            folder.images[path.name] = (status.st_size, status.st_mtime_ns)
        else:
            skipped[below] = suffix(below) or "without a suffix"
    for path, why in walked.litter:
        # In one of its two places, perhaps a class, its images would be missing.
        if "read already" in why:
            raise UserError.at(shown(path), f"a link to {why}: remove the link.")
        below = str(path)[start:]
        _folder(home, below)
        skipped[below] = "hidden" if path.name.startswith(".") else "of the system"
    for path, why in walked.lost:
        if os.path.isdir(path) or suffix(path.name) in SUFFIXES:
            raise UserError.at(shown(path), f"{why}: fetch it, or remove it.")
        skipped[str(path)[start:]] = "unreadable"
    return home


def _check_empty(root: Path, tree: _Folder) -> None:
    """Raises a UserError for an empty folder that may be a class."""
    for folder in (tree, *tree.folders.values()):
        if folder.images or not folder.folders:
            continue
        with os.scandir(root / folder.path) as entries:
            names = sorted(e.name for e in entries if e.is_dir())
        for name in names:
            empty = name not in folder.folders and not name.startswith(".")
            if empty and not os.listdir(root / folder.path / name):
                at = shown(root / folder.path / name)
                raise UserError(
                    f"class folder {at} is empty: add images, or remove it.", where=at
                )


def _folder(home: _Folder, below: str) -> _Folder:
    """Returns the folder of a file, added to the tree if missing."""
    folder = home
    for name in below.split("/")[:-1]:
        folder = folder.folders.setdefault(name, _Folder(folder.below(name)))
    return folder


def split_word(name: str) -> str:
    """Returns the split, a key of `SPLIT_WORDS`, that a folder name means, or ''."""
    found = {
        split
        for split, pattern in SPLIT_WORDS.items()
        if any(pattern.fullmatch(word) for word in _words(name))
    }
    return found.pop() if len(found) == 1 else ""


def _parts(
    tree: _Folder, root: Path, wanted: set[str], notes: list[str]
) -> list[_Part]:
    """Returns the class folders of all splits.

    Raises:
      UserError: It is ambiguous which folders are classes.
    """
    top = _passed_through(tree, stop_at_splits=True)
    folders, at = top.folders, root / top.path
    by_name = alike(folders)
    as_classes = [_Part(folders[f], name, "train") for name, f in by_name.items()]
    if wanted == set(by_name) or not folders:
        return as_classes
    splits = {name: split_word(name) for name in folders}
    if all(splits.values()):
        hollow = [folder for folder in folders.values() if not folder.images]
        if len(hollow) == len(folders) or all(f.folders for f in folders.values()):
            return _of_splits(folders, splits, root)
        if _say_only_splits(folders):
            raise UserError(
                f"the folders {_listed(folders)} in {shown(at)} seem to be splits of the "
                "set, but contain images without class folders: put the images into one "
                "folder per class, or remove the folder without classes.",
                where=shown(at),
            )
    inner_splits = [
        {split_word(name) for name in folder.folders} for folder in folders.values()
    ]
    if all(
        "" not in found and "train" in found and not folder.images
        for found, folder in zip(inner_splits, folders.values(), strict=True)
    ):
        return [
            part
            for name, f in by_name.items()
            for part in _of_class(name, folders[f], root)
        ]
    if wanted:
        raise UserError(
            f"classes names {', '.join(sorted(wanted))}, but the folders in {shown(at)} "
            f"are {_listed(folders)}: name exactly these, or leave classes empty.",
            where="classes",
        )
    _check_mixed(folders, splits, at)
    _check_crossing(folders, splits, at, notes)
    return as_classes


def _of_splits(
    folders: Mapping[str, _Folder], splits: Mapping[str, str], root: Path
) -> list[_Part]:
    _check_splits(folders, splits, root)
    parts = []
    for name, split in sorted(splits.items(), key=lambda item: item[0]):
        folder = _passed_through(folders[name])
        for class_name, f in alike(folder.folders).items():
            parts.append(_Part(folder.folders[f], class_name, split))
    return parts


def _of_class(class_name: str, folder: _Folder, root: Path) -> list[_Part]:
    splits = {name: split_word(name) for name in folder.folders}
    _check_splits(folder.folders, splits, root)
    return [_Part(folder.folders[n], class_name, split) for n, split in splits.items()]


def _check_splits(
    folders: Mapping[str, _Folder], splits: Mapping[str, str], root: Path
) -> None:
    doubled = [s for s, count in Counter(splits.values()).items() if count > 1]
    above = root / os.path.dirname(next(iter(folders.values())).path)
    if doubled:
        same = [name for name in folders if splits[name] == doubled[0]]
        raise UserError(
            f"the folders {_listed(same)} in {shown(above)} both seem to be the "
            f"{doubled[0]} split: keep one, or join them.",
            where=shown(above),
        )
    if "train" not in splits.values():
        raise UserError(
            f"data folder {shown(above)} has {_listed(folders)}, but a train folder is "
            "missing: add it.",
            where=shown(above),
        )


def _check_mixed(
    folders: Mapping[str, _Folder], splits: Mapping[str, str], at: Path
) -> None:
    """Raises a UserError for folders of splits next to folders of something else."""
    names = {composed(name).lower() for name in folders}
    for name, folder in folders.items():
        inner = _inner(folder)
        if folder.images or not inner:
            continue
        train = splits[name] == "train" and _say_only_splits([name])
        # The folders of the classes occur again below a test folder.
        again = splits[name] and len(inner & names) >= SHARED * len(inner)
        halves = len(inner) > 1 and all(map(split_word, inner))
        if train or again or halves:
            others = [other for other in folders if other != name]
            raise UserError(
                f"data folder {shown(at)}: {_listed([name])} is, or contains, a split of "
                f"the set, next to {_listed(others)}: keep either only folders of splits "
                "there, or only folders of classes.",
                where=shown(at),
            )


def _check_crossing(
    folders: Mapping[str, _Folder],
    splits: Mapping[str, str],
    at: Path,
    notes: list[str],
) -> None:
    """Raises a UserError for folders with common sub-folders, which may be the classes."""
    hollow = {n: _inner(f) for n, f in folders.items() if not f.images}
    shared: set[str] = set()
    for one, other in itertools.combinations(hollow.values(), 2):
        both = one & other
        if len(both) > 1 and len(both) >= SHARED * min(len(one), len(other)):
            shared |= both
    folds = [name for name in folders if FOLDS & set(_words(name))]
    folds = folds if _say_only_splits(folds) else []
    if not shared and len(folds) < len(folders):
        return
    numbered = [name for name in shared if re.search(r"\d", name)]
    known = folds or any(splits[name] for name in hollow)
    if not known and len(numbered) > len(shared) / 2:
        # They may be named after patients.
        notes.append(
            f"The classes are the folders {_listed(folders)}; {len(shared)} sub-folders "
            "that they share are taken for patients or the like."
        )
        return
    inside = f", which contain folders of equal names ({_listed(sorted(shared))}),"
    raise UserError(
        f"the folders {_listed(folders)} in {shown(at)}{inside if shared else ''} do "
        "not seem to be classes. Name the splits of a set train, validation and test; "
        "join the class folders of folds or sites, or give the path of one. If they are "
        f"classes, set classes='{','.join(sorted(map(composed, folders)))[:80]}'.",
        where=shown(at),
    )


def _check_masks(classes: Mapping[str, _Folder], root: Path) -> None:
    """Raises a UserError if folders seem to contain images and their masks."""

    def is_named(name: str, words: frozenset[str]) -> bool:
        own = {word for word in _words(name) if not split_word(word)}
        return bool(own & words) and own <= words | PLAIN

    places = [(root, list(classes))]
    places += [
        (root / folder.path, list(folder.folders)) for folder in classes.values()
    ]
    for place, names in places:
        masks = [name for name in names if is_named(name, MASKS)]
        images = [
            name for name in names if is_named(name, IMAGES) and name not in masks
        ]
        if masks and images:
            raise UserError(
                f"the folders {_listed([*images, *masks])} in {shown(place)} seem to "
                "contain images and their masks: remove the masks.",
                where=shown(place),
            )


def _check_mask_files(paths: Sequence[str], at: str) -> None:
    """Raises a UserError if several files are named like masks of other files."""
    stems = {path[: len(path) - len(suffix(path))]: path for path in paths}
    found = [(path, _MASK_NAME.fullmatch(stem)) for stem, path in stems.items()]
    masks = [(path, end[1]) for path, end in found if end and end[1] in stems]
    if len(masks) > 1:
        path, stem = masks[0]
        raise UserError(
            f"class folder {at} seems to contain images and their masks: {len(masks)} "
            f"files are named like {shown(path)}, next to {shown(stems[stem])}. Move the "
            "masks out of the class folders.",
            where=at,
        )


def _passed_through(folder: _Folder, *, stop_at_splits: bool = False) -> _Folder:
    """Returns the first folder on the way down that contains more than one folder."""
    while not folder.images and len(folder.folders) == 1:
        (name,) = folder.folders
        if not folder.folders[name].folders or (stop_at_splits and split_word(name)):
            break
        folder = folder.folders[name]
    return folder


def _inner(folder: _Folder) -> set[str]:
    return {composed(name).lower() for name in _passed_through(folder).folders}


def _words(name: str) -> list[str]:
    """Returns the words of a name, lower case: 'train', 'set', 'trainset' of 'TrainSet'."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return [*map(str.lower, parts), *re.findall(r"[^\W\d_]+", name.lower())]


def _say_only_splits(names: Iterable[str]) -> bool:
    """Returns whether names consist only of words for splits and folds, and plain words."""
    words = [set(re.findall(r"[^\W\d_]+", name.lower())) for name in names]
    plain = PLAIN | FOLDS
    if len(words) > 1:
        plain = plain | set.intersection(*words)
    return all(w in plain or split_word(w) for own in words for w in own)


def _listed(names: Iterable[str]) -> str:
    names = [composed(shown(name)) for name in names]
    more = [f"{len(names) - 6} more"] if len(names) > 6 else []
    return ", ".join([*names[:6], *more])


def _counted(kinds: Iterable[str]) -> str:
    """Returns the most frequent kinds of files, such as '3 .txt, 1 hidden'."""
    common = Counter(kinds).most_common(8)
    return ", ".join(f"{count} {shown(kind)[:20]}" for kind, count in common)


def suffix(path: str) -> str:
    """Returns the suffix of a file name in lower case; '.nii.gz' is one suffix."""
    name = path.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]
