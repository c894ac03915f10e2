"""How slices are shown to a trained network: the HU window, and the resolution."""

import json
import math
from pathlib import Path

from twostage_jax.errors import UserError
from twostage_jax.study.artifacts import Trained


def parse_window(text: str, run: Trained) -> tuple[float, ...]:
    """Returns the window in HU: that of a flag, or that of the training.

    Args:
      text: 'centre,width', one pair or one per channel; '' for that of the training.
      run: stage run.

    Raises:
      UserError: The text is not a window, or it is empty and the run has none.
    """
    if not text:
        if not run.in_hu:
            raise UserError(
                f"{run.folder}: its lineage does not say that the training images were "
                "in HU, so their window is unknown: give --window=centre,width as those "
                "images were shown, such as --window=-600,1500.",
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
        raise UserError(
            f"--window={text}: expected centre,width in HU, as -600,1500.",
            where="--window",
        )
    return window


def parse_spacing(given: float | None, run: Trained) -> float | None:
    """Returns the mm per pixel to resample slices to; None for pixels as they are.

    Args:
      given: value of the flag; 0 for pixels as they are, None for that of the training.
      run: stage run.

    Raises:
      UserError: The value is impossible, or it is None and that of the training is
        unknown.
    """
    if given is not None:
        if given and not 0.1 <= given <= 10:
            raise UserError(
                f"--spacing={given}: expected 0.1 to 10 mm.", where="--spacing"
            )
        return given or None
    # The command `prepare` resampled, or not: its settings lie next to the patches.
    path = Path(run.options.get("path", ""), "dataset.json")
    if run.source != "prepared":
        return run.options.get("spacing")
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        if made["fingerprint"] != run.fingerprint:
            raise ValueError("another set than the one of the training")
        return made["settings"]["spacing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: does not say at what resolution the patches were cut ({error}): "
            "give --spacing in mm per pixel, or --spacing=0 for pixels as they are.",
            where="--spacing",
        ) from error
