"""Train, validation and test: no group in two of them, asserted on the data in hand."""

import dataclasses
import warnings

import numpy as np
from sklearn.model_selection import StratifiedKFold

from twostage_jax.data.dataset import Dataset
from twostage_jax.data.subsets import absent_classes, random_ranks
from twostage_jax.data.subsets import subset as subset
from twostage_jax.errors import UserError

# Random draws of whole groups to hold out, the best of which is taken. More would meet
# the shares better, and give much the same split for every seed.
DRAWS = 50


@dataclasses.dataclass(frozen=True)
class Splits:
    """Indices into a data set, each sorted, `[N]` int64.

    Attributes:
      train: To fit parameters.
      validation: To select models.
      test: To measure, once.
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
    """Splits a data set by group, classes in proportion where the groups allow it.

    A split of the set's own is taken as it is. What is missing is held out of the
    training examples: whole groups, or single examples where the set has no groups. Of
    some random draws of groups that one is taken which leaves every class on both sides
    and whose share of each class is nearest to what was asked.

    Args:
      dataset: What to split; only its labels, groups and splits are looked at.
      seed: Decides the draw; the same seed gives the same split.
      validation: Share of the training examples held out for validation, in whole
        groups, in (0, 1).
      test: Share of the examples held out for the test, in whole groups, in (0, 1).
      folds: If not 0, the test is fold `fold` of so many: over all folds every group
        is tested exactly once.
      fold: Counted from 0.

    Raises:
      UserError: Too few groups; a class without training examples; a validation or
        test split of one class only; a group in two splits of the set's own; or
        `folds` for a set with splits of its own.
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
            raise UserError(f"data set '{dataset.name}': the {name} split is empty.")
    _assert_disjoint(dataset, parts)
    absent = absent_classes(dataset, rest)
    if absent:
        raise UserError(
            f"data set '{dataset.name}': no training example of class "
            f"{', '.join(absent)} is left (seed {seed}, fold {fold}): hold out less, "
            f"or give that class more groups. {_groups_of_classes(dataset)}"
        )
    for name in ("validation", "test"):
        if len(np.unique(dataset.labels[parts[name]])) < 2:
            raise UserError(
                f"data set '{dataset.name}': the {name} split has examples of only one "
                f"class (seed {seed}, fold {fold}), so a score on it would mean nothing: "
                "hold out more, use fewer folds, or give the classes more groups. "
                f"{_groups_of_classes(dataset)}"
            )
    return Splits(**{name: np.sort(indices) for name, indices in parts.items()})


def _check(
    dataset: Dataset, validation: float, test: float, folds: int, fold: int
) -> None:
    for name, share in (("validation", validation), ("test", test)):
        if not 0 < share < 1:
            raise UserError(f"{name} is {share}: give a share between 0 and 1.")
    if folds == 1 or folds < 0 or not 0 <= fold < max(folds, 1):
        raise UserError(
            f"folds is {folds}, fold {fold}: use folds = 0 or at least 2, and fold "
            "from 0 to folds - 1."
        )
    if folds and (dataset.splits != "train").any():
        raise UserError(
            f"data set '{dataset.name}' brings its own validation or test split, which "
            "cross-validation would mix with the rest: set folds to 0."
        )
    if len(np.unique(dataset.labels)) < 2:
        raise UserError(f"data set '{dataset.name}' has examples of only one class.")


def _assert_disjoint(dataset: Dataset, parts: dict[str, np.ndarray]) -> None:
    """Raises a UserError if two parts share a group or an example."""
    units = np.arange(len(dataset)) if dataset.groups is None else dataset.groups
    seen: dict = {}
    for name, indices in parts.items():
        for unit in np.unique(units[indices]).tolist():
            if unit in seen:
                raise UserError(
                    f"data set '{dataset.name}': group '{unit}' is in both "
                    f"{seen[unit]} and {name}."
                )
            seen[unit] = name


def _groups_of_classes(dataset: Dataset) -> str:
    """Returns a sentence on how many groups, or else examples, each class has."""
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
                "give them one name: often a PatientID that an anonymiser wrote into "
                "all of them. Give each patient an ID, and prepare the data again."
            )
        raise UserError(
            f"data set '{dataset.name}' has {len(units)} "
            f"{'examples' if dataset.groups is None else 'groups'} for {purpose}, "
            f"fewer than {count}.{hint}"
        )


def _folds(dataset: Dataset, indices: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the fold of each of `indices`, below `count`; no fold is empty.

    Groups are shared out at random, in equal numbers. (scikit-learn's StratifiedGroupKFold
    exchanges only groups of like class counts: with any seed the others keep their
    neighbours, and what is peculiar to a fold stays.)
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
    folds = StratifiedKFold(count, shuffle=True, random_state=seed)
    assigned = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A class smaller than the number of folds is no fault in itself.
        warnings.simplefilter("ignore", UserWarning)
        try:
            for i, (_, held) in enumerate(folds.split(labels, labels)):
                assigned[held] = i
        except ValueError as error:
            raise UserError(
                f"data set '{dataset.name}' cannot be cut into {count} folds: {error}"
            ) from None
    return assigned


def _class_counts(
    dataset: Dataset, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of each class `[G, K]` of groups; the group of each index."""
    groups, inverse = np.unique(dataset.groups[indices], return_inverse=True)
    counts = np.zeros((len(groups), dataset.num_classes), np.int64)
    np.add.at(counts, (inverse, dataset.labels[indices]), 1)
    return counts, inverse


def _badness(held: np.ndarray, total: np.ndarray, share: float) -> tuple:
    """Returns how bad it is to hold out `[..., K]` examples of `total`: low is good.

    First that no class is lost to training, then that none is untested, then the share.
    """
    lost, unseen = np.sum(held == total), np.sum(held == 0)
    return lost, unseen, np.abs(held / total - share).max()


def _hold_out(
    dataset: Dataset,
    indices: np.ndarray,
    share: float,
    seed: tuple[int, ...],
    purpose: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `indices` in two: what is kept, and about `share` held out."""
    _require_units(dataset, indices, 2, f"the {purpose} split")
    rng = np.random.default_rng(seed)
    labels = dataset.labels[indices]
    if dataset.groups is None:
        ranks, sizes = random_ranks(labels, rng)
        # One example at least of each class, but never the last one.
        held = ranks < np.minimum(np.maximum(np.round(share * sizes), 1), sizes - 1)
        return indices[~held], indices[held]
    counts, inverse = _class_counts(dataset, indices)
    total = np.maximum(counts.sum(0), 1)

    def draw() -> np.ndarray:
        drawn = rng.permutation(len(counts))
        sizes = np.cumsum(counts[drawn].sum(1))
        excess = np.abs(sizes[:-1] - share * sizes[-1])
        return drawn[: excess.argmin() + 1]

    def badness(drawn: np.ndarray) -> tuple:
        return _badness(counts[drawn].sum(0), total, share)

    best = min((draw() for _ in range(DRAWS)), key=badness)
    held = np.isin(inverse, best)
    return indices[~held], indices[held]
