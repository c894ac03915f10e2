"""A finished stage run, found and loaded as a classifier of windows of CT slices."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import jax_utils

from twostage_jax import checkpoint, training
from twostage_jax.config import AugmentConfig, ModelConfig, OptimConfig
from twostage_jax.errors import UserError, did_you_mean

# Data sources whose images are in HU, so that the window they trained with applies.
HU_SOURCES = ("dicom", "phantoms")
PREFERRED_ARM = "two_stage"
# Windows a call of the network, over all devices.
BATCH = 512


@dataclasses.dataclass(frozen=True)
class Trained:
    """A stage run and what is needed to apply it.

    Attributes:
      folder: Of the stage run.
      hash: Of the stage run: it determines the parameters.
      arm: The arm that it ends, or its chain where it ends none.
      data: Name and fingerprint of the data it was trained on.
      class_names: Of the K classes.
      model: The network.
      normalise, mean, deviation: How images are scaled for it, see `data.augment`.
      window: (centre, width) pairs in HU, flattened; None if it trained on images that
        were not in HU.
      spacing: Millimetres a pixel at which it trained; None = pixels as they were.
    """

    folder: Path
    hash: str
    arm: str
    data: str
    class_names: tuple[str, ...]
    model: ModelConfig
    normalise: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    window: tuple[float, ...] | None
    spacing: float | None

    def __str__(self) -> str:
        return f"model {self.hash[:12]} ({self.arm}), trained on {self.data}"


def find(folder: Path, arm: str = "") -> Trained:
    """Returns the stage run in `folder`, or that of an arm of the study in it.

    Of a study, the run with all training data, the first seed and the first fold.

    Args:
      folder: Of a stage run, or of a study (its workdir).
      arm: Name of the arm; empty: 'two_stage', or the only one.

    Raises:
      UserError: There is no finished stage run, or no such arm.
    """
    if (folder / "lineage.json").is_file():
        if arm:
            raise UserError(f"--arm={arm}: {folder} is one stage run, not a study.")
        return _described(folder, _arm_of(folder))
    rows = _rows(folder)
    if not rows:
        raise UserError(
            f"{folder}: neither a finished stage run (lineage.json) nor the workdir of "
            "a study with results (rows/)."
        )
    arms = sorted({row["arm"] for row in rows})
    if not arm and PREFERRED_ARM not in arms and len(arms) > 1:
        raise UserError(f"{folder}: which arm? Give --arm, one of {', '.join(arms)}.")
    arm = arm or (PREFERRED_ARM if PREFERRED_ARM in arms else arms[0])
    if arm not in arms:
        raise UserError(
            f"--arm={arm}: the study has no such arm.{did_you_mean(arm, arms)}"
        )
    first = min(
        (row for row in rows if row["arm"] == arm),
        key=lambda row: (-row["fraction"], row["seed"], row["fold"]),
    )
    return _described(folder / "stages" / Path(first["stage_runs"][-1]).name, arm)


class Classifier:
    """The network of a stage run, applied to windows of slices in HU."""

    def __init__(self, trained: Trained, window: tuple[float, ...]) -> None:
        """Loads the parameters and puts them on every device.

        Args:
          trained: The stage run.
          window: (centre, width) pairs in HU, flattened: one, or one a channel.

        Raises:
          UserError: The parameters cannot be read, or several processes take part.
        """
        if jax.process_count() > 1:
            raise UserError("predict runs in one process: start it once, by itself.")
        self.trained = trained
        self.size = trained.model.image_size
        self._programs = training.compiled(
            training.StepSettings(
                model=trained.model,
                # Nothing is trained here.
                optim=OptimConfig(),
                augment=AugmentConfig(),
                steps=1,
                num_classes=len(trained.class_names),
                normalise=trained.normalise,
                window=window,
                label_smoothing=0.0,
                transferred=frozenset(),
            )
        )
        variables = checkpoint.load_variables(trained.folder / "variables")
        self._variables = training.replicate(variables)
        self._constants = training.Constants(
            np.ones(len(trained.class_names), np.float32),
            np.asarray(trained.mean, np.float32),
            np.asarray(trained.deviation, np.float32),
        )
        self._cut = jax.pmap(functools.partial(_cut, size=self.size))

    def start(
        self, slices: np.ndarray, corners: np.ndarray
    ) -> Callable[[], np.ndarray]:
        """Begins to classify windows; the device works while the host goes on.

        The slices are copied to every device and the windows cut there.

        Args:
          slices: `[Z, H, W]` int16 HU.
          corners: `[N, 3]` int: slice, first row, first column of each window.

        Returns:
          A function that waits for and returns the probabilities `[N, K]` float32.
        """
        devices = jax.local_device_count()
        size = -(-BATCH // devices) * devices
        padded = np.zeros((-(-len(corners) // size) * size, 3), np.int32)
        padded[: len(corners)] = corners
        stack = jax_utils.replicate(slices)
        parts = []
        for batch in padded.reshape(-1, devices, size // devices, 3):
            images = {"images": self._cut(stack, batch)}
            parts.append(
                self._programs.evaluate(self._variables, None, images, self._constants)
            )

        def wait() -> np.ndarray:
            host = [training.unreplicate(part) for part in parts]
            host = host or [np.zeros((0, len(self._constants.class_weights)))]
            return np.concatenate(host)[: len(corners)].astype(np.float32)

        return wait


def _cut(slices: jax.Array, corners: jax.Array, *, size: int) -> jax.Array:
    """Returns windows `[b, size, size, 1]` of `[Z, H, W]` at `[b, 3]` corners."""

    def one(corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(slices, corner, (1, size, size))

    return jax.vmap(one)(corners)[:, 0, :, :, None]


def _described(folder: Path, arm: str) -> Trained:
    path = folder / "lineage.json"
    try:
        lineage = json.loads(path.read_text(encoding="utf-8"))
        data, settings = lineage["data"], lineage["settings"]["data"]
        in_hu = settings["source"] in HU_SOURCES
        return Trained(
            folder=folder,
            hash=str(lineage["hash"]),
            arm=arm or " > ".join(n.rsplit("-", 1)[0] for n in lineage["chain"]),
            data=f"{data['name']} {data['fingerprint'][:12]}",
            class_names=tuple(map(str, data["class_names"])),
            model=ModelConfig(**lineage["model"]),
            normalise=settings["normalise"],
            mean=tuple(data["mean"]),
            deviation=tuple(data["deviation"]),
            window=tuple(settings["window"]) if in_hu else None,
            spacing=settings["options"].get("spacing"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is not the lineage of a finished stage run ({error!r})."
        ) from error


def _rows(workdir: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((workdir / "rows").glob("*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            kept = ("arm", "seed", "fraction", "fold", "stage_runs")
            rows.append({name: row[name] for name in kept})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is no row of a study ({error!r}).") from error
    return rows


def _arm_of(folder: Path) -> str:
    """Returns the arm of the study around a stage run that it ends; '' if none."""
    for row in _rows(folder.absolute().parent.parent):
        if row["stage_runs"][-1:] == [folder.absolute().name]:
            return row["arm"]
    return ""
