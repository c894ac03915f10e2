"""Tiny network, made data set, and the repository."""

import contextlib
import importlib
import io
import signal
from pathlib import Path
from types import ModuleType

import flax.linen as nn
import numpy as np
import pytest

from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.errors import UserError
from twostage_jax.models import Network, layers

REPOSITORY = Path(__file__).parents[2]


def experiment(name: str) -> ModuleType:
    """Returns a script of `experiments/` as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "experiments")
        return importlib.import_module(name)


def refusal(main, *arguments):
    """Returns the single line printed by a command that exits with status 2."""
    before = signal.getsignal(signal.SIGTERM)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), pytest.raises(SystemExit) as ended:
            main(["command", *map(str, arguments)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 2
    (line,) = printed.getvalue().splitlines()
    return line


class Tiny(Network):
    """Smallest network with every kind of state: convolution, statistics, dropout."""

    dropout: float = 0.5

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


def make_dataset(count=60, classes=3, size=8, groups=None, splits=None, seed=0):
    """Returns a data set in which brightness mostly determines the class."""
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
        groups=None if groups is None else np.array(groups),
        ids=np.array([f"example{i:04d}" for i in range(count)]),
        splits=np.array(splits if splits is not None else ["train"] * count),
        fingerprint=digest(images, labels),
    )


@contextlib.contextmanager
def refused_at(where):
    """Expects a `UserError` at a file or setting."""
    with pytest.raises(UserError) as error:
        yield error
    assert error.value.where == str(where)
