"""Novelty: which images are unlike those that a network was trained on.

The distance of an image is that to its nearest training image, as deep nearest
neighbours have it (Sun, Ming, Zhu, Li 2022, arXiv 2204.06507), between what the network
sees first and last of them (`models.descriptor`; Lee et al. 2018, arXiv 1807.03888, join
early and late layers for the same purpose). Features are standardised by the training
images and keep their length: scaled to length 1, as Sun et al. do, lung shown through a
window for soft tissue, all black, was like the training images; `experiments/unseen.md`
has the numbers.

An image is unlike the training images where its distance exceeds the threshold: the
`QUANTILE` of the distances of training images from those of other groups (patients), so
that about 1 % of the patches of a new patient lie beyond it where they are cut like the
training's. An image within it may still show what no training image shows.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax import io
from twostage_jax.errors import UserError

FILE = "novelty.npz"
# Most training images that distances are taken to.
MOST_IMAGES = 2000
QUANTILE = 0.99
# Added to each standard deviation, as a fraction of that of all features together: a
# channel that is dead on the training images must not decide alone.
FLOOR = 1e-3
# With fewer groups the distances between them are those of one or two pairs.
FEWEST_GROUPS = 3


class Reference(NamedTuple):
    """Training images as points, and the distance up to which others are like them.

    Attributes:
      features: `[N, D]` float16, standardised.
      mean, scale: `[D]` float32: standardised is (features - mean) / scale.
      threshold: Distance between standardised features.
      groups: Number of groups each of which was held out to find the threshold; 0 if the
        images were held out one by one, because there are fewer than `FEWEST_GROUPS`.
        Patches of one patient resemble each other: the threshold is then too low.
    """

    features: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
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
            f"{self.threshold:.2f}, which {100 * QUANTILE:g} % of them have from {of_what}"
        )


def chosen(train: np.ndarray) -> np.ndarray:
    """Returns at most `MOST_IMAGES` of the indices `[N]`, evenly spread."""
    return train[:: -(-len(train) // MOST_IMAGES)]


def reference(features: np.ndarray, groups: np.ndarray | None) -> Reference:
    """Returns the reference of training images.

    Args:
      features: `[N, D]`, see `models.descriptor`; N is at least 2.
      groups: `[N]`, the group of each image; None if there are none.
    """
    exact = np.asarray(features, np.float64)
    mean, scale = exact.mean(0), exact.std(0) + FLOOR * exact.std() + 1e-12
    points = ((exact - mean) / scale).astype(np.float16)
    count = 0 if groups is None else len(np.unique(groups))
    if count < FEWEST_GROUPS:
        groups, count = np.arange(len(points)), 0
    stored = points.astype(np.float32)
    squares = _squares(stored, stored)
    squares[groups[:, None] == groups] = np.inf
    threshold = np.quantile(np.sqrt(squares.min(1)), QUANTILE)
    scales = mean.astype(np.float32), scale.astype(np.float32)
    return Reference(points, *scales, float(threshold), count)


def is_unlike(
    features: jax.Array,
    points: jax.Array,
    mean: jax.Array,
    scale: jax.Array,
    threshold: jax.Array,
) -> jax.Array:
    """Returns which of the images `[b]` with features `[b, D]` are unlike the training's.

    Args:
      features: As `models.descriptor` gives them.
      points, mean, scale, threshold: Fields of `Reference`.
    """
    standardised = (features - mean) / scale
    squares = _squares(standardised, points.astype(np.float32))
    return squares.min(1) > threshold**2


def _squares(first: Any, second: Any) -> Any:
    """Returns the squared distances `[b, N]` of points `[b, D]` and `[N, D]`."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return squares.clip(0)


def save(folder: Path, made: Reference, run_hash: str) -> None:
    """Writes the reference of a stage run into its folder, without pickle."""
    with io.replacing(folder / FILE) as temporary:
        np.savez_compressed(
            temporary,
            **made._asdict(),
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
            arrays = [saved[name] for name in ("features", "mean", "scale")]
            made = Reference(*arrays, float(saved["threshold"]), int(saved["groups"]))
            run = str(saved["run"])
        shapes = [array.shape for array in arrays]
        if len(shapes[0]) != 2 or not shapes[0][0] or shapes[1:] != [shapes[0][1:]] * 2:
            raise ValueError(f"its arrays have shapes {shapes}")
        if not all(np.isfinite(array).all() for array in (*arrays, made.threshold)):
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
