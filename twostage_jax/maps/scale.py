"""Scaling of slices for a trained network: the HU window and the resolution."""

import math

from twostage_jax.errors import UserError, require
from twostage_jax.study.artifacts import Trained


def parse_window(text: str, run: Trained) -> tuple[float, ...]:
    """Returns the window in HU, given by a flag or from training.

    Args:
      text: 'centre,width', one pair or one per channel; '' for the training window.
      run: Stage run.

    Raises:
      UserError: The text is not a window, or it is empty and that of the run is unknown.
    """
    if not text:
        if not run.in_hu:
            raise UserError(
                f"{run.folder}: the training images were not recorded as HU, so their "
                "window is unknown: give it as --window=centre,width, such as "
                "--window=-600,1500.",
                where="--window",
            )
        return run.window
    try:
        window = tuple(float(part) for part in text.split(","))
    except ValueError:
        window = ()
    pairs = (2,) if run.model.channels == 1 else (2, 2 * run.model.channels)
    sound = len(window) in pairs and all(map(math.isfinite, window))
    if not sound or min(window[1::2]) <= 0:
        raise UserError.flag(
            "--window", text, "expected centre,width in HU, such as -600,1500."
        )
    return window


def parse_spacing(given: float | None, run: Trained) -> float | None:
    """Returns the mm per pixel to resample slices to; None = do not resample.

    Args:
      given: Value of the flag; 0 = do not resample, None = as in training.
      run: Stage run.

    Raises:
      UserError: The value is impossible, or it is None and the resolution of training is
        unknown.
    """
    if given is not None:
        require(not given or 0.1 <= given <= 10, "--spacing", given, "0.1 to 10 mm")
        return given or None
    try:
        return run.spacing()
    except ValueError as error:
        raise UserError(
            f"{error}: give --spacing in mm per pixel, or --spacing=0 to keep the pixels.",
            where="--spacing",
        ) from error
