"""Metrics of predictions: for one set of them, and as sums over patients.

Each metric is one entry of `METRICS`. `scores` computes them for one set of predictions;
there the predicted class is the most probable one, the first at a tie, and an undefined
score is None, never a made-up number. `metric` computes them for paired arms, as
functions of sums over patients, for the intervals.

A patient who is drawn twice in a resample, or excluded, is a weight on these sums: all
resamples are one matrix product (see `intervals.Resampler`). Confusion counts are such
sums, and so are the squared error of probabilities and the moments of class fractions per
patient. The area under an ROC curve counts pairs of examples, which may be of two
patients; here it is its first-order expansion in the weights of patients, from the
placements of each example among those of the other class (DeLong et al. 1988; for
patients with several examples, Obuchowski 1997): exact where all weigh the same. Examples
are ranked among those of their own fold, whose probabilities are of one model, and the
areas are averaged over the folds.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.stats.arms import Paired, checked

# Guo et al. 2017, "On Calibration of Modern Neural Networks", use 15 bins.
CALIBRATION_BINS = 15
# Fewer patients do not show how patients differ; the simulation goes down to 8.
MIN_GROUPS = 5
# A mean over classes needs each of them in some patients.
MIN_GROUPS_A_CLASS = 3


@dataclasses.dataclass(frozen=True)
class Additive:
    """A metric of paired predictions.

    Attributes:
      sums: `[A, S, P, ...]`, sums over the examples of each patient.
      score: Function from sums over patients `[..., A, S, ...]` -> scores `[..., A, S]`.
      parts: `[P, M]`: number of examples that a patient has of each of the M parts of
        which the score is the mean: one for accuracy, the classes for a mean over them.
      reason: Reason why no interval is available, or ''.
      folds, trained: See `Paired`.
      bounds: Smallest and largest possible score.
      defined: Whether it is defined for every seed of an arm, `[A]` bool; None for all.
    """

    sums: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    parts: np.ndarray
    reason: str
    folds: np.ndarray
    trained: np.ndarray
    bounds: tuple[float, float] = (0.0, 1.0)
    defined: np.ndarray | None = None

    @property
    def shares(self) -> np.ndarray:
        """`[P]`: weight of each patient in the score; they sum to 1."""
        totals = self.parts.sum(0)
        return (self.parts[:, totals > 0] / totals[totals > 0]).mean(1)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric: an entry of `METRICS`.

    Attributes:
      title: Name in tables and figures.
      score: Function (labels `[N]`, probabilities `[N, K]`, folds `[N]` or None) -> score
        of one set of predictions, or None if they do not define it; None for metrics per
        patient.
      sums: Function from paired predictions to sums over patients; None if the metric
        is not additive: then it has no interval, and arms are not compared by it.
      counts: Function from confusion counts `[..., K, K]` to the score, for metrics that
        depend on nothing else.
      lower_is_better: Whether lower scores are better; then it cannot be the primary
        endpoint.
      percent: Whether tables show it in per cent.
      column: Whether the tables of scores have a column for it.
    """

    title: str
    score: Callable[..., float | None] | None = None
    sums: Callable[[Paired], Additive] | None = None
    counts: Callable[[np.ndarray], np.ndarray] | None = None
    lower_is_better: bool = False
    percent: bool = True
    column: bool = True


def scores(
    labels: ArrayLike, probabilities: ArrayLike, folds: ArrayLike | None = None
) -> dict[str, float | None]:
    """Returns the scores of a set of predictions: every metric with a `score`.

    Args:
      labels, probabilities: `[N]` integers in `[0, K)` and `[N, K]`.
      folds: `[N]` integers, the fold whose model predicted an example; None for one
        model.

    Raises:
      UserError: Arrays that do not fit together, or are not labels and probabilities.
    """
    labels, probabilities = checked(labels, probabilities)
    return {
        name: one.score(labels, probabilities, folds)
        for name, one in METRICS.items()
        if one.score
    }


def confusion(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Returns the counts `[K, K]` int64: true class by row, predicted by column.

    Raises:
      UserError: As `scores`.
    """
    labels, probabilities = checked(labels, probabilities)
    return count(labels, probabilities.argmax(1), probabilities.shape[1])


def count(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Returns the counts `[K, K]` int64 of `[N]` true and predicted classes."""
    cells = np.bincount(labels * classes + predicted, minlength=classes**2)
    return cells.reshape(classes, classes)


def metric(paired: Paired, name: str) -> Additive:
    """Returns a metric of `COMPARED` for paired arms.

    Raises:
      UserError: The name is unknown, or the metric is not defined.
    """
    if name not in COMPARED:
        raise UserError(
            f"Metric '{name}' is unknown.{did_you_mean(name, COMPARED)}", where=name
        )
    return METRICS[name].sums(paired)


def has_auroc(paired: Paired) -> bool:
    """Returns whether every class has, per seed, a fold with it and another class."""
    return all(_ranked(paired, k) for k in range(paired.probabilities.shape[-1]))


def of_class(paired: Paired, k: int) -> Mapping[str, Additive]:
    """Returns precision, recall, F1 and AUROC of a class, those that are defined.

    Recall is that of the patients who have the class. In a resample in which the class
    is never predicted its precision counts as 0.
    """
    support = paired.supports[:, k]
    rest = paired.sizes - support
    right, true, predicted = (
        paired.cells[..., k, k],
        paired.cells[..., k, :].sum(-1),
        paired.cells[..., :, k].sum(-1),
    )
    counted = predicted.mean((0, 1))
    reason = _few(f"{paired.name(k)} occurs", support)

    def ratio(part: np.ndarray, whole: np.ndarray, parts: np.ndarray) -> Additive:
        sums = np.stack([part, whole], axis=-1)
        defined = (whole.sum(2) > 0).all(1)
        return additive(paired, sums, _ratio, parts, reason, defined=defined)

    found = {}
    if counted.any():
        found["precision"] = ratio(right, predicted, counted)
    if support.any():
        found["recall"] = ratio(right, true, support)
        found["f1"] = ratio(2 * right, true + predicted, support + counted)
    if _ranked(paired, k):
        sums = _placements(paired, k)[..., None, :, :]
        parts = np.stack([support, rest], axis=1)
        why = _few(f"{paired.name(k)} occurs with other classes", rest) or reason
        found["auroc"] = additive(paired, sums, _areas(sums), parts, why)
    return found


def shares_of_class(paired: Paired, k: int) -> Mapping[str, Additive]:
    """Returns error and agreement of the fractions of a class in each patient.

    The fraction of a patient's patches predicted as `k` is compared with the fraction
    labelled `k`, over all patches, whatever their labels.

    Returns:
      'error', the mean over patients of the absolute error, and 'agreement', the
      intraclass correlation, from -1 to 1: ICC(A,1), absolute agreement of single
      measurements (McGraw & Wong 1996).
    """
    predicted = paired.cells[..., k].sum(-1) / paired.sizes
    true = np.broadcast_to(paired.supports[:, k] / paired.sizes, predicted.shape)
    moments = (np.ones_like(predicted), true, predicted, true**2, predicted**2,
               true * predicted)  # fmt: skip
    every = np.ones(len(paired.groups))
    return {
        "error": _mean_of_patients(paired, np.abs(predicted - true)),
        "agreement": additive(
            paired, np.stack(moments, -1), _agreement, every, bounds=(-1, 1)
        ),
    }


def reliability(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns mean confidence, accuracy and count of each bin, `[CALIBRATION_BINS]`.

    Bins are `(i/bins, (i+1)/bins]` of the largest probability. An empty bin has
    confidence and accuracy NaN.
    """
    labels, probabilities = checked(labels, probabilities)
    bins = CALIBRATION_BINS
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    # Fractions such as 9/15 carry a rounding error: an edge must not move up a bin.
    index = np.clip(np.ceil(confidence * bins - 1e-9).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count, count, np.nan)
    return (
        np.bincount(index, confidence, bins) / divisor,
        np.bincount(index, right, bins) / divisor,
        count,
    )


def accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the fraction of correct predictions of counts `[..., K, K]`."""
    return np.trace(matrix, axis1=-2, axis2=-1) / matrix.sum((-2, -1))


def balanced_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean recall over classes that occur, of counts `[..., K, K]`."""
    return _mean_ratio(_diagonal(matrix), matrix.sum(-1))


def macro_f1(matrix: np.ndarray) -> np.ndarray:
    """Returns the mean F1 over classes that occur or are predicted."""
    return _mean_ratio(2 * _diagonal(matrix), matrix.sum(-1) + matrix.sum(-2))


def auroc(paired: Paired) -> Additive:
    """Returns the mean one-vs-rest area under the ROC curve over the classes.

    Raises:
      UserError: It is not defined (see `has_auroc`).
    """
    if not has_auroc(paired):
        raise UserError(
            "AUROC is undefined: some class never occurs in the test set together with "
            "another class within one fold.",
            where="labels",
        )
    classes = range(paired.probabilities.shape[-1])
    sums = np.stack([_placements(paired, k) for k in classes], axis=3)
    return additive(paired, sums, _areas(sums), paired.supports)


def additive(
    paired: Paired,
    sums: np.ndarray,
    score: Callable[[np.ndarray], np.ndarray],
    parts: np.ndarray,
    reason: str | None = None,
    **more: Any,
) -> Additive:
    """Returns a metric of paired arms; see `Additive`.

    Args:
      paired: Arms.
      sums, score: See `Additive`.
      parts: See `Additive`; `[P]` for a single part.
      reason: Reason why no interval is available, or ''; None if it depends on the
        numbers of patients only.
      **more: Further fields of `Additive`.
    """
    parts = parts if parts.ndim == 2 else parts[:, None]
    reason = _too_few(paired, parts) if reason is None else reason
    return Additive(sums, score, parts, reason, paired.folds, paired.trained, **more)


def fraction_of_class(
    paired: Paired, chosen: np.ndarray, members: np.ndarray, subject: str
) -> Additive:
    """Returns the fraction of some examples that are chosen.

    Args:
      paired: Arms.
      chosen: `[A, S, N]` bool.
      members: `[N]` bool: the examples that count.
      subject: Beginning of the reason if these are of too few patients.
    """
    counted = np.broadcast_to(members, chosen.shape)
    sums = paired.by_group(np.stack([chosen & counted, counted], axis=-1).astype(float))
    whole = sums[0, 0, :, 1]
    return additive(paired, sums, _ratio, whole, _few(subject, whole))


def _ranked(paired: Paired, k: int) -> bool:
    """Returns whether class `k` has, per seed, a fold in which it and others occur."""
    own, rest = paired.supports[:, k], paired.sizes - paired.supports[:, k]
    return all(
        any(own[one].any() and rest[one].any() for one in of_seed)
        for of_seed in _members(paired)
    )


def _members(paired: Paired) -> np.ndarray:
    """Returns `[S, F, P]` bool: whether a patient was tested in a fold."""
    return paired.folds[:, None] == np.arange(paired.folds.max() + 1)[:, None]


def brier(paired: Paired) -> Additive:
    """Returns the Brier score, from 0 to 2 (see `_brier_score`)."""
    errors = _squared_errors(paired.labels, paired.probabilities)
    sums = paired.by_group(np.stack([errors, np.ones_like(errors)], axis=-1))
    return additive(paired, sums, _ratio, paired.sizes, bounds=(0, 2))


def _agreement(summed: np.ndarray) -> np.ndarray:
    """Returns ICC(A,1) of sums `[..., 6]`: of 1, x, y, x^2, y^2 and xy."""
    n, x, y, xx, yy, xy = np.moveaxis(summed, -1, 0)
    n = np.maximum(n, 2)
    # Mean squares of two measurements of n subjects.
    covariance = (xy - x * y / n) / (n - 1)
    spread = ((xx - x**2 / n) + (yy - y**2 / n)) / (n - 1)
    rows, error = spread / 2 + covariance, spread / 2 - covariance
    columns = (x - y) ** 2 / (2 * n)
    whole = rows + error + 2 * (columns - error) / n
    return (rows - error) / np.where(whole > 0, whole, 1)


def _mean_of_patients(paired: Paired, values: np.ndarray) -> Additive:
    """Returns the mean over patients of `[A, S, P]` values; every patient counts once."""
    sums = np.stack([values, np.ones_like(values)], axis=-1)
    return additive(paired, sums, _ratio, np.ones(len(paired.groups)))


def _auroc_score(labels, probabilities, folds) -> float | None:
    """Returns the mean one-vs-rest area under the ROC curve over all classes.

    Examples are ranked among those of their own fold, and the areas averaged over the
    folds: probabilities of different models are not on a common scale. None unless every
    class has a fold in which it and another class occur.
    """
    # Imports pandas: too slow for a config, which names metrics without computing any.
    from sklearn import metrics as sk

    folds = np.zeros(len(labels), int) if folds is None else np.asarray(folds)
    parts = [folds == fold for fold in np.unique(folds)]
    means = []
    for k in range(probabilities.shape[1]):
        areas = [
            sk.roc_auc_score(labels[part] == k, probabilities[part, k])
            for part in parts
            if 0 < (labels[part] == k).sum() < part.sum()
        ]
        if not areas:
            return None
        means.append(float(np.mean(areas)))
    return float(np.mean(means))


def _brier_score(labels, probabilities, folds) -> float:
    """Returns the mean over examples of the squared error, summed over classes.

    Brier 1950; from 0 to 2, twice the usual binary score.
    """
    return float(_squared_errors(labels, probabilities).mean())


def _squared_errors(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    outcome = np.eye(probabilities.shape[-1])[labels]
    return ((probabilities - outcome) ** 2).sum(-1)


def _calibration_error(labels, probabilities, folds) -> float:
    """Returns the expected calibration error of the predicted class, 15 bins."""
    confidence, accuracy, count = reliability(labels, probabilities)
    return float(np.nansum(count * np.abs(confidence - accuracy)) / count.sum())


def _placements(paired: Paired, k: int) -> np.ndarray:
    """Returns sums `[A, S, P, F, 4]` of the examples of class `k` and of the others.

    For each of F folds: the placements, which are the fraction of the other side in the
    same fold that is ranked as it should be (ties half), and their number; first of the
    class, then of the others. A patient has zeros in the folds of others.
    """
    # Slow to import, like scikit-learn above.
    from scipy import stats

    scores = paired.probabilities[..., k]
    positive = paired.labels == k
    members = _members(paired)
    arms, seeds = scores.shape[:2]
    found = np.zeros((arms, seeds, len(paired.groups), members.shape[1], 4))
    for s, f in np.ndindex(members.shape[:2]):
        inside = members[s, f][paired.codes]
        sides = {0: inside & positive, 2: inside & ~positive}
        if not all(side.any() for side in sides.values()):
            continue
        values = np.zeros((arms, 1, len(positive), 4))
        ranks = np.zeros((arms, len(positive)))
        ranks[:, inside] = stats.rankdata(scores[:, s, inside], axis=-1)
        for column, side in sides.items():
            # A rank among all minus that among its own side: how many of the other are
            # below.
            own = stats.rankdata(scores[:, s, side], axis=-1)
            share = (ranks[:, side] - own) / (inside.sum() - side.sum())
            values[:, 0, side, column] = share if column == 0 else 1 - share
            values[:, 0, side, column + 1] = 1
        found[:, s, :, f] = paired.by_group(values)[:, 0]
    return found


def _areas(sums: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the score of `_placements` `[A, S, P, M, F, 4]`.

    It is the mean over M classes of the mean of the areas of F folds. Areas with an empty
    side are skipped; if a resample has no other, the area of the sample is used.
    """
    total = sums.sum(2)
    counted = total[..., 1] > 0
    area = total[..., 0] / np.where(counted, total[..., 1], 1)
    whole = (counted * area).sum(-1) / np.maximum(counted.sum(-1), 1)

    def score(summed: np.ndarray) -> np.ndarray:
        up, ups, down, downs = np.moveaxis(summed, -1, 0)
        some = (ups > 0) & (downs > 0)
        ups, downs = np.where(some, ups, 1), np.where(some, downs, 1)
        areas = some * (up / ups + down / downs - area)
        folds = some.sum(-1)
        found = np.where(folds > 0, areas.sum(-1) / np.maximum(folds, 1), whole)
        there = folds > 0
        there |= ~there.any(-1, keepdims=True)
        return (there * found).sum(-1) / there.sum(-1)

    return score


def _too_few(paired: Paired, parts: np.ndarray) -> str:
    """Returns the reason why patients are too few for an interval, or ''."""
    groups = len(paired.groups)
    if groups < MIN_GROUPS:
        there = "there is" if groups == 1 else "there are"
        return (
            f"{there} only {_counted(groups)} (an interval needs {MIN_GROUPS} or more)"
        )
    held = (parts > 0).sum(0)
    rare = np.flatnonzero((held > 0) & (held < MIN_GROUPS_A_CLASS))
    if parts.shape[1] > 1 and len(rare):
        return (
            f"{paired.name(rare[0])} occurs in {_counted(held[rare[0]])} only (a mean "
            f"over classes needs each class in {MIN_GROUPS_A_CLASS} or more)"
        )
    return ""


def _few(subject: str, counted: np.ndarray) -> str:
    """Returns that a subject is in too few patients, given its numbers `[P]`, or ''."""
    groups = np.count_nonzero(counted)
    if groups >= MIN_GROUPS:
        return ""
    needs = f"(an interval needs {MIN_GROUPS} or more)"
    return f"{subject} in {_counted(groups)} only {needs}"


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
    if whole.ndim == 1:
        # Absent classes must not change how the sum over the others is rounded.
        return (part[some] / whole[some]).mean()
    ratios = np.divide(part, whole, out=np.zeros(whole.shape), where=some)
    return ratios.sum(-1) / some.sum(-1)


def _from_counts(
    title: str, counts: Callable[[np.ndarray], np.ndarray], over_classes: bool = True
) -> Metric:
    """Returns a metric of confusion counts.

    Args:
      title: Name in tables and figures.
      counts: Function from counts `[..., K, K]` to scores `[...]`.
      over_classes: Whether it is a mean over classes, which needs each of them in some
        patients.
    """

    def score(labels, probabilities, folds) -> float:
        return float(counts(confusion(labels, probabilities)))

    def sums(paired: Paired) -> Additive:
        parts = paired.supports if over_classes else paired.sizes
        return additive(paired, paired.cells, counts, parts)

    return Metric(title, score, sums, counts)


def _per_patient(title: str, counts: Callable[[np.ndarray], np.ndarray]) -> Metric:
    """Returns the mean over patients of a metric of a patient's confusion counts."""
    return Metric(
        title, sums=lambda paired: _mean_of_patients(paired, counts(paired.cells))
    )


METRICS: dict[str, Metric] = {
    # Fraction of correct predictions.
    "accuracy": _from_counts("accuracy", accuracy, over_classes=False),
    "balanced_accuracy": _from_counts("balanced accuracy", balanced_accuracy),
    "macro_f1": _from_counts("macro-F1", macro_f1),
    "auroc": Metric("AUROC", _auroc_score, auroc, percent=False),
    # In the tables of calibration.
    "ece": Metric(
        "ECE", _calibration_error, lower_is_better=True, percent=False, column=False
    ),
    "brier": Metric(
        "Brier", _brier_score, brier, lower_is_better=True, percent=False, column=False
    ),
    # Per patient: without a label that decides which patches are counted.
    "patient_accuracy": _per_patient("accuracy", accuracy),
    # Over the classes that the patient has.
    "patient_balanced_accuracy": _per_patient("balanced accuracy", balanced_accuracy),
}
# Metrics with intervals, by which arms can be compared.
COMPARED = tuple(name for name, one in METRICS.items() if one.sums)
# Those that can be the primary endpoint: a positive difference is a gain.
ENDPOINTS = tuple(name for name in COMPARED if not METRICS[name].lower_is_better)
# Those of the patches, whatever patients they are of, and those of patients.
OF_PATCHES = tuple(name for name in COMPARED if METRICS[name].score)
OF_PATIENTS = tuple(name for name in COMPARED if not METRICS[name].score)
