"""What all tests share."""

import importlib
import os
from pathlib import Path
from types import ModuleType

import chest
import flax.linen as nn
import numpy as np
import pytest
import study_files

from twostage_jax import models
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.mapping import trained
from twostage_jax.mapping.classify import Classifier
from twostage_jax.models import layers
from twostage_jax.report.write import write_report

REPOSITORY = Path(__file__).parent.parent


def experiment(name: str) -> ModuleType:
    """Returns a script of `experiments/` as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "experiments")
        return importlib.import_module(name)


class Tiny(nn.Module):
    """The smallest network with every kind of state: convolution, statistics, dropout."""

    num_classes: int
    dropout: float = 0.5
    norm: str = "batch"
    dtype: type = np.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(4, (3, 3), strides=2, name="conv1")(images)
        axis = self.axis_name if train else None
        x = nn.BatchNorm(not train, momentum=0.9, axis_name=axis, name="norm1")(x)
        x = layers.relu(x).mean((1, 2))
        x = nn.Dense(8, name="fc6")(x)
        x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
        logits = layers.head(self.num_classes)(x)
        return logits, {"head": logits}


@pytest.fixture
def tiny(monkeypatch):
    """Registers the model 'tiny'."""
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    monkeypatch.setitem(models.NORMS, "tiny", ("batch",))
    return "tiny"


@pytest.fixture
def brightness(monkeypatch):
    """Registers the model 'brightness' of a stage run that `chest.write_run` writes."""
    monkeypatch.setitem(models.MODELS, "brightness", chest.Brightness)
    monkeypatch.setitem(models.NORMS, "brightness", ("none",))


@pytest.fixture
def classifier(brightness, tmp_path):
    """That stage run, with its window, applied to windows of slices."""
    run = trained.find(chest.write_run(tmp_path / "study"))
    return Classifier(run, run.window)


def make_dataset(count=60, classes=3, size=8, groups=None, splits=None, seed=0):
    """Returns a data set in which brightness tells the class, mostly."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % classes).astype(np.int32)
    noise = rng.integers(0, 100, (count, size, size, 1))
    images = (noise + 40 * labels.reshape(-1, 1, 1, 1)).astype(np.uint8)
    return Dataset(
        name="made",
        kind="natural",
        class_names=tuple("abcdefgh"[:classes]),
        images=images,
        labels=labels,
        groups=groups,
        ids=np.array([f"example{i:04d}" for i in range(count)]),
        splits=np.array(splits if splits is not None else ["train"] * count),
        fingerprint=digest(images, labels),
    )


@pytest.fixture
def real_data():
    """The folder of real images that the variable TWOSTAGE_DATA names."""
    folder = os.environ.get("TWOSTAGE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TWOSTAGE_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def study_run(tmp_path_factory):
    """The run folder of a study of four arms, two seeds, two sizes, hostile labels."""
    chances = {"scratch": 0.75, "natural": 0.8, "texture": 0.78, "two_stage": 0.9}
    return study_files.write_study(
        tmp_path_factory.mktemp("run"), chances, seeds=(0, 1), fractions=(1.0, 0.5),
        patients=18, classes=study_files.HOSTILE, rich=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def study_report(study_run, tmp_path_factory):
    """The folder of the report of `study_run`."""
    out = tmp_path_factory.mktemp("report") / "new"
    assert write_report([study_run], out) == out / "report.html"
    return out


@pytest.fixture(scope="session")
def user_cache(tmp_path_factory):
    """A user's cache, empty at first: prepared data and compiled programs, shared."""
    return tmp_path_factory.mktemp("cache")
