"""Compares the reading of a damaged CT file with that of SimpleITK."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from twostage_jax.ct import decode
from twostage_jax.ct.decode import quiet
from twostage_jax.ct.dicom import AIR_HU, LOWEST_HU, UNTAGGED_PADDING, Header

# Largest fraction of changed HU in a file that SimpleITK refuses: a few bytes of the
# pixels themselves, whose damage cannot be detected.
MOST_CHANGED = 1e-4
# Largest error of a direction cosine, which SimpleITK corrects.
COSINE_TOLERANCE = 0.02
ALONE = "read by us alone"


def changed(hu: np.ndarray, before: np.ndarray) -> float:
    """Returns the fraction of HU that changed; 1 if the shape changed."""
    return float(np.mean(hu != before)) if hu.shape == before.shape else 1.0


def alone(share: float, why: str) -> dict:
    """Returns the outcome for a file that SimpleITK refuses."""
    kind = ALONE if share <= MOST_CHANGED else "read otherwise"
    return {"kind": kind, "detail": f"{why}; {share:.4%} of the HU are not as before"}


def compared(
    headers: list[Header], hu: np.ndarray, path: Path, before: dict[str, np.ndarray]
) -> dict:
    """Returns the kind and the detail of an outcome; see `Outcome`.

    Args:
      headers: Headers of the slices.
      hu: HU as read, `[Z, H, W]`.
      path: The file.
      before: 'hu' and 'geometry' of the file before the damage.
    """
    share = changed(hu, before["hu"])
    places = geometry(headers)
    if not share and np.array_equal(places, before["geometry"], equal_nan=True):
        return {"kind": "read as before", "detail": ""}
    import SimpleITK

    SimpleITK.ProcessObject.GlobalWarningDisplayOff()
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError:
        return alone(share, "SimpleITK refuses it")
    other = SimpleITK.GetArrayFromImage(image)
    if other.shape != hu.shape:
        return {"kind": "read otherwise", "detail": f"{other.shape}, {hu.shape}"}
    # This package rounds fractions and sets padding to air.
    differs = abs(other - hu.astype(float)) > 0.5 + 1e-6
    differs &= ~((hu == AIR_HU) & _padding(other, path))
    if differs.any():
        detail = f"{differs.mean():.4%} of the pixels differ"
        return {"kind": "read otherwise", "detail": detail}
    wrong = misplaced(headers[0], image)
    if wrong:
        return {"kind": "read otherwise", "detail": wrong}
    return {"kind": "read as SimpleITK does", "detail": ""}


def _padding(other: np.ndarray, path: Path) -> np.ndarray:
    """Returns the pixels that may be padding according to the file, `[Z, H, W]` bool.

    Args:
      other: SimpleITK's HU.
      path: The file.
    """
    with quiet():
        dataset = pydicom.dcmread(path)
        count = decode.count_frames(dataset)
        stored = [decode.container_values(dataset, index) for index in range(count)]
    values, first = np.stack(stored), dataset.get("PixelPaddingValue")
    untagged = np.isin(values, UNTAGGED_PADDING) | np.isin(other, UNTAGGED_PADDING)
    padding = untagged & (other < LOWEST_HU)
    if first is None:
        return padding
    # Modulo the number of values, because the sign of the tag may be wrong.
    circle = 2**dataset.BitsAllocated
    first, last = (
        int.from_bytes(v, "little") if isinstance(v, bytes) else int(v)
        for v in (first, dataset.get("PixelPaddingRangeLimit", first))
    )
    if (last - first) % circle > circle // 2:
        first, last = last, first
    return padding | ((values - first) % circle <= (last - first) % circle)


def geometry(headers: list[Header]) -> np.ndarray:
    """Returns spacing, position and orientation of slices `[Z, 11]`; nan if unknown."""
    return np.array(
        [
            [
                *(header.spacing or [np.nan] * 2),
                *(header.position or [np.nan] * 3),
                *(header.orientation or [np.nan] * 6),
            ]
            for header in headers
        ]
    )


def misplaced(header: Header, image: Any) -> str:
    """Returns a text on differences to SimpleITK in the first slice's position, or ''."""
    direction = np.reshape(image.GetDirection(), (3, 3))
    for name, ours, theirs, tolerance in [
        ("spacing", header.spacing, image.GetSpacing()[1::-1], 1e-5),
        ("position", header.position, image.GetOrigin(), 1e-3),
        ("orientation", header.orientation, direction[:, :2].T, COSINE_TOLERANCE),
    ]:
        theirs = np.ravel(theirs)
        if ours is not None and not np.allclose(ours, theirs, 1e-5, tolerance):
            return f"{name} {ours}, {theirs.tolist()}"
    return ""
