"""Finds files of regions in a folder tree, the slices that they mark, and class names."""

import dataclasses
import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

import numpy as np

from twostage_jax import io
from twostage_jax.ct.decode import refusing, skipping
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions import FORMATS, nifti
from twostage_jax.ct.regions.base import (
    Draw,
    Format,
    Key,
    Labels,
    Load,
    Numbered,
    Query,
    clean_label,
    merge,
)
from twostage_jax.ct.regions.masks import file_stem
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.folders import Skipped, walk

ROIS, LUNGS = "rois", "lungs"
# Value of marked pixels in masks of a single class that are saved as images.
WHITE = 255


@dataclasses.dataclass(frozen=True)
class RoiFile:
    """File of regions.

    Attributes:
      path: Path of the file.
      format: Format of the file.
      home: Folder of the slices that the file may mark if it does not name the series.
      series, labels, empty: Contents of the file; see `regions.base.Contents`.
    """

    path: Path
    format: Format
    home: Path
    series: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    empty: int = 0


def find(
    root: Path, given: Path | None, left_out: Skipped, of_slices: Container[Path] = ()
) -> tuple[list[RoiFile], list[RoiFile], Skipped]:
    """Returns files of regions, files of lung masks, and (path, reason) of the others.

    Args:
      root: Folder of the slices. Without `given`, regions are read from its `rois`
        folders at any depth, its MedGIFT contour files, and its SEG and RTSTRUCT
        objects.
      given: File of regions, or folder of such files. Files in a sub-folder that do not
        name a series belong to the slices in the sub-folder of that name below `root`.
      left_out: (path, reason) of the files below `root` without slices.
      of_slices: Folders that directly contain slices. If `root` is one of them, its
        slices are also those of sub-folders of `given` that it lacks.

    Raises:
      UserError: A file of regions is broken.
    """
    regions: list[RoiFile] = []
    lungs: list[RoiFile] = []
    rest: Skipped = []
    if given is None:
        entries = [(path, root, why) for path, why in left_out]
    else:
        paths, above = [given], given.parent
        if given.is_dir():
            tree = walk(given)
            paths, rest, above = tree.files, tree.skipped, given
        entries = [(path, above, "not a file of regions") for path in paths]
        listed = {*paths, *(path for path, _ in rest)}
        for path, why in left_out:
            if _is_in(path, root, LUNGS):
                entries.append((path, root, why))
            elif path not in listed:
                rest.append((path, why))
    for path, above, why in entries:
        within = root if path.is_relative_to(root) else above
        marked = _is_in(path, within, ROIS) or given is not None
        home = _home(path, above, root)
        if root in of_slices and not home.is_dir():
            home = root
        file = _recognised(path, home, marked or _is_in(path, within, LUNGS))
        if marked and file is None and nifti.is_pair(path.with_suffix(".hdr")):
            continue  # The voxels of a pair of files.
        if file is None:
            rest.append((path, why))
        elif file.empty and not file.labels:
            rest.append((path, "its regions do not enclose an area"))
        else:
            (lungs if _is_in(path, within, LUNGS) else regions).append(file)
    return regions, lungs, rest


def assign(
    files: Iterable[RoiFile], headers: Sequence[Header], *, go_on: bool = False
) -> tuple[dict[str, list[RoiFile]], Skipped]:
    """Returns the files by hash of the patient, and (path, reason) of the others.

    Args:
      files: Files of regions.
      headers: Slices of all patients.
      go_on: Skip, and list, files that would be refused.

    Raises:
      UserError: A file names a missing series, or does not belong to exactly one
        patient, and `go_on` is false.
    """
    by_uid = defaultdict(set)
    by_name = defaultdict(list)
    by_folder = defaultdict(set)
    for header in headers:
        for uid in (header.sop_uid, header.series_uid):
            by_uid[uid].add(header.patient)
        by_name[file_stem(header.path)].append(header)
        by_folder[header.path.parent].add(header.patient)
    for folder in list(by_folder):
        for above in folder.parents:
            by_folder[above] |= by_folder[folder]
    found: dict[str, list[RoiFile]] = defaultdict(list)
    skipped: Skipped = []
    for file in files:
        with skipping(file.path, skipped if go_on else None), refusing(file.path):
            for patient in _patients(file, by_uid, by_name, by_folder):
                found[patient].append(file)
    return dict(found), skipped


def labelled(
    files: Sequence[RoiFile],
    headers: Sequence[Header],
    class_names: Sequence[str],
    salt: str = "",
) -> tuple[dict[Key, Callable[[], Labels]], list[Numbered]]:
    """Returns functions that read the label masks of a patient's slices with regions.

    The second value is the positions of mask files that are not named after UIDs.

    If several files with labels mark a slice, their masks are merged, and pixels of two
    classes become 0.

    Args:
      files: Files of one patient.
      headers: The patient's slices.
      class_names: Classes in label order.
      salt: Secret mixed into the patients' hashes.

    Raises:
      UserError: Regions do not fit the slices.
    """
    names = [clean_label(name) for name in class_names]
    numbers, numbered = _numbers([file for file in files if file.format.load], headers)
    named = defaultdict(list)
    by_key = {header.key: header for header in headers}
    present = {header.series_uid for header in headers}
    for file in files:
        if file.format.draw:
            query = Query(
                file.path,
                candidates(file, headers),
                names,
                salt,
                named_only=not present.issuperset(file.series),
            )
            for key, draw in file.format.draw(query).items():
                named[key].append(draw)
    found = {
        key: functools.partial(_checked, load, len(names), by_key[key])
        for key, load in numbers.items()
    }
    for key, draws in named.items():
        if key in found:
            path = by_key[key].path
            raise UserError.at(
                path,
                "has a mask of numbers as well as regions with labels. Keep one of "
                "them.",
            )
        found[key] = functools.partial(_merged, draws, by_key[key])
    return found, numbered


def numbered_masks(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> tuple[dict[Key, Load], list[Numbered]]:
    """Returns functions that read masks `[H, W]` of numbers, such as lung masks, by slice.

    The second value is the positions of mask files that are not named after UIDs.

    Raises:
      UserError: A mask does not fit the slices, or a file is not a mask.
    """
    for file in files:
        if not file.format.load:
            raise UserError.at(file.path, "lung masks are images, arrays or NIfTI.")
    return _numbers(files, headers)


def given_classes(root: Path, classes: str) -> tuple[str, ...]:
    """Returns the class names given by the setting `classes` or by a file, or ().

    Args:
      root: Folder of the slices; may contain `classes.json` or `classes.csv`.
      classes: 'normal,ggo', or the name of a file below `root`: JSON (a list of names)
        or CSV (columns value, name).

    Raises:
      UserError: The setting or the file does not name distinct classes.
    """
    if not classes:
        found = [f for f in ("classes.json", "classes.csv") if (root / f).is_file()]
        classes = found[0] if found else ""
    if classes.lower().endswith((".json", ".csv")):
        if not (root / classes).is_file():
            raise UserError(
                f"classes = '{classes}': the folder of the slices lacks this file.",
                where="classes",
            )
        return _read_names(root / classes)
    return io.split_names(classes, "classes") if classes else ()


def occurring_classes(root: Path, regions: Sequence[RoiFile]) -> tuple[str, ...]:
    """Returns the sorted labels in files of regions.

    Raises:
      UserError: There are none, or some files have numbers instead of labels.
    """
    labels = {label for file in regions for label in file.labels if label}
    if not labels or not all(file.labels for file in regions):
        raise UserError(
            f"{root}: name the classes, in the order of the mask values 1, 2, ..., in "
            "the setting 'classes' or in classes.json.",
            where="classes",
        )
    return tuple(sorted(labels))


def check_classes(names: Sequence[str], regions: Sequence[RoiFile]) -> None:
    """Raises a UserError if all regions have labels, and a class has no region."""
    labels = {label for file in regions for label in file.labels}
    if not all(file.labels for file in regions):
        return
    for name in names:
        if clean_label(name) not in labels:
            hint = did_you_mean(name, labels)
            raise UserError(
                f"classes: regions with the label '{name}' are missing.{hint}",
                where="classes",
            )


def candidates(file: RoiFile, headers: Sequence[Header]) -> list[Header]:
    """Returns those slices of a patient that a file may mark."""
    if file.series:
        return [h for h in headers if h.series_uid in file.series]
    name, folder = stem(file.path), file.path.parent.name
    exact = [h for h in headers if name in (h.sop_uid, h.series_uid)]
    exact = exact or [h for h in headers if h.series_uid == folder]
    return exact or [h for h in headers if h.path.is_relative_to(file.home)]


def stem(path: Path) -> str:
    """Returns the name of a file without its extension, '.nii.gz' included."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def _recognised(path: Path, home: Path, marked: bool) -> RoiFile | None:
    """Returns a file of regions, or None; `marked` if it lies in a folder for regions."""
    for form in FORMATS:
        contents = form.recognise(path) if marked or form.anywhere else None
        if contents is not None:
            return RoiFile(path, form, home, *contents)
    return None


def _home(path: Path, above: Path, root: Path) -> Path:
    """Returns the folder below `root` that corresponds to that of `path` below `above`."""
    parts = path.parent.relative_to(above).parts
    for name in (ROIS, LUNGS):
        if name in parts:
            parts = parts[: parts.index(name)]
    return root.joinpath(*parts)


def _is_in(path: Path, root: Path, name: str) -> bool:
    return path.is_relative_to(root) and name in path.parent.relative_to(root).parts


def _patients(
    file: RoiFile,
    by_uid: dict[str, set[str]],
    by_name: dict[str, list[Header]],
    by_folder: dict[Path, set[str]],
) -> list[str]:
    if file.series:
        missing = [uid for uid in file.series if uid not in by_uid]
        if len(missing) == len(file.series) or (
            missing and file.format.needs_every_series
        ):
            raise UserError(f"marks series {', '.join(missing)}, which is missing.")
        return sorted(set.union(*(by_uid.get(uid, set()) for uid in file.series)))
    for uid in (stem(file.path), file.path.parent.name):
        if len(by_uid.get(uid, ())) == 1:
            return sorted(by_uid[uid])
    patients = by_folder.get(file.home, set())
    if len(patients) != 1 and file.format.named_like_slices:
        named = by_name.get(file_stem(file.path), ())
        patients = {h.patient for h in named if h.path.is_relative_to(file.home)}
    if len(patients) != 1:
        raise UserError(
            f"does not name a series, and {file.home} has slices of "
            f"{len(by_folder.get(file.home, ()))} patients. Name the file after the "
            "SOPInstanceUID or the SeriesInstanceUID, or its folder after that of the "
            "patient's slices."
        )
    return sorted(patients)


def _numbers(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> tuple[dict[Key, Load], list[Numbered]]:
    found: dict[Key, Load] = {}
    numbered = []
    by_folder = defaultdict(list)
    for file in files:
        by_folder[file.path.parent].append(file.path)
    for file in files:
        query = Query(
            file.path,
            candidates(file, headers),
            together=by_folder[file.path.parent],
        )
        loads, placed = file.format.load(query)
        numbered += [placed] if placed else []
        if not found.keys().isdisjoint(loads):
            raise UserError.at(
                file.path, "its slice has a second mask, in another file."
            )
        found |= loads
    return found, numbered


def _checked(load: Load, num_classes: int, header: Header) -> Labels:
    labels = load().astype(np.int64)
    if num_classes == 1 and np.isin(labels, (0, WHITE)).all():
        labels //= WHITE
    if labels.min() < 0 or labels.max() > num_classes:
        raise UserError.at(
            header.path,
            f"its mask of regions has values {labels.min()} to {labels.max()}; "
            f"{num_classes} classes allow 0 to {num_classes}. Name all classes in the "
            "setting 'classes'.",
        )
    counts = np.bincount(labels.ravel(), minlength=num_classes + 1)[1:]
    marked = {index: int(count) for index, count in enumerate(counts) if count}
    return Labels(labels, marked, {})


def _merged(draws: Sequence[Draw], header: Header) -> Labels:
    return merge([claim for draw in draws for claim in draw()], header.shape)


def _read_names(path: Path) -> tuple[str, ...]:
    """Returns the names in a JSON list, or in a CSV file with columns value, name."""
    is_json = path.suffix.lower() == ".json"
    with refusing(path, "JSON" if is_json else "CSV"):
        names = _read_json(path) if is_json else _read_table(path)
        cleaned = [clean_label(name) for name in names]
        if not all(cleaned) or not 0 < len(cleaned) == len(set(cleaned)):
            raise UserError(
                "each class must be named once; found "
                f"{', '.join(map(repr, names)) or 'none'}."
            )
    return tuple(names)


def _read_json(path: Path) -> list[str]:
    names = json.loads(io.decoded(path))
    if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
        raise UserError('must contain a list of names, as in ["normal", "fibrosis"].')
    return [io.composed(str(name)).strip() for name in names]


def _read_table(path: Path) -> list[str]:
    named: dict[int, str] = {}
    for line, row in io.read(path, ("value", "name")):
        # Spreadsheets may write whole numbers with a fraction.
        value = re.fullmatch(r"0*([1-9]\d{0,3})(?:[.,]0+)?", row["value"])
        if not value or int(value[1]) in named:
            raise UserError(
                f"line {line}: the value must be an integer from 1 that occurs in one "
                f"row only; it is '{row['value'][:40]}'."
            )
        named[int(value[1])] = row["name"]
    if sorted(named) != list(range(1, len(named) + 1)):
        raise UserError(
            "the values must be 1, 2, ... without a gap; they are "
            f"{', '.join(map(str, sorted(named))) or 'missing'}."
        )
    return [named[value] for value in sorted(named)]
