"""Class probabilities and features of examples, and the scores that select parameters."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from twostage_jax.config import AugmentConfig, DataConfig, ModelConfig
from twostage_jax.data.dataset import Dataset
from twostage_jax.stats import metrics
from twostage_jax.train import augment, parallel, steps
from twostage_jax.train.feed import Feed, eval_batches
from twostage_jax.train.parallel import Placement

PyTree = Any
# With 256, the activations of two networks side by side take 100 MB more.
EVAL_BATCH = 128


def predict(
    programs: parallel.Programs,
    source: Feed,
    placement: Placement,
    constants: steps.Constants,
    variables: PyTree,
    indices: Sequence[np.ndarray],
    views: np.ndarray,
) -> list[np.ndarray]:
    """Returns the class probabilities `[N, K]` float32 of each run's examples.

    Examples are never dropped: the last batch is padded, and its padding cut off.

    Args:
      programs, source, placement: Compiled programs, feed of the data, and devices.
      constants, variables: Trees of each run, on the devices.
      indices: Indices of the examples of each run.
      views: Views to average over, `[V, 3]`, see `augment.views`.
    """
    batches = eval_batches(indices, placement.whole(EVAL_BATCH))
    items = source.items(batches.shape[1], lambda i: placement.arrange(batches[:, i]))
    parts = [
        [
            programs.evaluate(variables, source.data, batch, constants, view)
            for view in views
        ]
        for batch in items
    ]
    whole = np.concatenate([_mean(placement.joined(part)) for part in parts], axis=1)
    return [whole[place, : len(own)] for place, own in enumerate(indices)]


def applied(
    network: ModelConfig,
    data: DataConfig,
    mean: np.ndarray,
    deviation: np.ndarray,
    variables: PyTree,
    images: Any,
    num_classes: int,
    augmentation: AugmentConfig = augment.NONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns class probabilities `[N, K]` and features `[N, D]` of images.

    One device of this process computes them, without other processes.

    Args:
      network, data: Settings of the network, and of the scaling of its images.
      mean, deviation: Mean and standard deviation of images in [0, 1], `[C]`.
      variables: Variables of the network, on the host.
      images: `[N, H, W, C]` as stored.
      num_classes: Size of the network's output.
      augmentation: Changes in training, which define the views to average over.
    """
    program = _applied(network, data.normalise, data.window, num_classes)
    views = augment.views(augmentation, *images.shape[1:3], network.image_size)
    parts = []
    for first in range(0, len(images), EVAL_BATCH):
        part = images[first : first + EVAL_BATCH]
        # Batches of one size, so that the program is compiled once.
        rest = [(0, EVAL_BATCH - len(part)), (0, 0), (0, 0), (0, 0)]
        batch = jax.device_put(np.pad(part, rest))
        found = [program(variables, batch, mean, deviation, view) for view in views]
        parts.append([_mean(one)[: len(part)] for one in zip(*found, strict=True)])
    return tuple(np.concatenate(found) for found in zip(*parts, strict=True))


def _mean(parts: Sequence[Any]) -> np.ndarray:
    """Returns the mean of arrays, one of each view."""
    return sum(map(np.asarray, parts)) / np.float32(len(parts))


@functools.lru_cache(maxsize=8)
def _applied(
    network: ModelConfig, normalise: str, window: tuple[float, ...], num_classes: int
) -> Callable:
    forward = functools.partial(
        steps.forward,
        model=steps.build_model(network, num_classes, None),
        network=network,
        normalise=normalise,
        window=window,
    )
    return jax.jit(forward)


def scorer(
    predict: Callable, dataset: Dataset, indices: Sequence[np.ndarray]
) -> Callable[[PyTree], list[dict[str, float]]]:
    """Returns a function from variables on the devices to the scores of each run.

    Args:
      predict: Function `predict(variables, indices)` that returns the class
        probabilities of each run.
      dataset: Data set with the labels.
      indices: Indices of the validation examples of each run.
    """

    def score(variables: PyTree) -> list[dict[str, float]]:
        return [
            _quick_scores(dataset.labels[own], probabilities)
            for own, probabilities in zip(
                indices, predict(variables, indices), strict=True
            )
        ]

    return score


def _quick_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns the scores of model selection: mean loss and balanced accuracy."""
    chosen = probabilities[np.arange(len(labels)), labels]
    counts = metrics.count(labels, probabilities.argmax(1), probabilities.shape[1])
    return {
        "loss": float(-np.log(np.maximum(chosen, 1e-12)).mean()),
        "balanced_accuracy": float(metrics.balanced_accuracy(counts)),
    }
