"""Metrics as functions of sums over patients.

Whoever is drawn twice in a resample, or left out, then only weighs his sums: all
resamples are one matrix product (see `resampling`). Confusion counts are such sums, and
so is the squared error of probabilities. The area under an ROC curve counts pairs of
examples, which may be of two patients; here it is its first-order expansion in the
weights of patients, from the placements of each example among those of the other class
(DeLong et al. 1988; for patients with several examples, Obuchowski 1997): exact where
all weigh the same.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.paired import Paired

# Fewer say too little of how patients differ; the simulation goes down to 8.
MIN_GROUPS = 5
# A mean over classes needs each of them in some patients.
MIN_GROUPS_A_CLASS = 3


@dataclasses.dataclass(frozen=True)
class Additive:
    """A metric of paired predictions.

    Attributes:
      sums: `[A, S, P, ...]`, of each patient.
      score: Sums over patients `[..., A, S, ...]` -> scores `[..., A, S]`.
      parts: What the score is a mean of, `[P, M]`: how many of the examples of each
        part are a patient's. One part for accuracy, the classes for a mean over them.
      reason: Why no interval can be given, or ''.
      largest: The largest score there can be.
      defined: `[A]` bool: whether every seed of an arm defines it; None for all arms.
    """

    sums: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    parts: np.ndarray
    reason: str = ""
    largest: float = 1.0
    defined: np.ndarray | None = None

    @property
    def shares(self) -> np.ndarray:
        """`[P]`: the share of each patient in the score."""
        totals = self.parts.sum(0)
        return (self.parts[:, totals > 0] / totals[totals > 0]).mean(1)


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the accuracy of confusion counts `[..., K, K]`."""
    return np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-2, -1))


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean recall over classes that occur, of counts `[..., K, K]`."""
    return _mean_ratio(_diagonal(matrix), matrix.sum(-1))


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean F1 over classes that occur or are predicted."""
    return _mean_ratio(2 * _diagonal(matrix), matrix.sum(-1) + matrix.sum(-2))


# Of a confusion matrix.
OF_COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
}


def _of_counts(paired: Paired, name: str) -> Additive:
    parts = paired.supports
    if name == "accuracy":
        parts = parts.sum(1, keepdims=True)
    return Additive(paired.cells, OF_COUNTS[name], parts, _too_few(paired, parts))


def auroc(paired: Paired) -> Additive:
    """Returns the mean one-vs-rest area under the ROC curve over the classes.

    Raises:
      UserError: A class does not occur.
    """
    absent = np.flatnonzero(paired.supports.sum(0) == 0)
    if len(absent):
        raise UserError(f"No AUROC: class {absent[0]} does not occur in the test set.")
    classes = range(paired.probabilities.shape[-1])
    sums = np.stack([_placements(paired, k) for k in classes], axis=3)
    reason = _too_few(paired, paired.supports)
    return Additive(sums, _areas(sums), paired.supports, reason)


def brier(paired: Paired) -> Additive:
    """Returns the Brier score, from 0 to 2 (see `metrics.scores`)."""
    outcome = np.eye(paired.probabilities.shape[-1])[paired.labels]
    errors = ((paired.probabilities - outcome) ** 2).sum(-1)
    sums = paired.by_group(np.stack([errors, np.ones_like(errors)], axis=-1))
    parts = paired.supports.sum(1, keepdims=True)
    return Additive(sums, _ratio, parts, _too_few(paired, parts), largest=2.0)


METRICS: dict[str, Callable[[Paired], Additive]] = {
    **{name: functools.partial(_of_counts, name=name) for name in OF_COUNTS},
    "auroc": auroc,
    "brier": brier,
}


def metric(paired: Paired, name: str) -> Additive:
    """Returns a metric of `METRICS`.

    Raises:
      UserError: There is none of this name, or it is not defined.
    """
    if name not in METRICS:
        raise UserError(
            f"No intervals for metric '{name}'.{did_you_mean(name, METRICS)}"
        )
    return METRICS[name](paired)


def of_class(paired: Paired, k: int) -> Mapping[str, Additive]:
    """Returns precision, recall, F1 and AUROC of a class, those that are defined.

    Recall is that of the patients who have the class. In a resample in which the class
    is never predicted its precision counts as 0.
    """
    support = paired.supports[:, k]
    rest = paired.supports.sum(1) - support
    right, true, predicted = (
        paired.cells[..., k, k],
        paired.cells[..., k, :].sum(-1),
        paired.cells[..., :, k].sum(-1),
    )
    counted = predicted.mean((0, 1))
    held = int((support > 0).sum())
    reason = ""
    if held < MIN_GROUPS:
        reason = f"class {k} occurs in {_needs_more(held)}"

    def ratio(part: np.ndarray, whole: np.ndarray, parts: np.ndarray) -> Additive:
        sums = np.stack([part, whole], axis=-1)
        defined = (whole.sum(2) > 0).all(1)
        return Additive(sums, _ratio, parts[:, None], reason, defined=defined)

    found = {}
    if counted.any():
        found["precision"] = ratio(right, predicted, counted)
    if support.any():
        found["recall"] = ratio(right, true, support)
        found["f1"] = ratio(2 * right, true + predicted, support + counted)
    if support.any() and rest.any():
        sums = _placements(paired, k)[..., None, :]
        parts = np.stack([support, rest], axis=1)
        others = int((rest > 0).sum())
        if others < MIN_GROUPS:
            reason = f"class {k} has others beside it in {_needs_more(others)}"
        found["auroc"] = Additive(sums, _areas(sums), parts, reason)
    return found


def _placements(paired: Paired, k: int) -> np.ndarray:
    """Returns sums `[A, S, P, 4]`, of the examples of class `k` and of the others.

    Their placements, which are the share of the other side that is ranked as it should
    be (ties half), and their number; first of the class, then of the others.
    """
    scores = paired.probabilities[..., k]
    positive = paired.labels == k
    ranks = stats.rankdata(scores, axis=-1)
    values = np.zeros((*scores.shape, 4))
    for side, column in ((positive, 0), (~positive, 2)):
        # A rank among all less that among its own side: how many of the other are below.
        below = ranks[..., side] - stats.rankdata(scores[..., side], axis=-1)
        share = below / (~side).sum()
        values[..., side, column] = share if column == 0 else 1 - share
        values[..., side, column + 1] = 1
    return paired.by_group(values)


def _areas(sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the score of `_placements` `[A, S, P, M, 4]`: the mean of M areas.

    Areas without one of their sides, in a resample, are left out; where there is no
    other, that of the sample stays.
    """
    total = sums.sum(2)
    area = total[..., 0] / total[..., 1]

    def score(summed: np.ndarray) -> np.ndarray:
        up, ups, down, downs = np.moveaxis(summed, -1, 0)
        some = (ups > 0) & (downs > 0)
        ups, downs = np.where(some, ups, 1), np.where(some, downs, 1)
        found = np.where(some, up / ups + down / downs - area, area)
        some |= ~some.any(-1, keepdims=True)
        return (some * found).sum(-1) / some.sum(-1)

    return score


def _too_few(paired: Paired, parts: np.ndarray) -> str:
    """Returns why patients are too few for an interval, or ''."""
    groups = len(paired.groups)
    if groups < MIN_GROUPS:
        return _needs_more(groups)
    held = (parts > 0).sum(0)
    rare = np.flatnonzero((held > 0) & (held < MIN_GROUPS_A_CLASS))
    if parts.shape[1] > 1 and len(rare):
        return (
            f"class {rare[0]} occurs in {_counted(held[rare[0]])}: an interval of a "
            f"mean over classes needs each in {MIN_GROUPS_A_CLASS} or more"
        )
    return ""


def _needs_more(groups: int) -> str:
    return f"{_counted(groups)}: an interval needs {MIN_GROUPS} or more"


def _counted(groups: int) -> str:
    return f"{groups} test {'group' if groups == 1 else 'groups'}"


def _ratio(summed: np.ndarray) -> np.ndarray:
    """Returns the quotient of sums `[..., 2]`; 0 where nothing is counted."""
    part, whole = np.moveaxis(summed, -1, 0)
    return part / np.where(whole > 0, whole, 1)


def _diagonal(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix, axis1=-2, axis2=-1)


def _mean_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of part / whole where whole is not 0."""
    some = whole > 0
    return np.divide(part, whole, out=np.zeros(whole.shape), where=some).sum(
        -1
    ) / some.sum(-1)
