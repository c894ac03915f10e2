"""The label masks that a patient's files of regions give for the patient's slices."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax.ct import roi_nifti, roi_rtstruct, roi_seg, roi_table, rois
from twostage_jax.ct.dicom import Header
from twostage_jax.data.annotations import RoiFile, stem
from twostage_jax.errors import UserError

# Contour files round the spacing.
SPACING_TOLERANCE = 0.01
MEDGIFT_SLICE = re.compile(r"CT-.*\d{4}\.dcm$", re.IGNORECASE)


class Regions(NamedTuple):
    """The regions of a patient's slices.

    Attributes:
      labels: Reader of the label mask of each slice that has regions.
      numbered: How mask files were placed that are not named after UIDs.
    """

    labels: dict[rois.Key, Callable[[], rois.Labels]]
    numbered: list[rois.Numbered]


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
    names = [rois.clean_label(name) for name in class_names]
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


def masks(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> tuple[dict[rois.Key, rois.Load], list[rois.Numbered]]:
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
) -> tuple[dict[rois.Key, rois.Load], list[rois.Numbered]]:
    found: dict[rois.Key, rois.Load] = {}
    numbered = []
    by_folder = defaultdict(list)
    for file in files:
        by_folder[file.path.parent].append(file.path)
    for file in files:
        own = candidates(file, headers)
        if file.kind == "mask":
            beside = by_folder[file.path.parent]
            new, placed = rois.mask_of(file.path, own, beside)
            numbered += [placed] if placed else []
        else:
            new = roi_nifti.read(file.path, _one_series(file, own))
        rois.add_masks(found, new, file.path)
    return found, numbered


def _read_named(
    file: RoiFile, headers: Sequence[Header], names: Sequence[str], salt: str
) -> dict[rois.Key, rois.Draw]:
    own = candidates(file, headers)
    if file.kind == "medgift":
        return _medgift(file.path, own, names)
    if file.kind == "csv":
        return roi_table.read(file.path, own, names, salt)
    module = {"seg": roi_seg, "rtstruct": roi_rtstruct}[file.kind]
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


def _checked(load: rois.Load, num_classes: int, header: Header) -> rois.Labels:
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
    return rois.Labels(labels, marked, {})


def _merged(draws: Sequence[rois.Draw], header: Header) -> rois.Labels:
    return rois.merge([claim for draw in draws for claim in draw()], header.shape)


def _medgift(
    text: Path, headers: Sequence[Header], names: Sequence[str]
) -> dict[rois.Key, rois.Draw]:
    drawn = defaultdict(list)
    (x_mm, y_mm), regions = rois.read_medgift(text)
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
            rois.draw_regions, regions, by_number[number].shape
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
        by_name[rois.file_number(header.path)].append(header)
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
