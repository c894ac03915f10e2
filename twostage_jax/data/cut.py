"""Which patches are cut out of annotated slices: the settings."""

import dataclasses
import math
from typing import Literal

from twostage_jax.errors import UserError

LUNGS = ("given", "found", "off")


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which patches are cut.

    Attributes:
      size: Height and width of a patch, pixels.
      stride: Distance between neighbouring patches, pixels.
      coverage: Share of a patch that its region must cover at least.
      lungs: 'given': count only what lies inside the lung masks, where there are any;
        'found': inside the lung masks, or what `ct.lungs` takes for lung where there
        are none; 'off': count everything.
      spacing: Millimetres a pixel to which slices are resampled; None = as they are.
      overlap: Largest share of a patch that another patch of its slice may cover; of
        patches that overlap more, the better covered one stays.
      per_roi: Most patches of one region of one slice, drawn at random; 0 = all.
      per_class: Most patches of one class and patient, drawn at random; 0 = all.
      per_patient: Most patches of a patient, drawn at random; 0 = all.
      seed: Of the random draws.
    """

    size: int
    stride: int
    coverage: float
    lungs: Literal["given", "found", "off"] = "given"
    spacing: float | None = None
    overlap: float = 1.0
    per_roi: int = 0
    per_class: int = 0
    per_patient: int = 0
    seed: int = 0


def check(cut: Cut) -> None:
    """Raises a UserError for settings of patches that are impossible."""
    for name in ("size", "stride"):
        if getattr(cut, name) < 1:
            raise UserError(
                f"{name} is {getattr(cut, name)}: it must be at least 1 pixel."
            )
    if not 0 < cut.coverage <= 1:
        raise UserError(f"coverage is {cut.coverage}: it must be above 0, at most 1.")
    if not 0 <= cut.overlap <= 1:
        raise UserError(f"overlap is {cut.overlap}: a share, 0 to 1.")
    for name in ("per_roi", "per_class", "per_patient"):
        if getattr(cut, name) < 0:
            raise UserError(
                f"{name} is {getattr(cut, name)}: a number of patches, or 0 for all."
            )
    if cut.lungs not in LUNGS:
        raise UserError(f"lungs is {cut.lungs!r}: it must be {', '.join(LUNGS)}.")
    if cut.seed < 0:
        raise UserError(f"seed is {cut.seed}: it must not be negative.")
    spacing = cut.spacing
    if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
        raise UserError(f"spacing is {spacing}: it must be positive (mm a pixel).")
