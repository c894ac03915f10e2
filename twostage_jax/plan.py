"""The tree of stage runs that a study needs, and every check that needs no training."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import fit, models, optim, training
from twostage_jax import transfer as transfers
from twostage_jax.config import TARGET, Config
from twostage_jax.data import sources
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.feed import divides
from twostage_jax.errors import UserError
from twostage_jax.stage import StageRun, identify, split_of

PyTree = Any


class Row(NamedTuple):
    """One row of the results: an arm at a seed, a fraction and a fold.

    Attributes:
      arm, seed, fraction, fold: Its place in the study.
      run: The target stage run, which knows its ancestors.
    """

    arm: str
    seed: int
    fraction: float
    fold: int
    run: StageRun

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}-fraction{self.fraction:g}-fold{self.fold}"


def check(config: Config) -> None:
    """Raises a UserError for settings that cannot work, before any data is read."""
    if config.model.name not in models.MODELS:
        models.build(config.model.name, num_classes=2)
    for name, stage in config.stages.items():
        path = f"config.stages.{name}"
        sources.check(stage.data, f"{path}.data")
        if not divides(stage.train.batch_size):
            raise UserError(
                f"{path}.train.batch_size is {stage.train.batch_size}: it must be "
                f"divisible by the {jax.device_count()} devices."
            )
        if fit.chunk_length(stage.train) == 1 and stage.train.steps > fit.MAX_CHUNK:
            raise UserError(
                f"{path}.train: steps ({stage.train.steps}) and eval_every "
                f"({stage.train.eval_every}) have no common divisor up to "
                f"{fit.MAX_CHUNK}, so every step would wait for the host: choose round "
                "numbers."
            )
        windows = len(stage.data.window) // 2
        if windows not in (1, config.model.channels):
            raise UserError(
                f"{path}.data.window holds {windows} windows, but config.model.channels "
                f"is {config.model.channels}."
            )


def rows(config: Config, datasets: Mapping[str, Dataset]) -> list[Row]:
    """Returns the rows of the study, in order of seed, fraction, fold and arm."""
    study, found = config.study, []
    runs: dict[tuple, StageRun] = {}
    for seed in study.seeds:
        for fraction in sorted(study.fractions, reverse=True):
            for fold in range(max(study.folds, 1)):
                for arm, chain in config.arms.items():
                    run = None
                    for depth, stage in enumerate(chain, 1):
                        place = (fraction, fold) if stage == TARGET else (1.0, 0)
                        key = (chain[:depth], seed, *place)
                        if key not in runs:
                            runs[key] = identify(
                                config, datasets[stage], stage, seed, *place, run
                            )
                        run = runs[key]
                    found.append(Row(arm, seed, fraction, fold, run))
    return found


def stage_runs(rows: list[Row]) -> list[StageRun]:
    """Returns the stage runs behind the rows, each once, ancestors first."""
    return list({run.hash: run for row in rows for run in row.run.chain}.values())


def check_data(
    config: Config, datasets: Mapping[str, Dataset], rows: list[Row]
) -> None:
    """Raises a UserError for data that cannot be split, or an impossible transfer."""
    checked = set()
    for run in stage_runs(rows):
        place = (run.stage, run.fraction, run.fold, run.seed)
        if place not in checked:
            checked.add(place)
            try:
                split_of(config, datasets[run.stage], run)
            except UserError as error:
                raise UserError(f"config.stages.{run.stage}.data: {error}") from None
    edges = {
        (chain[i - 1] if i else None, stage): None
        for chain in config.arms.values()
        for i, stage in enumerate(chain)
    }
    for before, stage in edges:
        variables = fresh_variables(config, datasets[stage].num_classes)
        optim.check_patterns(
            config.stages[stage].optim, variables, f"config.stages.{stage}.optim"
        )
        if before:
            source = fresh_variables(config, datasets[before].num_classes)
            planned_transfer(config, stage, source, variables)


def planned_transfer(
    config: Config, stage: str, source: PyTree, target: PyTree
) -> transfers.TransferReport:
    """Returns the report of the transfer into `stage`.

    Raises:
      UserError: The rules do not fit; names the stage and every violation.
    """
    settings = config.stages[stage].transfer
    rules = transfers.rules_for(settings.reinitialise, settings.rules)
    try:
        return transfers.transfer(source, target, rules)[1]
    except UserError as error:
        raise UserError(f"config.stages.{stage}.transfer: {error}") from None


def fresh_variables(config: Config, num_classes: int) -> PyTree:
    """Returns zeros of the shapes that the network's variables will have."""
    module = training.build_model(config.model, num_classes, None)
    size, channels = config.model.image_size, config.model.channels
    images = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    try:
        shapes = jax.eval_shape(
            lambda key, x: module.init(key, x, train=False), jax.random.key(0), images
        )
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"config.model: '{config.model.name}' cannot take images of {size} pixels "
            f"({error})."
        ) from error
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), dict(shapes))
