"""Thresholds, and sensitivity and specificity at them, by hand."""

import numpy as np
import pytest

from twostage_jax.stats import operating
from twostage_jax.stats.arms import Predictions, pair


def test_threshold_leaves_nine_of_ten_others_below():
    # 20 others with 0.00 to 0.19; two of them are above 0.17.
    others = np.arange(20) / 100
    chances = np.concatenate([others, [0.5, 0.6]])
    labels = np.array([0] * 20 + [1] * 2)
    found = operating.thresholds(labels, np.stack([1 - chances, chances], axis=1))
    assert found[1] == pytest.approx(0.17)
    assert (others > found[1]).mean() == pytest.approx(0.1)
    # Two examples of class 1 are too few to choose a threshold of class 0.
    assert np.isnan(found[0])


def test_sensitivity_and_specificity_are_fractions_of_the_test_examples():
    chances = np.array([0.1, 0.4, 0.6, 0.2, 0.5, 0.9])
    labels = np.array([0, 0, 0, 1, 1, 1])
    groups = np.array(list("aabbcc"))
    said = np.stack([1 - chances, chances], axis=1)
    given = Predictions(np.arange(6).astype(str), groups, labels, said)
    paired = pair({"arm": [given]})
    # The models of three patients have thresholds of their own.
    threshold = np.array([0.3, 0.3, 0.7, 0.7, 0.4, 0.4])[None, None]
    sensitivity, specificity = (
        one.score(one.sums.sum(2)).item()
        for one in operating.at_threshold(paired, threshold, 1)
    )
    assert sensitivity == pytest.approx(2 / 3)
    assert specificity == pytest.approx(2 / 3)
