"""What a run is asked to do: every setting of a config file, and what it means.

The fields of the classes below are settings of the same names; `config.parse` makes them
from a config file.
"""

import dataclasses
import importlib.util
import itertools
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ml_collections import ConfigDict

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.stats import metrics
from twostage_jax.transfer import TransferError, check_rules

TARGET = "target"
BASELINES = ("majority", "mean_grey", "descriptors", "frozen")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, one for the whole chain.

    Attributes:
      name: A key of `models.MODELS`.
      channels: Input channels; every image is brought to this number.
      image_size: Input height and width, pixels.
      norm: Normalisation layers; '' = the network's own (see `models.Network`).
      head: 'orderless' (moments of the last convolutions, wherever a texture lies) or
        'dense' (hidden dense layers, as in the paper); '' = the network's own (see
        `models.Network`).
      dropout: Probability of dropping a unit of the fully connected layers.
      dtype: Of the computation; parameters are always float32.
    """

    name: str = "caffenet_small"
    channels: Literal[1, 3] = 1
    image_size: int = 32
    norm: Literal["", "local", "batch", "group"] = ""
    head: Literal["", "orderless", "dense"] = ""
    dropout: float = 0.5
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The data of one stage.

    Attributes:
      source: A key of `data.sources.SOURCES`.
      validation: Share of the training groups (examples, where the set has no groups)
        that model selection looks at, if the set brings no validation split.
      test: Share of the groups held out for the test, if the set brings no test split.
      normalise: 'fixed' (mean 0.5, deviation 0.25), 'dataset' (mean and deviation of
        the stage's training images) or 'patch' (each image to mean 0, deviation 1:
        structure only).
      window: (centre, width) in HU for images in HU, one pair, or three for three
        channels, flattened. Other images ignore it.
      options: What else the block says: the keyword arguments of the source's recipe.
    """

    source: str
    validation: float = 0.2
    test: float = 0.25
    normalise: Literal["fixed", "dataset", "patch"] = "fixed"
    window: tuple[float, ...] = (-600.0, 1500.0)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """What is carried from the stage before.

    Attributes:
      reinitialise: 'head' (the last layer starts afresh, the rest is copied) or
        'dense' (all fully connected layers start afresh).
      rules: (regular expression, action) pairs that come before these defaults; see
        `transfer.transfer`.
    """

    reinitialise: Literal["head", "dense"] = "head"
    rules: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule.

    Attributes:
      name: Stochastic gradient descent with momentum, or AdamW.
      learning_rate: At its peak, for a batch of the stage's `batch_size`.
      momentum: Of SGD.
      weight_decay: On kernels; biases and normalisation layers are spared.
      warmup_steps: Steps of linear warm-up.
      schedule: After the warm-up: 'cosine' (to zero) or 'constant'.
      clip_norm: Largest global gradient norm; 0 = no clipping.
      lr_factors: (regular expression, factor) pairs over paths such as
        'conv1/kernel'; full match, first match wins, others 1.
      freeze: Regular expressions over the same paths, and over those of BatchNorm
        statistics ('stem_norm/mean'); what matches stays bit-identical.
      head_steps: Steps at the start in which the head alone is trained (linear probing
        then fine-tuning, Kumar et al. 2022); BatchNorm's statistics stay, too.
      l2_sp: Strength of the pull of transferred kernels towards where they started
        (L2-SP, Li et al. 2018); it replaces their weight decay. 0 = none.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_steps: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = 0.0
    lr_factors: tuple[tuple[str, float], ...] = ()
    freeze: tuple[str, ...] = ()
    head_steps: int = 0
    l2_sp: float = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The length and the loss of one stage.

    Attributes:
      steps: Optimiser steps.
      batch_size: Examples a step, over all devices.
      eval_every: Steps between scores on the validation split.
      save_every: Steps between saved states; what a killed run loses at most.
      select: Keep the 'last' parameters, or those of the 'best' validation score: of few
        validation groups the best checkpoint is mostly the luckiest.
      label_smoothing: Share of the target probability spread over all classes.
      class_weights: 'balanced' weighs a class by the inverse of its frequency.
    """

    steps: int = 300
    batch_size: int = 64
    eval_every: int = 50
    save_every: int = 100
    select: Literal["best", "last"] = "last"
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, made on the device.

    Attributes:
      flip: 'none', 'horizontal', or 'dihedral' (flips and quarter turns: textures, CT).
      shift: Largest shift of the crop in pixels; edges are mirrored.
      brightness: Largest change of brightness, as a share of the full range.
      contrast: Largest relative change of contrast.
      window: Largest relative change of the window's width, and shift of its centre as
        a share of its width. Only images in HU have a window.
    """

    flip: Literal["none", "horizontal", "dihedral"] = "none"
    shift: int = 0
    brightness: float = 0.0
    contrast: float = 0.0
    window: float = 0.0


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One training run of the network on one data set."""

    data: DataConfig
    transfer: TransferConfig = TransferConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """What is compared.

    Attributes:
      arms: Names of the arms to run; empty = all.
      seeds: One run of every arm a seed: initial parameters, order of examples,
        augmentation, dropout and the drawing of fractions.
      fractions: Shares of the target's training set; nested.
      draw: Fractions are drawn by whole 'group' (patient), or by 'patch' within each.
      folds: Folds of the target, by group, drawn anew for each seed; every seed tests
        every group once. 0 = one split, the same for every seed.
      split_seed: Seed of the splits into train, validation and test.
      grid: (setting, values) pairs, such as ('optim.learning_rate', (0.001, 0.003)):
        every row trains the target with each combination, and each arm keeps one for the
        whole study, the best on the validation groups of all its rows. Not its steps and
        batch size, which are equal across arms. Empty = the stage's own settings.
      primary: The primary endpoint, named before the run: (arm, arm it is compared with,
        metric). It is the first minus the second over all sizes (area under the learning
        curve); every other comparison is exploratory.
      baselines: Out of `BASELINES`: what is fitted without a network of one's own to the
        same training examples (see `baselines.run`); 'frozen' is one baseline per
        chain of source stages.
      side_by_side: Stage runs trained at once; 0 = one on each device, 1 = one after
        the other, each spread over all devices.
    """

    arms: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    fractions: tuple[float, ...] = (1.0,)
    draw: Literal["group", "patch"] = "group"
    folds: int = 0
    split_seed: int = 0
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    primary: tuple[str, str, str] = ("two_stage", "scratch", "balanced_accuracy")
    baselines: tuple[str, ...] = BASELINES
    side_by_side: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run is asked to do.

    Attributes:
      name: Names the run's default folder; a workdir belongs to one name.
      model: The network.
      stages: Stage name -> settings; one is called 'target'.
      arms: Arm name -> names of its stages, in order; the last is 'target'.
      study: What is compared.
    """

    name: str
    model: ModelConfig
    stages: Mapping[str, StageConfig]
    arms: Mapping[str, tuple[str, ...]]
    study: StudyConfig


def as_json(settings: Any) -> Any:
    """Returns settings as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


# Settings that are of the right type but impossible.


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


# Config file -> frozen, checked settings: the only reader of `ConfigDict`.
#
# A setting that is not known, has the wrong type or an impossible value is a `UserError`
# that names it.


def config_file(path: Path) -> ModuleType:
    """Returns a config file as a module, for another one to build on.

    Config files are no package: each works wherever it is copied to, with those that it
    names beside it.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(config: ConfigDict) -> Config:
    """Returns the checked settings of a config file's `ConfigDict`.

    Raises:
      UserError: A setting is unknown, of the wrong type, or impossible.
    """
    raw = config.to_dict()
    _reject_unknown(raw, ("name", "model", "stages", "arms", "study"), "config")
    for block in ("name", "stages", "arms"):
        if not raw.get(block):
            raise UserError(f"config.{block} is missing or empty: add it.")
    if TARGET not in raw["stages"]:
        raise UserError(f"config.stages.{TARGET} is missing: every arm ends there.")
    stages = {
        name: _stage(block, f"config.stages.{name}")
        for name, block in raw["stages"].items()
    }
    study = _build(StudyConfig, raw.get("study", {}), "config.study")
    _check_primary(study.primary, raw["arms"])
    parsed = Config(
        name=_value(str, raw["name"], "config.name"),
        model=_build(ModelConfig, raw.get("model", {}), "config.model"),
        stages=stages,
        arms=_arms(raw["arms"], stages, study.arms),
        study=study,
    )
    check_values(parsed, [with_values(stages[TARGET], place) for place in grid(study)])
    return parsed


def grid(study: StudyConfig) -> list[tuple[tuple[str, Any], ...]]:
    """Returns the places of the tuning grid, each as (setting, value) pairs."""
    names = [setting for setting, _ in study.grid]
    values = itertools.product(*(values for _, values in study.grid))
    return [tuple(zip(names, place, strict=True)) for place in values]


def with_values(
    stage: StageConfig,
    values: Iterable[tuple[str, Any]],
    path: str = "config.study.grid",
) -> StageConfig:
    """Returns a stage's settings with some replaced.

    Args:
      stage: The settings.
      values: (setting, value) pairs; a setting is 'block.field', such as
        'optim.learning_rate'. What a stage sees (its data) cannot be replaced.
      path: Where the values come from, for messages.

    Raises:
      UserError: No such setting, or a value of the wrong type.
    """
    for setting, value in values:
        block, _, field = setting.partition(".")
        blocks = [f.name for f in dataclasses.fields(StageConfig) if f.name != "data"]
        if block not in blocks:
            raise UserError(
                f"{path}: '{setting}' must begin with one of "
                f"{', '.join(f'{name}.' for name in blocks)}."
            )
        old = getattr(stage, block)
        types = typing.get_type_hints(type(old))
        _reject_unknown([field], types, f"{path}: {block}")
        new = _value(types[field], value, f"{path}: {setting}")
        block_value = dataclasses.replace(old, **{field: new})
        stage = dataclasses.replace(stage, **{block: block_value})
    return stage


def _stage(raw: Any, path: str) -> StageConfig:
    blocks = {
        "transfer": TransferConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "augment": AugmentConfig,
    }
    _reject_unknown(raw, ("data", *blocks), path)
    if not isinstance(raw.get("data"), dict) or "source" not in raw["data"]:
        raise UserError(f"{path}.data.source is missing: name a data source.")
    common = {f.name for f in dataclasses.fields(DataConfig)} - {"options"}
    given = {key: value for key, value in raw["data"].items() if key in common}
    options = {k: v for k, v in raw["data"].items() if k not in common}
    data = _build(DataConfig, given, f"{path}.data")
    return StageConfig(
        data=dataclasses.replace(data, options=options),
        **{
            name: _build(cls, raw[name], f"{path}.{name}")
            for name, cls in blocks.items()
            if name in raw
        },
    )


def _arms(
    raw: Mapping[str, str], stages: Mapping[str, Any], wanted: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    for name in wanted:
        if name not in raw:
            raise UserError(
                f"config.study.arms: unknown arm '{name}'.{did_you_mean(name, raw)}"
            )
    arms = {}
    for arm, chain in raw.items():
        path = f"config.arms.{arm}"
        names = tuple(part.strip() for part in _value(str, chain, path).split(">"))
        for stage in names:
            if stage not in stages:
                raise UserError(
                    f"{path}: unknown stage '{stage}'.{did_you_mean(stage, stages)}"
                )
        if names[-1] != TARGET:
            raise UserError(
                f"{path} ends at '{names[-1]}': every arm must end at '{TARGET}', or "
                "the arms cannot be compared."
            )
        if len(set(names)) != len(names):
            raise UserError(f"{path} visits a stage twice: give it two names.")
        if not wanted or arm in wanted:
            arms[arm] = names
    # A ConfigDict forgets the order of its keys: short chains first.
    return dict(sorted(arms.items(), key=lambda item: (len(item[1]), item[0])))


def _check_primary(primary: tuple[str, str, str], arms: Mapping[str, Any]) -> None:
    path, (first, second, metric) = "config.study.primary", primary
    # The default names arms that not every study has: the report says so.
    for arm in (first, second) if primary != StudyConfig.primary else ():
        if arm not in arms:
            raise UserError(
                f"{path}: unknown arm '{arm}'.{did_you_mean(arm, arms)}", where=path
            )
    if first == second:
        raise UserError(
            f"{path} compares '{first}' with itself: name two arms.", where=path
        )
    if metric not in metrics.COMPARED:
        raise UserError(
            f"{path}: unknown metric '{metric}'.{did_you_mean(metric, metrics.COMPARED)}",
            where=path,
        )


def _build(cls: type, raw: Any, path: str) -> Any:
    """Returns the dataclass `cls` with the values of `raw`, checked by type."""
    types = typing.get_type_hints(cls)
    if not isinstance(raw, dict):
        raise UserError(f"{path} must be a block of settings, not {raw!r}.")
    _reject_unknown(raw, types, path)
    return cls(**{k: _value(types[k], v, f"{path}.{k}") for k, v in raw.items()})


def _reject_unknown(raw: Any, known: Any, path: str) -> None:
    for key in raw:
        if key not in known:
            raise UserError(f"{path}.{key}: unknown setting.{did_you_mean(key, known)}")


def _value(kind: Any, value: Any, path: str) -> Any:
    """Returns `value` as `kind`; integers pass for floats, lists for tuples."""
    if kind is Any:
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            known = ", ".join(repr(arg) for arg in args)
            raise UserError(f"{path} is {value!r}: it must be one of {known}.")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise UserError(f"{path} is {value!r}: it must be a tuple.")
        if args[-1] is Ellipsis:
            return tuple(_value(args[0], item, path) for item in value)
        if len(value) != len(args):
            raise UserError(f"{path}: {value!r} must have {len(args)} entries.")
        return tuple(_value(a, v, path) for a, v in zip(args, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path} is {value!r}: it must be of type {kind.__name__}.")
    if kind is float and not math.isfinite(value):
        raise UserError(f"{path} is {value!r}: it must be finite.")
    return value
