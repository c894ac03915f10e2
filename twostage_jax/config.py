"""Settings of a study, each defined once: field, meaning, bounds and default.

The fields of the classes below are the settings of a config file, under the same names.
A new setting is a new field, with an entry in `Attributes` and, if its type does not
bound it enough, one of the `Annotated` types. `parse` turns a config file's `ConfigDict`
into frozen, checked settings; it is the only reader of `ConfigDict`. A setting that is
unknown, of the wrong type or impossible raises a `UserError` that names it.

This module does not import jax, so that a config is checked without it.
"""

import dataclasses
import importlib.util
import itertools
import json
import logging
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

from ml_collections import ConfigDict

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.stats import metrics
from twostage_jax.transfer import TransferError, check_rules

log = logging.getLogger(__name__)

TARGET = "target"
# Names that the feature analysis gives to untrained networks and to all layers; arms
# cannot have them.
RANDOM, ALL_LAYERS = "random", "all layers"
# Setting of the size of images of stages without one of their own.
MODEL_SIZE = "config.model.image_size"
Baseline = Literal["majority", "mean_grey", "descriptors", "frozen"]
BASELINES = typing.get_args(Baseline)
# Settings of the target's training length, which must be equal across arms.
LENGTH = ("train.steps", "train.epochs", "train.batch_size")


@dataclasses.dataclass(frozen=True)
class Bound:
    """Condition that a value of the right type must meet.

    Attributes:
      holds: Function of the value.
      text: Rest of the sentence 'it must ...', for the error.
    """

    holds: Callable[[Any], bool]
    text: str


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


_POSITIVE = Bound(lambda value: value > 0, "be positive")
_NOT_NEGATIVE = Bound(lambda value: value >= 0, "not be negative")
_DISTINCT = Bound(
    lambda values: values and len(set(values)) == len(values),
    "hold one or more values, all distinct",
)
Count = Annotated[int, _POSITIVE]
CountOrZero = Annotated[int, _NOT_NEGATIVE]
Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
Below1 = Annotated[float, Bound(lambda x: 0 <= x < 1, "be at least 0 and below 1")]
Between0And1 = Annotated[float, Bound(lambda x: 0 < x < 1, "lie between 0 and 1")]
Fraction = Annotated[float, Bound(lambda x: 0 < x <= 1, "be above 0, up to 1")]
Pattern = Annotated[str, Bound(_is_pattern, "be a regular expression")]
Window = Annotated[
    tuple[float, ...],
    Bound(
        lambda window: len(window) in (2, 6) and min(window[1::2]) > 0,
        "be (centre, width) in HU, or three such pairs in one tuple, with positive widths",
    ),
]
Folds = Annotated[
    int, Bound(lambda n: n == 0 or n > 1, "be 0 (one split), or 2 or more")
]


# Settings of a stage that is imported instead of trained.
IMPORT = {
    "weights": str,
    "weights_mean": tuple[float, ...],
    "weights_deviation": tuple[Positive, ...],
    "weights_licence": str,
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Network, the same for the whole chain.

    Attributes:
      name: Key of `models.MODELS`.
      channels: Number of input channels; every image is converted to it.
      image_size: Input height and width, pixels; 0 = those of the target's images, up
        to `data.sources.LARGEST`.
      norm: Normalisation layers; '' = the network's own (see `models.Network`).
      head: Layers before the classes: 'orderless' (moments of early and late
        convolutions, independent of position), 'dense' (hidden dense layers, as in the
        paper) or 'mean' (means of the last convolution); '' = the network's own (see
        `models.Network`).
      dropout: Probability of dropping a unit of the fully connected layers.
      dtype: Data type of the computation; parameters are always float32.
    """

    name: str = "caffenet_small"
    channels: Literal[1, 3] = 1
    image_size: CountOrZero = 32
    norm: Literal["", "local", "batch", "group"] = ""
    head: Literal["", "orderless", "dense", "mean"] = ""
    dropout: Below1 = 0.5
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Data of one stage.

    Attributes:
      source: Key of `data.sources.SOURCES`.
      validation: Fraction of the training groups (examples, if the set is not grouped)
        for model selection; ignored if the set has a validation split.
      test: Fraction of the groups held out for testing; ignored if the set has a test
        split.
      normalise: Normalisation of images: 'fixed' (mean 0.5, standard deviation 0.25),
        'dataset' (mean and standard deviation of the stage's training images), 'patch'
        (each image to mean 0, standard deviation 1: structure only) or 'weights' (as for
        the imported stage of the study, in all arms; see `plan.scale`).
      window: (centre, width) in HU for images in HU, one pair, or three for three
        channels, flattened. Ignored for other images.
      image_size: Side of the images that the network sees in this stage, pixels; 0 = that
        of the model. Dense layers on maps can be transferred to another size only by
        the rule 'resize_dense'.
      options: Keyword arguments of the source's recipe: all other settings of the block.
    """

    source: str
    validation: Between0And1 = 0.2
    test: Between0And1 = 0.25
    normalise: Literal["fixed", "dataset", "patch", "weights"] = "fixed"
    window: Window = (-600.0, 1500.0)
    image_size: CountOrZero = 0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TransferConfig:
    """Transfer from the previous stage.

    Attributes:
      reinitialise: Layers to re-initialise: 'head' (the last layer) or 'dense' (all
        fully connected layers). All others are copied.
      rules: (regular expression, action) pairs that take precedence over these defaults;
        see `transfer`.
    """

    reinitialise: Literal["head", "dense"] = "head"
    rules: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule.

    Attributes:
      name: Stochastic gradient descent with momentum ('sgd'), or AdamW.
      learning_rate: Peak learning rate, for a batch of the stage's `batch_size`.
      momentum: Momentum of SGD.
      weight_decay: Weight decay of kernels; biases and normalisation layers are exempt.
      warmup_steps: Steps of linear warm-up.
      schedule: Learning rate after the warm-up: 'cosine' (to zero) or 'constant'.
      clip_norm: Largest global gradient norm; 0 = no clipping.
      lr_factors: Learning-rate multipliers, (regular expression, factor) pairs over
        paths such as 'conv1/kernel'; full match, first match wins, otherwise 1.
      freeze: Regular expressions over the same paths, and over those of BatchNorm
        statistics ('stem_norm/mean'); arrays that match stay bit-identical. Frozen
        statistics are also used in training: '(?!head).*/(mean|var)' fine-tunes with
        those of the previous stage instead of those of small batches.
      head_steps: Number of initial steps that train only the head (linear probing then
        fine-tuning, Kumar et al. 2022); BatchNorm uses the transferred statistics, and
        they do not change either. If equal to `train.steps`, a linear probe.
      l2_sp: Strength of the penalty that keeps transferred kernels near their initial
        values (L2-SP, Li et al. 2018); it replaces their weight decay. 0 = none.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Positive = 0.01
    momentum: Below1 = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_steps: CountOrZero = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: NotNegative = 0.0
    lr_factors: tuple[tuple[Pattern, NotNegative], ...] = ()
    freeze: tuple[Pattern, ...] = ()
    head_steps: CountOrZero = 0
    l2_sp: NotNegative = 0.0


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length and loss of one stage.

    Attributes:
      steps: Number of optimiser steps.
      epochs: Largest number of passes over the data set, which shortens the training on
        a small set. 0 = no limit.
      batch_size: Examples per step, over all devices.
      eval_every: Steps between evaluations on the validation split.
      save_every: Steps between saved states, the most that a killed run loses.
      select: Parameters to keep: the 'last', or those with the 'best' validation score.
        With few validation groups, the best checkpoint is mostly the luckiest.
      label_smoothing: Fraction of the target probability spread over all classes.
      balance: Whether the network learns to treat all classes as equally frequent: in
        the loss, the log frequency of each class among the training examples is added
        to its logit (logit adjustment, Menon et al. 2021, arXiv 2007.07314). Weights of
        classes instead lose their effect once the network fits all training examples
        (Byrd & Lipton 2019, arXiv 1812.03372).
    """

    steps: Count = 300
    epochs: CountOrZero = 0
    batch_size: Count = 64
    eval_every: Count = 50
    save_every: Count = 100
    select: Literal["best", "last"] = "last"
    label_smoothing: Below1 = 0.0
    balance: bool = False


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training images, made on the device.

    Attributes:
      flip: Flips: 'none', 'horizontal', or 'dihedral' (with quarter turns, for textures
        and CT).
      shift: Largest shift of the crop in pixels; edges are mirrored.
      brightness: Largest change of brightness, as a fraction of the full range.
      contrast: Largest relative change of contrast.
      window: Largest relative change of the window's width, and shift of its centre as
        a fraction of its width. Only images in HU have a window.
      average: Whether the predictions of the trained network are means over all
        orientations of `flip`, eight of 'dihedral', and over windows that cover the
        image. Otherwise they are for its centre, as stored.
    """

    flip: Literal["none", "horizontal", "dihedral"] = "none"
    shift: CountOrZero = 0
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    window: NotNegative = 0.0
    average: bool = False

    @property
    def orientations(self) -> int:
        """Number of orientations of an image that predictions are averaged over."""
        if not self.average:
            return 1
        return {"none": 1, "horizontal": 2, "dihedral": 8}[self.flip]

    @classmethod
    def stored(cls, settings: Mapping[str, Any]) -> "AugmentConfig":
        """Returns the block of a stage's settings in JSON, which old ones may lack."""
        return cls(**settings.get("augment", {}))


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage: a training run of the network on one data set, or imported weights.

    Attributes:
      data, transfer, optim, train, augment: Blocks of settings for training; ignored for
        an imported stage.
      weights: File of public weights (see `models.pretrained`) to import instead of
        training; such a stage is the first of its chain. None (in a config file '') =
        train.
      weights_mean, weights_deviation: Mean and standard deviation, per channel of images
        in [0, 1], used to train the weights; None (in a config file an empty tuple) =
        those stated in the file, as written by 'twostage export', or else those of the
        network's public weights.
      weights_licence: Licence of the file, such as 'bsd-3-clause', for the report and
        the model card; None (in a config file '') = the licence stated in the file.
    """

    data: DataConfig
    transfer: TransferConfig = TransferConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    augment: AugmentConfig = AugmentConfig()
    weights: str | None = None
    weights_mean: tuple[float, ...] | None = None
    weights_deviation: tuple[Positive, ...] | None = None
    weights_licence: str | None = None


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Comparison of the arms.

    Attributes:
      arms: Names of the arms to run; empty = all.
      seeds: Seeds; every arm runs once per seed. A seed determines initial parameters,
        order of examples, augmentation, dropout and the choice of fractions.
      fractions: Fractions of the target's training set; they are nested.
      draw: Unit in which fractions are drawn: whole 'group' (patient), or 'patch' within
        each group.
      folds: Number of folds of the target, by group, redrawn for each seed; every seed
        tests every group once. 0 = one split, the same for every seed.
      split_seed: Seed of the splits into train, validation and test.
      grid: (setting, values) pairs, such as ('optim.learning_rate', (0.001, 0.003)):
        every row trains the target with each combination, and each arm keeps one for the
        whole study, the best on the validation groups of all its rows. Steps and batch
        size cannot be tuned: they are equal across arms. Empty = the stage's settings.
      primary: Primary endpoint, named before the run: (arm, arm to compare with,
        metric for which higher is better). It is the first minus the second over all
        sizes (area under the learning curve); all other comparisons are exploratory.
      baselines: Names from `BASELINES`: classifiers on the same training examples
        without network training (see `study.baselines`); 'frozen' is one baseline per
        chain of source stages.
      side_by_side: Number of stage runs trained at once; 0 = one per device, 1 = one
        after the other, each spread over all devices.
    """

    arms: tuple[str, ...] = ()
    seeds: Annotated[tuple[CountOrZero, ...], _DISTINCT] = (0,)
    fractions: Annotated[tuple[Fraction, ...], _DISTINCT] = (1.0,)
    draw: Literal["group", "patch"] = "group"
    folds: Folds = 0
    split_seed: int = 0
    grid: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    primary: tuple[str, str, str] = ("two_stage", "scratch", "balanced_accuracy")
    baselines: tuple[Baseline, ...] = BASELINES
    side_by_side: CountOrZero = 0


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Statements that the report prints verbatim; they do not affect results.

    Attributes:
      reference_standard: Determination of the true classes: by whom, and from what.
      ethics: Ethics approval and consent, or why neither was needed.
      funding: Sources of funding, and their role in the study.
    """

    reference_standard: str = ""
    ethics: str = ""
    funding: str = ""


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a study.

    Attributes:
      name: Name of the default folder of the run; a workdir belongs to one name.
      model: Settings of the network.
      stages: Stage name -> settings; one stage is called 'target'.
      arms: Arm name -> names of its stages, in order; the last is 'target'.
      study: Settings of the comparison.
      report: Statements of the report.
    """

    name: str
    model: ModelConfig
    stages: Mapping[str, StageConfig]
    arms: Mapping[str, tuple[str, ...]]
    study: StudyConfig
    report: ReportConfig = ReportConfig()

    def network(self, stage: str) -> ModelConfig:
        """Returns the settings of the network for the images of a stage."""
        size = self.stages[stage].data.image_size or self.model.image_size
        return dataclasses.replace(self.model, image_size=size)

    def size_setting(self, stage: str) -> str:
        """Returns the path of the setting that gives a stage its size of images."""
        own = self.stages[stage].data.image_size
        return f"config.stages.{stage}.data.image_size" if own else MODEL_SIZE


def config_file(path: Path) -> ModuleType:
    """Returns a config file as a module, for another config file to build on.

    Config files are not a package: a file works wherever it is copied, together with the
    files that it names.
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
    known = [field.name for field in dataclasses.fields(Config)]
    _reject_unknown(raw, known, "config")
    for block in ("name", "stages", "arms"):
        if not raw.get(block):
            raise _error(f"config.{block}", "is missing or empty: add it.")
    if TARGET not in raw["stages"]:
        raise _error(f"config.stages.{TARGET}", "is missing: every arm ends there.")
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
        report=_build(ReportConfig, raw.get("report", {}), "config.report"),
    )
    for name, stage in stages.items():
        _check_stage(stage, f"config.stages.{name}")
    _check_grid(study)
    for point in grid(study):
        _check_stage(with_values(stages[TARGET], point), f"config.study.grid: {TARGET}")
    return parsed


def grid(study: StudyConfig) -> list[tuple[tuple[str, Any], ...]]:
    """Returns the points of the tuning grid, each as (setting, value) pairs."""
    names = [setting for setting, _ in study.grid]
    values = itertools.product(*(values for _, values in study.grid))
    return [tuple(zip(names, point, strict=True)) for point in values]


def with_values(stage: StageConfig, values: Iterable[tuple[str, Any]]) -> StageConfig:
    """Returns a stage's settings with those of a point of the tuning grid.

    Args:
      stage: The settings.
      values: (setting, value) pairs; a setting is 'block.field', such as
        'optim.learning_rate'. The data of a stage cannot be replaced.

    Raises:
      UserError: A setting is unknown, or a value of the wrong type or impossible.
    """
    path = "config.study.grid"
    for setting, value in values:
        block, _, field = setting.partition(".")
        blocks = [f.name for f in dataclasses.fields(StageConfig) if f.name != "data"]
        if block not in blocks:
            raise _error(
                path,
                f": '{setting}' must begin with one of "
                f"{', '.join(f'{name}.' for name in blocks)}.",
            )
        old = getattr(stage, block)
        types = typing.get_type_hints(type(old), include_extras=True)
        _reject_unknown([field], types, f"{path}: {block}")
        new = _value(types[field], value, f"{path}: {setting}")
        block_value = dataclasses.replace(old, **{field: new})
        stage = dataclasses.replace(stage, **{block: block_value})
    return stage


def as_json(settings: Any) -> Any:
    """Returns settings as plain JSON values: tuples become lists, None is skipped."""

    def present(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value is not None}

    plain = dataclasses.asdict(settings, dict_factory=present)
    return json.loads(json.dumps(plain, default=str))


def shared_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that rows must share to be compared.

    Args:
      settings: Settings of a study as JSON (see `as_json`), also of an earlier version.
    """
    shared = {k: v for k, v in settings.items() if k not in ("arms", "report")}
    shared = json.loads(json.dumps(shared))
    for name in ("seeds", "arms", "fractions", "baselines", "side_by_side"):
        shared["study"].pop(name, None)
    for stage in shared.get("stages", {}).values():
        stage.get("train", {}).pop("save_every", None)
    return shared


def _stage(raw: Any, path: str) -> StageConfig:
    blocks = {
        "transfer": TransferConfig,
        "optim": OptimConfig,
        "train": TrainConfig,
        "augment": AugmentConfig,
    }
    _reject_unknown(raw, ("data", *blocks, *IMPORT), path)
    if raw.get("weights"):
        given = {name: raw[name] for name in IMPORT if raw.get(name)}
        values = {k: _value(IMPORT[k], v, f"{path}.{k}") for k, v in given.items()}
        return StageConfig(DataConfig("weights", normalise="weights"), **values)
    if not isinstance(raw.get("data"), dict) or "source" not in raw["data"]:
        raise _error(f"{path}.data.source", "is missing: name a data source.")
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
            raise _error(
                "config.study.arms", f": unknown arm '{name}'.{did_you_mean(name, raw)}"
            )
    arms, known = {}, {}
    for arm, chain in sorted(raw.items()):
        path = f"config.arms.{arm}"
        if arm in (RANDOM, ALL_LAYERS):
            raise _error(path, "is the name of something else in reports: rename it.")
        names = tuple(part.strip() for part in _value(str, chain, path).split(">"))
        for stage in names:
            if stage not in stages:
                raise _error(
                    path, f": unknown stage '{stage}'.{did_you_mean(stage, stages)}"
                )
        if names[-1] != TARGET:
            raise _error(
                path,
                f"ends at '{names[-1]}': every arm must end at '{TARGET}', or the arms "
                "cannot be compared.",
            )
        if len(set(names)) != len(names):
            raise _error(path, "visits a stage twice: give it two names.")
        for stage in names[1:] if len(names) > 1 else names:
            if stages[stage].weights:
                raise _error(
                    f"config.stages.{stage}.weights",
                    f"is set, but {path} does not begin with it: only the first stage "
                    "of a chain can be imported, and the target is always trained.",
                )
        # Stages that import the same file are identical.
        same = known.setdefault(tuple(stages[n].weights or n for n in names), arm)
        if same != arm and not wanted:
            log.warning("Arm '%s' is skipped: it equals arm '%s'.", arm, same)
        elif not wanted or arm in wanted:
            arms[arm] = names
    # A ConfigDict forgets the order of its keys: short chains first.
    return dict(sorted(arms.items(), key=lambda item: (len(item[1]), item[0])))


def _check_primary(primary: tuple[str, str, str], arms: Mapping[str, Any]) -> None:
    path, (first, second, metric) = "config.study.primary", primary
    # The default names arms that some studies lack: the report says so.
    for arm in (first, second) if primary != StudyConfig.primary else ():
        if arm not in arms:
            raise _error(path, f": unknown arm '{arm}'.{did_you_mean(arm, arms)}")
    if first == second:
        raise _error(path, f"compares '{first}' with itself: name two arms.")
    known = metrics.METRICS.get(metric)
    if known and known.lower_is_better:
        raise _error(
            path,
            f": metric '{metric}' is better if lower, but the endpoint must be better if "
            f"higher: name one of {', '.join(metrics.ENDPOINTS)}.",
        )
    if metric not in metrics.ENDPOINTS:
        raise _error(
            path,
            f": unknown metric '{metric}'.{did_you_mean(metric, metrics.ENDPOINTS)}",
        )


def _check_stage(stage: StageConfig, path: str) -> None:
    """Checks the settings of a stage that depend on one another."""
    check_length(stage, path)
    try:
        check_rules(stage.transfer.rules)
    except TransferError as error:
        raise _error(
            f"{path}.transfer.rules", ": " + " ".join(error.violations)
        ) from None


def check_length(stage: StageConfig, path: str, why: str = "") -> None:
    """Raises a UserError if the initial phases of a stage do not fit its steps.

    These are the warm-up, and the training of the head alone, which may be all of it.

    Args:
      stage: Settings of the stage.
      path: Its place in the config.
      why: Remark on the number of steps, if the settings do not state it.
    """
    steps, optim = stage.train.steps, stage.optim
    linear_probe = optim.head_steps == steps and not why
    for name in ("warmup_steps", "head_steps"):
        count = getattr(optim, name)
        if count >= steps and not (name == "head_steps" and linear_probe):
            raise _error(
                f"{path}.optim.{name}",
                f"is {count}: it must be below train.steps ({steps}{why}).",
            )


def _check_grid(study: StudyConfig) -> None:
    path = "config.study.grid"
    names = [setting for setting, _ in study.grid]
    if len(set(names)) != len(names):
        raise _error(path, "names a setting twice: join their values.")
    for setting, values in study.grid:
        if setting in LENGTH:
            raise _error(
                path,
                f": '{setting}' cannot be tuned: arms would keep different values, and "
                "an arm trained for longer would look better. Set it in "
                "config.stages.target.train, for all arms.",
            )
        if setting == "augment.average":
            raise _error(
                path,
                f": '{setting}' cannot be tuned: settings are chosen on predictions for "
                "validation images as they are. Set it in config.stages.target.augment.",
            )
        if not values or len(set(map(repr, values))) != len(values):
            raise _error(path, f": '{setting}' needs one or more distinct values.")


def _error(path: str, text: str) -> UserError:
    """Returns the error for a setting; `text` continues the sentence after its name."""
    message = path + (text if text[0] == ":" else f" {text}")
    return UserError(message, where=path.partition(":")[0])


def _build(cls: type, raw: Any, path: str) -> Any:
    """Returns the dataclass `cls` with the values of `raw`, checked."""
    types = typing.get_type_hints(cls, include_extras=True)
    if not isinstance(raw, dict):
        raise _error(path, f"must be a block of settings, not {raw!r}.")
    _reject_unknown(raw, types, path)
    return cls(**{k: _value(types[k], v, f"{path}.{k}") for k, v in raw.items()})


def _reject_unknown(raw: Any, known: Any, path: str) -> None:
    for key in raw:
        if key not in known:
            raise _error(
                f"{path}.{key}", f": unknown setting.{did_you_mean(key, known)}"
            )


def _value(kind: Any, value: Any, path: str) -> Any:
    """Returns `value` as `kind`; integers are accepted as floats, lists as tuples."""
    if kind is Any:
        return value
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        kind, *bounds = args
        value = _value(kind, value, path)
        for bound in bounds:
            if not bound.holds(value):
                raise _error(path, f"is {value!r}: it must {bound.text}.")
        return value
    if origin is Literal:
        if value not in args:
            known = ", ".join(repr(arg) for arg in args)
            raise _error(path, f"is {value!r}: it must be one of {known}.")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise _error(path, f"is {value!r}: it must be a tuple.")
        # From flags such as --config.study.arms=scratch, and --config.study.baselines=
        if len(value) == 1 and isinstance(value[0], str):
            value = tuple(filter(None, [value[0].removesuffix(",")]))
        if args[-1] is Ellipsis:
            return tuple(_value(args[0], item, path) for item in value)
        if len(value) != len(args):
            raise _error(path, f"is {value!r}: it must have {len(args)} entries.")
        return tuple(_value(a, v, path) for a, v in zip(args, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _error(path, f"is {value!r}: it must be of type {kind.__name__}.")
    if kind is float and not math.isfinite(value):
        raise _error(path, f"is {value!r}: it must be finite.")
    return value
