"""Regions of DICOM structure sets (RTSTRUCT): closed planar contours."""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import scipy

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
    fill_contour,
    is_outside,
)
from twostage_jax.errors import UserError

STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLOSED, XOR, POINT = "CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "POINT"
# Coordinates are rounded, for instance to 0.1 mm with pixels of 0.5 mm. A contour that
# leaves another by less than this, in pixels, lies inside it.
INSIDE_PIXELS = 0.25
# Distance in pixels between the points at which two contours are compared.
COMPARED_PIXELS = 0.5

Contours = dict[tuple[int, int, int], list[tuple[str, np.ndarray]]]


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a structure set, or None for other files.

    Only ROIs with an area count: not points, and not ROIs without contours (PS3.3
    C.8.8.6.1).
    """
    if decode.storage_class(path) != STRUCTURE_SET:
        return None
    with refusing(path):
        dataset = decode.load(path, pixels=False)
        series = tuple(str(item.SeriesInstanceUID) for item in _series(dataset))
        names, parts = _names(dataset), list(_drawn(dataset))
        drawn = {roi for roi, contour in parts if not _is_empty(contour)} & names.keys()
        empty = sum(roi in drawn and _is_empty(contour) for roi, contour in parts)
    labels = {names[roi] for roi in drawn}
    return Contents(series, tuple(sorted(labels)), len(names) - len(drawn) + empty)


def draw(query: Query) -> dict[Key, Draw]:
    """Returns a function per slice that draws its regions.

    A contour belongs to the slice in whose plane it lies; if it names its images
    (Contour Image Sequence), the slice must be one of them. Several contours of an ROI
    on one slice are combined by `area`.

    Raises:
      UserError: The file cannot be trusted, or a contour does not lie on any slice.
    """
    with refusing(query.path):
        dataset = decode.load(query.path, pixels=False)
        contours = _contours(dataset, geometry.Stack(query.headers), query)
    found = {}
    for index in sorted({key[0] for key in contours}):
        regions = [(key[2], c) for key, c in contours.items() if key[0] == index]
        header = query.headers[index]
        found[header.key] = functools.partial(_claims, regions, header.shape)
    return found


def area(contours: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixels `[H, W]` bool inside the CLOSED_PLANAR contours of an ROI.

    The standard does not define how several contours on a slice combine (PS3.3
    C.8.8.6.3: only CLOSEDPLANAR_XOR is an exclusive or). In practice, a contour that
    lies entirely inside another is a hole in it, and one inside the hole is an island.
    All other contours are united.

    Args:
      contours: x (column) and y (row) of each closed contour, pixels, `[n, 2]`.
      shape: (H, W).
    """
    inside = _nesting(contours)
    # Equal contours lie inside each other: only the first of them counts.
    kept = np.flatnonzero(~np.tril(inside & inside.T).any(axis=1))
    inside = inside[np.ix_(kept, kept)]
    depth = inside.sum(axis=1)
    total, enclosed = np.zeros(shape, bool), {}
    # From the innermost: an area is its contour without the areas of its holes.
    for a in np.argsort(-depth, kind="stable"):
        enclosed[a] = fill_contour(contours[kept[a]], shape)
        holes = np.flatnonzero(inside[:, a])
        for b in holes:
            if not inside[b, holes].any():
                enclosed[a] &= ~enclosed[b]
        if not depth[a]:
            total |= enclosed[a]
    return total


FORMAT = Format(recognise, draw=draw, anywhere=True)


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
    dataset: pydicom.Dataset, stack: geometry.Stack, query: Query
) -> Contours:
    """Returns (type, points `[n, 2]`: column, row) by slice index, ROI and class index."""
    class_names = query.class_names
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
                f"{what} is {kind or 'without a type'} and does not enclose an "
                "area. To exclude this ROI, name the others with --classes (setting "
                "'classes')."
            )
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        if len(points) < 3:
            continue
        if not np.isfinite(points).all():
            raise UserError(f"{what} has coordinates that are not finite.")
        images = contour.get("ContourImageSequence") or ()
        index = stack.place(
            points,
            set().union(*map(geometry.named_by, images)),
            what,
            reference=references[roi],
            listed=listed,
            named_only=query.named_only,
        )
        if index is None:
            raise UserError(
                f"{what} does not lie on any slice, at {_heights(points)}. "
                "Was it drawn on another series, or is a slice missing?"
            )
        flat = geometry.to_pixels(points, stack.planes[index])[:, :2]
        if is_outside(flat, stack.planes[index].shape):
            raise UserError(
                f"{what} lies outside the pixels of its slice "
                f"{stack.headers[index].path}."
            )
        contours[index, roi, wanted[roi]].append((kind, flat))
    for (_, roi, _), parts in contours.items():
        if len({kind for kind, _ in parts}) > 1:
            raise UserError(
                f"ROI {names[roi]!r} mixes {CLOSED} and {XOR} contours on one "
                "slice: how they combine is not defined."
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
    """Returns whether a contour is a point, or closed with fewer than three points."""
    kind, number = (
        contour.get(keyword)
        for keyword in ("ContourGeometricType", "NumberOfContourPoints")
    )
    if number is None:  # Converting the coordinates takes longer.
        number = len(contour.get("ContourData") or ()) // 3
    return kind == POINT or (kind in (CLOSED, XOR) and number < 3)


def _dense(points: np.ndarray) -> np.ndarray:
    """Returns a closed contour resampled to points at most `COMPARED_PIXELS` apart."""
    following = np.roll(points, -1, axis=0)
    lengths = np.hypot(*(following - points).T)
    counts = np.maximum(1, np.ceil(lengths / COMPARED_PIXELS)).astype(int)
    start = np.repeat(np.arange(len(points)), counts)
    part = np.concatenate([np.arange(n) / n for n in counts])[:, None]
    return points[start] + part * (following[start] - points[start])


def _nesting(contours: Sequence[np.ndarray]) -> np.ndarray:
    """Returns whether contour a lies inside contour b, `[n, n]` bool; False for a = b.

    No point of a may lie outside b by more than `INSIDE_PIXELS`.
    """
    low = np.array([points.min(axis=0) for points in contours])
    high = np.array([points.max(axis=0) for points in contours])
    # Most pairs are excluded by their bounding boxes.
    inside = (low[:, None] >= low - INSIDE_PIXELS).all(axis=-1)
    inside &= (high[:, None] <= high + INSIDE_PIXELS).all(axis=-1)
    np.fill_diagonal(inside, False)
    for a, b in np.argwhere(inside):
        dense = _dense(contours[a])
        outside = dense[~_within(dense, contours[b])]
        if len(outside):
            away, _ = scipy.spatial.cKDTree(_dense(contours[b])).query(outside)
            # The contour may be nearer than its nearest point: by Pythagoras, this much.
            away = np.sqrt(np.maximum(0, away**2 - (COMPARED_PIXELS / 2) ** 2))
            inside[a, b] = (away <= INSIDE_PIXELS).all()
    return inside


def _within(points: np.ndarray, contour: np.ndarray) -> np.ndarray:
    """Returns whether points `[n, 2]` lie inside a closed contour (even-odd), `[n]`."""
    found = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(contour, np.roll(contour, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            found ^= crosses & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    return found
