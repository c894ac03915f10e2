"""The lengths and directions of a CT header, within what a CT image can have."""

import math
from pathlib import Path

import numpy as np
import pydicom

from twostage_jax.errors import UserError

# From micro-CT of a specimen to the whole field of a scanner on a very coarse matrix.
SPACING_MM = (0.01, 10.0)
# The widest detector covers 160 mm; 0 is written where the thickness is not known.
THICKNESS_MM = (0.0, 200.0)
# No couch travels 10 m.
POSITION_MM = (-10_000.0, 10_000.0)
# Cosines are written with a few decimals only.
COSINE_TOLERANCE = 0.01


def lengths(
    dataset: pydicom.Dataset,
    keyword: str,
    count: int,
    believed: tuple[float, float],
    path: Path,
) -> tuple[float, ...] | None:
    """Returns `count` numbers in mm, or None if they are not given.

    Args:
      dataset: The image's data set.
      keyword: Of the attribute.
      count: How many numbers it has.
      believed: The least and the greatest, mm.
      path: For the message.

    Raises:
      UserError: There are fewer or more of them, or one is out of range.
    """
    values = _numbers(dataset, keyword, count, path)
    low, high = believed
    if values is not None and not all(low <= value <= high for value in values):
        raise UserError(
            f"{path}: {keyword} is {values}: {low:g} to {high:g} mm are believed: "
            "export the file again, or leave it out."
        )
    return values


def orientation(dataset: pydicom.Dataset, path: Path) -> tuple[float, ...] | None:
    """Returns ImageOrientationPatient, or None if it is not given.

    Raises:
      UserError: It is not two perpendicular unit vectors.
    """
    values = _numbers(dataset, "ImageOrientationPatient", 6, path)
    if values is None:
        return None
    vectors = np.reshape(values, (2, 3))
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(vectors @ vectors.T - np.eye(2)).max()
    if not error <= 2 * COSINE_TOLERANCE:
        raise UserError(
            f"{path}: ImageOrientationPatient {values} is not two perpendicular unit "
            "vectors: export the file again, or leave it out."
        )
    return values


def _numbers(
    dataset: pydicom.Dataset, keyword: str, count: int, path: Path
) -> tuple[float, ...] | None:
    raw = dataset.get(keyword)
    if raw is None or raw == "":
        return None
    values = tuple(float(v) for v in np.atleast_1d(raw))
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise UserError(f"{path}: {keyword} is {values}: {count} numbers are needed.")
    return values
