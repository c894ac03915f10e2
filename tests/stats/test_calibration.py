"""Calibration slope and intercepts, against scikit-learn and known values."""

import numpy as np
import pytest
from arms_scored import predictions
from scipy import optimize, special
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


@pytest.mark.parametrize("slope", [0.1, 0.25, 0.5, 1.0, 1.5, 500.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_slope_is_the_most_likely_one_however_extreme_the_probabilities(slope, classes):
    arms = paired(1 / slope, shift=(0.5, 0, 0), classes=classes)
    logs = np.log(np.maximum(arms.probabilities[0, 0], 1e-7))
    # In units in which the best slope is near 1, for the general optimiser.
    logits = slope * (logs - logs.mean(1, keepdims=True))

    def loss(parameters):
        said = special.log_softmax(
            parameters[0] * logits + np.append(0, parameters[1:]), 1
        )
        return -np.take_along_axis(said, arms.labels[:, None], 1).mean()

    best = optimize.minimize(loss, np.zeros(classes), options={"gtol": 1e-9})
    found = calibration.slope(arms)
    assert found.defined.all()
    assert value(found) == pytest.approx(slope * best.x[0], rel=1e-4)


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


@pytest.mark.parametrize("too_extreme", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("shift", [-2.0, 0.7])
def test_intercept_makes_a_class_as_frequent_as_predicted(too_extreme, shift):
    arms = paired(too_extreme, shift=(shift, 0, 0))
    for k in range(3):
        said = np.clip(arms.probabilities[0, 0, :, k], 1e-7, 1 - 1e-7)
        count = (arms.labels == k).sum()

        def excess(b, said=said, count=count):
            return special.expit(special.logit(said) + b).sum() - count

        expected = optimize.brentq(excess, -60, 60, xtol=1e-12)
        found = calibration.intercept(arms, k)
        assert found.defined.all()
        assert value(found) == pytest.approx(expected, abs=1e-6)


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


def test_slope_of_a_network_that_is_always_certain():
    # 3 of 100 examples of either class are wrong: their odds are the best for all.
    labels = np.arange(200) % 2
    said = np.eye(2)[np.where(np.arange(200) < 6, 1 - labels, labels)]
    expected = np.log(97 / 3) / np.log(1e7)
    found = value(calibration.slope(alone(labels, said, range(200))))
    assert found == pytest.approx(expected, rel=1e-5)


def test_predictions_that_are_all_alike_have_no_slope():
    labels = np.arange(40) % 3
    said = np.tile([0.5, 0.3, 0.2], (40, 1))
    assert not calibration.slope(alone(labels, said, range(40))).defined.any()


def test_a_class_of_every_example_has_no_intercept():
    said = np.tile([0.2, 0.8], (40, 1))
    found = calibration.intercept(alone(np.ones(40, int), said, range(40)), 1)
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
