"""Where a slice's pixels lie in the patient, and what lies at them in another image.

Millimetres are in the patient's axes as DICOM has them: to the left, the back, the head.
A pixel's centre has whole-numbered coordinates.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct.dicom import Header
from twostage_jax.errors import UserError

# A drawn plane must be this near to its slice, as a share of the distance to the next
# slice; where there is no other slice, this near in mm.
PLANE_SHARE, PLANE_MM = 0.25, 0.5


@dataclasses.dataclass(frozen=True)
class Plane:
    """An image in space: as `Header` has it, with nothing missing."""

    shape: tuple[int, int]
    spacing: tuple[float, float]
    position: tuple[float, ...]
    orientation: tuple[float, ...]

    @property
    def row(self) -> np.ndarray:
        """The direction in which the column index grows."""
        return np.array(self.orientation[:3])

    @property
    def column(self) -> np.ndarray:
        """The direction in which the row index grows."""
        return np.array(self.orientation[3:])

    @property
    def normal(self) -> np.ndarray:
        """The direction in which slices are ordered."""
        return np.cross(self.row, self.column)


def plane(header: Header) -> Plane:
    """Returns where a slice lies.

    Raises:
      UserError: Its header does not say.
    """
    if header.spacing is None or header.position is None or header.orientation is None:
        raise UserError(
            f"{header.path}: PixelSpacing, ImagePositionPatient or "
            "ImageOrientationPatient is missing: no region can be placed on it."
        )
    return Plane(header.shape, header.spacing, header.position, header.orientation)


def to_pixels(points: np.ndarray, on: Plane) -> np.ndarray:
    """Returns (column, row, mm off the plane) `[..., 3]` of points `[..., 3]` in mm."""
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
    """Returns what `image` `[h, w]` on one plane shows at the pixels of another.

    By the nearest pixel; 0 outside of the image.
    """
    places = to_pixels(centres(at), on)
    column, row = (np.rint(places[..., axis]).astype(np.int64) for axis in (0, 1))
    inside = (row >= 0) & (row < image.shape[0])
    inside &= (column >= 0) & (column < image.shape[1])
    found = np.zeros(at.shape, image.dtype)
    found[inside] = image[row[inside], column[inside]]
    return found


class Stack:
    """The slices of a series, to find the one that a point or a plane belongs to."""

    def __init__(self, headers: Sequence[Header]) -> None:
        """Takes slices, at least one.

        Raises:
          UserError: A header does not say where its slice lies.
        """
        self.headers = headers
        self.planes = [plane(header) for header in headers]
        first = self.planes[0]
        self._heights = np.array([p.position for p in self.planes]) @ first.normal
        steps = np.diff(np.unique(np.round(self._heights, 3)))
        self._near = PLANE_SHARE * steps.min() if len(steps) else PLANE_MM

    def at(self, point: np.ndarray) -> int | None:
        """Returns the index of the slice whose plane holds a point in mm, or None."""
        away = np.abs(self._heights - point @ self.planes[0].normal)
        index = int(away.argmin())
        return index if away[index] <= self._near else None

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Returns which points `[n, 3]` in mm lie on a slice, `[n]` bool."""
        flat = to_pixels(points, self.planes[0])
        heights = flat[:, 2] + self._heights[0]
        order = np.sort(self._heights)
        right = np.clip(np.searchsorted(order, heights), 0, len(order) - 1)
        left = np.maximum(right - 1, 0)
        away = np.minimum(abs(order[right] - heights), abs(order[left] - heights))
        rows, columns = self.planes[0].shape
        inside = (abs(flat[:, 0] - (columns - 1) / 2) <= columns / 2) & (
            abs(flat[:, 1] - (rows - 1) / 2) <= rows / 2
        )
        return inside & (away <= self._near)

    def check_reference(self, reference: str, path: Path) -> None:
        """Raises a UserError if the axes of a file of regions are not the series'."""
        own = self.headers[0].reference
        if reference and own and reference != own:
            raise UserError(
                f"{path}: was drawn in another frame of reference than the slices of "
                f"{self.headers[0].path.parent}."
            )
