"""Scores of arms in the sample, in hierarchical resamples, and without a patient.

The score of an arm is the mean over its seeds of a metric of the pooled confusion
matrix. Patients and seeds are crossed: every seed is tested on the same patients. One
hierarchical resample draws patients with replacement, then seeds with replacement, the
same ones for every arm and size; patients are weights on their confusion matrices, so
that all resamples are one matrix product.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.metrics import Predictions, checked

RESAMPLES = 10_000
# Fewer say too little of how patients differ; the simulation goes down to 8.
MIN_GROUPS = 5
# A mean over classes needs each of them in some patients.
MIN_GROUPS_A_CLASS = 3
# Cells of resampled matrices held at once (float64): 64 MiB.
CHUNK_CELLS = 2**23


@dataclasses.dataclass(frozen=True)
class Counts:
    """Confusion counts of arms on the same patients and seeds.

    Attributes:
      arms: A names.
      seeds: S seeds.
      groups: P names.
      cells: `[A, S, P, K, K]` float64, true class before predicted.
      right: `[A, S, N]` bool: which examples were predicted right.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    cells: np.ndarray
    right: np.ndarray


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the accuracy of confusion counts `[..., K, K]`."""
    return np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-2, -1))


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean recall over classes that occur, of counts `[..., K, K]`."""
    return _mean_ratio(_diagonal(matrix), matrix.sum(-1))


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean F1 over classes that occur or are predicted."""
    return _mean_ratio(2 * _diagonal(matrix), matrix.sum(-1) + matrix.sum(-2))


METRICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def count(arms: Mapping[str, Sequence[Predictions]]) -> Counts:
    """Returns the confusion counts of arms, paired by seed and example.

    Args:
      arms: Arm -> the predictions of its seeds, in any order. Without groups every
        example counts as a group of its own.

    Raises:
      UserError: Seeds are missing or twice there, or the examples, labels, groups or
        classes are not the same everywhere.
    """
    if not arms or not all(arms.values()):
        empty = [name for name, seeds in arms.items() if not seeds]
        raise UserError(f"No predictions of {', '.join(empty) or 'any arm'}.")
    by_seed = {name: _by_seed(name, given) for name, given in arms.items()}
    first = next(iter(by_seed))
    seeds = tuple(sorted(by_seed[first]))
    for name, given in by_seed.items():
        if missing := set(seeds) ^ set(given):
            raise UserError(
                f"Arms '{first}' and '{name}' cannot be paired: only one of them has "
                f"seeds {sorted(missing)}. Run these for both, or leave them out."
            )
    ids, labels, groups, _, classes = _examples(by_seed[first][seeds[0]])
    names, codes = np.unique(groups, return_inverse=True)
    cells = np.zeros((len(arms), len(seeds), len(names), classes, classes))
    right = np.zeros((len(arms), len(seeds), len(ids)), bool)
    for a, (name, given) in enumerate(by_seed.items()):
        for s, seed in enumerate(seeds):
            *other, predicted, columns = _examples(given[seed])
            if columns != classes or not all(
                map(np.array_equal, (ids, labels, groups), other)
            ):
                raise UserError(
                    f"Arm '{name}', seed {seed}: its test examples, labels, groups or "
                    f"classes are not those of arm '{first}', seed {seeds[0]}. It is "
                    "from another split or other data: run it again with the same "
                    "data settings."
                )
            np.add.at(cells[a, s], (codes, labels, predicted), 1)
            right[a, s] = predicted == labels
    return Counts(tuple(arms), seeds, tuple(names.tolist()), cells, right)


class Resampler:
    """One metric of arms: see the top of this file.

    Attributes:
      sample: `[A, S]`.
      resampled: `[B, A]`, means over resampled seeds.
      without: `[P, A, S]`, without one patient each.
      shares: `[P]`, the share of a patient in the score: of the examples for accuracy,
        else the mean over classes of its share of the class.
      reason: Why no interval can be given, or ''.
    """

    def __init__(
        self, counts: Counts, metric: str, resamples: int = RESAMPLES, seed: int = 0
    ):
        if metric not in METRICS:
            raise UserError(
                f"No intervals for metric '{metric}'.{did_you_mean(metric, METRICS)}"
            )
        score = METRICS[metric]
        cells = counts.cells
        arms, seeds, groups = cells.shape[:3]
        total = cells.sum(2)
        self.sample = score(total)
        supports = cells[0, 0].sum(-1)
        self.shares = _shares(supports, metric)
        self.reason = _too_few(supports, metric)
        if self.reason:
            return
        # Without the first patient, without the second, ...
        self.without = np.stack([score(total - cells[:, :, p]) for p in range(groups)])
        generator = np.random.default_rng(seed)
        patients = generator.multinomial(groups, np.full(groups, 1 / groups), resamples)
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
        flat = np.moveaxis(cells, 2, 0).reshape(groups, -1)
        chunk = max(1, CHUNK_CELLS // flat.shape[1])
        self.resampled = np.concatenate(
            [
                np.einsum(
                    "bas,bs->ba",
                    score((patients[i : i + chunk] @ flat).reshape(-1, *total.shape)),
                    drawn[i : i + chunk] / seeds,
                )
                for i in range(0, resamples, chunk)
            ]
        )


def _shares(supports: np.ndarray, metric: str) -> np.ndarray:
    """Returns the share `[P]` of each patient in the score, from counts `[P, K]`."""
    if metric == "accuracy":
        return supports.sum(1) / supports.sum()
    totals = supports.sum(0)
    return (supports[:, totals > 0] / totals[totals > 0]).mean(1)


def _too_few(supports: np.ndarray, metric: str) -> str:
    """Returns why patients are too few for an interval, or ''."""
    groups = len(supports)
    if groups < MIN_GROUPS:
        return (
            f"{groups} test {'group' if groups == 1 else 'groups'}: an interval needs "
            f"{MIN_GROUPS} or more"
        )
    held = (supports > 0).sum(0)
    rare = np.flatnonzero((held > 0) & (held < MIN_GROUPS_A_CLASS))
    if metric != "accuracy" and len(rare):
        few = held[rare[0]]
        return (
            f"class {rare[0]} occurs in {few} test {'group' if few == 1 else 'groups'}: "
            f"an interval of a mean over classes needs each in {MIN_GROUPS_A_CLASS} or "
            "more"
        )
    return ""


def _by_seed(arm: str, given: Sequence[Predictions]) -> dict[int, Predictions]:
    by_seed = {one.seed: one for one in given}
    if len(by_seed) < len(given):
        raise UserError(
            f"Arm '{arm}' has predictions of the same seed twice: join folds with "
            "metrics.joined, and give each seed once."
        )
    return by_seed


def _examples(
    given: Predictions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns ids, labels, groups, predicted labels by id; the number of classes."""
    labels, probabilities = checked(given.labels, given.probabilities)
    ids = np.asarray(given.ids).astype(str)
    groups = ids if given.groups is None else np.asarray(given.groups).astype(str)
    if ids.shape != labels.shape or groups.shape != labels.shape:
        raise UserError(
            f"{len(labels)} predictions with {len(ids)} ids and {len(groups)} groups: "
            "they must be of the same examples."
        )
    if len(np.unique(ids)) < len(ids):
        raise UserError("Predictions: ids are not unique, so they cannot be paired.")
    order = np.argsort(ids)
    predicted = probabilities.argmax(1)
    return (
        ids[order],
        labels[order],
        groups[order],
        predicted[order],
        probabilities.shape[1],
    )


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _mean_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of part / whole where whole is not 0."""
    some = whole > 0
    return np.divide(part, whole, out=np.zeros(whole.shape), where=some).sum(
        -1
    ) / some.sum(-1)
