"""A linear classifier on fixed features, tuned on training examples alone."""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from twostage_jax.stats import metrics

# Inverse strengths of the penalty, scikit-learn's C.
STRENGTHS = (0.01, 0.1, 1.0)
FOLDS = 4


class Fitted(NamedTuple):
    """A linear classifier of M of the K classes.

    Attributes:
      layer: Name of the features that it reads.
      strength: Inverse strength of its penalty, scikit-learn's C; None if it was not
        fitted to the features.
      weights, bias: `[F, M]` and `[M]`, of the features as they are.
      classes: The classes with a training example, `[M]`.
    """

    layer: str
    strength: float | None
    weights: np.ndarray
    bias: np.ndarray
    classes: np.ndarray

    def probabilities(
        self, features: Mapping[str, np.ndarray], num_classes: int
    ) -> np.ndarray:
        """Returns `[N, K]` float32; 0 for a class without a training example."""
        logits = features[self.layer].astype(np.float64) @ self.weights + self.bias
        found = np.zeros((len(logits), num_classes), np.float32)
        found[:, self.classes] = scipy.special.softmax(logits, axis=1)
        return found


def frequencies(features: Mapping[str, np.ndarray], labels: np.ndarray) -> Fitted:
    """Returns the classifier that predicts the frequencies of the classes."""
    layer = list(features)[-1]
    classes, counts = np.unique(labels, return_counts=True)
    weights = np.zeros((features[layer].shape[1], len(classes)))
    return Fitted(layer, None, weights, np.log(counts / counts.sum()), classes)


def fit(
    features: Mapping[str, np.ndarray], labels: np.ndarray, groups: np.ndarray | None
) -> Fitted:
    """Returns a logistic regression on standardised features, with balanced classes.

    Features and penalty are those with the best mean balanced accuracy on held-out
    training groups, ties going to the first: first the features, by a discriminant
    analysis, which has a closed form and automatic shrinkage (Ledoit & Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4), then the penalty. With one class, it is always
    predicted.

    Args:
      features: Features of the training examples by name, `[N, F]` each.
      labels: `[N]` int.
      groups: Groups of examples that must stay together (a patient), `[N]`; None for
        single examples.
    """
    if len(np.unique(labels)) == 1:
        return frequencies(features, labels)
    # If nothing can be held out: the last layer, the usual strength.
    layer, strength = list(features)[-1], STRENGTHS[1]
    if folds := _folds(labels, groups):
        if len(features) > 1:
            model = _discriminant(len(np.unique(labels)))
            layer = _best(
                {
                    name: [_score(model, values, labels, *f) for f in folds]
                    for name, values in features.items()
                }
            )
        values = features[layer]
        strength = _best(
            {
                c: [_score(_model(c), values, labels, *f) for f in folds]
                for c in STRENGTHS
            }
        )
    scaler, regression = _model(strength).fit(features[layer], labels)
    # The scaler is affine, so both are one map. Of two classes, scikit-learn has only the
    # logit of the second.
    weights, bias = regression.coef_.T, regression.intercept_
    if len(regression.classes_) == 2:
        weights, bias = np.hstack([0 * weights, weights]), np.array([0.0, *bias])
    weights = weights / scaler.scale_[:, None]
    bias = bias - scaler.mean_ @ weights
    return Fitted(layer, strength, weights, bias, regression.classes_)


def _model(strength: float) -> Pipeline:
    regression = LogisticRegression(
        C=strength, class_weight="balanced", max_iter=2000, tol=1e-3
    )
    return make_pipeline(StandardScaler(), regression)


def _discriminant(classes: int) -> Pipeline:
    # Equal priors: those of the data would hide what a layer knows of a rare class.
    analysis = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage="auto", priors=np.full(classes, 1 / classes)
    )
    return make_pipeline(StandardScaler(), analysis)


def _best(tried: Mapping[Any, list[float]]) -> Any:
    return max(tried, key=lambda choice: np.mean(tried[choice]))


def _score(
    model: Pipeline,
    values: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    held: np.ndarray,
) -> float:
    """Returns the mean recall over the classes that occur in the held-out part."""
    predicted = model.fit(values[train], labels[train]).predict(values[held])
    counts = metrics.count(labels[held], predicted, labels.max() + 1)
    return float(metrics.balanced_accuracy(counts))


def _folds(
    labels: np.ndarray, groups: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (training, held-out) indices; training parts have all classes."""
    if groups is not None and len(np.unique(groups)) > 1:
        count = min(FOLDS, len(np.unique(groups)))
        # With fewer examples of a class than folds, scores are only less precise.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            splits = list(StratifiedGroupKFold(count).split(labels, labels, groups))
    else:
        # One patient: neighbours are on both sides, but nothing better is available.
        count = min(FOLDS, np.unique(labels, return_counts=True)[1].min())
        splits = list(StratifiedKFold(count).split(labels, labels)) if count > 1 else []
    classes = len(np.unique(labels))
    return [
        (train, held)
        for train, held in splits
        if len(np.unique(labels[train])) == classes
    ]
