"""Config file -> frozen, checked settings: the only reader of `ConfigDict`.

A setting that is not known, has the wrong type or an impossible value is a `UserError`
that names it.
"""

import dataclasses
import importlib.util
import itertools
import math
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ml_collections import ConfigDict

from twostage_jax import additive
from twostage_jax.config_checks import check_values
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.settings import (
    TARGET,
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    StudyConfig,
    TrainConfig,
    TransferConfig,
)


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
    if metric not in additive.METRICS:
        raise UserError(
            f"{path}: unknown metric '{metric}'."
            f"{did_you_mean(metric, additive.METRICS)}",
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
