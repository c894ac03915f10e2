"""Stored values -> Hounsfield units: linear rescale, or lookup table."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom

from twostage_jax.errors import UserError

Transform = Callable[[np.ndarray], np.ndarray]
# Air is in every CT image: a table that starts above this is none of HU.
AIR_BELOW_HU = -900
# Air and water lie this far apart: stored values that span less hold no CT.
LEAST_SPAN_HU = 1000
# 8 bits for the 4096 HU of a CT need a slope of 16.
STEEPEST_SLOPE = 100


def transform(dataset: pydicom.Dataset, path: Path) -> Transform:
    """Returns the function from stored values to HU, float64 (DICOM PS3.3 C.11.1).

    Raises:
      UserError: There is neither a rescale nor a table, or both, or it gives no HU, or
        its slope is absurd.
    """
    rescaled = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if dataset.get("ModalityLUTSequence"):
        if rescaled != (None, None):
            raise UserError(f"{path}: has a modality LUT and a rescale: which is it?")
        return _lookup(dataset, path)
    if None in rescaled:
        raise UserError(
            f"{path}: a CT without RescaleSlope and RescaleIntercept: its values "
            "cannot be turned into HU."
        )
    slope, intercept = map(float, rescaled)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise UserError(f"{path}: rescale slope {slope}, intercept {intercept}.")
    span = slope * 2**dataset.BitsStored
    if span < LEAST_SPAN_HU or slope > STEEPEST_SLOPE:
        raise UserError(
            f"{path}: RescaleSlope is {slope:g}: {dataset.BitsStored} bits span "
            f"{span:g} HU, where at least {LEAST_SPAN_HU}, by a slope of at most "
            f"{STEEPEST_SLOPE}, are believed: export the file again, or leave it out."
        )
    _check_unit(dataset.get("RescaleType"), path)
    return lambda stored: stored * slope + intercept


def _check_unit(unit: str | None, path: Path) -> None:
    unit = str(unit or "HU").strip().lower()
    # Seen in the wild: 'Houndsfield Unit'. HU_MOD (modified HU) is another quantity.
    if unit != "hu" and not unit.startswith("houn"):
        raise UserError(f"{path}: rescales to {unit!r}, not to HU.")


def _lookup(dataset: pydicom.Dataset, path: Path) -> Transform:
    item = dataset.ModalityLUTSequence[0]
    if not item.get("ModalityLUTType"):
        raise UserError(f"{path}: its modality LUT does not say that it gives HU.")
    _check_unit(item.ModalityLUTType, path)
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 2**16
    # The descriptor's first value has the sign of the pixels, whatever its own VR.
    if dataset.PixelRepresentation == 1 and first >= 2**15:
        first -= 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if bits > 8 else "u1")
    table = np.asarray(table, np.float64).ravel()
    if len(table) != entries or table.min() > AIR_BELOW_HU:
        raise UserError(
            f"{path}: its modality LUT has {len(table)} of {entries} entries, from "
            f"{table.min(initial=0):.0f}: this is no table of HU."
        )
    return lambda stored: table[np.clip(stored - first, 0, entries - 1).astype(int)]
