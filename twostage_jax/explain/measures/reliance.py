"""Cue reliance: accuracy on images from which one cue was removed.

Shuffling squares keeps texture and removes shape (as in the bags of features of Brendel
& Bethge 2019, arXiv 1904.00760): the larger the drop, the more a network relies on
layout at scales above a square. The filters and the noise follow Geirhos et al. 2018
(arXiv 1808.08750).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from sklearn.metrics import recall_score

from twostage_jax.explain.measures.record import Measure

UNCHANGED = "unchanged"
# Smallest balanced accuracy above chance on unchanged images for which the retained
# fraction is given: a fraction of almost nothing is noise.
LEAST_ABOVE = 0.05
MEASURES = (
    Measure("accuracy", "balanced accuracy on changed images"),
    Measure(
        "kept",
        "fraction of above-chance accuracy retained",
        why_none=f"less than {LEAST_ABOVE:.0%} above chance on unchanged images",
    ),
)
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Score(NamedTuple):
    """Accuracy of a network on changed images.

    Attributes:
      accuracy: Balanced accuracy.
      kept: Fraction of the above-chance accuracy on unchanged images that is retained;
        None if the latter is below `LEAST_ABOVE`.
    """

    accuracy: float
    kept: float | None


def changes(size: int) -> dict[str, Change]:
    """Returns the changes by name, for images with sides of `size` pixels.

    All take images `[N, H, W, C]` in [0, 1] and return such images. Standard deviations
    of filters are given for 32 pixels and scale with the image.
    """
    found: dict[str, Change] = {UNCHANGED: lambda images, rng: images}
    for parts in (2, 4, 8):
        side = size // parts
        if side > 1:
            found[f"shuffled {side} px"] = _with(shuffle, side)
    found["shuffled 1 px"] = _with(shuffle, 1)
    for sigma in (1, 2, 4):
        found[f"low-pass {sigma * size / 32:g} px"] = _with(low_pass, sigma * size / 32)
    found["mean only"] = _with(low_pass, np.inf)
    found["mean removed"] = _with(high_pass, np.inf)
    for sigma in (4, 2, 1):
        name = f"high-pass {sigma * size / 32:g} px"
        found[name] = _with(high_pass, sigma * size / 32)
    for factor in (0.5, 0.25):
        found[f"contrast {factor:.0%}"] = _with(contrast, factor)
    for deviation in (0.05, 0.1, 0.2):
        found[f"noise {deviation:g}"] = _with(noise, deviation)
    return found


def scores(
    classify: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    named: Mapping[str, Change],
) -> dict[str, Score]:
    """Returns the score of a network under each change.

    Balanced accuracy by chance is 1 / number of classes among the labels, because the
    recalls of these are averaged, however many classes the network distinguishes.

    Args:
      classify: Function from images `[N, H, W, C]` in [0, 1] to class indices `[N]`.
      images, labels: The examples.
      named: Changes by name, including 'unchanged'; see `changes`.
    """
    present = np.unique(labels)
    accuracy = {
        name: float(
            recall_score(
                labels,
                classify(changed),
                labels=present,
                average="macro",
                zero_division=0,
            )
        )
        for name, changed in changed_images(images, named)
    }
    chance = 1 / len(present)
    above = accuracy[UNCHANGED] - chance
    return {
        name: Score(value, (value - chance) / above if above >= LEAST_ABOVE else None)
        for name, value in accuracy.items()
    }


def changed_images(images: np.ndarray, named: Mapping[str, Change]):
    """Yields name and changed images, float32.

    Each change has its own random numbers, the same for every network.
    """
    for i, (name, change) in enumerate(named.items()):
        rng = np.random.default_rng([0, i])
        yield name, np.asarray(change(images, rng), np.float32)


def shuffle(images: np.ndarray, rng: np.random.Generator, side: int) -> np.ndarray:
    """Returns images with their squares of `side` pixels in random order.

    The order is drawn separately for each image. Rows and columns at the lower and
    right border that do not fill a square stay in place.
    """
    count, height, width, channels = images.shape
    rows, columns = height // side, width // side
    changed = images.copy()
    area = images[:, : rows * side, : columns * side]
    squares = (
        area.reshape(count, rows, side, columns, side, channels)
        .swapaxes(2, 3)
        .reshape(count, rows * columns, side, side, channels)
    )
    order = rng.permuted(np.tile(np.arange(rows * columns), (count, 1)), axis=1)
    squares = np.take_along_axis(squares, order[:, :, None, None, None], 1)
    changed[:, : rows * side, : columns * side] = (
        squares.reshape(count, rows, columns, side, side, channels)
        .swapaxes(2, 3)
        .reshape(area.shape)
    )
    return changed


def low_pass(images: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Returns images blurred by a Gaussian of `sigma` pixels; inf gives each its mean."""
    if np.isinf(sigma):
        return np.broadcast_to(images.mean((1, 2), keepdims=True), images.shape)
    return ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="reflect")


def high_pass(images: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    """Returns images minus their `low_pass`, plus the mean of all images."""
    level = images.mean()
    return np.clip(images - low_pass(images, rng, sigma) + level, 0, 1)


def contrast(images: np.ndarray, rng: np.random.Generator, factor: float) -> np.ndarray:
    """Returns images with deviations from each image's mean times `factor`, below 1."""
    mean = images.mean((1, 2), keepdims=True)
    return mean + factor * (images - mean)


def noise(images: np.ndarray, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Returns images with white Gaussian noise; `deviation` is a fraction of the range."""
    return np.clip(images + rng.normal(0, deviation, images.shape), 0, 1)


def _with(change: Callable, value: float) -> Change:
    return lambda images, rng: change(images, rng, value)
