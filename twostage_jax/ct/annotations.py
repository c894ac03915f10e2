"""Files of regions in a folder tree: which there are, and whose slices they mark."""

import dataclasses
import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax import io
from twostage_jax.ct import decode
from twostage_jax.ct.decode import refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions import masks, nifti, rtstruct, seg, table
from twostage_jax.ct.regions.masks import clean_label
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.folders import Skipped, walk

ROIS, LUNGS = "rois", "lungs"


@dataclasses.dataclass(frozen=True)
class RoiFile:
    """A file of regions.

    Attributes:
      path: Of the file.
      kind: 'mask' (PNG, TIFF, NumPy), 'nifti', 'seg', 'rtstruct', 'csv' or 'medgift'.
      home: The folder in whose slices its regions lie, if it does not name the series.
      series: SeriesInstanceUIDs that it names.
      labels: What it calls its regions; none if it numbers them.
      empty: Number of its regions and contours that enclose nothing, such as points.
    """

    path: Path
    kind: str
    home: Path
    series: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    empty: int = 0


def find(
    root: Path, given: Path | None, left_out: Skipped
) -> tuple[list[RoiFile], list[RoiFile], Skipped]:
    """Returns files of regions, files of lung masks, and what is neither.

    Args:
      root: Folder of the slices. Without `given`, regions are its `rois` folders at
        any depth, its MedGIFT contour files, and its SEG and RTSTRUCT objects.
      given: A file of regions, or a folder of them; below it, files that do not name a
        series belong to the slices in the folder of the same name below `root`.
      left_out: (path, reason) of the files below `root` that hold no slices.

    Raises:
      UserError: A file of regions is broken.
    """
    regions: list[RoiFile] = []
    lungs: list[RoiFile] = []
    rest: Skipped = []
    if given is None:
        above = root
        places = [(path, _home(path, root, root), why) for path, why in left_out]
    else:
        paths = [given]
        if given.is_dir():
            tree = walk(given)
            paths, rest = tree.files, tree.skipped
        above = given if given.is_dir() else given.parent
        why = "no file of regions"
        places = [(path, _home(path, above, root), why) for path in paths]
        listed = {*paths, *(path for path, _ in rest)}
        rest += [
            (path, why)
            for path, why in left_out
            if not _is_in(path, root, LUNGS) and path not in listed
        ]
        places += [
            (path, _home(path, root, root), why)
            for path, why in left_out
            if _is_in(path, root, LUNGS)
        ]
    for path, home, why in places:
        within = root if path.is_relative_to(root) else above
        marked = _is_in(path, within, ROIS) or given is not None
        file = _recognised(path, home, marked or _is_in(path, within, LUNGS))
        if marked and file is None and nifti.is_pair(path.with_suffix(".hdr")):
            continue  # voxels of a pair of files
        if file is None:
            rest.append((path, why))
        elif file.empty and not file.labels:
            rest.append((path, "none of its regions encloses an area"))
        else:
            (lungs if _is_in(path, within, LUNGS) else regions).append(file)
    return regions, lungs, rest


def assign(
    files: Iterable[RoiFile], headers: Sequence[Header], *, go_on: bool = False
) -> tuple[dict[str, list[RoiFile]], Skipped]:
    """Returns the files of each patient (a hash), and (path, reason) of the others.

    Raises:
      UserError: A file names a series that is not there, or could belong to several
        patients or to none, and `go_on` is false.
    """
    by_uid = defaultdict(set)
    by_name = defaultdict(list)
    by_folder = defaultdict(set)
    for header in headers:
        for uid in (header.sop_uid, header.series_uid):
            by_uid[uid].add(header.patient)
        by_name[masks.file_stem(header.path)].append(header)
        by_folder[header.path.parent].add(header.patient)
    for folder in list(by_folder):
        for above in folder.parents:
            by_folder[above] |= by_folder[folder]
    found: dict[str, list[RoiFile]] = defaultdict(list)
    skipped: Skipped = []
    for file in files:
        try:
            for patient in _patients(file, by_uid, by_name, by_folder):
                found[patient].append(file)
        except UserError as error:
            if not go_on:
                raise
            skipped.append((file.path, str(error)))
    return dict(found), skipped


def _home(path: Path, above: Path, root: Path) -> Path:
    """Returns the folder below `root` that is named like that of `path`."""
    parts = path.parent.relative_to(above).parts
    for name in (ROIS, LUNGS):
        if name in parts:
            parts = parts[: parts.index(name)]
    home = root.joinpath(*parts)
    return home if home.is_dir() else root


def _is_in(path: Path, root: Path, name: str) -> bool:
    return path.is_relative_to(root) and name in path.parent.relative_to(root).parts


def stem(path: Path) -> str:
    """Returns a file's name without its ending, which for NIfTI may have two parts."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def _recognised(path: Path, home: Path, marked: bool) -> RoiFile | None:
    """Returns what kind of regions a file holds, or None.

    Images, arrays and tables are taken for regions only in a place for them (`marked`).
    """
    name = path.name.lower()
    if marked and path.suffix.lower() in masks.MASK_SUFFIXES:
        return RoiFile(path, "mask", home)
    if marked and (name.endswith(nifti.SUFFIXES) or nifti.is_pair(path)):
        return RoiFile(path, "nifti", home)
    if marked and name.endswith(".csv") and name != "classes.csv":
        rows = [row.values for row in table.rows_of(path)]
        series = sorted({row["series"] for row in rows})
        labels = sorted({masks.clean_label(row["label"]) for row in rows})
        return RoiFile(path, "csv", home, tuple(series), tuple(labels))
    if name.endswith(".txt") and masks.is_medgift(path):
        labels = sorted({region[0] for region in masks.read_medgift(path)[1]})
        return RoiFile(path, "medgift", home, (), tuple(labels))
    if decode.is_dicom(path):
        return _recognised_dicom(path, home)
    return None


def _recognised_dicom(path: Path, home: Path) -> RoiFile | None:
    with refusing(path):
        sop_class = str(decode.peek(path, "SOPClassUID").get("SOPClassUID") or "")
        if sop_class in seg.SEGMENTATION:
            kind, module = "seg", seg
        elif sop_class == rtstruct.STRUCTURE_SET:
            kind, module = "rtstruct", rtstruct
        else:
            return None
        dataset = decode.load(path, pixels=False)
        series = module.referenced_series(dataset)
        labels = module.labels(dataset)
        empty = module.count_empty(dataset) if module is rtstruct else 0
    return RoiFile(path, kind, home, series, tuple(sorted({*labels.values()})), empty)


def _patients(
    file: RoiFile,
    by_uid: dict[str, set[str]],
    by_name: dict[str, list[Header]],
    by_folder: dict[Path, set[str]],
) -> list[str]:
    if file.series:
        # Regions on a series that is not there are found when they are read; rows of a
        # table would be skipped.
        missing = [uid for uid in file.series if uid not in by_uid]
        if len(missing) == len(file.series) or (missing and file.kind == "csv"):
            raise UserError(
                f"{file.path}: marks series {', '.join(missing)}, which is not there.",
                where=file.path,
            )
        return sorted(set.union(*(by_uid.get(uid, set()) for uid in file.series)))
    for uid in (stem(file.path), file.path.parent.name):
        if len(by_uid.get(uid, ())) == 1:
            return sorted(by_uid[uid])
    patients = by_folder.get(file.home, set())
    if len(patients) != 1 and file.kind == "mask":
        named = by_name.get(masks.file_stem(file.path), ())
        patients = {h.patient for h in named if h.path.is_relative_to(file.home)}
    if len(patients) != 1:
        raise UserError(
            f"{file.path}: there are slices of {len(by_folder.get(file.home, ()))} "
            f"patients in {file.home}, and the file does not name a series: name it "
            "after the SOPInstanceUID or the SeriesInstanceUID.",
            where=file.path,
        )
    return sorted(patients)


# The label masks that a patient's files of regions give for the patient's slices.


# Contour files round the spacing.
SPACING_TOLERANCE = 0.01
MEDGIFT_SLICE = re.compile(r"CT-.*\d{4}\.dcm$", re.IGNORECASE)


class Regions(NamedTuple):
    """The regions of a patient's slices.

    Attributes:
      labels: Reader of the label mask of each slice that has regions.
      numbered: How mask files were placed that are not named after UIDs.
    """

    labels: dict[masks.Key, Callable[[], masks.Labels]]
    numbered: list[masks.Numbered]


def labelled(
    files: Sequence[RoiFile],
    headers: Sequence[Header],
    class_names: Sequence[str],
    salt: str = "",
) -> Regions:
    """Returns the regions of a patient's slices.

    Where files of the kinds that name their labels mark the same slice, their masks
    are merged; pixels of two classes are 0.

    Args:
      files: Files of one patient.
      headers: The patient's slices.
      class_names: In label order.
      salt: Secret mixed into the patients' hashes.

    Raises:
      UserError: Regions do not fit the slices.
    """
    names = [masks.clean_label(name) for name in class_names]
    own = [f for f in files if not f.labels and f.kind in ("mask", "nifti")]
    numbers, numbered = _numbers(own, headers)
    named = defaultdict(list)
    by_key = {header.key: header for header in headers}
    for file in files:
        if file not in own:
            for key, draw in _read_named(file, headers, names, salt).items():
                named[key].append(draw)
    found = {
        key: functools.partial(_checked, load, len(names), by_key[key])
        for key, load in numbers.items()
    }
    for key, draws in named.items():
        if key in found:
            path = by_key[key].path
            raise UserError(
                f"{path}: has a mask of numbers, and regions with labels: give one of "
                "them.",
                where=path,
            )
        found[key] = functools.partial(_merged, draws, by_key[key])
    return Regions(found, numbered)


def numbered_masks(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> tuple[dict[masks.Key, masks.Load], list[masks.Numbered]]:
    """Returns what reads each slice's mask `[H, W]` of numbers, such as lung masks.

    And how mask files were placed that are not named after UIDs.

    Raises:
      UserError: A mask does not fit the slices, or a file holds none.
    """
    for file in files:
        if file.kind not in ("mask", "nifti"):
            raise UserError(
                f"{file.path}: lung masks are images, arrays or NIfTI.", where=file.path
            )
    return _numbers(files, headers)


def candidates(file: RoiFile, headers: Sequence[Header]) -> list[Header]:
    """Returns the slices, out of one patient's, that a file may mark."""
    if file.series:
        return [h for h in headers if h.series_uid in file.series]
    name, folder = stem(file.path), file.path.parent.name
    exact = [h for h in headers if name in (h.sop_uid, h.series_uid)]
    exact = exact or [h for h in headers if h.series_uid == folder]
    return exact or [h for h in headers if h.path.is_relative_to(file.home)]


def _numbers(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> tuple[dict[masks.Key, masks.Load], list[masks.Numbered]]:
    found: dict[masks.Key, masks.Load] = {}
    numbered = []
    by_folder = defaultdict(list)
    for file in files:
        by_folder[file.path.parent].append(file.path)
    for file in files:
        own = candidates(file, headers)
        if file.kind == "mask":
            beside = by_folder[file.path.parent]
            new, placed = masks.mask_of(file.path, own, beside)
            numbered += [placed] if placed else []
        else:
            new = nifti.read(file.path, _one_series(file, own))
        masks.add_masks(found, new, file.path)
    return found, numbered


def _read_named(
    file: RoiFile, headers: Sequence[Header], names: Sequence[str], salt: str
) -> dict[masks.Key, masks.Draw]:
    own = candidates(file, headers)
    if file.kind == "medgift":
        return _medgift(file.path, own, names)
    if file.kind == "csv":
        return table.read(file.path, own, names, salt)
    module = {"seg": seg, "rtstruct": rtstruct}[file.kind]
    # A region that does not name its slice could belong to a series that is not there.
    present = {header.series_uid for header in headers}
    named_only = not present.issuperset(file.series)
    return module.read(file.path, own, names, named_only=named_only)


def _one_series(file: RoiFile, headers: Sequence[Header]) -> Sequence[Header]:
    number = len({header.series_uid for header in headers})
    if number != 1:
        raise UserError(
            f"{file.path}: could belong to any of {number} series: name it after the "
            "SeriesInstanceUID of its own.",
            where=file.path,
        )
    return headers


def _checked(load: masks.Load, num_classes: int, header: Header) -> masks.Labels:
    labels = load().astype(np.int64)
    if labels.min() < 0 or labels.max() > num_classes:
        raise UserError(
            f"{header.path}: its mask of regions has values {labels.min()} to "
            f"{labels.max()}; {num_classes} classes allow 0 to {num_classes}. Name all "
            "classes in the setting 'classes'.",
            where=header.path,
        )
    counts = np.bincount(labels.ravel(), minlength=num_classes + 1)[1:]
    marked = {index: int(count) for index, count in enumerate(counts) if count}
    return masks.Labels(labels, marked, {})


def _merged(draws: Sequence[masks.Draw], header: Header) -> masks.Labels:
    return masks.merge([claim for draw in draws for claim in draw()], header.shape)


def _medgift(
    text: Path, headers: Sequence[Header], names: Sequence[str]
) -> dict[masks.Key, masks.Draw]:
    drawn = defaultdict(list)
    (x_mm, y_mm), regions = masks.read_medgift(text)
    by_number = _medgift_slices(text, headers, {number for _, number, _ in regions})
    for label, number, points in regions:
        if label not in names:
            continue
        if number not in by_number:
            raise UserError(
                f"{text}: has a region on slice {number}; no file has it.", where=text
            )
        header = by_number[number]
        if header.spacing is not None and not np.allclose(
            header.spacing, (y_mm, x_mm), rtol=SPACING_TOLERANCE
        ):
            raise UserError(
                f"{text}: spacing {x_mm} x {y_mm} mm; slice {number} says "
                f"{header.spacing[1]} x {header.spacing[0]} mm.",
                where=text,
            )
        drawn[number].append((names.index(label), points))
    return {
        by_number[number].key: functools.partial(
            masks.draw_regions, regions, by_number[number].shape
        )
        for number, regions in drawn.items()
    }


def _medgift_slices(
    text: Path, headers: Sequence[Header], used: set[int]
) -> dict[int, Header]:
    """Returns the slices by the numbers at the ends of their files' names.

    So the format has it, for files called `CT-*-NNNN.dcm`. For others, InstanceNumber
    must agree, or takes the place of names without numbers.
    """
    by_name, by_instance = defaultdict(list), defaultdict(list)
    for header in headers:
        by_name[masks.file_number(header.path)].append(header)
        by_instance[header.number].append(header)
    by_name.pop(None, None)
    found = {}
    for number in sorted(used):
        named, other = by_name.get(number, []), by_instance.get(number, [])
        slices = named if by_name else other
        if len(slices) > 1:
            raise UserError(
                f"{text}: slice {number} could be any of {len(slices)}, such as "
                f"{slices[0].path} and {slices[1].path}.",
                where=text,
            )
        if not slices:
            continue
        (found[number],) = slices
        path = found[number].path
        if other and found[number] not in other and not MEDGIFT_SLICE.match(path.name):
            raise UserError(
                f"{text}: slice {number} could be either of two: {path} by the name of "
                f"its file, {other[0].path} by InstanceNumber. Name the files as the "
                "data set does: CT-*-NNNN.dcm.",
                where=text,
            )
    return found


# The class names of annotated CT slices: from a setting, a file, or the regions.


def given(root: Path, classes: str) -> tuple[str, ...]:
    """Returns the names that the setting `classes`, or a file in `root`, gives; or ().

    Args:
      root: Folder of the slices, and of `classes.json` or `classes.csv`.
      classes: 'normal,ggo', or the name of a file below `root`: JSON (a list of names)
        or CSV (columns value, name).

    Raises:
      UserError: The file does not name classes.
    """
    if not classes:
        found = [f for f in ("classes.json", "classes.csv") if (root / f).is_file()]
        classes = found[0] if found else ""
    if classes.lower().endswith((".json", ".csv")):
        return _read(root / classes)
    return io.split_names(classes, "classes") if classes else ()


def occurring(root: Path, regions: Sequence[RoiFile]) -> tuple[str, ...]:
    """Returns the labels that files of regions use, sorted.

    Raises:
      UserError: Some files number their regions.
    """
    labels = {label for file in regions for label in file.labels if label}
    if not labels or not all(file.labels for file in regions):
        raise UserError(
            f"{root}: name the classes, in the order of the mask values 1, 2, ...: in "
            "the setting 'classes' or in classes.json."
        )
    return tuple(sorted(labels))


def check(names: Sequence[str], regions: Sequence[RoiFile]) -> None:
    """Raises a UserError for a class that no region has, where all regions say theirs."""
    labels = {label for file in regions for label in file.labels}
    if not all(file.labels for file in regions):
        return
    for name in names:
        if clean_label(name) not in labels:
            hint = did_you_mean(name, labels)
            raise UserError(
                f"classes: no region is labelled '{name}'.{hint}", where="classes"
            )


def _read(path: Path) -> tuple[str, ...]:
    """Returns the names of a JSON list, or of a CSV with columns value, name."""
    if path.suffix.lower() == ".json":
        names = _read_json(path)
    else:
        names = _read_table(path)
    cleaned = [clean_label(name) for name in names]
    doubled = [name for name in names if cleaned.count(clean_label(name)) > 1]
    if not names or not all(cleaned) or doubled:
        raise UserError(
            f"{path}: the classes need names, each once; found "
            f"{', '.join(map(repr, names)) or 'none'}.",
            where=path,
        )
    return tuple(names)


def _read_json(path: Path) -> list[str]:
    try:
        names = json.loads(io.decoded(path))
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read as JSON: {error}.", where=path
        ) from None
    if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
        raise UserError(
            f'{path}: must hold a list of names, as in ["normal", "fibrosis"].',
            where=path,
        )
    return [io.composed(str(name)).strip() for name in names]


def _read_table(path: Path) -> list[str]:
    named: dict[int, str] = {}
    for line, row in io.read(path, ("value", "name")):
        # Spreadsheets may write whole numbers with a fraction.
        value = re.fullmatch(r"0*([1-9]\d{0,3})(?:[.,]0+)?", row["value"])
        if not value or int(value[1]) in named:
            raise UserError(
                f"{path}, line {line}: the value must be a whole number from 1, and "
                f"stand in one row only; it is '{row['value'][:40]}'.",
                where=path,
            )
        named[int(value[1])] = row["name"]
    if sorted(named) != list(range(1, len(named) + 1)):
        raise UserError(
            f"{path}: the values must be 1, 2, ... without a gap; they are "
            f"{', '.join(map(str, sorted(named))) or 'missing'}.",
            where=path,
        )
    return [named[value] for value in sorted(named)]
