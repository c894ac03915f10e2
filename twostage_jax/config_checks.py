"""Settings that are of the right type but impossible."""

import re
from collections.abc import Sequence

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.settings import BASELINES, Config, StageConfig, StudyConfig
from twostage_jax.transfer import TransferError, check_rules

# How long the target trains, which must be the same for every arm.
LENGTH = ("train.steps", "train.batch_size")


def check_values(config: Config, tried: Sequence[StageConfig]) -> None:
    """Raises a UserError that names the first setting with an impossible value.

    Args:
      config: All settings.
      tried: The target stage at each place of the tuning grid.
    """
    _positive({"config.model.image_size": config.model.image_size})
    _share({"config.model.dropout": config.model.dropout})
    for name, stage in config.stages.items():
        _check_stage(stage, f"config.stages.{name}")
    _check_study(config.study)
    _check_grid(config.study)
    for stage in tried:
        _check_stage(stage, "config.study.grid")


def _check_stage(stage: StageConfig, path: str) -> None:
    train, optim, augment = stage.train, stage.optim, stage.augment
    fields = ("steps", "batch_size", "eval_every", "save_every")
    _positive({f"{path}.train.{field}": getattr(train, field) for field in fields})
    _positive({f"{path}.optim.learning_rate": optim.learning_rate})
    _share({f"{path}.train.label_smoothing": train.label_smoothing})
    _share({f"{path}.optim.momentum": optim.momentum})
    fields = ("weight_decay", "clip_norm", "l2_sp", "warmup_steps", "head_steps")
    _not_negative({f"{path}.optim.{field}": getattr(optim, field) for field in fields})
    fields = ("shift", "brightness", "contrast", "window")
    _not_negative(
        {f"{path}.augment.{field}": getattr(augment, field) for field in fields}
    )
    if train.steps <= optim.warmup_steps:
        raise UserError(
            f"{path}.optim.warmup_steps is {optim.warmup_steps}: it must be below "
            f"train.steps ({train.steps})."
        )
    _check_data(stage, f"{path}.data")
    patterns = [("freeze", pattern) for pattern in optim.freeze]
    patterns += [("lr_factors", pattern) for pattern, _ in optim.lr_factors]
    for setting, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{path}.optim.{setting}: {pattern!r} is no regular expression: {error}."
            ) from None
    try:
        check_rules(stage.transfer.rules)
    except TransferError as error:
        raise UserError(
            f"{path}.transfer.rules: {' '.join(error.violations)}"
        ) from None


def _check_data(stage: StageConfig, path: str) -> None:
    window = stage.data.window
    if len(window) not in (2, 6) or min(window[1::2]) <= 0:
        raise UserError(
            f"{path}.window is {window}: it must be (centre, width) in HU, or three such "
            "pairs in one tuple, with positive widths."
        )
    for field in ("validation", "test"):
        value = getattr(stage.data, field)
        if not 0 < value < 1:
            raise UserError(f"{path}.{field} is {value}: it must lie between 0 and 1.")


def _check_study(study: StudyConfig) -> None:
    if not study.seeds or len(set(study.seeds)) != len(study.seeds):
        raise UserError(
            f"config.study.seeds is {study.seeds}: one or more, all unlike."
        )
    if min(study.seeds) < 0:
        raise UserError(f"config.study.seeds is {study.seeds}: none may be negative.")
    if not study.fractions or not all(0 < share <= 1 for share in study.fractions):
        raise UserError(
            f"config.study.fractions is {study.fractions}: shares above 0, up to 1."
        )
    if len(set(study.fractions)) != len(study.fractions):
        raise UserError(
            f"config.study.fractions is {study.fractions}: names one twice."
        )
    if study.side_by_side < 0:
        raise UserError(
            f"config.study.side_by_side is {study.side_by_side}: give 0 (one on each "
            "device), 1 (one at a time), or more."
        )
    for name in study.baselines:
        if name not in BASELINES:
            raise UserError(
                f"config.study.baselines: '{name}' is not a baseline."
                f"{did_you_mean(name, BASELINES)}",
                where="config.study.baselines",
            )
    if study.folds == 1 or study.folds < 0:
        raise UserError(
            f"config.study.folds is {study.folds}: give 0 for one split, or 2 or more."
        )


def _check_grid(study: StudyConfig) -> None:
    names = [setting for setting, _ in study.grid]
    if len(set(names)) != len(names):
        raise UserError("config.study.grid names a setting twice.")
    for setting, values in study.grid:
        if setting in LENGTH:
            raise UserError(
                f"config.study.grid: '{setting}' is not to be tuned: each arm would keep "
                "a value of its own, and a longer training on the target would pass for "
                "a better arm. Set config.stages.target.train, the same for all."
            )
        if not values or len(set(map(repr, values))) != len(values):
            raise UserError(f"config.study.grid: '{setting}' needs values, all unlike.")


def _positive(values: dict[str, float]) -> None:
    for name, value in values.items():
        if value <= 0:
            raise UserError(f"{name} is {value}: it must be positive.")


def _not_negative(values: dict[str, float]) -> None:
    for name, value in values.items():
        if value < 0:
            raise UserError(f"{name} is {value}: it must not be negative.")


def _share(values: dict[str, float]) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}: it must be at least 0 and below 1.")
