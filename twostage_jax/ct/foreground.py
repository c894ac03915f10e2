"""The pixels that a mask of one thing marks, whatever its values went through.

A mask of lungs or of one class holds 0 and one other value, or a few labels. Saved as
JPEG or resized, one of 0 and 255 gets values in between: ringing on both sides of every
edge, of which the part outside must not count.
"""

from pathlib import Path

import numpy as np
from scipy import ndimage

from twostage_jax.errors import UserError
from twostage_jax.notes import Notes

# Values up to it are labels: no mask of 0 and 255.
MOST_LABEL = 15
# Larger labels: at most as many, each as far from the others.
MOST_LABELS, LEAST_GAP = 8, 16
# Pixels that blurred edges reach to either side, and that the ringing of JPEG does: its
# blocks of 8, doubled where the mask was enlarged afterwards.
BLUR, RINGING = 4, 16
# Fraction of the marked pixels that may have stray values elsewhere.
STRAY = 0.01
# Fraction of all pixels that may be between the two values: noise has edges everywhere.
MOST_MIDDLE = 0.25
CUT = (
    "have values between 0 and the largest along their edges, as JPEG and resizing "
    "leave them: they are cut at half."
)
SEVERAL = "have several values above 0: all of them count as one."


def foreground(
    mask: np.ndarray, path: Path, notes: Notes, subject: str = "masks"
) -> np.ndarray:
    """Returns what a mask of one thing marks.

    All values but 0 count if there is one, or if they are labels: whole numbers up to
    15, or a few that lie apart and fill areas. If values between 0 and the largest are
    found next to the edges only, as JPEG and resizing leave them, what reaches half the
    commonest large value counts.

    Args:
      mask: `[...]` integers or booleans.
      path: Its file, for errors.
      notes: Counts to which the mask is added.
      subject: Plural noun for `notes`.

    Returns:
      `[...]` bool.

    Raises:
      UserError: The values are neither labels nor those of a mask of 0 and another
        value; or some are negative.
    """
    notes.add(subject)
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    values = np.unique(mask)
    if values.size and values[0] < 0:
        _refuse(path, values)
    values = values[values > 0]
    if len(values) <= 1:
        return mask > 0
    if values[-1] <= MOST_LABEL or _are_labels(mask, values):
        notes.add(subject, SEVERAL)
        return mask > 0
    large = mask[mask > values[-1] / 2]
    found, counts = np.unique(large, return_counts=True)
    top = found[counts.argmax()]
    marked = mask >= top / 2
    if not _are_edges(mask, marked, float(top)):
        _refuse(path, values)
    notes.add(subject, CUT)
    return marked


def _are_labels(mask: np.ndarray, values: np.ndarray) -> bool:
    """Whether values are few, far apart, and each fills a square of 3 x 3 pixels."""
    apart = np.diff(values, prepend=0).min() >= LEAST_GAP
    if len(values) > MOST_LABELS or not apart:
        return False
    size = (1,) * (mask.ndim - 2) + (3, 3)
    low = ndimage.minimum_filter(mask, size)
    flat = mask[low == ndimage.maximum_filter(mask, size)]
    return bool(np.isin(values, flat).all())


def _are_edges(mask: np.ndarray, marked: np.ndarray, top: float) -> bool:
    """Whether all values but 0 and `top` lie along the edges of what is marked."""
    middle = (mask > top / 4) & (mask < 3 * top / 4)
    if np.count_nonzero(middle) > MOST_MIDDLE * mask.size:
        return False
    other = (mask > 0) & (mask != top)
    stray = (middle & ~_near_edges(marked, BLUR)) | (
        other & ~_near_edges(marked, RINGING)
    )
    return np.count_nonzero(stray) <= STRAY * np.count_nonzero(marked)


def _near_edges(marked: np.ndarray, reach: int) -> np.ndarray:
    """Returns the pixels at most `reach` rows and columns from the other kind."""
    size = (1,) * (marked.ndim - 2) + (2 * reach + 1,) * 2
    low = ndimage.minimum_filter(marked.view(np.uint8), size)
    return low != ndimage.maximum_filter(marked.view(np.uint8), size)


def _refuse(path: Path, values: np.ndarray) -> None:
    listed = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    raise UserError(
        f"{path}: a mask of 0 and one other value is needed, but this one has "
        f"{len(values)} values ({listed}), and they do not only blur its edges: save it "
        "again with 0 outside and 1 inside, as PNG.",
        where=path,
    )
