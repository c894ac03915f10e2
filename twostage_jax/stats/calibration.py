"""Calibration slope and intercepts of paired arms, as sums over patients.

Cox (1958, "Two further applications of a model for binary regression") regresses the
outcome on the logit of the predicted probability. For K classes the same is a multinomial
logistic regression of the class on the logarithms of the predicted probabilities,

    P(y = k)  proportional to  exp(b_k + slope * log p_k),

with one slope for all classes, as in Van Hoorde et al. (2014, "Assessing calibration of
multinomial risk prediction models"); with two classes it is Cox's model. A slope below 1
means probabilities that are too extreme, as after overfitting; above 1, too cautious ones.

The intercept of a class is calibration in the large: b in logit P(y = k) = b + logit p_k,
the class against all others. Above 0, the class is more frequent than predicted.

Both are maximum likelihood estimates, which are not sums over patients. Here they are
their first-order expansion in the weights of patients (the sandwich variance follows from
it): exact where all weigh the same.
"""

import numpy as np

from twostage_jax.stats.arms import Paired
from twostage_jax.stats.metrics import Additive, additive

# Smallest probability: float32 softmax resolves no less.
LEAST = 1e-7
STEPS = 100
# Change of a logit below which a step is the last one.
TOLERANCE = 1e-6
# Change of a logit in one step: the likelihood is quadratic within a few units only.
FARTHEST = 10.0
# Less information means that the estimate is infinite (the classes are separated) or not
# unique (the predictions are all alike).
FLAT = 1e-9


def slope(paired: Paired) -> Additive:
    """Returns the calibration slope of each arm and seed."""
    # Maximum likelihood gives a class without examples no chance at all.
    present, labels = np.unique(paired.labels, return_inverse=True)
    logs = np.log(np.maximum(paired.probabilities[..., present], LEAST))
    classes = len(present)
    # Parameters: the slope, then the intercepts of all classes but the first.
    design = np.zeros((*logs.shape, classes))
    design[..., 0] = logs
    design[..., np.arange(1, classes), np.arange(1, classes)] = 1
    return _additive(paired, design, np.zeros_like(logs), labels)


def intercept(paired: Paired, k: int) -> Additive:
    """Returns the calibration intercept of class `k`, against all others."""
    chance = np.clip(paired.probabilities[..., k], LEAST, 1 - LEAST)
    offset = np.stack([np.zeros_like(chance), np.log(chance / (1 - chance))], axis=-1)
    design = np.zeros((*offset.shape, 1))
    design[..., 1, 0] = 1
    labels = (paired.labels == k).astype(int)
    return _additive(paired, design, offset, labels)


def _additive(
    paired: Paired, design: np.ndarray, offset: np.ndarray, labels: np.ndarray
) -> Additive:
    """Returns the first parameter of a multinomial logistic regression.

    Args:
      paired: Arms.
      design: `[A, S, N, K, Q]`; logits are `offset + design @ parameters`.
      offset: `[A, S, N, K]`.
      labels: `[N]` in `[0, K)`.
    """
    arms, seeds = design.shape[:2]
    found = np.full((arms, seeds), np.nan)
    pulls = np.zeros((arms, seeds, len(labels)))
    for a, s in np.ndindex(arms, seeds):
        fitted = _fit(design[a, s], offset[a, s], labels)
        if fitted is not None:
            found[a, s], pulls[a, s] = fitted

    def score(summed: np.ndarray) -> np.ndarray:
        return np.nan_to_num(found) + summed[..., 0]

    sums, defined = paired.by_group(pulls[..., None]), np.isfinite(found).all(1)
    return additive(paired, sums, score, paired.sizes, defined=defined)


def _fit(
    design: np.ndarray, offset: np.ndarray, labels: np.ndarray
) -> tuple[float, np.ndarray] | None:
    """Returns the first parameter, and the pull `[N]` of each example on it.

    None if the estimate is infinite or not unique. Newton's method from 0: the likelihood
    is concave, so a step that lowers it is too long, and halved.
    """
    observed = np.eye(design.shape[1])[labels]
    parameters = step = np.zeros(design.shape[2])
    reached = -np.inf
    for _ in range(STEPS):
        logits = offset + design @ (parameters + step)
        logs = logits - logits.max(1, keepdims=True)
        logs -= np.log(np.exp(logs).sum(1, keepdims=True))
        likelihood = (observed * logs).sum()
        if likelihood < reached - TOLERANCE:
            step = step / 2
            continue
        parameters, reached = parameters + step, likelihood
        chances = np.exp(logs)
        mean = np.einsum("nk,nkq->nq", chances, design)
        scores = np.einsum("nk,nkq->nq", observed - chances, design)
        centred = design - mean[:, None]
        information = np.einsum("nk,nkq,nkr->qr", chances, centred, centred)
        if np.linalg.eigvalsh(information)[0] < FLAT:
            return None
        inverse = np.linalg.inv(information)
        step = inverse @ scores.sum(0)
        change = abs(design @ step).max()
        if change < TOLERANCE:
            # The pulls sum to the last step.
            return float(parameters[0]), scores @ inverse[0]
        step = step / max(1.0, change / FARTHEST)
    return None
