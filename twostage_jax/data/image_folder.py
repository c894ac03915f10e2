"""Reads a folder of class folders of images: grey, colour or Hounsfield units."""

import dataclasses
import functools
import itertools
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from twostage_jax import io
from twostage_jax.data import class_folders, hu_files, image_files, spelling
from twostage_jax.data.class_folders import File
from twostage_jax.data.dataset import (
    SPLITS,
    Example,
    Kind,
    Made,
    Recipe,
    digest,
    largest,
    remarks,
)
from twostage_jax.errors import UserError, require

# Bump when the same files and settings give different examples.
VERSION = 3
FILES_A_TASK = 32


@dataclasses.dataclass(frozen=True)
class Cut:
    """Settings that turn the pixels of a file into examples.

    Attributes:
      size: Height and width of the examples, pixels.
      channels: Number of channels of images not in HU: 1 (grey) or 3 (RGB).
      crop: Side of squares cut from each image, pixels; 0 uses the centre of the whole
        image.
      stride: Distance between neighbouring squares, pixels.
      native: Whether whole images keep their resolution, so that larger images are
        cropped to the central `size` pixels.
      in_hu: Whether the images are in HU.
      offset: Number to add to the stored values of files in HU.
      scale_matters: Whether to warn about resized images.
    """

    size: int
    channels: int
    crop: int
    stride: int
    native: bool
    in_hu: bool
    offset: float
    scale_matters: bool


def recipe(
    *,
    path: str,
    size: int = 32,
    channels: int = 1,
    crop: int = 0,
    stride: int = 0,
    classes: str = "",
    group_regex: str = "",
    group_csv: str = "",
    units: Literal["", "hu", "grey"] = "",
    offset: float = 0.0,
    bits: int = 0,
    name: str = "folder",
    kind: Kind = "natural",
) -> Recipe:
    """Returns the recipe of a folder of class folders, or of splits with class folders.

    Class folders may have sub-folders. Files without the extension of an image, hidden
    files, and images outside the class folders are skipped, with a note that counts them.
    See `class_folders.find` for the choice of classes and splits, and `hu_files` for
    images in HU.

    Args:
      path: Path of the folder.
      size: Height and width of the stored images, pixels; 0 keeps the resolution and
        stores the largest centred square that all images (or crops) have.
      channels: 1 (grey) or 3 (RGB); images in HU always have one channel.
      crop: Side of squares cut from each image, pixels of the file; 0 uses the whole
        image, whose shorter side is resized to `size` and whose centre is kept.
      stride: Distance between neighbouring crops, pixels of the file; 0 = `crop`.
      classes: Names of the class folders, 'normal,fibrosis', for trees in which the
        classes are ambiguous. Empty: found by `class_folders.find`.
      group_regex: Regular expression searched for in each 'class/name.png'; its first
        group names the unit that must not be split between training and test (a patient,
        a material sample). It must not lie within the class; patients (`kind` 'ct') who
        occur in several classes must be named without it.
      group_csv: CSV file with the columns path ('class/name.png') and group, as an
        alternative. Without either, the crops of an image and the patches of a file are a
        group; other whole images are not grouped.
      units: 'hu' for Hounsfield units, stored as int16, to which the stage's `window`
        applies; 'grey' for other images. Empty: HU if values prove it
        (`hu_files.prove`); required if signed values could be either.
      offset: Number to add to the stored values to get HU, such as -1024.
      bits: Bits that images of 16-bit grey use, 1 to 16, if their files do not state
        them; 0: as many as the largest value of the set needs.
      name: Name of the data set.
      kind: Content of the images: 'natural', 'texture' or 'ct'.

    Raises:
      UserError: A setting or the folder is invalid. Images that cannot be decoded are
        found only when the set is prepared.
    """
    image_files.check(size or 1, channels, kind)
    _check_crop(crop, stride)
    require(0 <= bits <= 16, "bits", bits, "1 to 16, or 0")
    known = "'hu', 'grey', or '' for automatic detection"
    require(units in ("", "hu", "grey"), "units", units, known)
    root = Path(path).expanduser()
    found = class_folders.find(root, classes)
    group_of = _grouping(group_regex, group_csv, crop)
    files = [dataclasses.replace(file, group=group_of(file)) for file in found.files]
    notes = [*found.notes]
    in_hu = _in_hu(root, files, units, offset)
    if in_hu:
        notes += _unit_notes(root, files, found.class_names, units, offset)
    shapes = [hu_files.shape(root / file.path) for file in files] if in_hu else []
    if any(count > 1 for count, *_ in shapes) and not any(f.group for f in files):
        # The patches of a file are pieces of one patient.
        files = [dataclasses.replace(file, group=file.id) for file in files]
    _check_groups(root, files)
    if group_regex:
        _check_regex(group_regex, files, kind)
    if group_regex or group_csv:
        notes += _group_notes(files, "group_regex" if group_regex else "group_csv")
    elif kind == "ct" and not any(file.group for file in files):
        notes.append(
            "The images are not grouped, so patches of one patient may be in both "
            "training and test: set group_regex or group_csv."
        )
    side = size or crop or _common_side(root, files, shapes)
    cut = Cut(
        size=side,
        channels=channels,
        crop=crop,
        stride=stride or crop,
        native=not size,
        in_hu=in_hu,
        offset=offset,
        scale_matters=in_hu or kind != "natural",
    )
    stated = {image_files.DEPTH: bits} if bits else {}
    tasks = []
    for start in range(0, len(files), FILES_A_TASK):
        tasks.append(tuple(files[start : start + FILES_A_TASK]))
    return Recipe(
        name=name,
        kind=kind,
        class_names=found.class_names,
        # With the folder, because an archive may give the files of two the same times.
        key=digest(
            "folder",
            VERSION,
            str(root.resolve()),
            cut,
            bits,
            kind,
            found.class_names,
            files,
        ),  # fmt: skip
        tasks=tasks,
        make=functools.partial(make, str(root), cut, found=stated),
        measure=None if in_hu or bits else functools.partial(measure, str(root)),
        found=stated,
        remarks=functools.partial(remarks, tuple(notes)),
        side=cut.size,
    )


def measure(root: str, files: tuple[File, ...]) -> dict[str, float]:
    """Returns the largest value of each measure in files; see `image_files.measure`."""
    return largest(image_files.measure(Path(root) / file.path) for file in files)


def make(
    root: str,
    cut: Cut,
    files: tuple[File, ...],
    found: Mapping[str, float] = MappingProxyType({}),
) -> Made:
    """Returns the examples of some files; `found` has the measures of the whole set.

    Raises:
      UserError: An image cannot be decoded, is smaller than the crop, or has other units
        than the other images.
    """
    made = Made()
    for file in files:
        path = Path(root) / file.path
        if cut.in_hu:
            made.notes.add("files")
            values = hu_files.in_hu(path, cut.offset)
            if values.min() >= 0 and values.max() >= hu_files.LOST_INTERCEPT:
                made.notes.add(
                    "files",
                    "in HU lack values below 0 but have values of 600 or more, as if "
                    "their RescaleIntercept were lost.",
                )
            images = [Image.fromarray(patch) for patch in values]
            made.notes.add("images", count=len(images))
        else:
            shown = io.shown(path)
            images = [
                image_files.read(
                    path, cut.channels, shown, found=found, notes=made.notes
                )
            ]
        for index, image in enumerate(images):
            id = f"{file.id}#{index:05d}" if len(images) > 1 else file.id
            for name, pixels in _squares(image, cut, id, path, made):
                made.append(Example(name, pixels, file.label, file.group, file.split))
    return made


def _squares(
    image: Image.Image, cut: Cut, id: str, path: Path, made: Made
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (id, pixels `[size, size, C]`) of the examples in an image."""
    size, least = cut.size, min(image.size)
    if cut.crop and least < cut.crop:
        raise UserError(
            f"image {io.shown(path)} has {image.width} x {image.height} pixels, less "
            f"than crop = {cut.crop}: lower crop or remove the image.",
            where=io.shown(path),
        )
    if cut.crop:
        squares = {
            f"{id}@{top:05d},{left:05d}": pixels
            for top, left, pixels in image_files.crops(
                image, size, cut.crop, cut.stride
            )
        }
    elif cut.native:
        if max(image.size) > size:
            made.notes.add(
                "images",
                f"are larger than {size} x {size} pixels: only the centre is used.",
            )
        left, top = (image.width - size) // 2, (image.height - size) // 2
        square = image.crop((left, top, left + size, top + size))
        squares = {id: image_files.whole(square, size)}
    else:
        if least != size and cut.scale_matters:
            made.notes.add(
                "images",
                f"are resized to {size} x {size} pixels, which changes the scale of "
                "textures; size=0 keeps it.",
            )
        squares = {id: image_files.whole(image, size)}
    for name, pixels in squares.items():
        yield name, np.rint(pixels).astype(np.int16) if cut.in_hu else pixels


def _check_crop(crop: int, stride: int) -> None:
    require(crop >= 0, "crop", crop, "at least 0 pixels")
    possible = stride == 0 or (stride > 0 and crop)
    require(possible, "stride", stride, "0, or positive if crop is set")


def _in_hu(root: Path, files: Sequence[File], units: str, offset: float) -> bool:
    """Returns whether the images are in HU, by their types; see `_unit_notes`.

    Raises:
      UserError: The types are mixed.
    """
    paths = [file.path for file in files]
    signed = [p for p in paths if p.lower().endswith(hu_files.SIGNED_SUFFIXES)]
    if units == "hu":
        allowed = hu_files.SIGNED_SUFFIXES + hu_files.UNSIGNED_SUFFIXES
        others = [p for p in paths if not p.lower().endswith(allowed)]
        _refuse_mixture(root, others, "units is 'hu'")
        return True
    if offset:
        raise UserError(
            "offset is set, but units is not 'hu': set units='hu', or remove offset.",
            where="offset",
        )
    if units == "grey" or not signed or not hu_files.is_signed(root / signed[0]):
        arrays = [p for p in signed if not p.lower().endswith((".tif", ".tiff"))]
        _refuse_mixture(root, arrays, "grey images are read from image files only")
        return False
    others = sorted({*paths} - {*signed})
    fewer = min(others, signed, key=len)
    _refuse_mixture(root, fewer, "the set has images with and without signed values")
    return True


def _unit_notes(
    root: Path,
    files: Sequence[File],
    class_names: Sequence[str],
    units: str,
    offset: float,
) -> list[str]:
    """Returns a note on classes that, unlike the others, may not be in HU.

    Raises:
      UserError: The values are not HU, or uncertain, so that `units` is required.
    """
    classes = {name: [] for name in class_names}
    for file in files:
        classes[class_names[file.label]].append(file.path)
    unproven = hu_files.prove(root, classes, offset, said=units == "hu")
    if len(unproven) in (0, len(classes)):
        return []
    counted = ", ".join(f"{name} ({len(classes[name])} files)" for name in unproven)
    return [
        f"Some classes have values below {hu_files.PROOF} HU, as lung does, but not "
        f"{counted}: unless these files show soft tissue only, check that they are in HU."
    ]


def _refuse_mixture(root: Path, paths: Sequence[str], reason: str) -> None:
    if paths:
        where = io.shown(root / paths[0])
        raise UserError(
            f"{where} and {len(paths) - 1} more files cannot be used: {reason}. Keep grey "
            "images (PNG, JPEG, TIFF of unsigned 8 or 16 bits) and images in HU (signed "
            "TIFF, .npy, NIfTI) in separate sets, or remove them.",
            where=where,
        )


def _common_side(
    root: Path, files: Sequence[File], shapes: Sequence[tuple[int, int, int]]
) -> int:
    """Returns the side of the largest square that all images have, pixels.

    Raises:
      UserError: One image is so small that this would cut most of the others away.
    """
    sides = {}
    for file, shape in itertools.zip_longest(files, shapes):
        if shape:
            sides[file.path] = min(shape[1:])
            continue
        try:
            with Image.open(root / file.path) as image:
                sides[file.path] = min(image.size)
        except (OSError, ValueError, Image.DecompressionBombError):
            pass  # Refused by name when it is read.
    if not sides:
        return 1
    smallest = min(sides, key=sides.__getitem__)
    usual = statistics.median(sides.values())
    if 2 * sides[smallest] < usual:
        where = io.shown(root / smallest)
        raise UserError(
            f"image {where} has a side of {sides[smallest]} pixels, but half of the images "
            f"have {usual:g} or more, and all would be cut to the smallest: remove it, or "
            "set size to the pixels to resize all images to.",
            where=where,
        )
    return sides[smallest]


def _grouping(group_regex: str, group_csv: str, crop: int) -> Callable[[File], str]:
    if group_regex and group_csv:
        raise UserError(
            "group_regex and group_csv are both set: keep one.", where="group_csv"
        )
    if group_csv:
        table = _group_table(Path(group_csv).expanduser())

        def from_table(file: File) -> str:
            for key in (file.id, file.name):
                if key in table:
                    return table[key]
            raise UserError(
                f"group_csv {group_csv}: a row for '{file.id}' is missing. Its paths look "
                f"like '{next(iter(table), '')}'.",
                where=group_csv,
            )

        return from_table
    if group_regex:
        try:
            pattern = re.compile(io.composed(group_regex))
        except re.error as error:
            raise UserError(
                f"group_regex '{group_regex}': {error}.", where="group_regex"
            ) from None
        if not pattern.groups:
            raise UserError(
                f"group_regex '{group_regex}' lacks a group: put the part that names the "
                "patient or sample in parentheses.",
                where="group_regex",
            )

        def from_name(file: File) -> str:
            match = pattern.search(file.name)
            if not match or not match[1]:
                raise UserError(
                    f"group_regex '{group_regex}' does not match '{file.name}'.",
                    where="group_regex",
                )
            return match[1]

        return from_name
    return (lambda file: file.id) if crop else (lambda file: "")


def _group_table(path: Path) -> Mapping[str, str]:
    table: dict[str, str] = {}
    for line, row in io.read(path, ("path", "group")):
        name = row["path"].replace("\\", "/")  # Of a table written on Windows.
        if table.setdefault(name, row["group"]) != row["group"]:
            raise UserError(
                f"group_csv {path}, line {line}: '{row['path']}' has two groups.",
                where=path,
            )
    return table


def _check_regex(group_regex: str, files: Sequence[File], kind: Kind) -> None:
    """Raises a UserError if the expression finds the class, with or without a patient.

    Samples of materials may be numbered per class; a patient may have several classes.
    """
    pattern = re.compile(io.composed(group_regex))
    groups: dict[str, str] = {}
    for file in files:
        start, end = pattern.search(file.name).span(1)
        slash = file.name.find("/")
        if end <= slash:
            raise UserError(
                f"group_regex '{group_regex}' finds '{file.group}' in '{file.name}', "
                "which is in the name of the class: it must find the patient or sample. "
                "Let it begin at the end of the class, as '/(p\\d+)' does.",
                where="group_regex",
            )
        if kind != "ct" or start > slash:
            continue
        other = groups.setdefault(file.name[slash:end], file.group)
        if other != file.group:
            raise UserError(
                f"group_regex '{group_regex}' finds '{other}' and '{file.group}': one "
                "patient with both classes would count as two. Let it begin at the end "
                "of the class, as '/(p\\d+)' does. If they are two patients, give the "
                "patients as group_csv.",
                where="group_regex",
            )


def _group_notes(files: Sequence[File], setting: str) -> Iterator[str]:
    """Yields notes on the groups that a setting gives."""
    yield from spelling.group_notes((file.group for file in files), setting)
    if len({file.group for file in files}) == len(files):
        yield (
            f"Every file is a group of its own by {setting}. If several files are of one "
            "patient or sample, they may be in both training and test: change it."
        )


def _check_groups(root: Path, files: Sequence[File]) -> None:
    split_of: dict[str, str] = {}
    for file in files:
        if file.group and split_of.setdefault(file.group, file.split) != file.split:
            both = sorted((split_of[file.group], file.split), key=SPLITS.index)
            raise UserError(
                f"data folder {root}: group '{file.group}' is in both "
                f"{' and '.join(both)} (at {file.id}): a group must not be "
                "split.",
                where=root,
            )
