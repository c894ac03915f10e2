"""Splits data sets into training, validation and test, and draws training subsets.

The splits do not share groups (patients, material samples); `split` checks this on the
arrays themselves. `copies` finds test images that are also in the training set under other
names.
"""

import dataclasses
import hashlib
import warnings
from typing import Any, Literal

import numpy as np

from twostage_jax.data.dataset import Dataset
from twostage_jax.errors import UserError, require

# Number of random draws of groups to hold out, of which the best is used. With more draws,
# the fractions would match better, but almost the same split would result for every seed.
DRAWS = 50
# Number of pairs of copies that a message names.
NAMED = 3


@dataclasses.dataclass(frozen=True)
class Splits:
    """Indices into a data set, each sorted, `[N]` int64.

    Attributes:
      train: Examples to fit parameters.
      validation: Examples to select models.
      test: Examples to measure performance, once.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    dataset: Dataset,
    *,
    seed: int,
    validation: float = 0.2,
    test: float = 0.25,
    folds: int = 0,
    fold: int = 0,
) -> Splits:
    """Splits a data set by group, stratified by class as far as the groups allow.

    Existing splits of the set are used unchanged. Missing ones are held out of the
    training examples: whole groups, or single examples if the set is not grouped. Among
    `DRAWS` random draws of groups, the best one keeps every class on both sides and is
    closest to the requested fraction of each class.

    Args:
      dataset: Data set to split; only its labels, groups and splits are used.
      seed: Seed of the draw; the same seed gives the same split.
      validation: Fraction of the training examples held out for validation, in whole
        groups, in (0, 1).
      test: Fraction of the examples held out for the test, in whole groups, in (0, 1).
      folds: Number of folds for cross-validation, or 0. The test split is then fold
        `fold`; over all folds, every group is tested exactly once.
      fold: Index of the fold, from 0.

    Raises:
      UserError: There are too few groups; a class lacks training examples; the validation
        or test split has only one class; existing splits share a group; or `folds` is
        set for a set with existing splits.
    """
    _check(dataset, validation, test, folds, fold)
    own = {
        name: np.flatnonzero(dataset.splits == name)
        for name in np.unique(dataset.splits)
    }
    rest = own.get("train", np.array([], np.int64))
    _assert_disjoint(dataset, own)
    if folds:
        assigned = _folds(dataset, rest, folds, seed)
        tested = rest[assigned == fold]
        rest = rest[assigned != fold]
    elif "test" in own:
        tested = own["test"]
    else:
        rest, tested = _hold_out(dataset, rest, test, (seed, 1), "test")
    if "validation" in own:
        validated = own["validation"]
    else:
        rest, validated = _hold_out(
            dataset, rest, validation, (seed, 2, fold), "validation"
        )
    parts = {"train": rest, "validation": validated, "test": tested}
    for name, indices in parts.items():
        if not len(indices):
            raise _refusal(dataset, f"the {name} split is empty.")
    _assert_disjoint(dataset, parts)
    absent = absent_classes(dataset, rest)
    if absent:
        raise _refusal(
            dataset,
            f"training examples of class {', '.join(absent)} are missing (seed {seed}, "
            f"fold {fold}): hold out less, or add groups of that class. "
            f"{_groups_of_classes(dataset)}",
        )
    for name in ("validation", "test"):
        if len(np.unique(dataset.labels[parts[name]])) < 2:
            raise _refusal(
                dataset,
                f"the {name} split has examples of only one class (seed {seed}, fold "
                f"{fold}), so scores on it are meaningless: hold out more, use fewer "
                f"folds, or add groups. {_groups_of_classes(dataset)}",
            )
    return Splits(**{name: np.sort(indices) for name, indices in parts.items()})


def subset(
    dataset: Dataset,
    train_indices: np.ndarray,
    fraction: float,
    *,
    seed: int,
    by: Literal["group", "patch"] = "group",
) -> np.ndarray:
    """Returns a subset of the training examples, the same for every arm.

    Subsets of one seed are nested: a larger fraction contains the smaller ones.

    Args:
      dataset: Whole data set.
      train_indices: Indices of the training split.
      fraction: Fraction of the groups, or of the examples of each class, in (0, 1].
      seed: Seed of the draw.
      by: Unit of the draw. 'group': whole groups, first some that together have every
        class, then alternately from the groups of each class (a group belongs to the
        rarest of its classes). 'patch': examples of each class, evenly over its groups;
        always used for sets without groups.

    Returns:
      Sorted indices into the data set, int64.

    Raises:
      UserError: The fraction leaves a class without examples.
    """
    require(0 < fraction <= 1, "fraction", fraction, "above 0 and at most 1")
    require(by in ("group", "patch"), "by", by, "'group' or 'patch'")
    indices = np.unique(train_indices)
    if by == "group" and dataset.groups is not None:
        chosen = _by_group(dataset, indices, fraction, np.random.default_rng((seed, 3)))
    else:
        chosen = _by_patch(dataset, indices, fraction, np.random.default_rng((seed, 4)))
    absent = absent_classes(dataset, chosen)
    if absent:
        raise _refusal(
            dataset,
            f"fraction {fraction} (seed {seed}) lacks training examples of class "
            f"{', '.join(absent)}: remove this fraction"
            f"{', or draw by patch' if by == 'group' else ''}.",
        )
    return chosen


def copies(dataset: Dataset, splits: Splits) -> str:
    """Returns a warning about copies of images, or ''.

    It names test images that are also in the training set (splits keep groups apart, but
    a patient may have two names), and copies in another class. Ignores constant images
    (air), and sets that are not in memory.
    """
    if not isinstance(dataset.images, np.ndarray):
        return ""
    trained = np.concatenate([splits.train, splits.validation])
    indices = np.concatenate([trained, splits.test]).tolist()
    # Each image with the first of equal pixels: a training image if there is one.
    seen: dict[bytes, int] = {}
    firsts = [seen.setdefault(_content(dataset.images[i]), i) for i in indices]
    pairs = [
        (index, first)
        for index, first in zip(indices, firsts, strict=True)
        if index != first and np.ptp(dataset.images[index])
    ]
    among, tested = set(trained.tolist()), set(splits.test.tolist())
    leaks = [pair for pair in pairs if pair[0] in tested and pair[1] in among]
    labels = dataset.labels
    contradictions = [(i, first) for i, first in pairs if labels[i] != labels[first]]
    told = []
    if leaks:
        told.append(
            f"{len(leaks)} of {len(splits.test)} test images are also in the training or "
            f"validation set, pixel for pixel ({_named(dataset, leaks)}). Does a patient "
            "have two names? Scores on copies are too high."
        )
    if contradictions:
        told.append(
            f"{len(contradictions)} images have a copy, pixel for pixel, in another class "
            f"({_named(dataset, contradictions)}): one of the labels is wrong."
        )
    return f"data set '{dataset.name}': {' '.join(told)}" if told else ""


def _named(dataset: Dataset, pairs: list[tuple[int, int]]) -> str:
    names = [f"{_name(dataset, i)} = {_name(dataset, j)}" for i, j in pairs[:NAMED]]
    return "; ".join(names + ["..."] * (len(pairs) > NAMED))


def absent_classes(dataset: Dataset, indices: np.ndarray) -> list[str]:
    """Returns the quoted names of the classes without examples in `indices`."""
    counts = np.bincount(dataset.labels[indices], minlength=dataset.num_classes)
    return [f"'{dataset.class_names[i]}'" for i in np.flatnonzero(counts == 0)]


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


def _check(
    dataset: Dataset, validation: float, test: float, folds: int, fold: int
) -> None:
    for name, fraction in (("validation", validation), ("test", test)):
        require(0 < fraction < 1, name, fraction, "between 0 and 1")
    if folds == 1 or folds < 0 or not 0 <= fold < max(folds, 1):
        raise UserError(
            f"folds is {folds}, fold {fold}: use folds = 0 or at least 2, and fold "
            "from 0 to folds - 1.",
            where="folds",
        )
    if folds and (dataset.splits != "train").any():
        raise UserError(
            f"data set '{dataset.name}' has its own validation or test split, which "
            "cross-validation would mix with the rest: set folds to 0.",
            where="folds",
        )
    if len(np.unique(dataset.labels)) < 2:
        raise _refusal(dataset, "it has examples of only one class.")


def _assert_disjoint(dataset: Dataset, parts: dict[str, np.ndarray]) -> None:
    """Raises a UserError if two parts share a group or an example."""
    units = np.arange(len(dataset)) if dataset.groups is None else dataset.groups
    seen: dict = {}
    for name, indices in parts.items():
        for unit in np.unique(units[indices]).tolist():
            if unit in seen:
                raise _refusal(
                    dataset, f"group '{unit}' is in both {seen[unit]} and {name}."
                )
            seen[unit] = name


def _groups_of_classes(dataset: Dataset) -> str:
    """Returns a sentence on the number of groups, or of examples, of each class."""
    units = np.arange(len(dataset)) if dataset.groups is None else dataset.groups
    counts = [
        f"'{name}' has {len(np.unique(units[dataset.labels == label]))}"
        for label, name in enumerate(dataset.class_names)
    ]
    kind = "examples" if dataset.groups is None else "groups (patients, samples)"
    return f"Each class needs 3 or more {kind}: {', '.join(counts)}."


def _require_units(
    dataset: Dataset, indices: np.ndarray, count: int, purpose: str
) -> None:
    units = indices if dataset.groups is None else np.unique(dataset.groups[indices])
    if len(units) < count:
        hint = ""
        if dataset.groups is not None and len(units) == 1:
            hint = (
                f" All examples belong to '{units[0]}', and a group (a patient, a "
                "sample) is never split. If these are several patients, their files "
                "share a name, often a PatientID written by an anonymiser. Give each "
                "patient an ID, and prepare the data again."
            )
        raise _refusal(
            dataset,
            f"it has {len(units)} "
            f"{'examples' if dataset.groups is None else 'groups'} for {purpose}, "
            f"fewer than {count}.{hint}",
        )


def _folds(dataset: Dataset, indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the fold, 0 to `count` - 1, of each of `indices`; no fold is empty.

    Groups are distributed at random in equal numbers. (StratifiedGroupKFold of
    scikit-learn exchanges only groups with equal class counts, so that other groups stay
    together for every seed, and so do peculiarities of a fold.)
    """
    _require_units(dataset, indices, count, "the folds")
    labels = dataset.labels[indices]
    if dataset.groups is None:
        return _folds_of_examples(dataset, labels, count, seed)
    rng = np.random.default_rng((seed, 0))
    counts, inverse = _class_counts(dataset, indices)
    total = np.maximum(counts.sum(0), 1)

    def badness(fold: np.ndarray) -> tuple:
        held = np.stack([counts[fold == k].sum(0) for k in range(count)])
        return _badness(held, total, 1 / count)

    draws = (rng.permutation(len(counts)) % count for _ in range(DRAWS))
    return min(draws, key=badness)[inverse]


def _folds_of_examples(
    dataset: Dataset, labels: np.ndarray, count: int, seed: int
) -> np.ndarray:
    # Imported here, because loading scikit-learn takes long.
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(count, shuffle=True, random_state=seed)
    assigned = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A class smaller than the number of folds is allowed.
        warnings.simplefilter("ignore", UserWarning)
        try:
            for i, (_, held) in enumerate(folds.split(labels, labels)):
                assigned[held] = i
        except ValueError as error:
            raise _refusal(
                dataset, f"it cannot be cut into {count} folds: {error}"
            ) from None
    return assigned


def _hold_out(
    dataset: Dataset,
    indices: np.ndarray,
    fraction: float,
    seed: tuple[int, ...],
    purpose: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices that are kept, and the `fraction` of them that is held out."""
    _require_units(dataset, indices, 2, f"the {purpose} split")
    rng = np.random.default_rng(seed)
    labels = dataset.labels[indices]
    if dataset.groups is None:
        ranks, sizes = random_ranks(labels, rng)
        # At least one example of each class, but not its last one.
        held = ranks < np.minimum(np.maximum(np.round(fraction * sizes), 1), sizes - 1)
        return indices[~held], indices[held]
    counts, inverse = _class_counts(dataset, indices)
    total = np.maximum(counts.sum(0), 1)

    def draw() -> np.ndarray:
        drawn = rng.permutation(len(counts))
        sizes = np.cumsum(counts[drawn].sum(1))
        excess = np.abs(sizes[:-1] - fraction * sizes[-1])
        return drawn[: excess.argmin() + 1]

    def badness(drawn: np.ndarray) -> tuple:
        return _badness(counts[drawn].sum(0), total, fraction)

    best = min((draw() for _ in range(DRAWS)), key=badness)
    held = np.isin(inverse, best)
    return indices[~held], indices[held]


def _class_counts(
    dataset: Dataset, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns counts of examples by group and class `[G, K]`, and groups of `indices`."""
    groups, inverse = np.unique(dataset.groups[indices], return_inverse=True)
    counts = np.zeros((len(groups), dataset.num_classes), np.int64)
    np.add.at(counts, (inverse, dataset.labels[indices]), 1)
    return counts, inverse


def _badness(held: np.ndarray, total: np.ndarray, fraction: float) -> tuple:
    """Returns a sort key for holding out `held` `[..., K]` of `total`; lower is better.

    It consists of the number of classes missing from training, that of classes missing
    from the test, and the largest error of a fraction.
    """
    lost, unseen = np.sum(held == total), np.sum(held == 0)
    return lost, unseen, np.abs(held / total - fraction).max()


def _by_group(
    dataset: Dataset, indices: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    groups, inverse = np.unique(dataset.groups[indices], return_inverse=True)
    held = np.zeros((len(groups), dataset.num_classes), bool)
    held[inverse, dataset.labels[indices]] = True
    # The rarest class of a group is the one with the fewest groups.
    rarity = np.where(held, held.sum(0), len(groups) + 1)
    ranks, sizes = random_ranks(rarity.argmin(1), rng)
    # Strata alternate in proportion to their sizes, beginning with one group of each.
    order = np.lexsort((rng.random(len(groups)), ranks / sizes))
    order = _covering_first(order, held)
    chosen = order[: max(round(fraction * len(groups)), 1)]
    return indices[np.isin(inverse, chosen)]


def _covering_first(order: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Returns `order` with groups that together have every class first (greedy cover).

    Args:
      order: Permutation of the groups, `[G]`.
      held: Whether a group has a class, `[G, K]`.
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


def _content(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def _name(dataset: Dataset, index: int) -> str:
    group: Any = dataset.groups[index] if dataset.groups is not None else ""
    return f"{dataset.ids[index]}{f' of {group}' if group else ''}"


def _refusal(dataset: Dataset, reason: str) -> UserError:
    """Returns an error on a data set."""
    return UserError(f"data set '{dataset.name}': {reason}", where=dataset.name)
