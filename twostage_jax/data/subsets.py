"""Parts of the training examples, nested, the same for every arm."""

from typing import Literal

import numpy as np

from twostage_jax.data.dataset import Dataset
from twostage_jax.errors import UserError


def subset(
    dataset: Dataset,
    train_indices: np.ndarray,
    fraction: float,
    *,
    seed: int,
    by: Literal["group", "patch"] = "group",
) -> np.ndarray:
    """Returns a part of the training examples, the same for every arm.

    Parts are nested: for one seed, that of a smaller fraction is part of that of a
    larger one.

    Args:
      dataset: The whole data set.
      train_indices: Of the training split.
      fraction: In (0, 1]: of the groups, or of the examples of each class.
      seed: Decides the draw.
      by: 'group' draws whole groups: first some that together have every class, then
        in turn from those of each class (a group counts for the rarest of its classes).
        'patch' draws examples, of each class and evenly over its groups. A set without
        groups is drawn from by 'patch'.

    Returns:
      Sorted indices into the data set, int64.

    Raises:
      UserError: The fraction leaves a class without examples.
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction}: give a share above 0, up to 1.")
    if by not in ("group", "patch"):
        raise UserError(f"fractions are drawn by '{by}': use 'group' or 'patch'.")
    indices = np.unique(train_indices)
    if by == "group" and dataset.groups is not None:
        chosen = _by_group(dataset, indices, fraction, np.random.default_rng((seed, 3)))
    else:
        chosen = _by_patch(dataset, indices, fraction, np.random.default_rng((seed, 4)))
    absent = absent_classes(dataset, chosen)
    if absent:
        raise UserError(
            f"data set '{dataset.name}': fraction {fraction} (seed {seed}) leaves no "
            f"training example of class {', '.join(absent)}: leave that fraction out"
            f"{', or draw by patch' if by == 'group' else ''}."
        )
    return chosen


def random_ranks(
    strata: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each element's random rank within its stratum, and the stratum's size."""
    order = np.lexsort((rng.random(len(strata)), strata))
    _, inverse, counts = np.unique(strata, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    ranks = np.empty(len(strata), np.int64)
    ranks[order] = np.arange(len(strata)) - starts[inverse[order]]
    return ranks, counts[inverse]


def _by_group(
    dataset: Dataset, indices: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    groups, inverse = np.unique(dataset.groups[indices], return_inverse=True)
    held = np.zeros((len(groups), dataset.num_classes), bool)
    held[inverse, dataset.labels[indices]] = True
    # The rarest class of a group is the one that the fewest groups have.
    rarity = np.where(held, held.sum(0), len(groups) + 1)
    ranks, sizes = random_ranks(rarity.argmin(1), rng)
    # Strata take turns in proportion to their sizes, each one's first group in front.
    order = np.lexsort((rng.random(len(groups)), ranks / sizes))
    order = _covering_first(order, held)
    chosen = order[: max(round(fraction * len(groups)), 1)]
    return indices[np.isin(inverse, chosen)]


def _covering_first(order: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Moves groups to the front that bring in classes, most at a time (set cover).

    Args:
      order: `[G]`, a permutation of the groups.
      held: `[G, K]`, whether the group has the class.
    """
    front: list[int] = []
    missing = held.any(0)
    while missing.any():
        gains = (held[order] & missing).sum(1)
        front.append(order[gains.argmax()])
        missing &= ~held[front[-1]]
    return np.concatenate([front, order[~np.isin(order, front)]]).astype(np.int64)


def _by_patch(
    dataset: Dataset, indices: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    labels = dataset.labels[indices]
    cells = labels.astype(np.int64)
    if dataset.groups is not None:
        _, groups = np.unique(dataset.groups[indices], return_inverse=True)
        cells = cells * len(indices) + groups
    ranks, sizes = random_ranks(cells, rng)
    # Systematic sampling: a random start in each (class, group) spreads the examples
    # evenly without favouring large or small groups.
    _, inverse = np.unique(cells, return_inverse=True)
    position = (ranks + rng.random(inverse.max() + 1)[inverse]) / sizes
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        order = members[np.argsort(position[members], kind="stable")]
        chosen.append(order[: round(fraction * len(members))])
    return np.sort(indices[np.concatenate(chosen)])


def absent_classes(dataset: Dataset, indices: np.ndarray) -> list[str]:
    """Returns the quoted names of the classes that no example of `indices` has."""
    counts = np.bincount(dataset.labels[indices], minlength=dataset.num_classes)
    return [f"'{dataset.class_names[i]}'" for i in np.flatnonzero(counts == 0)]
