"""The label masks that a patient's files of regions give for the patient's slices."""

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct import roi_nifti, roi_rtstruct, roi_seg, roi_table, rois
from twostage_jax.ct.dicom import Header
from twostage_jax.data.annotations import RoiFile, stem
from twostage_jax.errors import UserError

# Contour files round the spacing.
SPACING_TOLERANCE = 0.01


def labelled(
    files: Sequence[RoiFile],
    headers: Sequence[Header],
    class_names: Sequence[str],
    salt: str = "",
) -> dict[rois.Key, rois.Load]:
    """Returns what reads the label mask `[H, W]` of each slice that has regions.

    Where files of the kinds that name their labels mark the same slice, their masks
    are merged; pixels of two classes are left out.

    Args:
      files: Of one patient.
      headers: Of the patient's slices.
      class_names: In label order.
      salt: Of the patients' hashes.

    Raises:
      UserError: Regions do not fit the slices.
    """
    names = [rois.clean_label(name) for name in class_names]
    numbered: dict[rois.Key, rois.Load] = {}
    named = defaultdict(list)
    by_key = {header.key: header for header in headers}
    for file in files:
        own = candidates(file, headers)
        if not file.labels and file.kind in ("mask", "nifti"):
            rois.add_masks(numbered, _read_numbered(file, own), file.path)
            continue
        for key, load in _read_named(file, own, names, salt).items():
            named[key].append(load)
    found = {
        key: functools.partial(_checked, load, len(names), by_key[key])
        for key, load in numbered.items()
    }
    for key, loads in named.items():
        if key in found:
            raise UserError(
                f"{by_key[key].path}: has a mask of numbers, and regions with labels: "
                "give one of them."
            )
        found[key] = functools.partial(_merged, loads, len(names), by_key[key])
    return found


def masks(
    files: Sequence[RoiFile], headers: Sequence[Header]
) -> dict[rois.Key, rois.Load]:
    """Returns what reads each slice's mask `[H, W]` of numbers, such as lung masks.

    Raises:
      UserError: A mask does not fit the slices, or a file holds none.
    """
    found: dict[rois.Key, rois.Load] = {}
    for file in files:
        if file.kind not in ("mask", "nifti"):
            raise UserError(f"{file.path}: lung masks are images, arrays or NIfTI.")
        new = _read_numbered(file, candidates(file, headers))
        rois.add_masks(found, new, file.path)
    return found


def candidates(file: RoiFile, headers: Sequence[Header]) -> list[Header]:
    """Returns the slices, out of one patient's, that a file may mark."""
    if file.series:
        return [h for h in headers if h.series_uid in file.series]
    name, folder = stem(file.path), file.path.parent.name
    exact = [h for h in headers if name in (h.sop_uid, h.series_uid)]
    exact = exact or [h for h in headers if h.series_uid == folder]
    return exact or [h for h in headers if h.path.is_relative_to(file.home)]


def _read_numbered(
    file: RoiFile, headers: Sequence[Header]
) -> dict[rois.Key, rois.Load]:
    if file.kind == "mask":
        return rois.mask_of(file.path, headers)
    return roi_nifti.read(file.path, _one_series(file, headers))


def _read_named(
    file: RoiFile, headers: Sequence[Header], names: Sequence[str], salt: str
) -> dict[rois.Key, rois.Load]:
    if file.kind == "medgift":
        return _medgift(file.path, headers, names)
    if file.kind == "csv":
        return roi_table.read(file.path, headers, names, salt)
    module = {"seg": roi_seg, "rtstruct": roi_rtstruct}[file.kind]
    return module.read(file.path, _one_series(file, headers), names)


def _one_series(file: RoiFile, headers: Sequence[Header]) -> Sequence[Header]:
    number = len({header.series_uid for header in headers})
    if number != 1:
        raise UserError(
            f"{file.path}: could belong to any of {number} series: name it after the "
            "SeriesInstanceUID of its own."
        )
    return headers


def _checked(load: rois.Load, num_classes: int, header: Header) -> np.ndarray:
    labels = load().astype(np.int64)
    if labels.min() < 0 or labels.max() > num_classes:
        raise UserError(
            f"{header.path}: its mask of regions has values {labels.min()} to "
            f"{labels.max()}; {num_classes} classes allow 0 to {num_classes}. Name all "
            "classes in the setting 'classes'."
        )
    return labels


def _merged(loads: list[rois.Load], num_classes: int, header: Header) -> np.ndarray:
    if len(loads) == 1:
        return loads[0]()
    parts = [load() for load in loads]
    pairs = [(k, part == k + 1) for part in parts for k in range(num_classes)]
    return rois.merge(pairs, header.shape)


def _medgift(
    text: Path, headers: Sequence[Header], names: Sequence[str]
) -> dict[rois.Key, rois.Load]:
    by_number: dict[int, Header] = {}
    for header in headers:
        number = re.search(r"(\d+)$", header.path.stem)
        if number and by_number.setdefault(int(number[1]), header) is not header:
            raise UserError(f"{header.path}: a second file with number {number[1]}.")
    drawn = defaultdict(list)
    (x_mm, y_mm), regions = rois.read_medgift(text)
    for label, number, points in regions:
        if label not in names:
            continue
        if number not in by_number:
            raise UserError(f"{text}: has a region on slice {number}; no file has it.")
        header = by_number[number]
        if header.spacing is not None and not np.allclose(
            header.spacing, (y_mm, x_mm), rtol=SPACING_TOLERANCE
        ):
            raise UserError(
                f"{text}: spacing {x_mm} x {y_mm} mm; slice {number} says "
                f"{header.spacing[1]} x {header.spacing[0]} mm."
            )
        drawn[number].append((names.index(label), points))
    return {
        by_number[number].key: functools.partial(
            rois.draw_regions, regions, by_number[number].shape
        )
        for number, regions in drawn.items()
    }
