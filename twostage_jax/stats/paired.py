"""Predictions of several arms, paired by seed and example."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.stats.metrics import Predictions, checked


@dataclasses.dataclass(frozen=True)
class Paired:
    """Predictions of arms with the same seeds for the same examples.

    Attributes:
      arms: A names.
      seeds: S seeds.
      groups: P names of patients.
      codes: `[N]` ints: the patient of each example.
      labels: `[N]` ints in `[0, K)`.
      probabilities: `[A, S, N, K]` float64.
      folds: `[S, P]` ints: the fold whose model predicted a patient; None if one model
        predicted all of them.
      trained: `[A]`: fraction of the patients that a model of each arm was trained on;
        NaN if it is not known, or the data names no patients.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    codes: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray | None = None
    trained: np.ndarray | None = None

    @functools.cached_property
    def right(self) -> np.ndarray:
        """`[A, S, N]` bool: whether an example was predicted right."""
        return self.probabilities.argmax(-1) == self.labels

    @functools.cached_property
    def supports(self) -> np.ndarray:
        """`[P, K]`: number of examples of each class of a patient."""
        found = np.zeros((len(self.groups), self.probabilities.shape[-1]))
        np.add.at(found, (self.codes, self.labels), 1)
        return found

    @functools.cached_property
    def cells(self) -> np.ndarray:
        """`[A, S, P, K, K]` float64: confusion counts, true class before predicted."""
        predicted = self.probabilities.argmax(-1)
        classes = self.probabilities.shape[-1]
        found = np.zeros((*predicted.shape[:2], len(self.groups), classes, classes))
        arms, seeds = np.ogrid[: predicted.shape[0], : predicted.shape[1]]
        where = (arms[..., None], seeds[..., None], self.codes, self.labels, predicted)
        np.add.at(found, where, 1)
        return found

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """Returns the sums `[A, S, P, ...]` over the examples of each patient."""
        order = np.argsort(self.codes, kind="stable")
        present, starts = np.unique(self.codes[order], return_index=True)
        shape = (*values.shape[:2], len(self.groups), *values.shape[3:])
        found = np.zeros(shape, values.dtype)
        found[:, :, present] = np.add.reduceat(values[:, :, order], starts, axis=2)
        return found


def pair(arms: Mapping[str, Sequence[Predictions]]) -> Paired:
    """Returns the predictions of arms, paired by seed and example.

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
    *examples, probabilities = _examples(by_seed[first][seeds[0]])
    found = np.empty((len(arms), len(seeds), *probabilities.shape))
    folds = {seed: _folds(by_seed[first][seed]) for seed in seeds}
    for a, (name, given) in enumerate(by_seed.items()):
        for s, seed in enumerate(seeds):
            *others, probabilities = _examples(given[seed])
            if (
                probabilities.shape != found.shape[2:]
                or not all(map(np.array_equal, examples, others))
                or not np.array_equal(folds[seed], _folds(given[seed]))
            ):
                raise UserError(
                    f"Arm '{name}', seed {seed}: its test examples, labels, groups, "
                    f"folds or classes are not those of arm '{first}', seed "
                    f"{seeds[0]}. It is from another split or other data: run it again "
                    "with the same data settings.",
                    where=name,
                )
            found[a, s] = probabilities
    _, labels, groups = examples
    names, codes = np.unique(groups, return_inverse=True)
    return Paired(
        tuple(arms),
        seeds,
        tuple(names.tolist()),
        codes,
        labels,
        found,
        _by_patient(list(folds.values()), codes),
        np.array([_trained(seeds, len(names)) for seeds in arms.values()]),
    )


def _folds(given: Predictions) -> np.ndarray:
    """Returns the fold of each example, in the order of the ids; zeros for one model."""
    if given.folds is None:
        return np.zeros(len(given.labels), int)
    return np.asarray(given.folds)[np.argsort(np.asarray(given.ids).astype(str))]


def _by_patient(folds: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray | None:
    """Returns the folds `[S, P]` of patients, from those of the examples of each seed.

    Raises:
      UserError: Examples of one patient were predicted in two folds.
    """
    found = np.zeros((len(folds), codes.max() + 1), int)
    for s, of_examples in enumerate(folds):
        found[s, codes] = of_examples
        if not np.array_equal(found[s, codes], of_examples):
            raise UserError(
                "Examples of one patient were predicted in two folds: the folds are "
                "from different splits. Run the study again.",
                where="folds",
            )
    return found if found.any() else None


def _trained(given: Sequence[Predictions], patients: int) -> float:
    counts = [one.trained for one in given if one.groups is not None]
    if len(counts) < len(given) or None in counts:
        return np.nan
    return float(np.mean(counts)) / patients


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, labels, groups and probabilities by id."""
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
    return ids[order], labels[order], groups[order], probabilities[order]


# Metrics as functions of sums over patients.
#
# A patient who is drawn twice in a resample, or excluded, is a weight on these sums: all
# resamples are one matrix product (see `resampling`). Confusion counts are such sums, and
# so are the squared error of probabilities and the moments of class shares per patient.
# The area under an ROC curve counts pairs of examples, which may be of two patients; here
# it is its first-order expansion in the weights of patients, from the placements of each
# example among those of the other class (DeLong et al. 1988; for patients with several
# examples, Obuchowski 1997): exact where all weigh the same. Examples are ranked among
# those of their own fold, whose probabilities are of one model, and the areas are averaged
# over the folds.


# Fewer say too little of how patients differ; the simulation goes down to 8.
MIN_GROUPS = 5
# A mean over classes needs each of them in some patients.
MIN_GROUPS_A_CLASS = 3


@dataclasses.dataclass(frozen=True)
class Additive:
    """A metric of paired predictions.

    Attributes:
      sums: `[A, S, P, ...]`, sums over the examples of each patient.
      score: Sums over patients `[..., A, S, ...]` -> scores `[..., A, S]`.
      parts: `[P, M]`: number of examples that a patient has of each of the M parts of
        which the score is the mean: one for accuracy, the classes for a mean over them.
      reason: Why no interval can be given, or ''.
      largest: The largest possible score.
      defined: `[A]` bool: whether every seed of an arm defines it; None for all arms.
      folds, trained: As in `Paired`.
    """

    sums: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]
    parts: np.ndarray
    reason: str = ""
    largest: float = 1.0
    defined: np.ndarray | None = None
    folds: np.ndarray | None = None
    trained: np.ndarray | None = None

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
      UserError: It is not defined (see `has_auroc`).
    """
    if not has_auroc(paired):
        raise UserError(
            "AUROC is not defined: some class never occurs in the test set together "
            "with another class, within one fold.",
            where="labels",
        )
    classes = range(paired.probabilities.shape[-1])
    sums = np.stack([_placements(paired, k) for k in classes], axis=3)
    reason = _too_few(paired, paired.supports)
    return Additive(sums, _areas(sums), paired.supports, reason)


def has_auroc(paired: Paired) -> bool:
    """Whether every class has, for each seed, a fold with it and with another class."""
    return all(_ranked(paired, k) for k in range(paired.probabilities.shape[-1]))


def _ranked(paired: Paired, k: int) -> bool:
    """Whether class `k` has, for each seed, a fold in which it and others occur."""
    own, rest = paired.supports[:, k], paired.supports.sum(1) - paired.supports[:, k]
    return all(
        any(own[one].any() and rest[one].any() for one in of_seed)
        for of_seed in _members(paired)
    )


def _members(paired: Paired) -> np.ndarray:
    """Returns `[S, F, P]` bool: whether a patient was tested in a fold."""
    folds = paired.folds
    if folds is None:
        folds = np.zeros((len(paired.seeds), len(paired.groups)), int)
    return folds[:, None] == np.arange(folds.max() + 1)[:, None]


def brier(paired: Paired) -> Additive:
    """Returns the Brier score, from 0 to 2 (see `metrics.scores`)."""
    outcome = np.eye(paired.probabilities.shape[-1])[paired.labels]
    errors = ((paired.probabilities - outcome) ** 2).sum(-1)
    sums = paired.by_group(np.stack([errors, np.ones_like(errors)], axis=-1))
    parts = paired.supports.sum(1, keepdims=True)
    return Additive(sums, _ratio, parts, _too_few(paired, parts), largest=2.0)


def patient_accuracy(paired: Paired) -> Additive:
    """Returns the mean over patients of the accuracy of a patient's patches."""
    matrix = paired.cells
    right = np.trace(matrix, axis1=-2, axis2=-1)
    return _mean_of_patients(paired, right / matrix.sum((-2, -1)))


def patient_balanced_accuracy(paired: Paired) -> Additive:
    """Returns the mean over patients of the balanced accuracy of a patient's patches.

    The balanced accuracy of a patient is the mean recall over the classes that the
    patient has.
    """
    return _mean_of_patients(paired, balanced_accuracy(paired.cells))


def share_error(paired: Paired, k: int) -> Additive:
    """Returns the mean over patients of the absolute error of the share of a class.

    The share of class `k` is the fraction of a patient's patches: those predicted as `k`
    against those labelled `k`. No label decides which patches are counted.
    """
    true, predicted = _class_shares(paired, k)
    return _mean_of_patients(paired, np.abs(predicted - true))


def share_agreement(paired: Paired, k: int) -> Additive:
    """Returns the intraclass correlation of predicted and true shares of a class.

    ICC(A,1), absolute agreement of single measurements (McGraw & Wong 1996), over
    patients; from -1 to 1.
    """
    true, predicted = _class_shares(paired, k)
    true = np.broadcast_to(true, predicted.shape)
    moments = (np.ones_like(predicted), true, predicted, true**2, predicted**2,
               true * predicted)  # fmt: skip
    parts = np.ones((len(paired.groups), 1))
    reason = _too_few(paired, parts)
    return Additive(np.stack(moments, -1), _agreement, parts, reason)


def _class_shares(paired: Paired, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the true share `[P]` of a class, and the predicted ones `[A, S, P]`."""
    size = paired.supports.sum(1)
    return paired.supports[:, k] / size, paired.cells[..., k].sum(-1) / size


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
    parts = np.ones((len(paired.groups), 1))
    return Additive(sums, _ratio, parts, _too_few(paired, parts))


METRICS: dict[str, Callable[[Paired], Additive]] = {
    **{name: functools.partial(_of_counts, name=name) for name in OF_COUNTS},
    "auroc": auroc,
    "brier": brier,
    "patient_accuracy": patient_accuracy,
    "patient_balanced_accuracy": patient_balanced_accuracy,
}
# Those of the patches, whatever patients they are of.
OF_PATCHES = (*OF_COUNTS, "auroc", "brier")


def metric(paired: Paired, name: str) -> Additive:
    """Returns a metric of `METRICS`.

    Raises:
      UserError: The name is unknown, or the metric is not defined.
    """
    if name not in METRICS:
        raise UserError(
            f"Metric '{name}' is unknown.{did_you_mean(name, METRICS)}", where=name
        )
    return _with_folds(METRICS[name](paired), paired)


def shares_of_class(paired: Paired, k: int) -> tuple[Additive, Additive]:
    """Returns `share_error` and `share_agreement` of a class."""
    found = share_error(paired, k), share_agreement(paired, k)
    return tuple(_with_folds(one, paired) for one in found)


def _with_folds(one: Additive, paired: Paired) -> Additive:
    return dataclasses.replace(one, folds=paired.folds, trained=paired.trained)


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
    if _ranked(paired, k):
        sums = _placements(paired, k)[..., None, :, :]
        parts = np.stack([support, rest], axis=1)
        others = int((rest > 0).sum())
        if others < MIN_GROUPS:
            reason = f"class {k} has others beside it in {_needs_more(others)}"
        found["auroc"] = Additive(sums, _areas(sums), parts, reason)
    return {name: _with_folds(one, paired) for name, one in found.items()}


def _placements(paired: Paired, k: int) -> np.ndarray:
    """Returns sums `[A, S, P, F, 4]` of the examples of class `k` and of the others.

    For each of F folds: the placements, which are the fraction of the other side in the
    same fold that is ranked as it should be (ties half), and their number; first of the
    class, then of the others. A patient has zeros in the folds of others.
    """
    scores = paired.probabilities[..., k]
    positive = paired.labels == k
    members = _members(paired)
    arms, seeds = scores.shape[:2]
    found = np.zeros((arms, seeds, len(paired.groups), members.shape[1], 4))
    for s, f in np.ndindex(members.shape[:2]):
        inside = members[s, f][paired.codes]
        values = np.zeros((arms, 1, len(positive), 4))
        sides = (inside & positive, inside & ~positive)
        if not all(side.any() for side in sides):
            sides = ()
        ranks = np.zeros((arms, len(positive)))
        ranks[:, inside] = stats.rankdata(scores[:, s, inside], axis=-1)
        for side, column in zip(sides, (0, 2), strict=False):
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

    It is the mean over M classes of the mean of the areas of F folds. Areas without one
    of their sides are skipped; if a resample has no other, that of the sample stays.
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
