"""Linear probes: how well a linear classifier predicts labels from a layer."""

import warnings
from typing import NamedTuple

import numpy as np
from scipy import linalg
from sklearn.covariance import ledoit_wolf
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from twostage_jax.explain.measures.record import Measure, Panel, Sentence
from twostage_jax.explain.responses import usable

# Fewer if there are fewer groups.
FOLDS = 5


def _panel(title: str) -> Panel:
    return Panel(title, "Balanced accuracy", chance=True)


MEASURES = (
    Measure(
        "probe_orientation",
        "probe: orientation (balanced accuracy)",
        _panel("Probe: orientation"),
    ),
    Measure(
        "probe_texture",
        "probe: texture family (balanced accuracy)",
        _panel("Probe: texture family"),
        Sentence(
            "Textures.",
            "informative of the texture family (linear probe)",
            "Balanced accuracy of the probe",
            shown=True,
        ),
    ),
    Measure(
        "probe_target",
        "probe: target class (balanced accuracy)",
        _panel("Probe: target class"),
    ),
)


class Probe(NamedTuple):
    """Result of a linear probe.

    Attributes:
      score: Balanced accuracy on held-out groups; None if unavailable.
      chance: Accuracy of guessing, 1 / number of classes.
      channels: Number of channels of the layer.
      left_out: Number of channels excluded: constant or not finite.
      reason: Why the score is missing, or a caveat about it.
    """

    score: float | None
    chance: float
    channels: int
    left_out: int
    reason: str = ""


def probe(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None) -> Probe:
    """Cross-validates a linear classifier on a layer's features.

    Linear discriminant analysis with shrinkage (`discriminant`) needs no tuning. The
    folds keep groups whole; every example is predicted once, by a classifier that was
    not trained on its group, and recalls are taken over all examples.

    Args:
      features: `[N, D]`.
      labels: `[N]` integers.
      groups: Group of each example, `[N]`, never split between training and test; None
        if every example is its own group.
    """
    classes, labels = np.unique(labels, return_inverse=True)
    chance = 1 / max(len(classes), 1)
    kept = usable(features)
    width, lost = features.shape[1], int((~kept).sum())
    units = np.arange(len(labels)) if groups is None else groups
    sizes = np.bincount(labels)
    largest = int(sizes.min() if groups is None else sizes.max())
    folds = min(FOLDS, len(np.unique(units)), largest)
    reason = ""
    if len(classes) < 2:
        reason = "only one class"
    elif not kept.any():
        reason = f"none of the {width} channels varies over the examples"
    elif folds < 2:
        reason = "too few groups or examples of a class for two folds"
    if reason:
        return Probe(None, chance, width, lost, reason)
    features = features[:, kept].astype(np.float64)
    predicted, unseen = _predict(features, labels, groups, folds)
    recalls = recall_score(
        labels, predicted, average=None, labels=np.arange(len(classes)), zero_division=0
    )
    if unseen:
        reason = (
            f"{unseen} of {len(labels)} examples count as wrong: their class was missing "
            "from the training folds"
        )
    return Probe(float(recalls.mean()), chance, width, lost, reason)


def _predict(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    folds: int,
) -> tuple[np.ndarray, int]:
    """Returns held-out predictions `[N]`, -1 if missing, and a count.

    The count is that of the examples whose class is missing from the training folds.
    """
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=0)
    predicted, unseen = np.full(len(labels), -1), 0
    with warnings.catch_warnings():
        # A class smaller than the number of folds is not an error in itself.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(features, labels, groups))
    for train, test in parts:
        seen = np.unique(labels[train])
        unseen += int((~np.isin(labels[test], seen)).sum())
        if not len(test) or len(seen) < 2:
            continue
        mean, deviation = features[train].mean(0), features[train].std(0)
        scaled = (features - mean) / np.where(deviation > 0, deviation, 1)
        weights, offsets = discriminant(scaled[train], labels[train])
        predicted[test] = seen[(scaled[test] @ weights + offsets).argmax(1)]
    return predicted, unseen


def discriminant(
    features: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fits linear discriminant functions for classes of equal prior.

    The covariance within classes is pooled and shrunk as Ledoit & Wolf 2004
    (doi:10.1016/S0047-259X(03)00096-4) do.

    Args:
      features: `[N, D]`, of similar scale.
      labels: `[N]`, K classes.

    Returns:
      `[D, K]` and `[K]`, classes in order: `features @ weights + offsets` is largest
      for the class.
    """
    span = None
    if features.shape[1] > len(features):
        # Nothing is lost in the space that the examples span, and it is smaller.
        span = np.linalg.svd(features, full_matrices=False)[2].T
        features = features @ span
    classes, index = np.unique(labels, return_inverse=True)
    means = np.stack([features[index == k].mean(0) for k in range(len(classes))])
    covariance, _ = ledoit_wolf(features - means[index], assume_centered=True)
    # Classes of one example each have no within-class variance.
    covariance[np.diag_indices_from(covariance)] += 1e-9
    weights = linalg.solve(covariance, means.T, assume_a="pos")
    offsets = -(means * weights.T).sum(1) / 2
    return weights if span is None else span @ weights, offsets
