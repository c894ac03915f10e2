"""Scores from predictions, against hand computation and scikit-learn."""

import json

import numpy as np
import pytest
from basics import refused_at
from sklearn import metrics as sk

from twostage_jax.errors import UserError
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions, regions

LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.7, 0.1],
        [0.3, 0.6, 0.1],
        [0.5, 0.4, 0.1],
        [0.1, 0.1, 0.8],
    ],
    np.float32,
)


def random_predictions(count=300, classes=4, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    odds = np.exp(logits)
    return labels, (odds / odds.sum(1, keepdims=True)).astype(np.float32)


def test_scores_by_hand():
    found = metrics.scores(LABELS, PROBABILITIES)
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # F1: class 0 has 2 right of 3 true and 3 predicted; class 1 has 1 of 2 and 2.
    assert found["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    squares = [0.06, 0.26, 1.14, 0.26, 0.62, 0.06]
    assert found["brier"] == pytest.approx(np.mean(squares), abs=1e-6)
    # Bins of width 1/15: {0.5} wrong, {0.6, 0.6} right, {0.7} wrong, {0.8, 0.8} right.
    gaps = 0.5 + 2 * 0.4 + 0.7 + 2 * 0.2
    assert found["ece"] == pytest.approx(gaps / 6, abs=1e-6)


def test_scores_agree_with_scikit_learn():
    labels, probabilities = random_predictions()
    found = metrics.scores(labels, probabilities)
    predicted = probabilities.argmax(1)
    # To the last bit: runs choose their best epoch by it.
    assert found["accuracy"] == sk.accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == sk.balanced_accuracy_score(labels, predicted)
    assert found["macro_f1"] == sk.f1_score(labels, predicted, average="macro")
    assert found["auroc"] == pytest.approx(
        sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    )
    assert metrics.confusion(labels, probabilities).tolist() == (
        sk.confusion_matrix(labels, predicted).tolist()
    )


def test_binary_auroc_counts_ordered_pairs():
    labels = np.array([0, 0, 1, 1])
    ones = np.array([0.1, 0.6, 0.5, 0.9])
    found = metrics.scores(labels, np.stack([1 - ones, ones], 1))
    assert found["auroc"] == pytest.approx(3 / 4)


def test_an_absent_class_has_no_auroc_and_the_rest_is_json():
    labels, probabilities = random_predictions(classes=3)
    keep = labels != 2
    found = metrics.scores(labels[keep], probabilities[keep])
    assert found["auroc"] is None
    assert all(value is not None for name, value in found.items() if name != "auroc")
    json.dumps(found, allow_nan=False)


def test_one_class_only_has_an_accuracy_and_no_auroc():
    found = metrics.scores([1, 1], [[0.2, 0.8], [0.7, 0.3]])
    assert found["accuracy"] == found["balanced_accuracy"] == 0.5
    assert found["auroc"] is None


def test_regions_average_the_patches_of_one_class_of_a_patient():
    ids = np.arange(6).astype(str)
    patches = Predictions(ids, np.array(list("ppqpqq")), LABELS, PROBABILITIES, 3)
    found = regions(patches)
    assert found.seed == 3
    assert found.ids.tolist() == ["p/0", "p/1", "q/0", "q/1", "q/2"]
    assert found.groups.tolist() == list("ppqqq")
    assert found.labels.tolist() == [0, 1, 0, 1, 2]
    np.testing.assert_allclose(found.probabilities[0], [0.7, 0.2, 0.1], atol=1e-6)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    with refused_at("groups"):
        regions(Predictions(ids, None, LABELS, PROBABILITIES))


def test_reliability_puts_edges_into_the_lower_bin():
    # The ninth bin ends at 9/15.
    ones = np.array([0.5, 0.55, 0.6, 1.0])
    confidence, accuracy, count = metrics.reliability(
        [1, 0, 1, 1], np.stack([1 - ones, ones], 1)
    )
    assert {i: n for i, n in enumerate(count.tolist()) if n} == {7: 1, 8: 2, 14: 1}
    np.testing.assert_allclose(confidence[[6, 7, 8, 14]], [np.nan, 0.5, 0.575, 1])
    # At 0.5 : 0.5 the first class is predicted, which is wrong.
    np.testing.assert_allclose(accuracy[[6, 7, 8, 14]], [np.nan, 0, 0.5, 1])


@pytest.mark.parametrize(
    ("labels", "probabilities", "where"),
    [
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "probabilities"),
        ([0, 1], [[0.5, 0.5], [2.0, -1.0]], "probabilities"),
        ([0, 1], [[0.5, 0.5], [3.0, 1.0]], "probabilities"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "labels"),
        ([-1, 1], [[0.5, 0.5], [0.5, 0.5]], "labels"),
        ([0.0, 1.0], [[0.5, 0.5], [0.5, 0.5]], "labels"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], "probabilities"),
        ([], np.zeros((0, 2)), "labels"),
    ],
)
def test_what_is_not_a_prediction_is_named(labels, probabilities, where):
    labels = np.array(labels) if labels else np.zeros(0, int)
    with refused_at(where):
        metrics.scores(labels, probabilities)


def test_the_first_example_that_is_not_a_prediction_is_named():
    with pytest.raises(UserError) as error:
        metrics.scores(np.array([0, 1, 2]), np.full((3, 2), 0.5))
    assert "1 of 3 examples, the first at position 2" in str(error.value)
