"""Finished stage runs: finding one, and how its training images were shown."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from twostage_jax.config import ModelConfig
from twostage_jax.ct.palette import NOTICE, ORIGINS, SHORT_ORIGINS
from twostage_jax.errors import UserError, did_you_mean

PREFERRED_ARM = "two_stage"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage run and what is needed to apply it.

    Attributes:
      folder: folder of the stage run.
      hash: digest of all that determines its parameters.
      arm: arm that the run ends, or its chain of stages if it ends none.
      source: data source that it was trained on.
      data: name of the data set.
      fingerprint: digest of the data set.
      class_names: names of the K classes.
      model: settings of the network.
      normalise, mean, deviation: scaling of the images, see `train.augment`.
      window: (centre, width) pairs in HU, flattened; None unless the lineage says that
        the training images were in HU.
      options: settings of its data source.
      synthetic: whether it was trained on synthetic images; None if its lineage, from
        an earlier version, does not say.
    """

    folder: Path
    hash: str
    arm: str
    source: str
    data: str
    fingerprint: str
    class_names: tuple[str, ...]
    model: ModelConfig
    normalise: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    window: tuple[float, ...] | None
    options: dict[str, Any]
    synthetic: bool | None

    @property
    def notices(self) -> tuple[str, ...]:
        """The notice that every output carries, and where the training data is from."""
        return tuple(filter(None, (NOTICE, ORIGINS[self.synthetic])))

    @property
    def short_notice(self) -> str:
        """The same for fields of 64 letters."""
        return "; ".join(filter(None, (NOTICE, SHORT_ORIGINS[self.synthetic])))

    def __str__(self) -> str:
        data = f"{self.data} {self.fingerprint[:12]}"
        return f"model {self.hash[:12]} ({self.arm}), trained on {data}"


def find(folder: Path, arm: str = "") -> Trained:
    """Returns the stage run in `folder`, or that of an arm of the study in it.

    Of a study, the run with all training data, the first seed and the first fold.

    Args:
      folder: folder of a stage run, or workdir of a study.
      arm: name of the arm; empty for 'two_stage', or the only one.

    Raises:
      UserError: The folder holds no finished stage run, or the arm is unknown.
    """
    if (folder / "lineage.json").is_file():
        if arm:
            raise UserError(
                f"--arm={arm}: {folder} is one stage run, not a study.", where="--arm"
            )
        return _described(folder, _arm_of(folder))
    rows = _rows(folder)
    if not rows:
        raise UserError(
            f"{folder}: neither a finished stage run (lineage.json) nor the workdir of "
            "a study with results (rows/).",
            where=folder,
        )
    arms = sorted({row["arm"] for row in rows})
    if not arm and PREFERRED_ARM not in arms and len(arms) > 1:
        raise UserError(
            f"{folder}: which arm? Give --arm, one of {', '.join(arms)}.", where="--arm"
        )
    arm = arm or (PREFERRED_ARM if PREFERRED_ARM in arms else arms[0])
    if arm not in arms:
        raise UserError(
            f"--arm={arm}: the study has no such arm.{did_you_mean(arm, arms)}",
            where="--arm",
        )
    first = min(
        (row for row in rows if row["arm"] == arm),
        key=lambda row: (-row["fraction"], row["seed"], row["fold"]),
    )
    return _described(folder / "stages" / Path(first["stage_runs"][-1]).name, arm)


def parse_window(text: str, run: Trained) -> tuple[float, ...]:
    """Returns the window in HU: that of a flag, or that of the training.

    Args:
      text: 'centre,width', one pair or one per channel; '' for that of the training.
      run: stage run.

    Raises:
      UserError: The text is not a window, or it is empty and the run has none.
    """
    if not text:
        if run.window is None:
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


def _described(folder: Path, arm: str) -> Trained:
    path = folder / "lineage.json"
    try:
        lineage = json.loads(path.read_text(encoding="utf-8"))
        data, settings = lineage["data"], lineage["settings"]["data"]
        in_hu = data.get("units") == "hu"
        synthetic = data.get("synthetic")
        return Trained(
            folder=folder,
            hash=str(lineage["hash"]),
            arm=arm or " > ".join(n.rsplit("-", 1)[0] for n in lineage["chain"]),
            source=str(settings["source"]),
            data=str(data["name"]),
            fingerprint=str(data["fingerprint"]),
            class_names=tuple(map(str, data["class_names"])),
            model=ModelConfig(**lineage["model"]),
            normalise=settings["normalise"],
            mean=tuple(data["mean"]),
            deviation=tuple(data["deviation"]),
            window=tuple(settings["window"]) if in_hu else None,
            options=dict(settings["options"]),
            synthetic=synthetic if isinstance(synthetic, bool) else None,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not the lineage of a finished stage run ({error!r}).",
            where=path,
        ) from error


def _rows(workdir: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((workdir / "rows").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            kept = ("arm", "seed", "fraction", "fold", "stage_runs")
            rows.append({name: row[name] for name in kept})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: is not a row of a study ({error!r}).", where=path
            ) from error
    return rows


def _arm_of(folder: Path) -> str:
    """Returns the arm that a stage run ends in the study around it, or ''."""
    for row in _rows(folder.absolute().parent.parent):
        if row["stage_runs"][-1:] == [folder.absolute().name]:
            return row["arm"]
    return ""
