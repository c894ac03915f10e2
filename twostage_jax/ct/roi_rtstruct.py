"""Regions of DICOM structure sets (RTSTRUCT): closed planar contours."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom

from twostage_jax.ct import geometry, loading
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.refusing import refusing
from twostage_jax.ct.rois import Key, Load, clean_label, fill_contour, merge
from twostage_jax.errors import UserError

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
Contours = dict[tuple[int, int, int], list[np.ndarray]]


def referenced_series(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """Returns the SeriesInstanceUIDs that a structure set refers to."""
    return tuple(
        str(series.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
    )


def labels(dataset: pydicom.Dataset) -> dict[int, str]:
    """Returns the name of each ROI number."""
    return {
        int(item.ROINumber): clean_label(str(item.get("ROIName") or ""))
        for item in dataset.get("StructureSetROISequence") or ()
    }


def read(
    path: Path, headers: Sequence[Header], class_names: Sequence[str]
) -> dict[Key, Load]:
    """Returns the label masks of the slices of one series.

    ROIs whose name is no class name are left out. Of the contours of one ROI on one
    slice, those that lie inside of others are holes.

    Raises:
      UserError: The file cannot be trusted, or has a contour where there is no slice.
    """
    with refusing(path):
        dataset = loading.load(path, pixels=False)
        stack = geometry.Stack(headers)
        contours = _contours(dataset, path, stack, class_names)
    found = {}
    for index in sorted({key[0] for key in contours}):
        regions = [(key[2], c) for key, c in contours.items() if key[0] == index]
        shape = headers[index].shape
        found[headers[index].key] = lambda regions=regions, shape=shape: merge(
            [(k, _filled(parts, shape)) for k, parts in regions], shape
        )
    return found


def _contours(
    dataset: pydicom.Dataset,
    path: Path,
    stack: geometry.Stack,
    class_names: Sequence[str],
) -> Contours:
    """Returns contours `[n, 2]` (column, row) by slice index, ROI and class index."""
    names = labels(dataset)
    wanted = {k: class_names.index(v) for k, v in names.items() if v in class_names}
    for item in dataset.get("StructureSetROISequence") or ():
        if int(item.ROINumber) in wanted:
            reference = str(item.get("ReferencedFrameOfReferenceUID") or "")
            stack.check_reference(reference, path)
    contours: Contours = defaultdict(list)
    for roi, contour in _drawn(dataset):
        if roi not in wanted:
            continue
        if contour.get("ContourGeometricType") not in CLOSED:
            raise UserError(
                f"{path}: ROI {names[roi]!r} has a contour that is "
                f"{contour.get('ContourGeometricType')}, not closed and planar."
            )
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        if len(points) < 3 or not np.isfinite(points).all():
            raise UserError(f"{path}: ROI {names[roi]!r} has a contour of no area.")
        index = _slice_of(contour, points, f"{path}: ROI {names[roi]!r}", stack)
        flat = geometry.to_pixels(points, stack.planes[index])[:, :2]
        contours[index, roi, wanted[roi]].append(flat)
    return contours


def _drawn(dataset: pydicom.Dataset) -> Iterator[tuple[int, pydicom.Dataset]]:
    for item in dataset.get("ROIContourSequence") or ():
        for contour in item.get("ContourSequence") or ():
            yield int(item.ReferencedROINumber), contour


def _slice_of(
    contour: pydicom.Dataset, points: np.ndarray, name: str, stack: geometry.Stack
) -> int:
    """Returns the index of the slice on which a contour was drawn, of ROI `name`."""
    images = contour.get("ContourImageSequence") or ()
    uids = [str(image.ReferencedSOPInstanceUID) for image in images]
    found = {stack.at(point) for point in points}
    index = found.pop()
    if found or index is None:
        named = f" (slice {uids[0]})" if uids else ""
        raise UserError(
            f"{name} has a contour where there is no slice, at z = {points[0, 2]:g} mm"
            f"{named}."
        )
    if uids and stack.headers[index].sop_uid not in uids:
        raise UserError(
            f"{name} has a contour that names slice {uids[0]}, but lies on another."
        )
    return index


def _filled(parts: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for points in parts:
        mask ^= fill_contour(points, shape)
    return mask
