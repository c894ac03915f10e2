"""Overlapping windows of a slice, and their class probabilities averaged per pixel.

Windows lie on a grid over the slice as the network sees it, which may be resampled; the
maps lie on the slice's own pixels. Both axes are independent, so that the average over
all windows is two products of matrices.
"""

import numpy as np


def starts(length: int, size: int, stride: int) -> np.ndarray:
    """Returns the first pixels `[n]` of the windows along an axis.

    The last window ends with the axis, so that every pixel is in some window.

    Raises:
      ValueError: A window is longer than the axis.
    """
    if size > length:
        raise ValueError(f"windows of {size} pixels along {length}")
    first = np.arange(0, length - size + 1, stride)
    return first if first[-1] == length - size else np.append(first, length - size)


def shares(
    mask: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: int
) -> np.ndarray:
    """Returns the share of `mask` `[H, W]` bool in every window, `[R, C]` float.

    Args:
      mask: What is counted.
      rows, columns: First pixels of the windows along each axis.
      size: Height and width of a window, pixels.
    """
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    strips = sums[rows + size] - sums[rows]
    return (strips[:, columns + size] - strips[:, columns]) / size**2


def weights(first: np.ndarray, size: int, length: int, shown: int) -> np.ndarray:
    """Returns what each window counts at each pixel along an axis, `[shown, n]` float32.

    A window counts most at its centre and nothing at its edges, linearly between: maps
    come out smooth, without the grid of the windows in them.

    Args:
      first: First pixels of the windows, `[n]`.
      size: Of a window, pixels.
      length: Of the axis on which the windows lie, pixels.
      shown: Of the same axis of the map; it may be sampled more finely or coarsely.
    """
    centres = (np.arange(shown) + 0.5) * (length / shown)
    distance = np.abs(centres[:, None] - (first + size / 2)[None])
    return np.maximum(0, 1 - distance / (size / 2)).astype(np.float32)


def average(
    probabilities: np.ndarray, used: np.ndarray, down: np.ndarray, across: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean probabilities `[K, H, W]` float32 and where there are any.

    Args:
      probabilities: `[R, C, K]` of the windows; where not used they must be finite.
      used: `[R, C]` bool, the windows that were classified.
      down: `[H, R]`, see `weights`.
      across: `[W, C]`.

    Returns:
      Probabilities, 0 where no used window reaches, and `[H, W]` bool, where one does.
    """
    counted = used.astype(np.float32)
    total = down @ counted @ across.T
    reached = total > 1e-6
    masked = np.moveaxis(probabilities * counted[..., None], -1, 0)
    sums = down @ masked.astype(np.float32) @ across.T
    return np.where(reached, sums / np.where(reached, total, 1), 0), reached
