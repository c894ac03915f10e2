"""Scores from predictions.

Every function takes `labels` `[N]` (integers in `[0, K)`) and `probabilities` `[N, K]`;
the predicted class is the most probable one, the first of them at a tie. A score that
the examples do not define is None, never a made-up number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import metrics as sk

from twostage_jax.errors import UserError

# Guo et al. 2017, "On Calibration of Modern Neural Networks", use 15 bins.
CALIBRATION_BINS = 15
# Softmax in float32, or bfloat16 cast to it, sums to one within this.
SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of one seed of one arm; folds are concatenated.

    Attributes:
      ids: `[N]` strings, unique.
      groups: `[N]` strings (patients), or None if the set has no groups: every example
        is then a group of its own.
      labels: `[N]` integers in `[0, K)`.
      probabilities: `[N, K]` floats; rows sum to one.
      seed: The seed; arms are paired by it.
      folds: `[N]` integers: the fold whose model predicted the example; None if one
        model predicted all of them.
      trained: Number of groups (patients) that a model was trained on, mean over folds;
        None if it is not known.
    """

    ids: np.ndarray
    groups: np.ndarray | None
    labels: np.ndarray
    probabilities: np.ndarray
    seed: int = 0
    folds: np.ndarray | None = None
    trained: float | None = None


def scores(
    labels: ArrayLike, probabilities: ArrayLike, folds: ArrayLike | None = None
) -> dict[str, float | None]:
    """Returns the scores of a set of predictions.

    - accuracy: fraction of examples predicted right.
    - balanced_accuracy: mean recall over the classes that occur in the labels.
    - macro_f1: mean F1 over the classes that occur in labels or predictions.
    - auroc: mean one-vs-rest area under the ROC curve over all classes. Examples are
      ranked among those of their own fold, and the areas averaged over the folds:
      probabilities of different models have no common scale. None unless every class
      has a fold in which it and another class occur.
    - ece: expected calibration error of the predicted class, 15 bins of equal width
      (Guo et al. 2017).
    - brier: mean over examples of the sum over classes of squared differences between
      probability and outcome (Brier 1950), from 0 to 2; twice the usual binary score.

    Args:
      labels, probabilities: See the top of this file.
      folds: `[N]` integers, the fold whose model predicted an example; None for one
        model.

    Raises:
      UserError: Arrays that do not fit together, or are not labels and probabilities.
    """
    labels, probabilities = checked(labels, probabilities)
    predicted = probabilities.argmax(1)
    matrix = confusion(labels, probabilities)
    support = matrix.sum(1)
    recalls = np.diag(matrix)[support > 0] / support[support > 0]
    areas = _areas(labels, probabilities, folds)
    outcome = np.eye(probabilities.shape[1])[labels]
    return {
        "accuracy": float(sk.accuracy_score(labels, predicted)),
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(sk.f1_score(labels, predicted, average="macro")),
        "auroc": None if None in areas else float(np.mean(areas)),
        "ece": _calibration_error(labels, probabilities),
        "brier": float(((probabilities - outcome) ** 2).sum(1).mean()),
    }


def per_class(
    labels: ArrayLike, probabilities: ArrayLike, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns precision, recall, f1, support and auroc of each class, in label order.

    None stands for what is not defined: the precision of a class never predicted, the
    recall and auroc of a class that does not occur, the F1 of one that does neither.

    Raises:
      UserError: As `scores`, or the class names are not one a column.
    """
    labels, probabilities = checked(labels, probabilities)
    if len(class_names) != probabilities.shape[1]:
        raise UserError(
            f"{len(class_names)} class names for {probabilities.shape[1]} columns of "
            "probabilities: give one name a column, in label order."
        )
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels,
        probabilities.argmax(1),
        labels=range(len(class_names)),
        zero_division=np.nan,
    )
    return [
        {
            "class": str(name),
            "precision": _defined(precision[k]),
            "recall": _defined(recall[k]),
            "f1": _defined(f1[k]),
            "support": int(support[k]),
            "auroc": area,
        }
        for k, (name, area) in enumerate(
            zip(class_names, _areas(labels, probabilities), strict=True)
        )
    ]


def confusion(labels: ArrayLike, probabilities: ArrayLike) -> np.ndarray:
    """Returns the counts `[K, K]` int64: true class by row, predicted by column."""
    labels, probabilities = checked(labels, probabilities)
    return sk.confusion_matrix(
        labels, probabilities.argmax(1), labels=range(probabilities.shape[1])
    )


def by_region(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns region-level predictions: one for each (patient, true class).

    The probabilities of a patient's patches of one true class are averaged (soft vote).
    The true class selects the patches, so this is a score of regions that somebody has
    outlined; it is not a diagnosis of a patient, which has to do without the labels.

    Returns:
      labels `[M]`, probabilities `[M, K]`, groups `[M]`; sorted by group, then label.

    Raises:
      UserError: As `scores`, or the number of groups is not that of the examples.
    """
    labels, probabilities = checked(labels, probabilities)
    groups = np.asarray(groups).astype(str)
    if groups.shape != labels.shape:
        raise UserError(
            f"{len(labels)} predictions but groups of shape {groups.shape}: "
            "region-level scores need one group per example.",
            where="groups",
        )
    names, codes = np.unique(groups, return_inverse=True)
    cells, codes = np.unique(
        codes * probabilities.shape[1] + labels, return_inverse=True
    )
    sums = np.zeros((len(cells), probabilities.shape[1]))
    np.add.at(sums, codes, probabilities)
    means = sums / np.bincount(codes)[:, None]
    patient, label = np.divmod(cells, probabilities.shape[1])
    return label, means, names[patient]


def regions(predictions: Predictions) -> Predictions:
    """Returns the region-level predictions (see `by_region`) of patch-level ones.

    Raises:
      UserError: The predictions have no groups.
    """
    if predictions.groups is None:
        raise UserError(
            "The data set has no groups, so there are no region-level scores.",
            where="groups",
        )
    labels, probabilities, groups = by_region(
        predictions.labels, predictions.probabilities, predictions.groups
    )
    ids = np.array(
        [f"{group}/{label}" for group, label in zip(groups, labels, strict=True)]
    )
    folds = predictions.folds
    if folds is not None:
        # A patient is tested by one model.
        names, first = np.unique(predictions.groups.astype(str), return_index=True)
        folds = folds[first][np.searchsorted(names, groups)]
    return dataclasses.replace(
        predictions,
        ids=ids,
        groups=groups,
        labels=labels,
        probabilities=probabilities,
        folds=folds,
    )


def joined(folds: Sequence[Predictions]) -> Predictions:
    """Returns the predictions of all folds of one seed as one set.

    Raises:
      UserError: There are none, an example was tested twice, or the folds differ in
        seed, classes or in having groups.
    """
    if not folds:
        raise UserError("There are no folds to join.")
    alike = {
        (fold.seed, fold.groups is None, np.shape(fold.probabilities)[1])
        for fold in folds
    }
    ids = np.concatenate([fold.ids for fold in folds])
    if len(alike) > 1 or len(np.unique(ids)) < len(ids):
        raise UserError(
            "Folds cannot be joined: they differ in seed, classes or groups, or test "
            "the same example twice. They are of different studies."
        )
    trained = [fold.trained for fold in folds]
    return Predictions(
        ids,
        None
        if folds[0].groups is None
        else np.concatenate([fold.groups for fold in folds]),
        np.concatenate([fold.labels for fold in folds]),
        np.concatenate([fold.probabilities for fold in folds]),
        folds[0].seed,
        np.repeat(np.arange(len(folds)), [len(fold.labels) for fold in folds])
        if len(folds) > 1
        else None,
        None if None in trained else float(np.mean(trained)),
    )


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = CALIBRATION_BINS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns confidence, accuracy and count of each bin of the confidence.

    Bins are `(i/bins, (i+1)/bins]` of the largest probability. An empty bin has
    confidence and accuracy NaN.

    Returns:
      Mean confidence `[bins]`, accuracy `[bins]`, count `[bins]`.
    """
    labels, probabilities = checked(labels, probabilities)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    # Shares such as 9/15 carry a rounding error: an edge must not move up a bin.
    index = np.clip(np.ceil(confidence * bins - 1e-9).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    divisor = np.where(count, count, np.nan)
    return (
        np.bincount(index, confidence, bins) / divisor,
        np.bincount(index, right, bins) / divisor,
        count,
    )


def checked(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels as int64 and probabilities as float64, if they are such.

    Raises:
      UserError: They are not; the message names the first bad example.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise UserError(
            f"Predictions: labels of shape {labels.shape} and probabilities of shape "
            f"{probabilities.shape}; they must be [N] and [N, K] of the same examples."
        )
    if not len(labels):
        raise UserError("Predictions: there are no examples, so there is no score.")
    if probabilities.shape[1] < 2:
        raise UserError("Predictions: probabilities need a column for each class.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"Predictions: labels must be integers, not {labels.dtype}.")
    probabilities = probabilities.astype(np.float64)
    count = probabilities.shape[1]
    _check(
        (labels >= 0) & (labels < count),
        f"a label outside 0 to {count - 1}: it was made with other classes.",
    )
    _check(
        np.isfinite(probabilities).all(1),
        "a probability that is NaN or infinite: the model has diverged.",
    )
    _check(
        (probabilities >= 0).all(1)
        & (np.abs(probabilities.sum(1) - 1) <= SUM_TOLERANCE),
        "probabilities that are negative or do not sum to 1: give the softmax of the "
        "logits.",
    )
    return labels.astype(np.int64), probabilities


def _check(good: np.ndarray, problem: str) -> None:
    if not good.all():
        bad = np.flatnonzero(~good)
        raise UserError(
            f"Predictions: {len(bad)} of {len(good)} examples, the first at position "
            f"{bad[0]}, have {problem}"
        )


def _areas(
    labels: np.ndarray, probabilities: np.ndarray, folds: ArrayLike | None = None
) -> list[float | None]:
    """Returns the one-vs-rest AUROC of each class, mean over folds.

    Folds without one of the two sides are skipped; None if no fold has both.
    """
    folds = np.zeros(len(labels), int) if folds is None else np.asarray(folds)
    parts = [folds == fold for fold in np.unique(folds)]
    found: list[float | None] = []
    for k in range(probabilities.shape[1]):
        areas = [
            sk.roc_auc_score(labels[part] == k, probabilities[part, k])
            for part in parts
            if 0 < (labels[part] == k).sum() < part.sum()
        ]
        found.append(float(np.mean(areas)) if areas else None)
    return found


def _calibration_error(labels: np.ndarray, probabilities: np.ndarray) -> float:
    confidence, accuracy, count = reliability(labels, probabilities)
    return float(np.nansum(count * np.abs(confidence - accuracy)) / count.sum())


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
