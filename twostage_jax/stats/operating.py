"""Sensitivity and specificity at thresholds that were chosen on other patients.

Each class is tested against all others: an example counts as positive if the probability
of the class is above the threshold. The threshold is chosen on validation examples, which
were not used for fitting. The specificity on test examples therefore differs from the
target, and is given with the sensitivity.
"""

import numpy as np

from twostage_jax.stats.arms import Paired
from twostage_jax.stats.metrics import Additive, fraction_of_class

SPECIFICITY = 0.9
# Fewer examples of the other classes do not reach the specificity to within 5 %.
FEWEST = 20


def thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the threshold `[K]` of each class for `SPECIFICITY`.

    It is the smallest threshold with this specificity on examples of the other classes;
    NaN if there are fewer than `FEWEST` of them.

    Args:
      labels, probabilities: `[N]` and `[N, K]`, of validation examples.
    """
    found = np.full(probabilities.shape[1], np.nan)
    for k in range(len(found)):
        others = probabilities[labels != k, k]
        if len(others) >= FEWEST:
            found[k] = np.quantile(others, SPECIFICITY, method="inverted_cdf")
    return found


def at_threshold(
    paired: Paired, threshold: np.ndarray, k: int
) -> tuple[Additive, Additive]:
    """Returns sensitivity and specificity of class `k`.

    Args:
      paired: Arms.
      threshold: `[A, S, N]`, for the model that predicted each example.
      k: Class.
    """
    above = paired.probabilities[..., k] > threshold
    own = paired.labels == k
    return (
        fraction_of_class(paired, above, own, f"class {k} occurs"),
        fraction_of_class(paired, ~above, ~own, f"class {k} has others"),
    )
