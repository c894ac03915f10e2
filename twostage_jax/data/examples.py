"""Examples to look at: some of each class, and the worst mistakes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import atomic
from twostage_jax.data.dataset import Dataset

PER_CLASS = 8
MISTAKES = 12


def of_each_class(
    dataset: Dataset, window: tuple[float, ...], per_class: int = PER_CLASS
) -> dict[str, np.ndarray]:
    """Returns examples of each class, spread evenly over the data set.

    Returns:
      'images' `[N, H, W, C]` uint8 (see `shown`), 'labels' `[N]`, 'class_names' `[K]`.
    """
    chosen = []
    for label in range(dataset.num_classes):
        own = np.flatnonzero(dataset.labels == label)
        places = np.linspace(0, len(own) - 1, min(len(own), per_class)).astype(int)
        chosen.append(own[places])
    indices = np.concatenate(chosen)
    return {
        "images": shown(dataset.images[indices], window),
        "labels": dataset.labels[indices],
        "class_names": np.array(dataset.class_names),
    }


def worst_mistakes(
    dataset: Dataset,
    window: tuple[float, ...],
    predictions: Mapping[str, tuple[str, Path]],
    count: int = MISTAKES,
) -> dict[str, np.ndarray]:
    """Returns the test examples that each arm gets wrong with most confidence.

    An arm's probabilities are the mean over all predictions of the example, whatever
    the seed.

    Args:
      dataset: With the images.
      window: In HU, for images in HU.
      predictions: Name -> (arm, file written by `lineage.save_predictions`).
      count: Mistakes an arm, at most.

    Returns:
      'arm', 'ids', 'groups', 'labels' `[M]`, 'probabilities' `[M, K]`, 'images'
      `[M, H, W, C]` uint8, 'class_names' `[K]`; worst first within each arm.
    """
    place_of = {name: i for i, name in enumerate(dataset.ids)}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for arm, path in predictions.values():
        saved = np.load(path)
        places = np.array([place_of[name] for name in saved["ids"]])
        shape = len(dataset), dataset.num_classes
        np.add.at(sums.setdefault(arm, np.zeros(shape)), places, saved["probabilities"])
        np.add.at(counts.setdefault(arm, np.zeros(len(dataset))), places, 1)
    arms, indices, probabilities = [], [], []
    for arm, total in sums.items():
        tested = np.flatnonzero(counts[arm])
        mean = total[tested] / counts[arm][tested, None]
        right = mean[np.arange(len(tested)), dataset.labels[tested]]
        wrong = np.flatnonzero(mean.argmax(1) != dataset.labels[tested])
        worst = wrong[np.argsort(right[wrong], kind="stable")][:count]
        arms += [arm] * len(worst)
        indices.append(tested[worst])
        probabilities.append(mean[worst])
    chosen = np.concatenate(indices)
    groups = dataset.groups
    return {
        "arm": np.array(arms, str),
        "ids": dataset.ids[chosen].astype(str),
        "groups": np.full(len(chosen), "")
        if groups is None
        else groups[chosen].astype(str),
        "labels": dataset.labels[chosen],
        "probabilities": np.concatenate(probabilities),
        "images": shown(dataset.images[chosen], window),
        "class_names": np.array(dataset.class_names),
    }


def shown(images: np.ndarray, window: tuple[float, ...]) -> np.ndarray:
    """Returns images as uint8 `[N, H, W, C]`: HU through the (first) window."""
    if images.dtype == np.uint8:
        return images
    unit = images.astype(np.float32)
    if images.dtype == np.int16:
        unit = (unit - (window[0] - window[1] / 2)) / window[1]
    return np.round(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays as compressed NumPy, replacing what is there."""
    with atomic.replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)
