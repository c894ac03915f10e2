"""Files of a finished stage run, apart from its variables: written, found and read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twostage_jax import io
from twostage_jax.config import (
    TARGET,
    AugmentConfig,
    Config,
    ModelConfig,
    as_json,
)
from twostage_jax.data import cohort, prepared_folder
from twostage_jax.data.dataset import SPLITS, Dataset, digest
from twostage_jax.data.splits import Splits, copies
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.notices import notices
from twostage_jax.runtime import versions
from twostage_jax.stats import metrics

if TYPE_CHECKING:
    from twostage_jax.study.plan import StageRun
    from twostage_jax.train import steps
    from twostage_jax.train.loop import Fitted

PREFERRED_ARM = "two_stage"
# Fields that identify a row of a study.
PLACE = ("arm", "seed", "fraction", "fold")
# File of a target stage run with the groups of its training examples.
TRAINED = "trained.npz"


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished stage run, with all that is needed to apply it.

    Attributes:
      folder: Folder of the stage run.
      hash: Digest of everything that determines its parameters.
      arm: Arm whose last stage it is, or else its chain of stages.
      stage: Name of its stage.
      seed: Its seed.
      source: Data source that it was trained on.
      data: Name of the data set.
      fingerprint: Digest of the data set.
      class_names: Names of the K classes.
      model: Settings of the network.
      normalise, mean, deviation: Scaling of the images, see `train.augment`.
      window: (centre, width) pairs in HU, flattened; without effect unless `in_hu`.
      in_hu: Whether the training images were recorded as HU.
      augment: Changes in training, which define the views of an image that its
        predictions are averaged over.
      options: Settings of its data source.
      synthetic: Whether it was trained on synthetic images; None if not recorded, by an
        earlier version.
      measures: Measures of its data set (see `Dataset.measures`).
      members: Stage runs whose probabilities are averaged; empty for a single one. The
        other attributes are those of the first, except hash and arm.
    """

    folder: Path
    hash: str
    arm: str
    stage: str
    seed: int
    source: str
    data: str
    fingerprint: str
    class_names: tuple[str, ...]
    model: ModelConfig
    normalise: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    window: tuple[float, ...]
    in_hu: bool
    augment: AugmentConfig
    options: Mapping[str, Any]
    synthetic: bool | None
    measures: Mapping[str, float]
    members: tuple["Trained", ...] = ()

    @property
    def notices(self) -> tuple[str, ...]:
        """The notice that every output carries, and the origin of the training data."""
        return notices(self.synthetic)

    def patients(self) -> frozenset[str]:
        """Returns the groups of the training images; empty if they were not recorded.

        In data sets from DICOM, these are hashes of patients: see `ct.dicom.patient_hash`.

        Raises:
          UserError: The file cannot be read.
        """
        path = self.folder / TRAINED
        if not path.is_file():
            return frozenset()
        groups = io.read_arrays(path, ("groups",))["groups"]
        return frozenset(groups.astype(str).tolist())

    def spacing(self) -> float | None:
        """Returns the mm per pixel that images were resampled to; None = they were not.

        Raises:
          ValueError: Unknown, since the source resizes images or reads pictures; or since
            the set of `twostage prepare` has gone or changed.
        """
        if self.source == "prepared":
            folder = Path(self.options.get("path", ""))
            return prepared_folder.spacing(folder, self.fingerprint)
        # Slices in HU are DICOM files; other slices are pictures of any size.
        of_dicom = self.source == "slices" and self.in_hu
        if not (of_dicom or self.source in ("dicom", "phantoms")):
            raise ValueError(
                f"the resolution of the training images is unknown (data source "
                f"'{self.source}')"
            )
        return self.options.get("spacing")

    def __str__(self) -> str:
        data = f"{self.data} {self.fingerprint[:12]}"
        return f"model {self.hash[:12]} ({self.arm}), trained on {data}"


def find(
    folder: Path,
    arm: str = "",
    *,
    seed: int | None = None,
    fraction: float | None = None,
    fold: int | None = None,
) -> Trained:
    """Returns the stage run in `folder`, or that of an arm of the study in it.

    Args:
      folder: Folder of a stage run, or workdir of a study.
      arm: Name of the arm; empty for 'two_stage', or the only arm.
      seed, fraction, fold: Position of the run in the study; None for the first seed,
        all training data, and the first fold.

    Raises:
      UserError: The folder is not a finished stage run, or the study lacks the run.
    """
    return read(*_found(folder, arm, seed=seed, fraction=fraction, fold=fold)[0])


def find_ensemble(folder: Path, arm: str = "") -> Trained:
    """Returns the stage runs of all seeds of an arm as one; the first is that of `find`.

    Raises:
      UserError: As in `find`; or the study has only one seed of the arm.
    """
    runs = [read(*one) for one in _found(folder, arm)]
    if len(runs) < 2:
        raise UserError(
            f"--ensemble: {folder} has only one seed of this arm. Train more: "
            "config.study.seeds.",
            where="--ensemble",
        )
    return dataclasses.replace(
        runs[0],
        hash=digest(*(run.hash for run in runs)),
        arm=f"{runs[0].arm}, {len(runs)} seeds together",
        members=tuple(runs),
    )


def _found(folder: Path, arm: str, **place: Any) -> list[tuple[Path, str]]:
    """Returns folder and arm of the run that `find` describes, then of other seeds."""
    place = {"arm": arm or None, **place}
    place = {name: value for name, value in place.items() if value is not None}
    if (folder / "lineage.json").is_file():
        for name, value in place.items():
            raise UserError(
                f"--{name}={value}: {folder} is a single stage run, not a study.",
                where=f"--{name}",
            )
        return [(folder, _arm_of(folder))]
    rows = _rows(folder)
    if not rows:
        raise UserError.at(
            folder,
            "this is neither a finished stage run (lineage.json) nor the workdir of a "
            "study with results (rows/).",
        )
    arms = sorted({row["arm"] for row in rows})
    if not arm and PREFERRED_ARM not in arms and len(arms) > 1:
        raise UserError(
            f"{folder}: the study has several arms: set --arm to one of "
            f"{', '.join(arms)}.",
            where="--arm",
        )
    place = {"arm": PREFERRED_ARM if PREFERRED_ARM in arms else arms[0], **place}
    for name, value in place.items():
        known = {row[name] for row in rows}
        if value not in known:
            hint = did_you_mean(str(value), map(str, known))
            raise UserError(
                f"--{name}={value}: {folder} lacks such a run.{hint}",
                where=f"--{name}",
            )
        rows = [row for row in rows if row[name] == value]
    rows.sort(key=lambda row: (-row["fraction"], row["seed"], row["fold"]))
    fraction, fold = rows[0]["fraction"], rows[0]["fold"]
    return [
        (folder / "stages" / Path(row["stage_runs"][-1]).name, row["arm"])
        for row in rows
        if (row["fraction"], row["fold"]) == (fraction, fold)
    ]


def read(folder: Path, arm: str = "") -> Trained:
    """Returns the finished stage run of a folder.

    Args:
      folder: Folder of the stage run.
      arm: Arm whose last stage it is; '' for other stages.

    Raises:
      UserError: The lineage is missing, damaged, or not of a stage run.
    """
    path = folder / "lineage.json"
    lineage = io.read_json(path)
    try:
        data, settings = lineage["data"], lineage["settings"]["data"]
        chain = " > ".join(name.rsplit("-", 1)[0] for name in lineage["chain"])
        synthetic = data.get("synthetic")
        return Trained(
            folder=folder,
            hash=str(lineage["hash"]),
            arm=arm or chain,
            stage=str(lineage["stage"]),
            seed=int(lineage["seed"]),
            source=str(settings["source"]),
            data=str(data["name"]),
            fingerprint=str(data["fingerprint"]),
            class_names=tuple(map(str, data["class_names"])),
            model=ModelConfig(**lineage["model"]),
            normalise=str(settings["normalise"]),
            mean=tuple(data["mean"]),
            deviation=tuple(data["deviation"]),
            window=tuple(settings["window"]),
            in_hu=data.get("units") == "hu",
            augment=AugmentConfig.stored(lineage["settings"]),
            options=dict(settings["options"]),
            synthetic=synthetic if isinstance(synthetic, bool) else None,
            measures=data.get("measures", {}),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError.at(
            path, f"this is not the lineage of a finished stage run ({error!r})."
        ) from error


def save_predictions(
    path: Path, dataset: Dataset, indices: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes ids, groups (empty strings if none), labels and probabilities."""
    io.write_arrays(
        path,
        ids=dataset.ids[indices].astype(str),
        groups=group_names(dataset, indices),
        labels=dataset.labels[indices],
        probabilities=probabilities,
        class_names=np.array(dataset.class_names),
    )


def group_names(dataset: Dataset, indices: np.ndarray) -> np.ndarray:
    """Returns the groups of examples as strings; empty ones if they are unknown."""
    if dataset.groups is None:
        return np.full(len(indices), "")
    return dataset.groups[indices].astype(str)


def group_counts(dataset: Dataset, splits: Splits) -> dict[str, int] | None:
    """Returns the number of groups in each split, or None if they are unknown."""
    if dataset.groups is None:
        return None
    return {
        name: len(np.unique(dataset.groups[getattr(splits, name)])) for name in SPLITS
    }


def origin(config: Config, run: "StageRun") -> dict[str, Any]:
    """Returns the first entries of a lineage: the stage run and its settings."""
    return {
        "stage": run.stage,
        "chain": [ancestor.folder_name for ancestor in run.chain],
        "hash": run.hash,
        "parent": run.parent.hash if run.parent else None,
        "seed": run.seed,
        "fraction": run.fraction,
        "fold": run.fold,
        "settings": as_json(run.settings(config)),
        "model": as_json(config.network(run.stage)),
    }


def lineage(
    config: Config,
    dataset: Dataset,
    run: "StageRun",
    splits: Splits,
    constants: "steps.Constants",
    fitted: "Fitted",
    probabilities: np.ndarray,
    seconds: float | None,
) -> dict[str, Any]:
    """Returns the origin and the scores of a stage run as JSON values.

    Args:
      config, dataset, run, splits, constants: Inputs of the stage run.
      fitted: Result of training.
      probabilities: Class probabilities `[N, K]` of the test examples.
      seconds: Fraction of the group's time used by the run, s; None if interrupted.
    """
    return {
        **origin(config, run),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "units": dataset.units,
            "synthetic": dataset.synthetic,
            "measures": dict(dataset.measures),
            "kind": dataset.kind,
            "class_names": list(dataset.class_names),
            "examples": {name: len(getattr(splits, name)) for name in SPLITS},
            "groups": group_counts(dataset, splits),
            "copies": copies(dataset, splits),
            "notes": list(dataset.notes),
            "cohort": cohort.describe(dataset, splits) if run.stage == TARGET else None,
            "mean": constants.mean.tolist(),
            "deviation": constants.deviation.tolist(),
        },
        "history": fitted.history,
        "validation": fitted.selected,
        "scores": metrics.scores(dataset.labels[splits.test], probabilities),
        "seconds": None if seconds is None else round(seconds, 2),
        "versions": versions(),
    }


def _rows(workdir: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted((workdir / "rows").glob("*.json")):
        try:
            row = io.read_json(path)
            rows.append({name: row[name] for name in (*PLACE, "stage_runs")})
        except (KeyError, TypeError) as error:
            raise UserError.at(
                path, f"this is not a row of a study ({error!r})."
            ) from error
    return rows


def _arm_of(folder: Path) -> str:
    """Returns the arm whose last stage a run is in the surrounding study, or ''."""
    for row in _rows(folder.absolute().parent.parent):
        if row["stage_runs"][-1:] == [folder.absolute().name]:
            return row["arm"]
    return ""
