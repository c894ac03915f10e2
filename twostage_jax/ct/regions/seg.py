"""Regions of DICOM segmentations (SEG): binary, fractional and label maps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.pixels import pixel_array

from twostage_jax.ct import decode, geometry
from twostage_jax.ct.decode import MAX_FRAMES, refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions.masks import Claim, Draw, Key, clean_label
from twostage_jax.errors import UserError

SEGMENTATION = (
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
)
# Direction cosines are written with a few decimals. At 1 degree the corners of a slice of
# 400 mm lie 7 mm apart; how near they must be, `geometry.Stack.place` decides.
PARALLEL_DEGREES = 1.0


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
    path: Path,
    headers: Sequence[Header],
    class_names: Sequence[str],
    *,
    named_only: bool = False,
) -> dict[Key, Draw]:
    """Returns the regions of slices.

    Segments whose label is not a class name are skipped. A frame belongs to the slice
    in whose plane it lies, which must be one of its source images (Derivation Image,
    PS3.3 C.7.6.16.2.5) if it names them; pixels meet by the nearest one.

    Args:
      path: The segmentation.
      headers: The slices that it may mark.
      class_names: In label order.
      named_only: Refuse frames that do not name a source image.

    Raises:
      UserError: The file cannot be trusted, or has a region where there is no slice.
    """
    with refusing(path):
        dataset = decode.load(path, pixels=True)
        stack = geometry.Stack(headers)
        drawn = _regions(dataset, path, stack, class_names, named_only)
    return {
        headers[index].key: lambda index=index: drawn[index] for index in sorted(drawn)
    }


def _regions(
    dataset: pydicom.Dataset,
    path: Path,
    stack: geometry.Stack,
    class_names: Sequence[str],
    named_only: bool,
) -> dict[int, list[Claim]]:
    """Returns the claims of each slice by its index."""
    shape, number = _check_image(dataset, path)
    names = labels(dataset)
    wanted = {k: class_names.index(v) for k, v in names.items() if v in class_names}
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    reference = str(dataset.get("FrameOfReferenceUID") or "")
    listed = {
        str(instance.ReferencedSOPInstanceUID)
        for series in dataset.get("ReferencedSeriesSequence") or ()
        for instance in series.get("ReferencedInstanceSequence") or ()
    }
    drawn: dict[int, list[Claim]] = {}
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
        on = _plane(own, shared, shape, frame, path)
        _check_parallel(on, stack, frame, path)
        index = stack.place(
            geometry.corners(on),
            _sources(own, shared),
            f"its frame {frame + 1}",
            path,
            reference=reference,
            listed=listed,
            named_only=named_only,
        )
        if index is None:
            for k, _ in masks:
                lost.setdefault(names[k], []).append(on.position[2])
            continue
        at = stack.planes[index]
        for k, mask in masks:
            _check_inside(
                mask, on, at, f"segment '{names[k]}', frame {frame + 1}", path
            )
            mask = geometry.sampled(mask, on, at)
            drawn.setdefault(index, []).append((wanted[k], mask))
    if lost:
        segments = [
            f"{len(heights)} of segment '{name}', the first at z = {heights[0]:g} mm"
            for name, heights in lost.items()
        ]
        raise UserError(
            f"{path}: has frames where there is no slice: {'; '.join(segments)}. Was it "
            "drawn on another series, or is a slice missing?",
            where=path,
        )
    return drawn


def _check_image(dataset: pydicom.Dataset, path: Path) -> tuple[tuple[int, int], int]:
    """Returns ((rows, columns), frames) after a look at whether they can be."""
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    number = int(dataset.get("NumberOfFrames") or 1)
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if max(rows, columns) > decode.MAX_SIDE or not 0 < number <= MAX_FRAMES:
        raise UserError(
            f"{path}: claims {number} frames of {rows} x {columns} pixels.", where=path
        )
    if described != number:
        raise UserError(
            f"{path}: has {number} frames, but describes {described} of them.",
            where=path,
        )
    return (rows, columns), number


def _check_parallel(
    on: geometry.Plane, stack: geometry.Stack, frame: int, path: Path
) -> None:
    turned = stack.turned(on)
    if turned > PARALLEL_DEGREES:
        raise UserError(
            f"{path}: its frame {frame + 1} is not parallel to the slices of "
            f"{stack.headers[0].path.parent}, but turned by {turned:.1f} degrees: it "
            "was drawn on a reformatted volume. Resample the segmentation to the "
            "slices.",
            where=path,
        )


def _check_inside(
    mask: np.ndarray, on: geometry.Plane, at: geometry.Plane, what: str, path: Path
) -> None:
    outside = ~geometry.inside(geometry.centres(on)[mask], at)
    if outside.any():
        raise UserError(
            f"{path}: {what}: {100 * outside.mean():.0f} % of what it marks lies beside "
            "the pixels of its slice: it was drawn on another series, or the slice was "
            "cropped.",
            where=path,
        )


def _segment(own: pydicom.Dataset, shared: pydicom.Dataset) -> int | None:
    """Returns the segment that a frame shows; None if its values are the segments."""
    items = own.get("SegmentIdentificationSequence") or shared.get(
        "SegmentIdentificationSequence"
    )
    return int(items[0].ReferencedSegmentNumber) if items else None


def _sources(
    own: pydicom.Dataset, shared: pydicom.Dataset
) -> set[tuple[str, int | None]]:
    """Returns the images that a frame was derived from, as `Stack.place` takes them."""
    derivations = own.get("DerivationImageSequence") or shared.get(
        "DerivationImageSequence"
    )
    found = set()
    for derivation in derivations or ():
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


def _plane(
    own: pydicom.Dataset,
    shared: pydicom.Dataset,
    shape: tuple[int, int],
    frame: int,
    path: Path,
) -> geometry.Plane:
    def value(group: str, keyword: str) -> tuple[float, ...]:
        items = own.get(group) or shared.get(group)
        values = items[0].get(keyword) if items else None
        if not values:
            raise UserError(
                f"{path}: {keyword} of its frame {frame + 1} is missing: the frame does "
                "not say where it lies.",
                where=path,
            )
        return tuple(float(v) for v in values)

    return geometry.Plane(
        shape,
        value("PixelMeasuresSequence", "PixelSpacing"),
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
    )
