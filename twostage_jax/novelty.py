"""Novelty: which images are unlike those that a network was trained on.

The distance of an image is that to its nearest training image, between the network's
last features before the head, scaled to length 1: deep nearest neighbours, Sun, Ming,
Zhu, Li 2022 (arXiv 2204.06507). They take the 1,000th of 1.28 million training images;
of two thousand the first is in proportion.

An image is unlike the training images where its distance exceeds the threshold: the
`QUANTILE` of the distances of training images from those of other groups (patients), so
that about 1 % of the patches of a new patient like the training's lie beyond it. Images
within it are not thereby known to be like the training's: see `experiments/unseen.md`.
"""

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import atomic
from twostage_jax.errors import UserError

FILE = "novelty.npz"
# Most training images that distances are taken to.
MOST_IMAGES = 2000
QUANTILE = 0.99
# With fewer groups the distances between them are those of one or two pairs.
FEWEST_GROUPS = 3


class Reference(NamedTuple):
    """Training images as points, and the distance up to which others are like them.

    Attributes:
      features: `[N, D]` float16, rows of length 1.
      threshold: Distance, 0 to 2.
      groups: Number of groups each of which was held out to find the threshold; 0 if the
        images were held out one by one, because there are fewer than `FEWEST_GROUPS`.
        Patches of one patient resemble each other: the threshold is then too low.
    """

    features: np.ndarray
    threshold: float
    groups: int

    def __str__(self) -> str:
        of_what = (
            f"those of other patients ({self.groups} patients)"
            if self.groups
            else "the other ones, of the same patients too: more than 1 % of the patches "
            "of a new patient lie beyond it"
        )
        return (
            f"nearest of {len(self.features)} training images at a distance above "
            f"{self.threshold:.4f}, which {100 * QUANTILE:g} % of them have from {of_what}"
        )


def chosen(train: np.ndarray) -> np.ndarray:
    """Returns at most `MOST_IMAGES` of the indices `[N]`, evenly spread."""
    return train[:: -(-len(train) // MOST_IMAGES)]


def reference(features: np.ndarray, groups: np.ndarray | None) -> Reference:
    """Returns the reference of training images.

    Args:
      features: `[N, D]`.
      groups: `[N]`, the group of each image; None if there are none.
    """
    points = np.asarray(_unit(features)).astype(np.float16)
    count = 0 if groups is None else len(np.unique(groups))
    if count < FEWEST_GROUPS:
        groups, count = np.arange(len(points)), 0
    exact = points.astype(np.float32)
    cosines = exact @ exact.T
    cosines[groups[:, None] == groups] = -1
    threshold = np.quantile(_distance(cosines.max(1)), QUANTILE)
    return Reference(points, float(threshold), count)


def distances(features: jax.Array, points: jax.Array) -> jax.Array:
    """Returns the distance `[b]` of features `[b, D]` to the nearest of `[N, D]` points.

    Args:
      features: Scaled to length 1 here.
      points: Of length 1.
    """
    cosines = _unit(features) @ jnp.asarray(points, jnp.float32).T
    return _distance(cosines.max(-1))


def _distance(cosine: Any) -> Any:
    """Returns the distance of points of length 1; the largest cosine has the smallest."""
    return (2 - 2 * cosine).clip(0) ** 0.5


def _unit(features: Any) -> jax.Array:
    """Returns features `[b, D]` scaled to length 1; zeros stay zeros."""
    features = jnp.asarray(features, jnp.float32)
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(length, 1e-12)


def save(folder: Path, made: Reference, run_hash: str) -> None:
    """Writes the reference of a stage run into its folder, without pickle."""
    with atomic.replacing(folder / FILE) as temporary:
        np.savez_compressed(
            temporary,
            features=made.features,
            threshold=made.threshold,
            groups=made.groups,
            run=np.array(run_hash),
        )


def load(folder: Path, run_hash: str) -> Reference | None:
    """Returns what `save` wrote; `None` if a stage run of an earlier version has none.

    Raises:
      UserError: The file is damaged, or that of another stage run.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        # Of a damaged file NumPy would leave open what it opened itself.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            made = Reference(
                saved["features"], float(saved["threshold"]), int(saved["groups"])
            )
            run = str(saved["run"])
        if made.features.ndim != 2 or not len(made.features):
            raise ValueError("its features are not a table")
        if not (np.isfinite(made.features).all() and math.isfinite(made.threshold)):
            raise ValueError("it holds values that are not finite")
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
    ) as e:
        raise UserError(
            f"{path}: cannot be read ({e}). Delete it to map without a comparison with "
            "the training images, or train again.",
            where=path,
        ) from e
    if run != run_hash:
        raise UserError(
            f"{path}: belongs to another stage run ({run[:12]}, not {run_hash[:12]}). "
            "Delete it to map without a comparison with the training images, or train "
            "again.",
            where=path,
        )
    return made
