"""Regions of DICOM segmentations (SEG): binary, fractional and label maps."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from twostage_jax.ct import decode, geometry
from twostage_jax.ct.decode import refusing
from twostage_jax.ct.regions.base import (
    Claim,
    Contents,
    Draw,
    Format,
    Key,
    Query,
    clean_label,
)
from twostage_jax.errors import UserError

SEGMENTATION = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
)
# Direction cosines are rounded to a few decimals. At 1 degree, the corners of a slice of
# 400 mm are 7 mm apart; `geometry.Stack.place` checks their distance from the slice.
PARALLEL_DEGREES = 1.0


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a segmentation, or None for other files."""
    if decode.storage_class(path) not in SEGMENTATION:
        return None
    with refusing(path):
        dataset = decode.load(path, pixels=False)
        series = dataset.get("ReferencedSeriesSequence") or ()
        return Contents(
            tuple(str(item.SeriesInstanceUID) for item in series),
            tuple(sorted({*_labels(dataset).values()})),
        )


def draw(query: Query) -> dict[Key, Draw]:
    """Returns a function per slice that gives its regions.

    A frame belongs to the slice in whose plane it lies; if it names its source images
    (Derivation Image, PS3.3 C.7.6.16.2.5), the slice must be one of them. Each pixel of
    the slice takes the value of the nearest pixel of the frame.

    Raises:
      UserError: The file cannot be trusted, or a region does not lie on any slice.
    """
    with refusing(query.path):
        dataset = decode.load(query.path, pixels=True)
        drawn = _regions(dataset, geometry.Stack(query.headers), query)
    return {
        query.headers[index].key: lambda index=index: drawn[index]
        for index in sorted(drawn)
    }


FORMAT = Format(recognise, draw=draw, anywhere=True)


def _labels(dataset: pydicom.Dataset) -> dict[int, str]:
    """Returns the labels by segment number."""
    return {
        int(item.SegmentNumber): clean_label(str(item.get("SegmentLabel") or ""))
        for item in dataset.get("SegmentSequence") or ()
    }


def _regions(
    dataset: pydicom.Dataset, stack: geometry.Stack, query: Query
) -> dict[int, list[Claim]]:
    """Returns the claims of slices by index."""
    class_names = query.class_names
    shape = int(dataset.Rows), int(dataset.Columns)
    number = int(dataset.get("NumberOfFrames") or 1)
    if max(shape) > decode.MAX_SIDE:
        raise UserError(f"claims {shape[0]} x {shape[1]} pixels.")
    decode.check_frames(dataset, number)
    names = _labels(dataset)
    wanted = {k: class_names.index(v) for k, v in names.items() if v in class_names}
    reference = str(dataset.get("FrameOfReferenceUID") or "")
    listed = {
        str(instance.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
    }
    drawn: dict[int, list[Claim]] = {}
    lost: dict[str, list[float]] = {}
    for frame in range(number):
        group = decode.functional_groups(dataset, frame)
        named = group("SegmentIdentificationSequence")
        # Without a segment, the values of the pixels are segment numbers.
        segment = int(named[0].ReferencedSegmentNumber) if named else None
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
        on = _plane(group, shape, frame)
        _check_parallel(on, stack, frame)
        index = stack.place(
            geometry.corners(on),
            _sources(group),
            f"its frame {frame + 1}",
            reference=reference,
            listed=listed,
            named_only=query.named_only,
        )
        if index is None:
            for k, _ in masks:
                lost.setdefault(names[k], []).append(on.position[2])
            continue
        at = stack.planes[index]
        for k, mask in masks:
            _check_inside(mask, on, at, f"segment '{names[k]}', frame {frame + 1}")
            mask = geometry.sampled(mask, on, at)
            drawn.setdefault(index, []).append((wanted[k], mask))
    if lost:
        segments = [
            f"{len(heights)} of segment '{name}', the first at z = {heights[0]:g} mm"
            for name, heights in lost.items()
        ]
        raise UserError(
            f"has frames that do not lie on any slice: {'; '.join(segments)}. "
            "Was it drawn on another series, or is a slice missing?"
        )
    return drawn


def _check_parallel(on: geometry.Plane, stack: geometry.Stack, frame: int) -> None:
    turned = stack.turned(on)
    if turned > PARALLEL_DEGREES:
        raise UserError(
            f"its frame {frame + 1} is not parallel to the slices of "
            f"{stack.headers[0].path.parent}, but turned by {turned:.1f} degrees: it "
            "was drawn on a reformatted volume. Resample the segmentation to the "
            "slices."
        )


def _check_inside(
    mask: np.ndarray, on: geometry.Plane, at: geometry.Plane, what: str
) -> None:
    outside = ~geometry.inside(geometry.centres(on)[mask], at)
    if outside.any():
        raise UserError(
            f"{what}: {100 * outside.mean():.0f} % of what it marks lies outside "
            "the pixels of its slice. It was drawn on another series, or the slice was "
            "cropped."
        )


def _sources(group: decode.Groups) -> set[tuple[str, int | None]]:
    """Returns the source images of a frame in the form of `Stack.place`."""
    found = set()
    for derivation in group("DerivationImageSequence"):
        for source in derivation.get("SourceImageSequence") or ():
            found |= geometry.named_by(source)
    return found


def _masks(
    dataset: pydicom.Dataset, image: np.ndarray, segment: int | None
) -> list[tuple[int, np.ndarray]]:
    if segment is None:
        return [(int(k), image == k) for k in np.unique(image) if k]
    if dataset.SegmentationType == "FRACTIONAL":
        half = int(dataset.MaximumFractionalValue) / 2
        return [(segment, image >= half)]
    return [(segment, image > 0)]


def _plane(group: decode.Groups, shape: tuple[int, int], frame: int) -> geometry.Plane:
    def value(name: str, keyword: str) -> tuple[float, ...]:
        items = group(name)
        values = items[0].get(keyword) if items else None
        if not values:
            raise UserError(
                f"{keyword} of its frame {frame + 1} is missing, so that the "
                "position of the frame is unknown."
            )
        return tuple(float(v) for v in values)

    return geometry.Plane(
        shape,
        value("PixelMeasuresSequence", "PixelSpacing"),
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
    )
