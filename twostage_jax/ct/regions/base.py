"""Types of all formats of regions, and filling of contours.

A label mask is `[H, W]` int: 0 outside all regions, 1 + class index inside.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax import io
from twostage_jax.ct.dicom import Header

# Name of a slice; see `Header.key`.
Key = tuple
# Reads the mask `[H, W]` of a slice.
Load = Callable[[], np.ndarray]
# Class index, and the pixels `[H, W]` bool that a region of this class marks.
Claim = tuple[int, np.ndarray]
# Draws the regions of a slice.
Draw = Callable[[], list[Claim]]


class Contents(NamedTuple):
    """Contents of a file of regions.

    Attributes:
      series: SeriesInstanceUIDs that the file names.
      labels: Labels of the regions; empty if they have numbers instead.
      empty: Number of regions and contours that do not enclose an area, such as points.
    """

    series: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    empty: int = 0


@dataclasses.dataclass(frozen=True)
class Query:
    """Query for the pixels of some slices that a file marks.

    Attributes:
      path: Path of the file.
      headers: Slices that the file may mark.
      class_names: Classes in label order; regions with other labels are skipped.
      salt: Secret mixed into the patients' hashes.
      named_only: Whether to refuse regions that do not name their slice, because they
        could belong to a missing series that the file names.
      together: Mask files that are numbered together with this one.
    """

    path: Path
    headers: Sequence[Header]
    class_names: Sequence[str] = ()
    salt: str = ""
    named_only: bool = False
    together: Sequence[Path] = ()


class Numbered(NamedTuple):
    """Position of a mask that is not named after the UID of its slice.

    Attributes:
      number: Number in the name of the mask, or of a page, from 1.
      header: Header of the slice.
      clues: Numberings that agree on the slice, such as 'InstanceNumber'.
      masks: Number of masks in the file.
    """

    number: int
    header: Header
    clues: tuple[str, ...]
    masks: int = 1


@dataclasses.dataclass(frozen=True)
class Format:
    """File format of regions, with either `draw` or `load`.

    Attributes:
      recognise: Function that returns the contents of a file of the format, or None for
        other files.
      draw: Function that returns a function per slice that draws the regions, for formats
        with labels.
      load: Function that returns a function per slice that reads the mask, for formats
        with numbers, whose meaning is given by the setting 'classes'; and the position of
        the mask if it is numbered.
      anywhere: Whether files next to the slices are recognised, too. Otherwise they count
        only in a folder of regions, because images and tables may be anything.
      named_like_slices: Whether a file may have the name of a slice's file.
      needs_every_series: Whether all series that a file names must be present, because
        its regions on a missing one would be skipped silently.
    """

    recognise: Callable[[Path], Contents | None]
    draw: Callable[[Query], dict[Key, Draw]] | None = None
    load: Callable[[Query], tuple[dict[Key, Load], Numbered | None]] | None = None
    anywhere: bool = False
    named_like_slices: bool = False
    needs_every_series: bool = False


class Labels(NamedTuple):
    """Label mask of a slice.

    Attributes:
      mask: 0 outside all regions, 1 + class index inside, `[H, W]` int.
      marked: Number of pixels marked as each class, by class index.
      overlaps: Number of pixels marked as two classes, which are 0 in the mask, by the
        class indices, the smaller first.
    """

    mask: np.ndarray
    marked: dict[int, int]
    overlaps: dict[tuple[int, int], int]


def clean_label(text: str) -> str:
    """Returns a label in the form of class names: one line, lower case, Unicode NFC."""
    return " ".join(io.composed(text).split()).lower()


def draw_regions(
    regions: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int]
) -> list[Claim]:
    """Returns (class index, pixels `[H, W]` bool) of (class index, contour `[n, 2]`)."""
    return [(index, fill_contour(points, shape)) for index, points in regions]


def fill_contour(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixels `[H, W]` bool whose centres lie inside a closed contour.

    Follows the even-odd rule; the centre of a pixel has integer coordinates.

    Args:
      points: x (column) and y (row) of the corners, pixels, `[n, 2]`.
      shape: (H, W).
    """
    filled = np.zeros(shape, bool)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    for row in range(max(0, int(np.ceil(low.min()))), shape[0]):
        if row >= high.max():
            break
        edge = (low <= row) & (row < high)
        part = (row - y0[edge]) / (y1[edge] - y0[edge])
        crossings = np.sort(x0[edge] + part * (x1[edge] - x0[edge]))
        ends = np.clip(np.ceil(crossings), 0, shape[1]).astype(int)
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            filled[row, start:stop] = True
    return filled


def is_outside(points: np.ndarray, shape: tuple[int, int]) -> bool:
    """Returns whether a contour lies beyond an edge of its slice.

    Args:
      points: x (column) and y (row) of the corners, pixels, `[n, 2]`.
      shape: (H, W).
    """
    low, high = points.min(0), points.max(0)
    return bool((high < -0.5).any() or (low > np.subtract(shape[::-1], 0.5)).any())


def merge(claims: Sequence[Claim], shape: tuple[int, int]) -> Labels:
    """Returns the label mask of the regions of a slice.

    Pixels that regions of two classes claim are 0, because their class is uncertain.
    """
    by_class: dict[int, np.ndarray] = {}
    for index, inside in claims:
        by_class[index] = by_class.get(index, False) | inside
    labels = np.zeros(shape, np.int64)
    times = np.zeros(shape, np.int64)
    for index, inside in by_class.items():
        labels[inside] = index + 1
        times += inside
    labels[times > 1] = 0
    overlaps = {
        (a, b): int(np.sum(by_class[a] & by_class[b]))
        for a, b in itertools.combinations(sorted(by_class), 2)
    }
    return Labels(
        labels,
        {index: int(inside.sum()) for index, inside in by_class.items()},
        {pair: pixels for pair, pixels in overlaps.items() if pixels},
    )
