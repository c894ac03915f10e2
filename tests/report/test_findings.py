"""The answer in words, on simulated studies with known answers."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from study_files import reported, tables_of, write_study

from twostage_jax.report import analysis, study_table
from twostage_jax.report import text as findings
from twostage_jax.report.text import size_words, summary
from twostage_jax.stats.intervals import Difference, holm


def told(folder, chances, resamples=2000, **study):
    """Returns the paragraphs of a study, and its analysis."""
    study = study_table.load([write_study(folder, chances, **study)])
    found = analysis.analyse(study, resamples)
    return summary(study, found), found


def test_a_difference_that_was_put_in_is_found_with_its_size(tmp_path):
    chances = {"scratch": 0.72, "two_stage": 0.87}
    (answer, basis), found = told(tmp_path, chances)
    one = found.full.scores.differences["balanced_accuracy"][0]
    assert 0.11 < one.estimate < 0.19 and one.low < 0.15 < one.high
    size, low, high = (f"{100 * x:.1f}" for x in (one.estimate, one.low, one.high))
    assert answer == (
        f"Two-stage beats scratch by {size} points in balanced accuracy (95 % CI {low} "
        f"to {high}; p < 0.001)."
    )
    assert "3 seeds, 16 test patients (480 test patches)" in basis
    assert "1,600 target training patches of 20 patients" in basis


def test_a_loss_is_called_a_loss(tmp_path):
    (answer, _), found = told(tmp_path, {"scratch": 0.87, "two_stage": 0.72})
    one = found.full.scores.differences["balanced_accuracy"][0]
    assert answer.startswith("Two-stage is worse than scratch by ")
    # The interval of the loss, positive as the loss is.
    assert f"95 % CI {-100 * one.high:.1f} to {-100 * one.low:.1f};" in answer


def test_no_difference_is_called_not_shown_and_never_none(tmp_path):
    chances = {"scratch": 0.8, "natural": 0.8, "two_stage": 0.8}
    (answer, others, _), _ = told(tmp_path, chances)
    assert answer.startswith("Two-stage and scratch do not differ significantly: ")
    assert "gains above" in answer.lower() and "losses above" in answer
    assert "Holm-corrected over 3 pairs" in answer
    assert "not significant: two-stage minus natural" in others
    assert "beats" not in answer + others


def test_one_seed_is_never_a_verdict_on_the_method(tmp_path):
    chances = {"scratch": 0.6, "natural": 0.6, "two_stage": 0.95}
    (answer, others, basis), _ = told(tmp_path, chances, seeds=(0,))
    assert answer.endswith(
        "with a single seed the effect cannot be separated from chance."
    )
    assert "two-stage minus natural" in others
    assert "beats" not in answer + others and "1 seed," in basis


def test_too_few_patients_give_scores_and_no_interval(tmp_path):
    chances = {"scratch": 0.6, "natural": 0.7, "two_stage": 0.95}
    paragraphs, found = told(tmp_path, chances, patients=3)
    text = " ".join(paragraphs)
    assert "3 test patients (90 test patches)" in paragraphs[-1]
    assert "3 test groups" in paragraphs[0]
    assert "CI" not in text and "p =" not in text and "beats" not in text
    assert found.full.scores.intervals["accuracy"]["scratch"].low is None


def test_a_class_of_few_patients_is_named_and_accuracy_stands_in(tmp_path):
    # 16 patients, but only two hold the rare class.
    folder = write_study(tmp_path, {"scratch": 0.6, "two_stage": 0.9})
    study = study_table.load([folder])
    rare = ("p00", "p01")
    records = {}
    for place, record in study.records.items():
        known = record.predictions
        labels = known.labels.copy()
        labels[(labels == 1) & [g not in rare for g in known.groups]] = 0
        changed = dataclasses.replace(known, labels=labels)
        records[place] = dataclasses.replace(record, predictions=changed)
    study = dataclasses.replace(study, records=records)
    found = analysis.analyse(study, 2000)
    answer, accuracy, *_ = summary(study, found)
    assert "class 'ground glass' occurs in 2 test groups" in answer
    assert accuracy.startswith("By plain accuracy: Two-stage beats scratch by ")
    assert " in accuracy (95 % CI " in accuracy


def test_data_without_patients_says_so(tmp_path):
    paragraphs, found = told(
        tmp_path, {"scratch": 0.7, "two_stage": 0.9}, patients=None, seeds=(0, 1)
    )
    assert "The data do not identify patients" in " ".join(paragraphs)
    assert found.by_region is None


def test_a_single_arm_is_compared_with_nothing(tmp_path):
    (answer, _), _ = told(tmp_path, {"natural": 0.8})
    assert answer.startswith("Natural, the only arm, reached a balanced accuracy of ")
    assert "95 % CI" in answer


def test_at_which_sizes_the_difference_holds(tmp_path):
    chances = {"scratch": 0.7, "two_stage": 0.82}
    paragraphs, found = told(
        tmp_path, chances, fractions=(1.0, 0.5, 0.25), seeds=range(5)
    )
    sizes, area = size_words(found)
    assert not any(text in paragraphs for text in (sizes, area))
    assert (
        "two-stage is ahead of scratch at 400 (+" in sizes and " and 1,600 (+" in sizes
    )
    assert "is not significant at" not in sizes
    assert area.startswith("Over all sizes ")
    # Half the patches cost 8 points and two-stage is worth 12: one halving and a half.
    match = found.size_study.matches["two_stage"][0]
    assert match.low < 400 * 2**1.5 < match.high
    needed = f"{match.value:,.0f} patches (95 % CI {match.low:,.0f} to "
    assert f"To match two-stage trained on 400 patches, scratch needs {needed}" in area
    assert found.size_study.n == (400.0, 800.0, 1600.0)


def test_an_area_that_is_not_shown_to_differ_is_not_told_as_a_gain(tmp_path):
    chances = {"scratch": 0.8, "natural": 0.8, "two_stage": 0.8}
    _, found = told(tmp_path, chances, fractions=(1.0, 0.5))
    sizes, area = size_words(found)
    assert "Holm-corrected over 2 arms" in area
    assert "This difference is not significant." in area
    gains = found.size_study.area_gains
    corrected = holm([one.p_value for one in gains.values()])
    assert f"p = {dict(zip(gains, corrected, strict=True))['two_stage']:.3f}" in area


def test_what_the_intervals_are_over_is_said(tmp_path):
    chances = {"scratch": 0.7, "two_stage": 0.9}
    folder = write_study(tmp_path / "one", chances, folds=2)
    study = study_table.load([folder])
    basis = summary(study, analysis.analyse(study, 500))[1]
    assert "in 2 folds, and 1,600 target training patches" in basis
    assert "these training patients only" in basis
    records = {
        place: dataclasses.replace(record, n_train=1500 + 100 * place.fold)
        for place, record in study.records.items()
    }
    study = dataclasses.replace(study, records=records)
    basis = summary(study, analysis.analyse(study, 500))[1]
    assert "and on average 1,550 (1,500–1,600) target training patches" in basis
    folder = write_study(tmp_path / "redrawn", chances, folds=2, redrawn=True)
    study = study_table.load([folder])
    answer, basis = summary(study, analysis.analyse(study, 500))[:2]
    assert "include new training patients" in basis and "only" not in basis
    assert "for new training patients, " in answer


PRIMARY = ("two_stage", "scratch", "balanced_accuracy")


def test_the_primary_endpoint_comes_first_and_needs_no_correction(tmp_path):
    chances = {"scratch": 0.78, "natural": 0.8, "two_stage": 0.82}
    study = {"fractions": (1.0, 0.5), "seeds": (0, 1, 2, 3)}
    paragraphs, found = told(tmp_path, chances, primary=PRIMARY, **study)
    one = found.primary.difference
    gain = found.size_study.area_gains["two_stage"]
    # Over all sizes, from the same resamples as the size study.
    assert one.estimate == pytest.approx(gain.estimate)
    assert one.p_value == pytest.approx(gain.p_value, abs=0.02)
    assert found.primary.sizes == 2 and one.detectable > 0
    low, high, least = (f"{100 * x:.1f}" for x in (one.low, one.high, one.detectable))
    assert f"95 % CI {low} to {high}" in paragraphs[0]
    assert f"{least} points" in paragraphs[0] and "Holm" not in paragraphs[0]
    assert "Exploratory" in paragraphs[1]
    # Said once.
    assert not any("area under the learning curve" in text for text in paragraphs)


def test_gains_that_the_data_exclude_are_named(tmp_path):
    chances = {"scratch": 0.8, "two_stage": 0.8}
    (answer, *_), found = told(tmp_path, chances, primary=PRIMARY)
    one = found.primary.difference
    assert one.p_value > 0.05 and one.p_holm == one.p_value
    assert f"ains above {100 * one.high:.1f} points" in answer
    assert f"losses above {-100 * one.low:.1f} points" in answer


@pytest.mark.parametrize(
    "primary",
    [
        ("two_stage", "texture", "accuracy"),
        ("two_stage", "scratch", "auroc_of_all"),
        # Higher in the worse arm.
        ("two_stage", "scratch", "brier"),
    ],
)
def test_a_primary_endpoint_that_cannot_be_computed_says_so(tmp_path, primary):
    chances = {"scratch": 0.7, "two_stage": 0.9}
    (answer, others, *_), found = told(tmp_path, chances, primary=primary)
    assert found.primary.reason and found.primary.reason in answer
    assert "beats" not in answer and "beats" in others


def test_metrics_are_named_where_they_differ(tmp_path):
    primary = ("two_stage", "scratch", "patient_accuracy")
    chances = {"scratch": 0.7, "natural": 0.8, "two_stage": 0.9}
    (answer, others, *_), found = told(
        tmp_path, chances, primary=primary, fractions=(1.0, 0.5)
    )
    assert (
        "in accuracy of patients averaged over the learning curve (2 sizes)" in answer
    )
    assert "points of balanced accuracy" in others
    words = findings.influence_words(found.by_patient)
    assert "in accuracy of patients averaged over the learning curve (2 sizes)" in words
    assert "By balanced accuracy of a patient's own patches, two-stage" in words


def test_a_class_without_test_patches_is_named(tmp_path):
    study = study_table.load([write_study(tmp_path, {"scratch": 0.8})])
    scores = analysis.analyse(study, 200).full.scores
    assert findings.absent_classes(scores) == ""
    first = scores.paired.labels.max()
    left = dataclasses.replace(
        scores.paired,
        labels=np.where(scores.paired.labels == first, 0, scores.paired.labels),
    )
    words = findings.absent_classes(dataclasses.replace(scores, paired=left))
    assert repr(scores.class_names[first]) in words
    assert f"the other {len(scores.class_names) - 1} classes" in words


def test_without_a_primary_endpoint_everything_is_exploratory(tmp_path):
    chances = {"scratch": 0.7, "natural": 0.8, "two_stage": 0.9}
    paragraphs, found = told(tmp_path, chances)
    assert found.primary is None
    assert any(text.startswith("Exploratory, because no") for text in paragraphs)


def test_gains_at_two_sizes_are_compared_with_each_other(tmp_path):
    chances = {"scratch": 0.8, "two_stage": 0.85}
    _, found = told(tmp_path, chances, fractions=(1.0, 0.25))
    change = found.size_study.trends["two_stage"]
    small, large = (
        next(one for one in size.scores.differences["balanced_accuracy"]).estimate
        for size in (found.sizes[-1], found.sizes[0])
    )
    assert change.estimate == pytest.approx(small - large)
    sizes = size_words(found)[0]
    assert f"CI {100 * change.low:.1f}".replace("-", "−") in sizes
    verdict = sizes.rsplit("minus", 1)[1]
    assert ("not significant" in verdict) == (change.p_value >= 0.05)


@pytest.mark.parametrize(
    ("p_value", "p_holm", "expected"),
    [
        (0.01, 0.03, ")."),
        (0.02, 0.06, ", not significant after correction over 3 arms)."),
        (0.2, 0.6, ", not significant)."),
    ],
)
def test_a_gain_that_changes_with_the_size_is_tested_over_all_arms(
    tmp_path, p_value, p_holm, expected
):
    chances = {"scratch": 0.7, "natural": 0.75, "texture": 0.75, "two_stage": 0.8}
    _, found = told(tmp_path, chances, 200, fractions=(1.0, 0.5), patches=9)
    trends = dict(found.size_study.trends)
    trends["two_stage"] = dataclasses.replace(
        trends["two_stage"], low=-0.1, high=-0.012, p_value=p_value, p_holm=p_holm
    )
    changed = dataclasses.replace(found.size_study, trends=trends)
    sizes = size_words(dataclasses.replace(found, size_study=changed))[0]
    assert sizes.endswith(f"(95 % CI −10.0 to −1.2{expected}")


def test_a_difference_lost_in_the_correction_says_so(tmp_path):
    _, found = told(tmp_path, {"scratch": 0.8, "natural": 0.8, "two_stage": 0.8})
    one = difference(0.04, 0.006, 0.07, 0.026, 0.1)
    text = findings.sentence(one, found.full.scores)
    assert "beats" not in text and "not significant" in text
    assert "95 % CI 0.6 to 7.0" in text and "p = 0.100, Holm-corrected" in text
    assert "p = 0.026" in text


def difference(estimate, low, high, p_value, p_holm, arms=("two_stage", "scratch")):
    first, second = arms
    return Difference(
        estimate, low, high, first=first, second=second, metric="balanced_accuracy",
        p_value=p_value, p_holm=p_holm,
    )  # fmt: skip


def loss(p_value, p_holm):
    return difference(-0.04, -0.07, -0.006, p_value, p_holm)


def test_the_interval_of_a_loss_has_the_sign_of_the_words(tmp_path):
    _, found = told(tmp_path / "a", {"scratch": 0.8, "two_stage": 0.8})
    scores = found.full.scores
    worse, leaning = (
        findings.sentence(loss(0.026, holm), scores) for holm in (0.026, 0.1)
    )
    assert "is worse than scratch by 4.0 points" in worse
    assert "scored 4.0 points lower than scratch in balanced accuracy" in leaning
    _, found = told(tmp_path / "b", {"scratch": 0.8, "two_stage": 0.8}, seeds=(0,))
    one_seed = findings.sentence(loss(0.026, 0.026), found.full.scores)
    assert "4.0 points lower than scratch in balanced accuracy" in one_seed
    for text in (worse, leaning, one_seed):
        assert "(loss: 95 % CI 0.6 to 7.0" in text
    # 'First minus second' has a sign, and so has its interval.
    unsure = findings.sentence(loss(0.2, 0.2), scores)
    assert "is −4.0 points in balanced accuracy (95 % CI −7.0 to −0.6" in unsure


def test_the_interval_of_a_tiny_loss_has_the_sign_of_the_words(tmp_path):
    _, found = told(tmp_path, {"scratch": 0.8, "two_stage": 0.8})
    scores, ends = found.full.scores, (-0.0007, -0.0001)
    worse, leaning = (
        findings.sentence(difference(-0.0004, *ends, 0.01, p), scores)
        for p in (0.01, 0.1)
    )
    assert "is worse than scratch by less than 0.1 points in" in worse
    assert "(loss: 95 % CI 0.0 to 0.1;" in worse
    # No word gives the sign, so the interval is of the first arm minus the second.
    assert "equal in balanced accuracy to a tenth of a point (95 % CI −0.1 to 0.0" in (
        leaning
    )


def test_an_area_lost_has_a_positive_interval(tmp_path):
    chances = {"scratch": 0.9, "two_stage": 0.7}
    _, found = told(tmp_path, chances, fractions=(1.0, 0.5))
    gain = found.size_study.area_gains["two_stage"]
    assert gain.high < 0
    ends = f"{-100 * gain.high:.1f} to {-100 * gain.low:.1f}"
    assert f"lower than scratch (loss: 95 % CI {ends}" in size_words(found)[-1]


@pytest.mark.parametrize(
    ("estimate", "low", "high", "alone", "p_value", "expected"),
    [
        (0.1, 0.05, 0.2, 0.0005, 0.001, "better"),
        (-0.1, -0.2, -0.05, 0.01, 0.049, "worse"),
        (0.1, 0.01, 0.2, 0.02, 0.05, "leaning"),
        (0.1, -0.1, 0.2, 0.4, 0.4, "not shown"),
        (0.1, None, None, None, None, "unknown"),
    ],
)
def test_verdicts(estimate, low, high, alone, p_value, expected):
    one = difference(estimate, low, high, alone, p_value)
    assert findings.verdict(one, p_value) == expected
    mirrored = {"better": "worse", "worse": "better"}
    turned = findings.verdict(one.turned(), p_value)
    assert turned == mirrored.get(expected, expected)


def test_missing_rows_are_part_of_the_first_words(tmp_path):
    folder = write_study(tmp_path, {"scratch": 0.7, "two_stage": 0.9})
    study = study_table.load([folder])
    records = dict(list(study.records.items())[:-1])
    missing = tuple(set(study.records) - set(records))
    study = dataclasses.replace(study, records=records, missing=missing)
    report, _ = reported(study)
    text = " ".join(report.summary)
    assert "2 seeds" in text and "1 row is missing; see below." in text
    assert "if every arm has all of its folds" in report.warnings[0]


def test_two_stage_is_compared_with_the_best_baseline(tmp_path):
    chances = {"scratch": 0.75, "two_stage": 0.75}
    others = {"majority": 0.34, "descriptors": 0.9}
    paragraphs, found = told(tmp_path, chances, baselines=others)
    best, worst = found.full.baselines
    assert (best.name, worst.name) == ("descriptors", "majority")
    assert best.difference.first == "two_stage"
    assert 0.85 < best.score.estimate < 0.95
    assert -0.2 < best.difference.estimate < -0.1 and best.difference.high < 0
    assert "two-stage is worse than descriptors (best of 2" in paragraphs[1]
    assert f"by {-100 * best.difference.estimate:.1f} (" in paragraphs[1]


def test_a_baseline_comparison_that_rests_on_one_patient_says_so(tmp_path):
    chances = {"scratch": 0.7, "two_stage": 0.9}
    seen = {}
    for skill in (0.3, 0.9):
        (_, others, *_), found = told(
            tmp_path / str(skill), chances, baselines={"descriptors": skill}
        )
        (one,) = found.full.baselines
        champion = found.full.scores.arms[found.champion]
        study = study_table.load([tmp_path / str(skill)])
        own = [study.joined("descriptors", seed.seed, 1.0) for seed in champion]
        gains = [
            np.mean(
                [
                    score(a, patient) - score(b, patient)
                    for a, b in zip(champion, own, strict=True)
                ]
            )
            for patient in np.unique(champion[0].groups)
        ]
        assert one.without == pytest.approx((min(gains), max(gains)))
        seen[skill] = "depends on single patients" in others
        assert seen[skill] == (min(gains) <= 0 <= max(gains))
    assert not seen[0.3]


def score(predictions, without):
    """Balanced accuracy without one patient, by scikit-learn."""
    kept = predictions.groups != without
    return balanced_accuracy_score(
        predictions.labels[kept], predictions.probabilities[kept].argmax(1)
    )


def test_a_baseline_that_is_far_behind_is_beaten(tmp_path):
    chances = {"scratch": 0.75, "two_stage": 0.9}
    others = {"mean_grey": 0.4, "descriptors": 0.6}
    (_, beaten, *_), found = told(tmp_path, chances, baselines=others)
    assert found.full.baselines[0].difference.p_value < 0.001
    assert "two-stage beats descriptors (best of 2 baselines) by " in beaten


def test_baselines_are_a_table_at_every_size(tmp_path):
    chances = {"scratch": 0.75, "two_stage": 0.9}
    folder = write_study(
        tmp_path, chances, fractions=(1.0, 0.5), baselines={"descriptors": 0.6}
    )
    report, _ = reported(folder)
    table = tables_of(report)["baselines"]
    assert [row[:2] for row in table.rows] == [
        [1.0, "descriptors"],
        [0.5, "descriptors"],
    ]
    # Holm over two comparisons: the smaller p-value is doubled.
    raw, corrected = zip(*(row[-2:] for row in table.rows), strict=True)
    assert corrected == tuple(holm(raw))


def test_summary_and_table_give_the_same_p_of_the_best_baseline(tmp_path):
    chances = {"scratch": 0.7, "two_stage": 0.78}
    folder = write_study(
        tmp_path,
        chances,
        fractions=(1.0, 0.5, 0.25, 0.1),
        baselines={"majority": 0.33, "mean_grey": 0.5, "descriptors": 0.75},
    )
    report, found = reported(folder, 2000)
    table = tables_of(report)["baselines"]
    expected = holm([row[-2] for row in table.rows])
    assert [row[-1] for row in table.rows] == expected and len(expected) == 12
    # The largest p of the full set, so uncorrected there; that of 12 is not significant.
    assert max(row[-2] for row in table.rows[:3]) == table.rows[0][-2] < 0.05
    assert expected[0] > 0.05
    assert found.full.baselines[0].name == table.rows[0][1] == "descriptors"
    others = report.summary[1]
    name = "descriptors (best of 3 baselines; p is corrected over 4 sizes)"
    assert f"not significant: two-stage minus {name}" in others
    assert f"; p = {expected[0]:.3f})" in others.split(name)[1].split(" and ")[0]


def test_a_study_without_baselines_says_nothing_of_them(tmp_path):
    paragraphs, found = told(tmp_path, {"scratch": 0.7, "two_stage": 0.8})
    assert not found.full.baselines
    assert not any("baseline" in text for text in paragraphs)
