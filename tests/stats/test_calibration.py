"""Calibration slope and intercepts, against scikit-learn and known values."""

import numpy as np
import pytest
from arms_scored import predictions
from scipy import special
from sklearn.linear_model import LogisticRegression

from twostage_jax.stats import calibration
from twostage_jax.stats.arms import pair
from twostage_jax.stats.intervals import Resampler, difference_interval

PATIENTS, PATCHES = 12, 200


def paired(too_extreme=1.0, shift=(0, 0, 0), classes=3):
    """One arm whose logits are too large by a factor, and shifted."""
    generator = np.random.default_rng(0)
    count = PATIENTS * PATCHES
    logits = generator.normal(0, 1.5, (count, classes))
    labels = (special.softmax(logits, 1).cumsum(1) < generator.random((count, 1))).sum(
        1
    )
    said = special.softmax(too_extreme * (logits - np.array(shift)[:classes]), 1)
    groups = np.repeat([f"p{i:02}" for i in range(PATIENTS)], PATCHES)
    return alone(labels, said, groups)


def alone(*given):
    """Returns the arm of such predictions."""
    return pair({"arm": [predictions(*given)]})


def value(found):
    return found.score(found.sums.sum(2)).item()


@pytest.mark.parametrize("too_extreme", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("classes", [2, 3])
def test_slope_is_the_inverse_of_the_excess_of_the_logits(too_extreme, classes):
    found = value(calibration.slope(paired(too_extreme, classes=classes)))
    assert found == pytest.approx(1 / too_extreme, rel=0.08)


def test_slope_of_two_classes_is_that_of_logistic_regression():
    arms = paired(2.0, classes=2)
    logit = special.logit(arms.probabilities[0, 0, :, 1])
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logit[:, None], arms.labels)
    assert value(calibration.slope(arms)) == pytest.approx(fitted.coef_.item(), 1e-4)


def test_intercept_says_how_much_more_frequent_a_class_is():
    arms = paired(shift=(0.7, 0, 0), classes=2)
    for k, sign in enumerate((1, -1)):
        assert value(calibration.intercept(arms, k)) == pytest.approx(
            0.7 * sign, abs=0.1
        )
    # At the estimate, as many examples of the class are expected as there are.
    found = value(calibration.intercept(arms, 0))
    chances = special.expit(special.logit(arms.probabilities[0, 0, :, 0]) + found)
    assert chances.sum() == pytest.approx((arms.labels == 0).sum(), abs=1e-5)


def test_interval_is_that_of_leaving_patients_out():
    arms = paired(2.0)
    sampler = Resampler(calibration.slope(arms), 500)
    interval, _ = difference_interval(sampler, np.ones(1))
    without = []
    for name in range(PATIENTS):
        keep = arms.codes != name
        left = alone(arms.labels[keep], arms.probabilities[0, 0, keep])
        without.append(value(calibration.slope(left)))
    np.testing.assert_allclose(sampler.without[:, 0, 0], without, atol=3e-3)
    assert interval.low < 0.5 < interval.high < 0.6


def test_separated_classes_have_no_slope():
    labels = np.array([0, 1] * 10)
    said = np.where(labels[:, None] == [0, 1], 0.9, 0.1)
    found = calibration.slope(alone(labels, said, range(20)))
    assert not found.defined.any()


def test_a_class_that_never_occurs_has_no_intercept_and_no_say_in_the_slope():
    arms = paired(classes=3)
    keep = arms.labels < 2
    chances = arms.probabilities[0, 0, keep]
    three = alone(arms.labels[keep], chances)
    two = alone(
        arms.labels[keep], chances[:, :2] / chances[:, :2].sum(1, keepdims=True)
    )
    assert value(calibration.slope(three)) == pytest.approx(
        value(calibration.slope(two)), abs=1e-6
    )
    assert not calibration.intercept(three, 2).defined.any()
