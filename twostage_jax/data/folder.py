"""A folder of class folders of images."""

import csv
import dataclasses
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from twostage_jax.data import image_files
from twostage_jax.data.dataset import (
    SPLITS,
    Example,
    Kind,
    Made,
    Recipe,
    digest,
    largest,
)
from twostage_jax.errors import UserError

# Raised when the same files and settings give other examples.
VERSION = 2
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"}
SUFFIXES |= {".tif", ".tiff", ".webp"}
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
FILES_A_TASK = 32

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class File:
    """An image file, and what it counts as.

    Attributes:
      path: Below the data set's folder.
      name: 'class/name.png': the path without the train or test folder.
      label: Index of the class.
      group: What must not be split, or empty.
      split: 'train', 'validation' or 'test'.
      stamp: Size in bytes and modification time in ns.
    """

    path: str
    name: str
    label: int
    group: str
    split: str
    stamp: tuple[int, int]


def recipe(
    *,
    path: str,
    size: int = 32,
    channels: int = 1,
    crop: int = 0,
    stride: int = 0,
    group_regex: str = "",
    group_csv: str = "",
    name: str = "folder",
    kind: Kind = "natural",
) -> Recipe:
    """Returns the recipe of a folder of class folders, or train/test folders of such.

    Class folders may have folders in them. Files that are not images (by their suffix)
    and hidden ones are skipped, with a warning that lists them.

    Args:
      path: The folder. If all folders in it are called train, validation (or val,
        valid) or test, the classes are one level below, and the set is split thus.
      size: Height and width of the stored images, pixels.
      channels: 1 (grey) or 3 (RGB).
      crop: Side of squares cut from each image, pixels of the file; 0 takes the whole
        image: its shorter side is resized to `size` and the centre is kept.
      stride: Distance between neighbouring crops, pixels of the file; 0 = `crop`.
      group_regex: Searched for in each 'class/name.png'; its first group is what must
        not be split between train and test (a patient, a material sample).
      group_csv: A CSV file with the columns path ('class/name.png') and group, instead.
        Without either, the crops of an image are a group, and whole images have none.
      name: What to call the data set.
      kind: 'natural', 'texture' or 'ct': what the images show; changes no image.

    Raises:
      UserError: A setting or the folder is not as described here. Images are looked at
        only when the recipe is carried out.
    """
    image_files.check(size, channels, kind)
    _check_crop(crop, stride)
    root = Path(path).expanduser()
    classes, found = _find(root)
    group_of = _grouping(group_regex, group_csv, crop)
    files = [dataclasses.replace(file, group=group_of(file)) for file in found]
    _check_groups(root, files)
    settings = (size, channels, crop, stride or crop)
    tasks = []
    # A task is of one class and split, but nothing depends on that.
    for start in range(0, len(files), FILES_A_TASK):
        tasks.append(tuple(files[start : start + FILES_A_TASK]))
    return Recipe(
        name=name,
        kind=kind,
        class_names=classes,
        key=digest("folder", VERSION, settings, kind, classes, files),
        tasks=tasks,
        make=functools.partial(make, str(root), *settings),
        measure=functools.partial(measure, str(root)),
    )


def measure(root: str, files: tuple[File, ...]) -> dict[str, float]:
    """Returns the largest of each measure of some files (see `image_files.measure`)."""
    return largest(image_files.measure(Path(root) / file.path) for file in files)


def make(
    root: str,
    size: int,
    channels: int,
    crop: int,
    stride: int,
    files: tuple[File, ...],
    found: Mapping[str, float] = MappingProxyType({}),
) -> Made:
    """Returns the examples of some files; `found` holds the whole set's measures.

    Raises:
      UserError: An image cannot be decoded or is smaller than the crop.
    """
    examples = Made()
    for file in files:
        path = Path(root) / file.path
        image = image_files.read(path, channels, found=found, notes=examples.notes)
        if not crop:
            cut = {file.path: image_files.whole(image, size)}
        elif min(image.size) < crop:
            raise UserError(
                f"image {path} is {image.width} x {image.height} pixels, smaller than "
                f"crop = {crop}: lower crop or remove it."
            )
        else:
            cut = {
                f"{file.path}@{top:05d},{left:05d}": pixels
                for top, left, pixels in image_files.crops(image, size, crop, stride)
            }
        examples += [
            Example(id, pixels, file.label, file.group, file.split)
            for id, pixels in cut.items()
        ]
    return examples


def _check_crop(crop: int, stride: int) -> None:
    if crop < 0 or stride < 0:
        raise UserError(f"crop is {crop}, stride {stride}: neither may be negative.")
    if stride and not crop:
        raise UserError(
            f"stride is {stride}, but crop is not set: set both or neither."
        )


def _find(root: Path) -> tuple[tuple[str, ...], list[File]]:
    """Returns the class names and the image files, without their groups."""
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist or is no folder.")
    skipped: list[str] = []
    top = _folders(root)
    splits = {folder: SPLIT_FOLDERS.get(folder.lower()) for folder in top}
    if "train" in splits.values() and None in splits.values():
        others = ", ".join(folder for folder in top if splits[folder] is None)
        raise UserError(
            f"data folder {root} has a train folder beside {others}: keep nothing but "
            "train, validation and test there, or nothing but classes."
        )
    if not top or None in splits.values():
        places = {"": "train"}
    elif "train" not in splits.values():
        raise UserError(f"data folder {root} has {', '.join(top)} but no train folder.")
    else:
        places = {f"{folder}/": split for folder, split in splits.items() if split}
    class_of = {prefix: _folders(root / prefix) for prefix in places}
    train = {
        c for prefix in places if places[prefix] == "train" for c in class_of[prefix]
    }
    classes = tuple(sorted(train))
    if not classes:
        raise UserError(
            f"data folder {root} has no class folders: give it one folder of images a "
            "class."
        )
    files = []
    for prefix, split in places.items():
        for class_name in class_of[prefix]:
            if class_name not in classes:
                raise UserError(
                    f"class folder {root / prefix / class_name}: there is no class "
                    f"'{class_name}' in the train folder."
                )
            label = classes.index(class_name)
            images = list(_images(root, f"{prefix}{class_name}", skipped))
            if not images:
                raise UserError(
                    f"class folder {root / prefix / class_name} has no images."
                )
            files += [
                File(image, image.removeprefix(prefix), label, "", split, stamp)
                for image, stamp in images
            ]
    if skipped:
        listed = ", ".join(skipped[:10]) + (", ..." if len(skipped) > 10 else "")
        log.warning("%s: %d files skipped: %s", root, len(skipped), listed)
    return classes, files


def _folders(path: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(path)
        if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    )


def _images(
    root: Path, folder: str, skipped: list[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yields (path below root, (size, modification time)), sorted; lists the others."""
    for entry in sorted(os.scandir(root / folder), key=lambda entry: entry.name):
        path = f"{folder}/{entry.name}"
        if entry.name.startswith("."):
            skipped.append(path)
        elif entry.is_dir(follow_symlinks=False):
            yield from _images(root, path, skipped)
        elif os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            skipped.append(path)
        else:
            try:
                status = entry.stat()
            except OSError as error:
                raise UserError(
                    f"image {root / path} cannot be read: {error}"
                ) from None
            yield path, (status.st_size, status.st_mtime_ns)


def _grouping(group_regex: str, group_csv: str, crop: int) -> Callable[[File], str]:
    if group_regex and group_csv:
        raise UserError("group_regex and group_csv are both set: keep one.")
    if group_csv:
        table = _group_table(Path(group_csv).expanduser())

        def from_table(file: File) -> str:
            for key in (file.path, file.name):
                if key in table:
                    return table[key]
            raise UserError(f"group_csv {group_csv} has no line for '{file.path}'.")

        return from_table
    if group_regex:
        try:
            pattern = re.compile(group_regex)
        except re.error as error:
            raise UserError(f"group_regex '{group_regex}': {error}.") from None
        if not pattern.groups:
            raise UserError(
                f"group_regex '{group_regex}' has no group: put what names the patient "
                "or sample in parentheses."
            )

        def from_name(file: File) -> str:
            match = pattern.search(file.name)
            if not match or not match[1]:
                raise UserError(
                    f"group_regex '{group_regex}' finds nothing in '{file.name}'."
                )
            return match[1]

        return from_name
    return (lambda file: file.path) if crop else (lambda file: "")


def _group_table(path: Path) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"group_csv {path} cannot be read: {error}.") from None
    table: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        key, group = (row.get("path") or "").strip(), (row.get("group") or "").strip()
        if not key or not group:
            raise UserError(
                f"group_csv {path}, line {line}: needs the columns path and group."
            )
        if table.setdefault(key, group) != group:
            raise UserError(f"group_csv {path}, line {line}: '{key}' has two groups.")
    return table


def _check_groups(root: Path, files: list[File]) -> None:
    split_of: dict[str, str] = {}
    for file in files:
        if file.group and split_of.setdefault(file.group, file.split) != file.split:
            both = sorted((split_of[file.group], file.split), key=SPLITS.index)
            raise UserError(
                f"data folder {root}: group '{file.group}' is in both "
                f"{' and '.join(both)} (at {file.path}): a group must not be split."
            )
