"""What a stage run is: its place in the study, and what determines its result."""

import dataclasses
import zlib
from typing import Any

import jax
import numpy as np

from twostage_jax.config import with_values
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.data.splits import Splits, split, subset
from twostage_jax.settings import TARGET, Config, StageConfig, as_json

# Bump when the code changes what the same settings give.
RESULT_VERSION = 3
# The same for the way in which folds are drawn.
FOLDS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One node of the tree of stage runs.

    Attributes:
      stage: Name of its settings in `config.stages`.
      seed, fraction, fold: Its place in the study; source stages have fraction 1 and
        fold 0.
      tuned: (setting, value) pairs of the tuning grid that it tries.
      parent: The stage run before it, or None if it starts from random parameters.
      hash: Digest of everything that determines its result.
    """

    stage: str
    seed: int
    fraction: float
    fold: int
    tuned: tuple[tuple[str, Any], ...]
    parent: "StageRun | None"
    hash: str

    @property
    def folder_name(self) -> str:
        return f"{self.stage}-{self.hash[:12]}"

    @property
    def chain(self) -> list["StageRun"]:
        """This stage run and those before it, first one first."""
        return [*(self.parent.chain if self.parent else []), self]

    def settings(self, config: Config) -> StageConfig:
        """Returns the settings of its stage, with its own place in the grid."""
        return with_values(config.stages[self.stage], self.tuned)

    def __str__(self) -> str:
        place = [f"seed {self.seed}"]
        if self.fraction != 1:
            place.append(f"fraction {self.fraction:g}")
        if self.fold:
            place.append(f"fold {self.fold}")
        place += [f"{path.rsplit('.', 1)[-1]} {value}" for path, value in self.tuned]
        return f"{' > '.join(run.stage for run in self.chain)} ({', '.join(place)})"


def identify(
    config: Config,
    dataset: Dataset,
    stage: str,
    *,
    seed: int,
    fraction: float = 1.0,
    fold: int = 0,
    tuned: tuple[tuple[str, Any], ...] = (),
    parent: StageRun | None = None,
) -> StageRun:
    """Returns the stage run of these settings, named by what determines its result."""
    run = StageRun(stage, seed, fraction, fold, tuned, parent, "")
    settings = as_json(run.settings(config))
    # How often a state is saved, and where files lie, change no result; neither do
    # rules of a transfer that does not take place.
    del settings["train"]["save_every"]
    del settings["data"]["options"]
    if parent is None:
        del settings["transfer"]
    identity = digest(
        RESULT_VERSION,
        settings,
        as_json(config.model),
        dataset.fingerprint,
        place_of(config, run),
        parent.hash if parent else "",
    )
    return dataclasses.replace(run, hash=identity)


def place_of(config: Config, run: StageRun) -> tuple[Any, ...]:
    """Returns what determines the seed and the examples of a stage run."""
    study = config.study
    place: tuple[Any, ...] = (run.seed, study.split_seed)
    if run.stage == TARGET:
        drawn = study.draw if run.fraction < 1 else ""
        place += (run.fraction, run.fold, study.folds, drawn)
        place += (_split_seed(config, run),)
        if study.folds:
            place += (FOLDS_VERSION,)
    return place


def keys(seed: int, stage: str) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a stage run: of its initial variables, and of its training."""
    return tuple(
        jax.random.split(jax.random.fold_in(jax.random.key(seed), code(stage)))
    )


def code(stage: str) -> int:
    """Returns a number for a stage's name, the same in every process."""
    return zlib.crc32(stage.encode())


def split_of(config: Config, dataset: Dataset, run: StageRun) -> Splits:
    """Returns the examples that a stage run trains, validates and tests on.

    Folds are drawn anew for each seed, so that what is good or bad about a training set
    differs from seed to seed, as intervals over seeds expect; see
    `experiments/coverage.md`.

    Raises:
      UserError: As `data.splits.split` and `data.subsets.subset`.
    """
    data, study = config.stages[run.stage].data, config.study
    splits = split(
        dataset,
        seed=_split_seed(config, run),
        validation=data.validation,
        test=data.test,
        folds=study.folds if run.stage == TARGET else 0,
        fold=run.fold,
    )
    if run.fraction == 1:
        return splits
    train = subset(dataset, splits.train, run.fraction, seed=run.seed, by=study.draw)
    return dataclasses.replace(splits, train=train)


def _split_seed(config: Config, run: StageRun) -> int:
    study = config.study
    if run.stage != TARGET or not study.folds:
        return study.split_seed
    mixed = np.random.SeedSequence((study.split_seed, run.seed))
    return int(mixed.generate_state(1)[0])
