"""What a run is asked to do: every setting of a config file, and what it means.

The fields of the classes below are settings of the same names; `config.parse` makes them
from a config file.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

TARGET = "target"
BASELINES = ("majority", "mean_grey", "descriptors", "frozen")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network, one for the whole chain.

    Attributes:
      name: A key of `models.MODELS`.
      channels: Input channels; every image is brought to this number.
      image_size: Input height and width, pixels.
      norm: Normalisation layers; '' = the network's own (see `models.NORMS`).
      head: 'orderless' (moments of the last convolutions, wherever a texture lies) or
        'dense' (hidden dense layers, as in the paper); '' = the network's own (see
        `models.HEADS`).
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
