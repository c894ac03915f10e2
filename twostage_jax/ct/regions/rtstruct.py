"""Regions of DICOM structure sets (RTSTRUCT): closed planar contours."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from scipy import spatial

from twostage_jax.ct import decode, geometry
from twostage_jax.ct.decode import refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions.masks import Claim, Draw, Key, clean_label, fill_contour
from twostage_jax.errors import UserError

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED, XOR, POINT = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "POINT"
# Contours are written with rounded coordinates: 0.1 mm in pixels of 0.5 mm. One that
# leaves another by less, in pixels, lies inside of it.
INSIDE_PIXELS = 0.25
# Distance between points of a contour at which it is compared with another, in pixels.
COMPARED_PIXELS = 0.5

Contours = dict[tuple[int, int, int], list[tuple[str, np.ndarray]]]


def referenced_series(dataset: pydicom.Dataset) -> tuple[str, ...]:
    """Returns the SeriesInstanceUIDs that a structure set refers to."""
    return tuple(str(item.SeriesInstanceUID) for item in _series(dataset))


def labels(dataset: pydicom.Dataset) -> dict[int, str]:
    """Returns the name of each ROI number that has a contour with an area.

    Points and ROIs without contours enclose nothing (PS3.3 C.8.8.6.1).
    """
    names = _names(dataset)
    drawn = {roi for roi, contour in _drawn(dataset) if not _is_empty(contour)}
    return {roi: name for roi, name in names.items() if roi in drawn}


def count_empty(dataset: pydicom.Dataset) -> int:
    """Returns the number of ROIs that enclose nothing, and of such contours of others."""
    names = labels(dataset)
    contours = (roi in names and _is_empty(part) for roi, part in _drawn(dataset))
    return len(_names(dataset)) - len(names) + sum(contours)


def read(
    path: Path,
    headers: Sequence[Header],
    class_names: Sequence[str],
    *,
    named_only: bool = False,
) -> dict[Key, Draw]:
    """Returns the regions of slices.

    ROIs whose name is not a class name are skipped. A contour belongs to the slice in
    whose plane it lies, which must be one of its images (Contour Image Sequence) if it
    names them. For the contours of an ROI on a slice, see `area`.

    Args:
      path: The structure set.
      headers: The slices that it may mark.
      class_names: In label order.
      named_only: Refuse contours that do not name their slice.

    Raises:
      UserError: The file cannot be trusted, or has a contour where there is no slice.
    """
    with refusing(path):
        dataset = decode.load(path, pixels=False)
        stack = geometry.Stack(headers)
        contours = _contours(dataset, path, stack, class_names, named_only)
    found = {}
    for index in sorted({key[0] for key in contours}):
        regions = [(key[2], c) for key, c in contours.items() if key[0] == index]
        shape = headers[index].shape
        found[headers[index].key] = lambda regions=regions, shape=shape: _claims(
            regions, shape
        )
    return found


def area(contours: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixels `[H, W]` bool that CLOSED_PLANAR contours of an ROI enclose.

    The standard does not say how several on a slice combine (PS3.3 C.8.8.6.3: only
    CLOSEDPLANAR_XOR is an exclusive or). In practice, one that lies wholly inside
    another is a hole in it, and one inside the hole an island; others add up, so that
    what overlaps in part or is there twice counts once.

    Args:
      contours: `[n, 2]` x (column) and y (row) each, pixels.
      shape: (H, W).
    """
    dense = [_dense(points) for points in contours]
    inside = {
        (a, b)
        for a in range(len(contours))
        for b in range(len(contours))
        if a != b and _lies_inside(contours[a], dense[a], contours[b], dense[b])
    }
    # The first of those that are the same, each inside of the other.
    kept = [
        a
        for a in range(len(contours))
        if not any((a, b) in inside and (b, a) in inside for b in range(a))
    ]
    around = {a: {b for b in kept if (a, b) in inside} for a in kept}
    enclosed = {}
    # From the innermost: an area is its contour without the areas of its holes.
    for a in sorted(kept, key=lambda a: len(around[a]), reverse=True):
        enclosed[a] = fill_contour(contours[a], shape)
        holes = [b for b in kept if a in around[b]]
        for b in holes:
            if not any(between in around[b] for between in holes if between != b):
                enclosed[a] = enclosed[a] & ~enclosed[b]
    total = np.zeros(shape, bool)
    for a in kept:
        if not around[a]:
            total |= enclosed[a]
    return total


def _claims(
    regions: Sequence[tuple[int, list[tuple[str, np.ndarray]]]], shape: tuple[int, int]
) -> list[Claim]:
    claims = []
    for label, contours in regions:
        kinds = {kind for kind, _ in contours}
        if kinds == {XOR}:
            mask = np.zeros(shape, bool)
            for _, points in contours:
                mask ^= fill_contour(points, shape)
        else:
            mask = area([points for _, points in contours], shape)
        claims.append((label, mask))
    return claims


def _contours(
    dataset: pydicom.Dataset,
    path: Path,
    stack: geometry.Stack,
    class_names: Sequence[str],
    named_only: bool,
) -> Contours:
    """Returns (type, points `[n, 2]`: column, row) by slice index, ROI and class index."""
    names = _names(dataset)
    wanted = {k: class_names.index(v) for k, v in names.items() if v in class_names}
    references = {
        int(item.ROINumber): str(item.get("ReferencedFrameOfReferenceUID") or "")
        for item in dataset.get("StructureSetROISequence") or ()
    }
    listed = {
        str(image.ReferencedSOPInstanceUID)
        for series in _series(dataset)
        for image in series.get("ContourImageSequence") or ()
    }
    contours: Contours = defaultdict(list)
    for roi, contour in _drawn(dataset):
        if roi not in wanted or _is_empty(contour):
            continue
        what = f"ROI {names[roi]!r} has a contour that"
        kind = str(contour.get("ContourGeometricType") or "")
        if kind not in (CLOSED, XOR):
            raise UserError(
                f"{path}: {what} is {kind or 'of no type'}, which encloses no area. "
                "To leave this ROI out, name the others with --classes (setting "
                "'classes').",
                where=path,
            )
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        if len(points) < 3:
            continue
        if not np.isfinite(points).all():
            raise UserError(
                f"{path}: {what} has coordinates that are not finite.", where=path
            )
        images = contour.get("ContourImageSequence") or ()
        index = stack.place(
            points,
            set().union(*map(geometry.named_by, images)),
            what,
            path,
            reference=references[roi],
            listed=listed,
            named_only=named_only,
        )
        if index is None:
            raise UserError(
                f"{path}: {what} lies where there is no slice, at {_heights(points)}. "
                "Was it drawn on another series, or is a slice missing?",
                where=path,
            )
        flat = geometry.to_pixels(points, stack.planes[index])[:, :2]
        rows, columns = stack.planes[index].shape
        if (flat.max(0) < -0.5).any() or (
            flat.min(0) > [columns - 0.5, rows - 0.5]
        ).any():
            raise UserError(
                f"{path}: {what} lies beside the pixels of its slice "
                f"{stack.headers[index].path}.",
                where=path,
            )
        contours[index, roi, wanted[roi]].append((kind, flat))
    for (_, roi, _), parts in contours.items():
        if len({kind for kind, _ in parts}) > 1:
            raise UserError(
                f"{path}: ROI {names[roi]!r} mixes {CLOSED} and {XOR} contours on one "
                "slice: how they combine is not defined.",
                where=path,
            )
    return contours


def _heights(points: np.ndarray) -> str:
    low, high = (f"{z:g}" for z in (points[:, 2].min(), points[:, 2].max()))
    return f"z = {low} mm" if low == high else f"z = {low} to {high} mm"


def _series(dataset: pydicom.Dataset) -> Iterator[pydicom.Dataset]:
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            yield from study.get("RTReferencedSeriesSequence") or ()


def _names(dataset: pydicom.Dataset) -> dict[int, str]:
    return {
        int(item.ROINumber): clean_label(str(item.get("ROIName") or ""))
        for item in dataset.get("StructureSetROISequence") or ()
    }


def _drawn(dataset: pydicom.Dataset) -> Iterator[tuple[int, pydicom.Dataset]]:
    for item in dataset.get("ROIContourSequence") or ():
        for contour in item.get("ContourSequence") or ():
            yield int(item.ReferencedROINumber), contour


def _is_empty(contour: pydicom.Dataset) -> bool:
    """Whether a contour is a point, or a closed one of fewer than three points."""
    kind, number = (
        contour.get(keyword)
        for keyword in ("ContourGeometricType", "NumberOfContourPoints")
    )
    if number is None:  # converting the coordinates takes longer
        number = len(contour.get("ContourData") or ()) // 3
    return kind == POINT or (kind in (CLOSED, XOR) and number < 3)


def _dense(points: np.ndarray) -> np.ndarray:
    """Returns a closed contour `[m, 2]` with points at most `COMPARED_PIXELS` apart."""
    following = np.roll(points, -1, axis=0)
    lengths = np.hypot(*(following - points).T)
    counts = np.maximum(1, np.ceil(lengths / COMPARED_PIXELS)).astype(int)
    start = np.repeat(np.arange(len(points)), counts)
    part = np.concatenate([np.arange(n) / n for n in counts])[:, None]
    return points[start] + part * (following[start] - points[start])


def _lies_inside(
    inner: np.ndarray, dense: np.ndarray, outer: np.ndarray, outer_dense: np.ndarray
) -> bool:
    """Whether no point of a contour leaves another by more than `INSIDE_PIXELS`."""
    margin = INSIDE_PIXELS
    low, high = outer.min(0) - margin, outer.max(0) + margin
    if (inner.min(0) < low).any() or (inner.max(0) > high).any():
        return False
    outside = dense[~_within(dense, outer)]
    if not len(outside):
        return True
    # The nearest of dense points is at most this much farther than the contour itself.
    away, _ = spatial.cKDTree(outer_dense).query(outside)
    return bool(
        (np.sqrt(np.maximum(0, away**2 - (COMPARED_PIXELS / 2) ** 2)) <= margin).all()
    )


def _within(points: np.ndarray, contour: np.ndarray) -> np.ndarray:
    """Returns which points `[n, 2]` lie inside a closed contour, `[n]` bool; even-odd."""
    found = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            found ^= crosses & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return found
