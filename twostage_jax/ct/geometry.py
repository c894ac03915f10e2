"""Positions of pixels in the patient, and the slices that regions were drawn on.

Millimetres are in DICOM's axes of the patient: towards the left, the back and the head.
The centre of a pixel has integer coordinates.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import pydicom

from twostage_jax.ct.dicom import Header
from twostage_jax.ct.series import POSITION_TOLERANCE_MM
from twostage_jax.errors import UserError

# Largest distance of a drawn plane from its slice, as a fraction of the distance to the
# next slice, or in mm if there is only one slice.
PLANE_FRACTION, PLANE_MM = 0.25, 0.5
# Positions are rounded to a few decimals.
EDGE_PIXELS = 0.01


@dataclasses.dataclass(frozen=True)
class Plane:
    """Position of an image in space; fields as in `Header`, but never missing."""

    shape: tuple[int, int]
    spacing: tuple[float, float]
    position: tuple[float, ...]
    orientation: tuple[float, ...]

    @property
    def row(self) -> np.ndarray:
        """Direction in which the column index grows."""
        return np.array(self.orientation[:3])

    @property
    def column(self) -> np.ndarray:
        """Direction in which the row index grows."""
        return np.array(self.orientation[3:])

    @property
    def normal(self) -> np.ndarray:
        """Direction in which slices are ordered."""
        return np.cross(self.row, self.column)


def plane(header: Header) -> Plane:
    """Returns the plane of a slice.

    Raises:
      UserError: Its header is incomplete.
    """
    if header.spacing is None or header.position is None or header.orientation is None:
        raise UserError.at(
            header.path,
            "PixelSpacing, ImagePositionPatient or ImageOrientationPatient is "
            "missing: regions cannot be placed on it.",
        )
    return Plane(header.shape, header.spacing, header.position, header.orientation)


def to_pixels(points: np.ndarray, on: Plane) -> np.ndarray:
    """Returns (column, row, mm from the plane) `[..., 3]` of points `[..., 3]` in mm."""
    away = points - np.array(on.position)
    return np.stack(
        [
            away @ on.row / on.spacing[1],
            away @ on.column / on.spacing[0],
            away @ on.normal,
        ],
        axis=-1,
    )


def centres(of: Plane) -> np.ndarray:
    """Returns the centres of a plane's pixels, `[H, W, 3]` mm."""
    rows, columns = np.indices(of.shape)
    return (
        np.array(of.position)
        + (columns * of.spacing[1])[..., None] * of.row
        + (rows * of.spacing[0])[..., None] * of.column
    )


def sampled(image: np.ndarray, on: Plane, at: Plane) -> np.ndarray:
    """Returns the pixels `[H, W]` of plane `at` sampled from an image `[h, w]` of `on`.

    Each pixel takes the value of the nearest one, or 0 outside the image.
    """
    positions = to_pixels(centres(at), on)
    column, row = (np.rint(positions[..., axis]).astype(np.int64) for axis in (0, 1))
    inside = (row >= 0) & (row < image.shape[0])
    inside &= (column >= 0) & (column < image.shape[1])
    found = np.zeros(at.shape, image.dtype)
    found[inside] = image[row[inside], column[inside]]
    return found


def inside(points: np.ndarray, on: Plane) -> np.ndarray:
    """Returns whether points `[..., 3]` in mm project onto the pixels of a plane, bool."""
    flat = to_pixels(points, on)
    rows, columns = on.shape
    over = abs(flat[..., 0] - (columns - 1) / 2) <= columns / 2 + EDGE_PIXELS
    return over & (abs(flat[..., 1] - (rows - 1) / 2) <= rows / 2 + EDGE_PIXELS)


def corners(of: Plane) -> np.ndarray:
    """Returns the centres of a plane's four corner pixels, `[4, 3]` mm."""
    return centres(of)[[0, 0, -1, -1], [0, -1, 0, -1]]


def named_by(reference: pydicom.Dataset) -> set[tuple[str, int | None]]:
    """Returns the slices named by an image reference, in the form of `Stack.place`."""
    uid = str(reference.get("ReferencedSOPInstanceUID") or "")
    numbers = reference.get("ReferencedFrameNumber")
    if numbers is None or not uid:
        return {(uid, None)} if uid else set()
    return {(uid, int(number) - 1) for number in np.ravel(numbers)}


def height_text(header: Header) -> str:
    """Returns the height of a slice's first pixel as text, such as 'z = -75 mm'."""
    return f"z = {header.position[2]:g} mm" if header.position else "z unknown"


class Stack:
    """Slices of one or more series, searched for those that regions were drawn on.

    Attributes:
      headers: Header of each slice.
      planes: Plane of each slice.
    """

    def __init__(self, headers: Sequence[Header]) -> None:
        """Computes the planes of at least one slice.

        Raises:
          UserError: The header of a slice is incomplete.
        """
        self.headers = headers
        self.planes = [plane(header) for header in headers]
        self._positions = np.array([p.position for p in self.planes])
        self._normals = np.array([p.normal for p in self.planes])
        self._heights = np.sum(self._positions * self._normals, axis=1)
        self._by_uid = defaultdict(list)
        for index, header in enumerate(headers):
            self._by_uid[header.sop_uid].append(index)
        self._near = np.zeros(len(headers))
        series = np.array([header.series_uid for header in headers])
        for uid in set(series):
            of_series = series == uid
            steps = np.diff(np.sort(self._heights[of_series]))
            steps = steps[steps > POSITION_TOLERANCE_MM]
            near = PLANE_FRACTION * steps.min() if len(steps) else PLANE_MM
            self._near[of_series] = near

    def place(
        self,
        points: np.ndarray,
        names: Collection[tuple[str, int | None]],
        what: str,
        *,
        reference: str = "",
        listed: Collection[str] = (),
        named_only: bool = False,
    ) -> int | None:
        """Returns the index of the slice that a region was drawn on.

        The slice must contain all points. If the region names its slice, both must agree.

        Args:
          points: Points of the region or corners of its frame, `[n, 3]` mm.
          names: (SOPInstanceUID, index of the frame or None) of the slices that the
            region names.
          what: Subject of the error message, such as "ROI 'a' has a contour that".
          reference: FrameOfReferenceUID of the points; '' if not given.
          listed: SOPInstanceUIDs to which the file refers; they decide between slices
            at one position if the region does not name its slice.
          named_only: Refuse regions that do not name their slice.

        Returns:
          Index of the slice, or None if no slice lies at the points or is named.

        Raises:
          UserError: Name and position contradict each other or match several slices, or
            the points were drawn in another frame of reference.
        """
        away = np.abs(points @ self._normals.T - self._heights).max(axis=0)
        near = np.flatnonzero(away <= self._near)
        named = np.array(
            [
                index
                for uid, frame in names
                for index in self._by_uid.get(uid, ())
                if frame in (None, self.headers[index].frame)
            ],
            int,
        )
        if names:
            found = np.intersect1d(near, named)
            if not len(found) and len(near) + len(named):
                raise UserError(f"{what} {self._contradiction(points, near, named)}")
        else:
            found = near
            if len(found) > 1:
                by_list = [i for i in near if self.headers[i].sop_uid in listed]
                found = np.array(by_list or near)
        if not len(found):
            return None
        # Axes that are not given may be the same.
        accepted = ("", reference)
        same = [
            index
            for index in found
            if not reference or self.headers[index].reference in accepted
        ]
        if not same:
            raise UserError(
                f"{what} was drawn in another frame of reference than the "
                f"slices of {self.headers[found[0]].path.parent}."
            )
        if named_only and not names:
            raise UserError(
                f"{what} does not name its slice. The file refers to several series, "
                "some of which are missing, so that it could belong to any of them."
            )
        if len(same) > 1:
            first, second = (self.headers[i] for i in same[:2])
            raise UserError(
                f"{what} could belong to several slices at one position, "
                f"{height_text(first)}: {first.path} and {second.path}. "
                "Remove the series or phase that the regions were not drawn on."
            )
        return int(same[0])

    def turned(self, on: Plane) -> float:
        """Returns the smallest angle in degrees between a plane and the slices.

        Planes that face opposite directions are parallel.
        """
        cosines = np.abs(self._normals @ on.normal)
        return float(np.degrees(np.arccos(min(1.0, cosines.max()))))

    def doubled(self, index: int) -> int | None:
        """Returns the index of another slice at the position of a slice, or None."""
        away = np.abs(self._positions[index] @ self._normals.T - self._heights)
        others = np.flatnonzero(away <= POSITION_TOLERANCE_MM)
        return next((int(i) for i in others if i != index), None)

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Returns whether points `[n, 3]` in mm lie on a slice, `[n]` bool.

        The slices must be of one series, and therefore parallel.
        """
        heights = points @ self._normals[0]
        along = self._positions @ self._normals[0]
        order = np.argsort(along)
        rank = np.searchsorted(along[order], heights)
        right = order[np.minimum(rank, len(order) - 1)]
        left = order[np.maximum(rank - 1, 0)]
        closer = abs(along[left] - heights) < abs(along[right] - heights)
        nearest = np.where(closer, left, right)
        found = abs(along[nearest] - heights) <= self._near[0]
        for index in np.unique(nearest):
            own = nearest == index
            found[own] &= inside(points[own], self.planes[index])
        return found

    def _contradiction(
        self, points: np.ndarray, near: np.ndarray, named: np.ndarray
    ) -> str:
        at = f"z = {points[:, 2].mean():g} mm"
        if len(near):
            header = self.headers[near[0]]
            on = f"lies at {at} on the slice {header.path}"
            if not len(named):
                return f"{on}, but names an image that is not among the slices."
            header = self.headers[named[0]]
            return f"{on}, but names the slice {header.path} ({height_text(header)})."
        header = self.headers[named[0]]
        return (
            f"names the slice {header.path} ({height_text(header)}), but does not "
            f"lie on any slice, at {at}."
        )
