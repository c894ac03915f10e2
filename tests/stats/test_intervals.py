"""Intervals, paired tests, learning curve: against hand computation and simulation."""

import dataclasses
from types import SimpleNamespace

import arms_scored
import numpy as np
import pytest
from arms_scored import compare, interval, sampler_of
from basics import experiment, refused_at
from scipy import stats
from sklearn import metrics as sk
from sklearn.isotonic import isotonic_regression

from twostage_jax.stats import intervals, learning_curve, metrics
from twostage_jax.stats.arms import Predictions, pair
from twostage_jax.stats.intervals import Resampler

ALL = np.ones(1)


def predictions(right, groups=None, labels=None, seed=0):
    """Predictions of two classes that are correct where requested."""
    right = np.asarray(right, bool)
    labels = np.zeros(len(right), int) if labels is None else np.asarray(labels)
    said = np.where(right, labels, 1 - labels)
    return arms_scored.predictions(labels, said, groups, seed=seed)


def study(generator, chance, seeds=3, patients=12, patches=20):
    """Seeds of an arm whose patches are right with the given chance."""
    groups = np.repeat(np.arange(patients), patches)
    labels = np.tile([0, 1], patients * patches // 2)
    return [
        predictions(generator.random(len(groups)) < chance, groups, labels, seed)
        for seed in range(seeds)
    ]


def accuracy_of(arm, resamples):
    """The resamples of an arm's accuracy."""
    return sampler_of({"arm": arm}, "accuracy", resamples)


def test_a_class_that_does_not_occur_is_left_out():
    matrix = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert metrics.balanced_accuracy(matrix) == pytest.approx((3 / 4 + 1) / 2)
    assert metrics.macro_f1(matrix) == pytest.approx((6 / 7 + 4 / 5) / 2)


def test_counts_by_hand():
    arm = predictions([1, 0, 1, 1], ["p", "p", "q", "q"], [0, 1, 1, 0])
    paired = pair({"arm": [arm]})
    assert paired.groups == ("p", "q")
    assert paired.cells[0, 0].tolist() == [[[1, 0], [1, 0]], [[1, 0], [0, 1]]]


def test_examples_are_paired_by_id_not_by_position():
    one = predictions([1, 0, 1, 1], ["p", "p", "q", "q"], [0, 1, 1, 0])
    order = [2, 0, 3, 1]
    fields = ("ids", "groups", "labels", "probabilities")
    other = Predictions(*(getattr(one, field)[order] for field in fields))
    paired = pair({"a": [one], "b": [other]})
    np.testing.assert_array_equal(paired.cells[0], paired.cells[1])
    np.testing.assert_array_equal(paired.right[0], paired.right[1])


def test_resamples_agree_with_scipy():
    generator = np.random.default_rng(1)
    right = generator.random(60) < 0.7
    sampler = accuracy_of([predictions(right)], 20_000)
    reference = stats.bootstrap(
        (right,), np.mean, n_resamples=20_000, method="percentile", rng=generator
    )
    found = sampler.resampled[:, 0]
    assert found.std() == pytest.approx(reference.standard_error, rel=0.03)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx(
        reference.confidence_interval, abs=1 / 60 + 1e-9
    )


def test_patients_are_resampled_whole():
    # Two kinds of patients, all right or all wrong: n patients are n values.
    right = np.repeat([1, 1, 1, 0, 0, 1, 0, 1], 50)
    groups = np.repeat(np.arange(8), 50)
    sampler = accuracy_of([predictions(right, groups)], 20_000)
    expected = np.sqrt(5 / 8 * 3 / 8 / 8)
    assert sampler.resampled.std() == pytest.approx(expected, rel=0.03)


def test_jackknife_of_equal_groups_is_the_textbook_variance():
    right = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    sampler = accuracy_of([predictions(right)], 100)
    effective = 1 / (sampler.shares**2).sum()
    variance, freedom = intervals.jackknife(sampler, ALL, effective)
    assert variance == pytest.approx(right.var(ddof=1) / 10)
    assert freedom == pytest.approx(9)


def test_seeds_alone_give_the_variance_of_their_mean():
    groups = np.repeat(np.arange(6), 4)
    levels = (1, 2, 2, 4)
    arm = [
        predictions(np.tile(np.arange(4) < level, 6), groups, seed=seed)
        for seed, level in enumerate(levels)
    ]
    sampler = accuracy_of(arm, 100)
    variance, freedom = intervals.jackknife(sampler, ALL, 6)
    assert variance == pytest.approx(np.var(np.array(levels) / 4, ddof=1) / 4)
    assert freedom == pytest.approx(3)


def test_score_interval_by_hand():
    right = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    found = interval([predictions(right)], "accuracy")
    # The jackknife variance is the larger, 0.7 * 0.3 / 9: that of 9 examples. At the ends
    # of the interval, 0.7 is as far away as the t quantile allows.
    reach = stats.t.ppf(0.975, 9) ** 2 / 9
    expected = sorted(np.roots([1 + reach, -2 * 0.7 - reach, 0.7**2]))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.estimate == pytest.approx(0.7)


def test_nearly_perfect_score_has_an_interval_that_says_something():
    right = np.ones(200, int)
    right[7] = 0
    found = interval([predictions(right)], "accuracy")
    # Clopper and Pearson's interval of 199 successes in 200.
    low, high = stats.binomtest(199, 200).proportion_ci()
    assert found.low == pytest.approx(low, abs=0.005)
    assert found.high == pytest.approx(high, abs=0.001)


def test_same_seed_same_numbers():
    arms = {"a": study(np.random.default_rng(0), 0.8)}
    arms["b"] = study(np.random.default_rng(1), 0.85)
    first = compare(arms, resamples=500)
    assert first == compare(arms, resamples=500)


def test_p_value_and_interval_tell_the_same():
    outcomes = set()
    for seed in range(40):
        generator = np.random.default_rng(seed)
        arms = {"a": study(generator, 0.8), "b": study(generator, 0.85)}
        (found,) = compare(arms, resamples=1000)
        excluded = not found.low <= 0 <= found.high
        if abs(found.p_value - 0.05) > 0.005:
            assert excluded == (found.p_value < 0.05)
        outcomes.add(excluded)
    assert outcomes == {True, False}


def sampled(estimate, error, resampled):
    """One seed of eight patients alike, with a jackknife error and given resamples."""
    pulls = error / np.sqrt(7) * np.resize([1, -1], (8, 1, 1))
    return SimpleNamespace(
        sample=np.array([[estimate]]),
        without=estimate + pulls,
        resampled=np.asarray(resampled)[:, None],
        shares=np.full(8, 1 / 8),
        reason="",
        training_sets=lambda weights: None,
    )


def test_skewed_resamples_give_one_answer_and_not_two():
    # t of 7 degrees of freedom is 2.36: by the error alone, 2 errors are not enough.
    above = sampled(0.05, 0.025, 0.01 + 0.04 * -np.log(np.linspace(0.001, 1, 1000)))
    found, p_value = intervals.difference_interval(above, ALL)
    assert found.low > 0 and p_value < 0.05
    # By the error alone 2.6 would be; but more resamples lie beyond zero than that.
    values = np.random.default_rng(0).normal(0.065, 0.02, 1000)
    values[:20] = -0.001
    found, p_value = intervals.difference_interval(sampled(0.065, 0.025, values), ALL)
    assert found.low < 0 < found.high and p_value > 0.05


def test_differences_are_later_minus_earlier_and_corrected():
    generator = np.random.default_rng(0)
    levels = {"a": 0.6, "b": 0.9, "c": 0.9}
    arms = {name: study(generator, level) for name, level in levels.items()}
    found = compare(arms, "accuracy", resamples=1000)
    assert [(one.first, one.second) for one in found] == [
        ("b", "a"),
        ("c", "a"),
        ("c", "b"),
    ]
    assert found[0].estimate == pytest.approx(0.3, abs=0.08)
    assert found[0].low > 0 and found[1].low > 0
    assert [one.p_holm for one in found] == intervals.holm(
        [one.p_value for one in found]
    )


def test_mcnemar_by_hand_and_against_statsmodels():
    first = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    second = np.array([0, 0, 0, 0, 0, 1, 1, 1], bool)
    # Five against one of six discordant: 2 * (6 + 1) / 64.
    assert intervals.mcnemar(first, second) == pytest.approx(14 / 64)
    assert intervals.mcnemar(first, first) == 1
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    table = sk.confusion_matrix(first, second)
    assert intervals.mcnemar(first, second) == pytest.approx(
        tables.mcnemar(table, exact=True).pvalue
    )


def test_holm_by_hand_and_against_statsmodels():
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.9, None, 0.01]) == [0.9, None, 0.02]
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    values = np.random.default_rng(0).random(6) / 10
    assert intervals.holm(list(values)) == pytest.approx(
        multitest.multipletests(values, method="holm")[1]
    )


def test_few_patients_give_a_score_and_no_interval():
    arm = [predictions([1, 0, 1, 1], ["p", "p", "q", "q"])]
    found = interval(arm, "accuracy")
    assert found.estimate == 0.75
    assert found.low is None and found.high is None
    assert "2 test groups" in found.reason


def test_a_class_of_one_patient_gives_no_interval_of_a_mean_over_classes():
    groups = np.repeat(np.arange(8), 4)
    labels = (groups == 0).astype(int)
    right = np.random.default_rng(0).random(32) < 0.7
    arm = [predictions(right, groups, labels)]
    found = interval(arm)
    assert found.low is None and "class 1 occurs in 1" in found.reason
    assert interval(arm, "accuracy").low is not None


def test_perfect_and_equal_arms_have_no_interval():
    perfect = [predictions(np.ones(20), np.repeat(np.arange(10), 2))]
    found = interval(perfect, "accuracy")
    assert found.estimate == 1 and found.low is None and "every patient" in found.reason
    (found,) = compare({"a": perfect, "b": perfect}, "accuracy")
    assert found.estimate == 0 and found.low is None and found.p_value == 1


def test_what_cannot_be_paired_is_named():
    arm = study(np.random.default_rng(0), 0.8)
    with refused_at("b"):
        pair({"a": arm, "b": arm[:2]})
    with refused_at("a"):
        pair({"a": [arm[0], arm[0]]})
    with refused_at("a"):
        moved = dataclasses.replace(arm[1], groups=np.roll(arm[1].groups, 3))
        pair({"a": [arm[0], moved]})
    with refused_at("macrof1"):
        interval(arm, "macrof1")
    with refused_at("b"):
        pair({"a": arm, "b": []})


def test_intervals_cover_and_the_test_keeps_its_level():
    module = experiment("simulated_studies")
    scenario = module.Scenario()
    known = module.measure(scenario, "balanced_accuracy", 400, 500, seed=1)
    null = module.measure(
        dataclasses.replace(scenario, level=(2.5, 2.5)),
        "balanced_accuracy",
        400,
        500,
        seed=2,
    )
    # 400 studies: three Monte Carlo errors of 1.1 points around 93 to 97 %.
    assert 0.90 <= known["score"] <= 1
    assert 0.91 <= known["difference"] <= 0.99
    assert 0.01 <= null["rejected"] <= 0.09
    assert known["given"] == null["given"] == 1


def test_area_under_a_curve_by_hand():
    n = [10, 100, 10_000]
    assert sum(0.7 * learning_curve.area_weights(n)) == pytest.approx(0.7)
    # One decade at a mean of 0.5, two at 0.75.
    assert np.dot([0.4, 0.6, 0.9], learning_curve.area_weights(n)) == pytest.approx(
        2 / 3
    )


def test_patches_to_match_by_hand():
    n = [10, 100, 1000]
    scratch, other = np.array([0.5, 0.7, 0.8]), np.array([0.45, 0.75, 0.9])
    found = learning_curve.patches_to_match(scratch, other, n)
    # Below the smallest; half-way between 100 and 1000 in the logarithm; above all.
    assert found.tolist() == pytest.approx([0, 10**2.5, np.inf])
    assert [learning_curve.describe_size(value, n) for value in found] == [
        "no more than 10",
        "316",
        "more than 1,000",
    ]


def test_the_interval_of_a_matching_size_is_widened_for_few_patients():
    # At the smaller size the arm scores 0.5 to 0.6, which 'scratch' reaches at 10 to 100.
    share = np.linspace(0, 1, 2000)
    curves = np.tile([0.5, 0.6, 0.55, 0.6], (2000, 1))
    curves[:, 2] += 0.1 * (share - 0.5)
    sampler = SimpleNamespace(
        sample=curves[[1000]].T,
        resampled=curves,
        without=np.tile(curves[[1000]].T, (8, 1, 1)),
        shares=np.full(8, 1 / 8),
        reason="",
        training_sets=lambda weights: None,
    )
    (found, _) = learning_curve.matches(sampler, [10, 100], 0, 1)
    assert found.value == pytest.approx(10**1.5, rel=0.01)
    # The percentiles that reach as far as a t interval of eight patients does.
    tail = stats.norm.sf(np.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    expected = (10 ** (1 + tail), 10 ** (2 - tail))
    assert (found.low, found.high) == pytest.approx(expected, rel=0.005)
    assert tail < 0.006 and found.low < 10**1.02


def test_a_curve_that_falls_is_made_monotone_first():
    # The size that matches a score is where the isotonic curve reaches it.
    sizes, curves = np.arange(1, 7), np.random.default_rng(0).random((20, 6))
    for curve in curves:
        risen = isotonic_regression(curve)
        (goal,) = np.diff(risen[[0, -1]]) / 2 + risen[0]
        if goal > risen[0]:
            matched = learning_curve.patches_to_match(curve, np.full(6, goal), sizes)
            at = np.interp(np.log(matched[0]), np.log(sizes), risen)
            assert at == pytest.approx(goal)
    n = [10, 100, 1000]
    scratch, other = np.array([0.5, 0.8, 0.7]), np.array([0.75, 0.75, 0.76])
    assert learning_curve.patches_to_match(scratch, other, n).tolist() == pytest.approx(
        [100, 100, np.inf]
    )


def test_size_study_of_an_arm_that_needs_a_tenth():
    generator = np.random.default_rng(0)
    levels = {10: 0.6, 100: 0.75, 1000: 0.9}
    arms = {
        "scratch": {n: study(generator, p, patches=60) for n, p in levels.items()},
        "two_stage": {
            n: study(generator, levels.get(10 * n, 0.95), patches=60) for n in levels
        },
    }
    found = learning_curve.size_study(arms, resamples=1000)
    first, middle, last = found.matches["two_stage"]
    assert 70 < first.value < 140 and first.low < first.value < first.high
    assert 700 < middle.value
    assert np.isinf(last.value) and last.text.startswith("more than 1,000")
    gain = found.area_gains["two_stage"]
    assert gain.low > 0.05 and gain.p_value < 0.001
    scores = [one.estimate for one in found.scores["scratch"]]
    assert found.areas["scratch"].estimate == pytest.approx(
        np.dot(scores, learning_curve.area_weights(found.n))
    )


def shared_patients(training, seed, level=(2.0, 2.0), **scenario):
    """A sampler of a simulated study whose training sets are patients of the study."""
    module = experiment("simulated_studies")
    scenario = module.Scenario(level=level, folds=2, training=training, **scenario)
    generator = np.random.default_rng((11, seed))
    simulated = module.simulate(scenario, generator)
    paired = module.predicted(scenario, generator, simulated)
    return Resampler(metrics.metric(paired, "balanced_accuracy"), 200, seed)


def test_training_sets_of_the_same_patients_are_in_the_interval():
    hits = {"these": 0, "new": 0}
    rejected, studies = 0, 120
    for seed in range(studies):
        sampler = shared_patients(0.5, seed, patients=20, seeds=6, patches=15)
        found, p_value = intervals.difference_interval(sampler, np.array([1, -1]))
        hits["these"] += found.these[0] <= 0 <= found.these[1]
        hits["new"] += found.low <= 0 <= found.high
        rejected += p_value < 0.05
        assert found.low <= found.these[0] and found.these[1] <= found.high
        assert (p_value < 0.05) == (found.low > 0 or found.high < 0)
    # Equal arms. Effects of the patients that every fold and seed trains on are missing
    # from an interval over test patients and seeds alone; Monte Carlo error 2 points.
    assert hits["these"] < 0.8 * studies
    assert 0.90 * studies < hits["new"]
    assert rejected < 0.1 * studies


def test_variance_of_training_sets_by_its_definition():
    generator = np.random.default_rng(2)
    seeds, patients, folds, trained = 3, 9, 3, 0.5
    drawn = generator.permuted(np.tile(np.arange(patients) % folds, (seeds, 1)), axis=1)
    shares = generator.dirichlet(np.full(patients, 5.0))
    cells = [(p, s) for p in range(patients) for s in range(seeds)]

    def shared(one, other):
        """Fraction of patients that two training sets share, by counting."""
        (p, s), (q, t) = one, other
        if s == t and drawn[s, p] == drawn[s, q]:
            return 1.0
        both = (drawn[s] != drawn[s, p]) & (drawn[t] != drawn[t, q])
        kept = trained / (1 - 1 / folds)
        return kept**2 * both.sum() / (trained * patients)

    # Without the mean of each seed, by share, and then without that of each patient.
    centre = np.kron(
        np.eye(patients) - shares, np.eye(seeds) - np.full((seeds, seeds), 1 / seeds)
    )
    effect = centre @ [[shared(one, other) for other in cells] for one in cells]
    effect, noise = effect @ centre.T, centre @ centre.T
    pairs = [(i, j) for i, j in np.ndindex(effect.shape) if cells[i][0] != cells[j][0]]
    weights = [(shares[cells[i][0]] * shares[cells[j][0]]) ** 0.25 for i, j in pairs]

    def by_hand(scores):
        scores = (scores - scores.mean(1, keepdims=True)).ravel()
        products = np.outer(scores, scores)
        rows = np.array(
            [[f[pair] for f in (effect, noise, products)] for pair in pairs]
        )
        rows *= np.array(weights)[:, None]
        return trained * np.linalg.lstsq(rows[:, :2], rows[:, 2], rcond=None)[0][0]

    sets = intervals.TrainingSets(drawn, trained, np.ones(patients, bool), shares)
    of_sets = generator.normal(size=(seeds, folds))
    scores = np.take_along_axis(of_sets, drawn, axis=1).T
    found = sets.variance(shares[:, None] * scores)
    assert found == pytest.approx(by_hand(scores)) and found > 0
    # Patients without anything in common: an effect is not ruled out all the same.
    scores = generator.normal(size=(patients, seeds))
    found = sets.variance(shares[:, None] * scores)
    assert by_hand(scores) < found < 10


REDRAWN = (np.arange(8) % 2, np.arange(8) // 4)


@pytest.mark.parametrize(
    ("folds", "trained", "known"),
    [
        (REDRAWN, 4, True),
        ((None, None), 4, False),
        (REDRAWN[:1], 4, False),
        ((REDRAWN[0], REDRAWN[0]), 4, False),
        (REDRAWN, None, False),
        (REDRAWN, 9, False),
    ],
)
def test_new_training_patients_need_folds_of_several_seeds(folds, trained, known):
    generator = np.random.default_rng(0)
    arm = [
        dataclasses.replace(
            predictions(generator.random(8) < 0.7, range(8), seed=seed),
            folds=of_seed,
            trained=trained,
        )
        for seed, of_seed in enumerate(folds)
    ]
    found = interval(arm, "accuracy", resamples=200)
    assert found.low is not None and (found.these is not None) == known


def test_the_least_detectable_difference_is_found_four_times_in_five():
    right = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1])
    other = np.array([1, 1, 1, 0, 0, 0, 1, 0, 0, 1])
    (found,) = compare(
        {"a": [predictions(other)], "b": [predictions(right)]}, "accuracy"
    )
    error = (right - other).std(ddof=1) / np.sqrt(10)
    assert found.detectable == pytest.approx(
        (stats.t.ppf(0.975, 9) + stats.t.ppf(0.8, 9)) * error
    )
