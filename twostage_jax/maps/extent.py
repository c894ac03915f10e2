"""Extent of each class in the lungs, and in thirds of their height and depth."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

HEIGHTS = ("lower", "middle", "upper")
DEPTHS = ("peripheral", "intermediate", "central")
# The first "class": unclassified lung, outside all windows.
UNCLASSIFIED = "not classified"
# Between two lungs, columns with less than this fraction of the lung beside them; the
# smaller lung has at least this fraction of all lung.
VALLEY, SMALLER_LUNG = 0.5, 0.05
# Label of lung that differs from the training images; see `train.novelty`.
UNLIKE = "unlike the training images"


class Measure(NamedTuple):
    """Extent of a class in a region.

    Attributes:
      region: 'lungs', one of `HEIGHTS`, or one of `DEPTHS`.
      class_name: Name of a class, or `UNCLASSIFIED`.
      fraction: Fraction of the region's lung, 0 to 1; None if the region has no lung.
      volume_ml: Volume of the class; None for a single slice, which has no volume.
      region_ml: Volume of the region's lung; None likewise.
      probability: Mean probability of the class over the region's classified lung;
        None if no lung there is classified.
      unlike: Fraction of the region's classified lung that is unlike the training
        images, 0 to 1, the same for all classes; None if that was not judged.
    """

    region: str
    class_name: str
    fraction: float | None
    volume_ml: float | None
    region_ml: float | None
    probability: float | None
    unlike: float | None = None


def measure(
    labels: np.ndarray,
    lungs: np.ndarray,
    probabilities: np.ndarray,
    class_names: tuple[str, ...],
    pixel_mm: tuple[float, float],
    step_mm: float | None,
    unlike: np.ndarray | None = None,
    across: int = -1,
) -> list[Measure]:
    """Returns the measures of a series.

    Heights are thirds of the distance from the lowest to the highest slice with lung;
    they need at least three such slices. Depths are thirds of the greatest distance,
    in the slice and on that side of the body, from the chest wall: see `depth`; they
    need two lungs: see `middle`. Volume is area times the distance between slices
    (Cavalieri's rule).

    Args:
      labels: `[Z, H, W]` from feet to head: 1 + class index, 0 = no class.
      lungs: `[Z, H, W]` bool.
      probabilities: `[K, Z, H, W]` uint8, 255 = certain.
      class_names: Names of the K classes.
      pixel_mm: Distance between rows and between columns.
      step_mm: Distance between slices; None for a single slice.
      unlike: `[Z, H, W]` bool, classified pixels that are unlike the training images;
        None if that was not judged.
      across: Axis of a slice that runs from one side of the body to the other: -1 for
        its columns, or -2.
    """
    classes, between = len(class_names), middle(lungs, across)
    if across == -2:
        pixel_mm = pixel_mm[::-1]
        labels, lungs, probabilities = (
            volume.swapaxes(-1, -2) for volume in (labels, lungs, probabilities)
        )
        unlike = None if unlike is None else unlike.swapaxes(-1, -2)
    # Of each third: pixels without a class and of each, sums of probabilities, pixels
    # unlike the training images.
    cells = np.zeros((len(HEIGHTS), len(DEPTHS), 2 * classes + 2))
    filled = np.flatnonzero(lungs.any((1, 2)))
    for z in filled:
        height = int(3 * (z - filled[0]) / (filled[-1] - filled[0] + 1))
        thirds = np.zeros(lungs[z].shape, int)
        if between is not None:
            depths = depth(lungs[z], pixel_mm, between)
            thirds = np.minimum(2, 3 * depths).astype(int)
        for third in range(len(DEPTHS)):
            inside = lungs[z] & (thirds == third)
            cells[height, third] += np.concatenate(
                [
                    np.bincount(labels[z][inside], minlength=1 + classes),
                    probabilities[:, z][:, inside].sum(1, dtype=float),
                    [0 if unlike is None else np.count_nonzero(unlike[z] & inside)],
                ]
            )
    regions = {"lungs": cells.sum((0, 1))}
    if len(filled) >= 3:
        regions |= {HEIGHTS[i]: cells[i].sum(0) for i in (2, 1, 0)}
    if between is not None:
        regions |= {DEPTHS[i]: cells[:, i].sum(0) for i in (2, 1, 0)}
    voxel_ml = None if step_mm is None else pixel_mm[0] * pixel_mm[1] * step_mm / 1000
    found = []
    for region, numbers in regions.items():
        counts, sums, (hatched,) = np.split(numbers, [1 + classes, 1 + 2 * classes])
        lung, classified = counts.sum(), counts[1:].sum()
        judged = unlike is not None and classified
        for i in (*range(1, 1 + classes), 0):
            likely = i and classified
            found.append(
                Measure(
                    region,
                    class_names[i - 1] if i else UNCLASSIFIED,
                    float(counts[i] / lung) if lung else None,
                    None if voxel_ml is None else float(counts[i] * voxel_ml),
                    None if voxel_ml is None else float(lung * voxel_ml),
                    float(sums[i - 1] / 255 / classified) if likely else None,
                    float(hatched / classified) if judged else None,
                )
            )
    return found


def middle(lungs: np.ndarray, across: int = -1) -> int | None:
    """Returns the first column to the right of the middle between two lungs.

    This is where a series has the least lung between a column with more on the left and
    one with more on the right. None if only one lung is found.

    Args:
      lungs: `[Z, H, W]` bool.
      across: Axis of a slice that counts as its columns; see `measure`.
    """
    columns = np.moveaxis(lungs, across, -1).sum((0, 1))
    left = np.maximum.accumulate(columns)
    right = np.maximum.accumulate(columns[::-1])[::-1]
    lower = np.minimum(left, right) - columns
    deepest = np.flatnonzero(lower == lower.max())
    column = int(deepest[len(deepest) // 2])
    if columns[column] >= VALLEY * min(left[column], right[column]):
        return None
    smaller = min(columns[:column].sum(), columns[column:].sum())
    return column if smaller > SMALLER_LUNG * columns.sum() else None


def depth(lungs: np.ndarray, pixel_mm: tuple[float, float], between: int) -> np.ndarray:
    """Returns the depth of each pixel under the chest wall, `[H, W]` in [0, 1].

    Distances are taken within an axial slice, from the outline of both lungs with the
    mediastinum between them, so that lung next to the heart is not peripheral; 1 is the
    deepest lung of that side. If a slice has one lung only, its mirror image takes the
    place of the other.

    Args:
      lungs: `[H, W]` bool.
      pixel_mm: Distance between rows and between columns.
      between: First column of the right half of the image; see `middle`.
    """
    if not lungs.any():
        return np.zeros(lungs.shape)
    sides = np.s_[:, :between], np.s_[:, between:]
    outline = lungs.copy()
    if not all(lungs[side].any() for side in sides):
        rows, columns = np.nonzero(lungs)
        mirrored = 2 * between - 1 - columns
        inside = (mirrored >= 0) & (mirrored < lungs.shape[1])
        outline[rows[inside], mirrored[inside]] = True
    # A border, so that lung at the edge of the image has an outside, too.
    padded = np.pad(outline, 1)
    filled = np.maximum.accumulate(padded, 1)
    filled &= np.maximum.accumulate(padded[:, ::-1], 1)[:, ::-1]
    distance = ndimage.distance_transform_edt(filled, sampling=pixel_mm)[1:-1, 1:-1]
    for side in sides:
        deepest = distance[side][lungs[side]].max(initial=0)
        distance[side] /= deepest or 1
    return np.minimum(distance, 1)
