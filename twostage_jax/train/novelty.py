"""Novelty: detects images that differ from the training images of a network.

The distance of an image is that to its nearest training image, as in deep nearest
neighbours (Sun, Ming, Zhu, Li 2022, arXiv 2204.06507), in features of early and late
layers (`models.descriptor`; Lee et al. 2018, arXiv 1807.03888, combine layers for the
same purpose). Features are standardised by the training images and keep their length:
scaled to length 1, as by Sun et al., lung shown with a window for soft tissue, all black,
resembled the training images; `experiments/unseen.md` has the numbers.

An image differs from the training images if its distance exceeds the threshold: the
`QUANTILE` of the distances of training images from those of other groups (patients), so
that about 1 % of the patches of a new patient exceed it if they are cut like those of the
training. An image within it may still show something that the training images lack.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax import io
from twostage_jax.errors import UserError

FILE = "novelty.npz"
# Largest number of training images in the reference.
MOST_IMAGES = 2000
QUANTILE = 0.99
# Added to each standard deviation, as a fraction of that of all features together: a
# channel that is dead on the training images must not dominate the distance.
FLOOR = 1e-3
# With fewer groups, the distances between them come from one or two pairs.
FEWEST_GROUPS = 3


class Reference(NamedTuple):
    """Training images as points, and the threshold distance of similar images.

    Attributes:
      features: Standardised features, `[N, D]` float16.
      mean, scale: Standardisation (features - mean) / scale, `[D]` float32.
      threshold: Distance between standardised features.
      groups: Number of groups held out in turn to find the threshold; 0 if the images
        were held out one by one, because there are fewer than `FEWEST_GROUPS`. The
        threshold is then too low, because patches of one patient resemble each other.
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
            else "other images, including those of the same patients: more than 1 % of "
            "the patches of a new patient exceed it"
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
      features: Features of the images, `[N, D]`, see `models.descriptor`; N is at least
        2.
      groups: Group of each image, `[N]`; None if unknown.
    """
    exact = np.asarray(features, np.float64)
    mean, scale = exact.mean(0), exact.std(0) + FLOOR * exact.std() + 1e-12
    points = ((exact - mean) / scale).astype(np.float16)
    count = 0 if groups is None else len(np.unique(groups))
    if count < FEWEST_GROUPS:
        groups, count = np.arange(len(points)), 0
    stored = points.astype(np.float32)
    squares = squared_distances(stored, stored)
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
    """Returns which of the images `[b]` differ from the training images.

    Those whose distance is not a number do.

    Args:
      features: Features of the images, `[b, D]`, see `models.descriptor`.
      points, mean, scale, threshold: Fields of `Reference`.
    """
    standardised = (features - mean) / scale
    squares = squared_distances(standardised, points.astype(np.float32))
    return ~(squares.min(1) <= threshold**2)


def squared_distances(first: Any, second: Any) -> Any:
    """Returns the squared distances `[b, N]` of points `[b, D]` and `[N, D]`."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return squares.clip(0)


def save(folder: Path, made: Reference, run_hash: str) -> None:
    """Writes the reference of a stage run into its folder, without pickle."""
    io.write_arrays(folder / FILE, **made._asdict(), run=np.array(run_hash))


def load(folder: Path, run_hash: str) -> Reference | None:
    """Returns the saved reference; `None` for a stage run of an earlier version.

    Raises:
      UserError: The file is damaged, or belongs to another stage run.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    advice = (
        "Delete it to map without a comparison with the training images, or train "
        "again."
    )
    saved = io.read_arrays(path, (*Reference._fields, "run"), advice)
    run = str(saved.pop("run"))
    shapes = [saved[name].shape for name in Reference._fields]
    points = shapes[0]
    if shapes != [points, points[1:], points[1:], (), ()] or not points[0]:
        raise UserError.at(path, f"its arrays have shapes {shapes}. {advice}")
    if not all(np.isfinite(array).all() for array in saved.values()):
        raise UserError.at(path, f"some values are not finite. {advice}")
    if run != run_hash:
        raise UserError.at(
            path,
            f"belongs to another stage run ({run[:12]}, not {run_hash[:12]}). {advice}",
        )
    threshold, groups = float(saved.pop("threshold")), int(saved.pop("groups"))
    return Reference(**saved, threshold=threshold, groups=groups)
