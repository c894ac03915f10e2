"""Regions of DICOM segmentations (SEG): binary, fractional and label maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from twostage_jax.ct import geometry, loading, pixels
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.frames import MAX_FRAMES
from twostage_jax.ct.refusing import refusing
from twostage_jax.ct.rois import Key, Load, clean_label, merge
from twostage_jax.errors import UserError

SEGMENTATION = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
)


def referenced_series(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """Returns the SeriesInstanceUIDs that a segmentation refers to."""
    series = dataset.get("ReferencedSeriesSequence") or ()
    return tuple(str(item.SeriesInstanceUID) for item in series)


def labels(dataset: pydicom.Dataset) -> dict[int, str]:
    """Returns the label of each segment number."""
    return {
        int(item.SegmentNumber): clean_label(str(item.get("SegmentLabel") or ""))
        for item in dataset.get("SegmentSequence") or ()
    }


def read(
    path: Path, headers: Sequence[Header], class_names: Sequence[str]
) -> dict[Key, Load]:
    """Returns the label masks of the slices of one series.

    Segments whose label is no class name are left out. Frames are placed by where they
    lie, by the nearest pixel.

    Raises:
      UserError: The file cannot be trusted, or has a region where there is no slice.
    """
    with refusing(path):
        dataset = loading.load(path, pixels=True)
        stack = geometry.Stack(headers)
        stack.check_reference(str(dataset.get("FrameOfReferenceUID") or ""), path)
        drawn = _regions(dataset, path, stack, class_names)
    return {
        headers[index].key: lambda index=index: merge(
            drawn[index], headers[index].shape
        )
        for index in drawn
    }


def _regions(
    dataset: pydicom.Dataset,
    path: Path,
    stack: geometry.Stack,
    class_names: Sequence[str],
) -> dict[int, list[tuple[int, np.ndarray]]]:
    """Returns, by the index of the slice, (class index, mask `[H, W]`) pairs."""
    shape, number = _check_image(dataset, path)
    names = labels(dataset)
    wanted = {k: class_names.index(v) for k, v in names.items() if v in class_names}
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    drawn: dict[int, list[tuple[int, np.ndarray]]] = {}
    lost: dict[str, list[float]] = {}
    for frame in range(number):
        own = dataset.PerFrameFunctionalGroupsSequence[frame]
        segment = _segment(own, shared)
        if segment is not None and segment not in wanted:
            continue
        image = pixel_array(dataset, index=frame, raw=True)
        masks = [
            (k, mask)
            for k, mask in _masks(dataset, image, segment)
            if k in wanted and mask.any()
        ]
        if not masks:
            continue
        on = _plane(own, shared, shape)
        index = stack.at(np.array(on.position))
        if index is None:
            for k, _ in masks:
                lost.setdefault(names[k], []).append(on.position[2])
            continue
        at = stack.planes[index]
        for k, mask in masks:
            mask = geometry.sampled(mask, on, at)
            drawn.setdefault(index, []).append((wanted[k], mask))
    if lost:
        segments = [
            f"{len(heights)} of segment '{name}', the first at z = {heights[0]:g} mm"
            for name, heights in lost.items()
        ]
        raise UserError(
            f"{path}: has frames where there is no slice: {'; '.join(segments)}. Was a "
            "slice left out?"
        )
    return drawn


def _check_image(dataset: pydicom.Dataset, path: Path) -> tuple[tuple[int, int], int]:
    """Returns ((rows, columns), frames) after a look at whether they can be."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    number = int(dataset.get("NumberOfFrames") or 1)
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if max(rows, columns) > pixels.MAX_SIDE or not 0 < number <= MAX_FRAMES:
        raise UserError(f"{path}: claims {number} frames of {rows} x {columns} pixels.")
    if described != number:
        raise UserError(
            f"{path}: has {number} frames, but describes {described} of them."
        )
    return (rows, columns), number


def _segment(own: pydicom.Dataset, shared: pydicom.Dataset) -> int | None:
    """Returns the segment that a frame shows; None if its values are the segments."""
    items = own.get("SegmentIdentificationSequence") or shared.get(
        "SegmentIdentificationSequence"
    )
    return int(items[0].ReferencedSegmentNumber) if items else None


def _masks(
    dataset: pydicom.Dataset, image: np.ndarray, segment: int | None
) -> list[tuple[int, np.ndarray]]:
    if segment is None:
        return [(int(k), image == k) for k in np.unique(image) if k]
    if dataset.SegmentationType == "FRACTIONAL":
        half = int(dataset.MaximumFractionalValue) / 2
        return [(segment, image >= half)]
    return [(segment, image > 0)]


def _plane(
    own: pydicom.Dataset, shared: pydicom.Dataset, shape: tuple[int, int]
) -> geometry.Plane:
    def value(group: str, keyword: str) -> tuple[float, ...]:
        items = own.get(group) or shared.get(group)
        return tuple(float(v) for v in items[0].get(keyword))

    return geometry.Plane(
        shape,
        value("PixelMeasuresSequence", "PixelSpacing"),
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
    )
