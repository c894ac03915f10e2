"""Metrics as sums over patients: against scikit-learn, and with one patient excluded."""

import dataclasses

import numpy as np
import pytest
from arms_scored import class_intervals, interval, predictions, sampler_of
from basics import refused_at
from sklearn import metrics as sk

from twostage_jax.errors import UserError
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import pair, regions
from twostage_jax.stats.intervals import Resampler

PATIENTS = 9


def drawn(generator, groups, labels, seed=0, classes=3):
    """Predictions that are better than chance, differently for each patient."""
    patient = np.unique(groups, return_inverse=True)[1]
    skill = generator.normal(1, 1, patient.max() + 1)[patient]
    logits = generator.normal(size=(len(labels), classes))
    logits += skill[:, None] * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    probabilities = np.round(256 * probabilities) / 256  # Some ties.
    return predictions(labels, probabilities, groups, seed=seed)


@pytest.fixture(scope="module")
def arms():
    """Two arms, two seeds, patients of different sizes."""
    generator = np.random.default_rng(0)
    sizes = generator.integers(5, 40, PATIENTS)
    groups = np.repeat([f"p{k}" for k in range(PATIENTS)], sizes)
    labels = generator.integers(0, 3, sizes.sum())
    return {
        arm: [drawn(generator, groups, labels, seed) for seed in (0, 1)]
        for arm in ("a", "b")
    }


def area(given, keep=slice(None)):
    """The mean one-vs-rest area under the ROC curve, by scikit-learn."""
    labels, probabilities = given.labels[keep], given.probabilities[keep]
    return np.mean(
        [sk.roc_auc_score(labels == k, probabilities[:, k]) for k in range(3)]
    )


def error(given, keep=slice(None)):
    """The Brier score by its definition."""
    total = 0.0
    chosen = given.labels[keep], given.probabilities[keep]
    for label, row in zip(*chosen, strict=True):
        total += sum((p - (k == label)) ** 2 for k, p in enumerate(row))
    return total / len(chosen[0])


@pytest.mark.parametrize(
    "name, by_hand, error", [("auroc", area, 0.01), ("brier", error, 1e-9)]
)
def test_scores_of_all_patients_and_without_each(arms, name, by_hand, error):
    sampler = sampler_of(arms, name, 10)
    for a, seeds in enumerate(arms.values()):
        for s, given in enumerate(seeds):
            assert sampler.sample[a, s] == pytest.approx(by_hand(given))
            for p, patient in enumerate(np.unique(given.groups)):
                left = by_hand(given, given.groups != patient)
                assert sampler.without[p, a, s] == pytest.approx(left, abs=error)


def test_area_of_single_examples_has_the_variance_of_delong():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], [150, 100])
    one = drawn(generator, np.arange(250).astype(str), labels, classes=2)
    sampler = sampler_of({"a": [one]}, "auroc", 20_000)
    score = one.probabilities[:, 1]
    above = (score[labels == 1, None] > score[labels == 0]) + 0.5 * (
        score[labels == 1, None] == score[labels == 0]
    )
    assert sampler.sample[0, 0] == pytest.approx(above.mean())
    # DeLong et al. 1988: of the means over the other side.
    variance = above.mean(1).var(ddof=1) / 100 + above.mean(0).var(ddof=1) / 150
    assert sampler.resampled.std() == pytest.approx(np.sqrt(variance), rel=0.03)


def test_area_of_resampled_patients_agrees_with_scikit_learn(arms):
    (given, *_) = arms["a"]
    sampler = sampler_of({"a": [given]}, "auroc", 20_000)
    generator = np.random.default_rng(2)
    rows = [np.flatnonzero(given.groups == patient) for patient in set(given.groups)]
    drawn = [
        area(given, np.concatenate([rows[p] for p in generator.integers(9, size=9)]))
        for _ in range(600)
    ]
    # Of the standard deviation of 600 values, three errors are 9 %.
    assert sampler.resampled.std() == pytest.approx(np.std(drawn), rel=0.12)


def test_area_needs_every_class():
    generator = np.random.default_rng(3)
    groups = np.arange(20).astype(str)
    one = drawn(generator, groups, np.tile([0, 2], 10))
    with pytest.raises(UserError):
        metrics.metric(pair({"a": [one]}), "auroc")


def test_area_of_a_class_in_few_of_many_patients_has_an_interval():
    generator = np.random.default_rng(4)
    groups = np.repeat(np.arange(20), 6).astype(str)
    labels = np.where(np.arange(120) < 30, np.arange(120) % 2, 0)
    paired = pair({"a": [drawn(generator, groups, labels, classes=2)]})
    # Some of 10,000 resamples have none of the five patients with class 1.
    (found,) = class_intervals(paired)[1]["auroc"]
    assert 0 < found.low < found.estimate < found.high < 1


def test_area_with_few_patients_on_one_side_has_none():
    generator = np.random.default_rng(5)
    groups = np.repeat(np.arange(8), 6).astype(str)
    labels = np.where(np.arange(48) < 18, np.arange(48) % 2, 0)
    paired = pair({"a": [drawn(generator, groups, labels, classes=2)]})
    common, rare = class_intervals(paired, resamples=50)
    assert common["auroc"][0].low is None
    assert common["auroc"][0].reason.startswith(
        "class 0 occurs with other classes in 3 test"
    )
    assert rare["auroc"][0].reason.startswith("class 1 occurs in 3 test groups")


def test_brier_score_has_an_interval_up_to_two():
    groups = np.repeat(np.arange(8), 4).astype(str)
    wrong = np.array([0.9, 0.8, 0.95, 0.7, 0.9, 0.85, 0.99, 0.6]).repeat(4)
    one = predictions(np.zeros(32, int), wrong, groups)
    found = interval([one], "brier")
    assert found.estimate == pytest.approx((2 * wrong**2).mean())
    assert 1 < found.low < found.estimate < found.high < 2


@pytest.mark.parametrize("k", range(3))
def test_scores_of_a_class_with_intervals(arms, k):
    found = class_intervals(pair(arms), resamples=300)[k]
    for a, seeds in enumerate(arms.values()):
        for name, by_hand in {
            "precision": sk.precision_score,
            "recall": sk.recall_score,
            "f1": sk.f1_score,
        }.items():
            expected = np.mean(
                [by_hand(p.labels == k, p.probabilities.argmax(1) == k) for p in seeds]
            )
            assert found[name][a].estimate == pytest.approx(expected), name
            assert found[name][a].low < expected < found[name][a].high
        expected = np.mean(
            [sk.roc_auc_score(p.labels == k, p.probabilities[:, k]) for p in seeds]
        )
        assert found["auroc"][a].estimate == pytest.approx(expected)
        assert found["auroc"][a].low < expected < found["auroc"][a].high


def test_f1_counts_false_alarms_in_patients_without_the_class():
    labels = np.repeat([[1, 0]] * 5 + [[0, 0]], 4, axis=0).ravel()
    said = labels.copy()
    groups = np.repeat(np.arange(6), 8).astype(str)
    said[groups == "5"] = 1
    said[[0, 8]] = 0
    one = predictions(labels, said, groups)
    f1 = metrics.of_class(pair({"a": [one]}), 1)["f1"]
    sampler = Resampler(f1, 50)
    assert sampler.sample[0, 0] == pytest.approx(sk.f1_score(labels, said))
    without = groups != "5"
    assert sampler.without[5, 0, 0] == pytest.approx(
        sk.f1_score(labels[without], said[without])
    )
    recall = Resampler(metrics.of_class(pair({"a": [one]}), 1)["recall"], 50)
    assert recall.without.shape[0] == 5


def test_precision_of_a_class_never_predicted_is_not_given():
    groups = np.repeat(np.arange(6), 4).astype(str)
    labels = np.tile([0, 0, 1, 1], 6)
    never = predictions(labels, labels * 0, groups)
    mixed = predictions(labels, np.tile([0, 1, 1, 0], 6), groups)
    found = class_intervals(pair({"a": [never], "b": [mixed]}), resamples=50)
    assert found[1]["precision"][0] is None
    assert found[1]["precision"][1].estimate == 0.5
    assert found[1]["f1"][0].estimate == 0


def two_folds():
    """Predictions of two models, each of which ranks its own test patients perfectly.

    The second model gives lower probabilities to everything.
    """
    groups = np.repeat([f"p{k}" for k in range(12)], 4)
    folds = np.repeat(np.arange(2), 24)
    labels = np.tile([0, 1, 0, 1], 12)
    positive = np.where(labels == 1, 0.95, 0.55) - 0.5 * folds
    return predictions(labels, positive, groups, folds=folds)


def test_examples_are_ranked_within_their_fold():
    given = two_folds()
    # Pooled, the examples of class 1 in the second fold (0.45) rank below those of class
    # 0 in the first (0.55): a quarter of all pairs.
    pooled = sk.roc_auc_score(given.labels, given.probabilities[:, 1])
    assert pooled == pytest.approx(0.75)
    paired = pair({"a": [given]})
    assert interval([given], "auroc").estimate == pytest.approx(1)
    for of_class in class_intervals(paired, resamples=50):
        assert of_class["auroc"][0].estimate == pytest.approx(1)
    scores = metrics.scores(given.labels, given.probabilities, given.folds)
    assert scores["auroc"] == pytest.approx(1)
    assert metrics.scores(given.labels, given.probabilities)["auroc"] == pooled


def test_area_over_folds_is_the_mean_of_those_of_the_folds(arms):
    generator = np.random.default_rng(6)
    folds = generator.permuted(np.tile(np.arange(PATIENTS) % 3, (2, 1)), axis=1)
    (given, *more) = arms["a"]
    codes = np.unique(given.groups, return_inverse=True)[1]
    seeds = [
        dataclasses.replace(one, folds=folds[s][codes])
        for s, one in enumerate((given, *more))
    ]
    sampler = sampler_of({"a": seeds}, "auroc", 10)
    for s, one in enumerate(seeds):
        expected = np.mean([area(one, one.folds == fold) for fold in range(3)])
        assert sampler.sample[0, s] == pytest.approx(expected)
        found = metrics.scores(one.labels, one.probabilities, one.folds)["auroc"]
        assert found == pytest.approx(expected)
        for p, patient in enumerate(np.unique(one.groups)):
            kept = one.groups != patient
            left = np.mean([area(one, kept & (one.folds == f)) for f in range(3)])
            assert sampler.without[p, 0, s] == pytest.approx(left, abs=0.03)


def test_a_fold_without_a_class_has_no_area():
    given = two_folds()
    labels = np.where(given.folds == 1, 0, given.labels)
    one = dataclasses.replace(given, labels=labels)
    # The first fold alone ranks anything.
    assert interval([one], "auroc").estimate == pytest.approx(1)
    never = dataclasses.replace(one, labels=given.folds)
    assert not metrics.has_auroc(pair({"a": [never]}))
    assert (
        metrics.scores(never.labels, never.probabilities, never.folds)["auroc"] is None
    )


def test_patients_of_two_folds_are_refused():
    given = two_folds()
    folds = given.folds.copy()
    folds[0] = 1
    with refused_at("folds"):
        pair({"a": [dataclasses.replace(given, folds=folds)]})


def test_patient_scores_need_no_label_to_choose_patches():
    # Patient p is all class 0, q all class 1, r half and half.
    groups = np.repeat(["p", "q", "r", "s", "t"], [2, 6, 4, 1, 1])
    labels = np.array([0] * 2 + [1] * 6 + [0, 0, 1, 1] + [0, 1])
    said = np.array([0, 1] + [1, 1, 1, 0, 0, 0] + [0, 1, 1, 1] + [0, 1])
    paired = pair({"a": [predictions(labels, said, groups)]})

    def score(found):
        return Resampler(found, 10).sample[0, 0]

    assert score(metrics.metric(paired, "patient_accuracy")) == pytest.approx(
        np.mean([1 / 2, 1 / 2, 3 / 4, 1, 1])
    )
    assert score(metrics.metric(paired, "patient_balanced_accuracy")) == pytest.approx(
        np.mean([1 / 2, 1 / 2, (1 / 2 + 1) / 2, 1, 1])
    )
    true, predicted = np.array([0, 1, 0.5, 0, 1]), np.array([0.5, 0.5, 0.75, 0, 1])
    found = metrics.shares_of_class(paired, 1)
    assert score(found["error"]) == pytest.approx(np.abs(true - predicted).mean())
    # ICC(A,1) by analysis of variance: subjects, raters, rest.
    table = np.stack([true, predicted], axis=1)
    subjects = 2 * table.mean(1).var(ddof=1)
    raters = 5 * table.mean(0).var(ddof=1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0) + table.mean()
    rest = (rest**2).sum() / 4
    assert score(found["agreement"]) == pytest.approx(
        (subjects - rest) / (subjects + rest + 2 * (raters - rest) / 5)
    )


def test_regions_are_chosen_by_their_true_label_and_patients_are_not():
    # Each patient has two patches of class 0 and one of class 1; the mean over the
    # patches of a region is right although a third of the patches is wrong.
    groups = np.repeat([f"p{k}" for k in range(6)], 3)
    labels = np.tile([0, 0, 1], 6)
    positive = np.tile([0.1, 0.6, 0.9], 6)
    one = predictions(labels, positive, groups)
    of_regions = interval([regions(one)], "accuracy").estimate
    patients = interval([one], "patient_accuracy").estimate
    assert (of_regions, patients) == pytest.approx((1, 2 / 3))


def test_a_patient_without_examples_has_sums_of_zero():
    groups = np.repeat([f"p{k}" for k in range(5)], 3)
    labels = np.tile([0, 1, 1], 5)
    paired = pair({"a": [predictions(labels, labels, groups)]})
    more = dataclasses.replace(
        paired, groups=("none", *paired.groups, "last"), codes=paired.codes + 1
    )
    values = np.arange(15.0)[None, None]
    expected = [0, *paired.by_group(values)[0, 0], 0]
    assert more.by_group(values)[0, 0].tolist() == expected
