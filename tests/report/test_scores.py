"""Scores at patch and at region level; how tables show and store values."""

import csv
import io

import arms_scored
import numpy as np
import pytest
from arms_scored import class_intervals, interval
from sklearn import metrics as sk
from study_files import CLASSES, reported, tables_of, write_study

from twostage_jax.report import analysis, score_tables, study_table, tables
from twostage_jax.report.tables import Column, Table
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions, pair, regions
from twostage_jax.stats.intervals import Interval
from twostage_jax.stats.learning_curve import Match

CHANCES = {"scratch": 0.7, "two_stage": 0.85}


def predictions(labels, groups, right, seed=0):
    """Predictions that are correct where requested, and otherwise the next class."""
    predicted = np.where(right, labels, (labels + 1) % 3)
    said = 0.1 + 0.7 * np.eye(3)[predicted]
    return arms_scored.predictions(labels, said, groups, seed=seed)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    return study_table.load([write_study(folder, CHANCES, seeds=(0, 1), patches=9)])


@pytest.fixture(scope="module")
def found(study):
    return analysis.analyse(study, 500)


def stored(table):
    """The rows of a table's CSV file, by column."""
    return list(csv.DictReader(io.StringIO(tables.csv_text(table))))


@pytest.mark.parametrize("level", [0, 1])
def test_both_levels_have_every_score_of_their_predictions(study, found, level):
    given = [study.joined("two_stage", seed, 1.0) for seed in (0, 1)]
    if level == 1:
        given = [regions(one) for one in given]
    expected = [metrics.scores(one.labels, one.probabilities) for one in given]
    mean = {name: np.mean([one[name] for one in expected]) for name in expected[0]}
    scores = found.levels[level]
    of_arm = stored(score_tables.scores_table(study, found, scores))[1]
    of_arm |= stored(score_tables.calibration_table(study, scores))[1]
    assert of_arm["arm"] == "two_stage"
    for title, name in {
        "balanced accuracy": "balanced_accuracy",
        "accuracy": "accuracy",
        "macro-F1": "macro_f1",
        "AUROC": "auroc",
        "ECE": "ece",
        "Brier": "brier",
    }.items():
        assert float(of_arm[title]) == pytest.approx(mean[name], abs=1e-9), title
    for title in ("balanced accuracy", "accuracy", "macro-F1", "AUROC", "Brier"):
        low, high = (float(of_arm[f"{title} {end}"]) for end in ("low", "high"))
        assert low < float(of_arm[title]) < high


def test_ensemble_is_the_mean_of_the_probabilities_of_an_example(tmp_path):
    folder = write_study(
        tmp_path, CHANCES, seeds=(0, 1, 2), folds=2, patches=9, redrawn=True
    )
    study = study_table.load([folder])
    scores = analysis.analyse(study, 500).full.scores
    (table,) = score_tables.ensemble_tables(study, scores)
    for line in stored(table):
        by_id, labels, single = {}, {}, []
        for seed in (0, 1, 2):
            one = study.joined(line["arm"], seed, 1.0)
            single.append(
                sk.balanced_accuracy_score(one.labels, one.probabilities.argmax(1))
            )
            for name, label, row in zip(
                one.ids, one.labels, one.probabilities, strict=True
            ):
                by_id.setdefault(name, []).append(row)
                labels[name] = label
        mean = [np.mean(rows, axis=0).argmax() for rows in by_id.values()]
        expected = sk.balanced_accuracy_score(list(labels.values()), mean)
        assert float(line["ensemble"]) == pytest.approx(expected)
        assert float(line["one network"]) == pytest.approx(np.mean(single))
        gain = float(line["ensemble minus one network"])
        assert gain == pytest.approx(expected - np.mean(single))
        assert float(line["ensemble low"]) < expected < float(line["ensemble high"])
    assert score_tables.OTHER_PATIENTS in table.note
    # There is one ensemble, so its variation over training patients is unknown.
    for ensemble, gain in scores.ensembles.values():
        assert ensemble.these is None and gain.these is None
    assert all(one.these for one in scores.intervals["balanced_accuracy"].values())


def test_one_seed_has_no_ensemble(tmp_path):
    study = study_table.load([write_study(tmp_path, CHANCES, seeds=(0,), patches=6)])
    scores = analysis.analyse(study, 200).full.scores
    assert score_tables.ensemble_tables(study, scores) == []


@pytest.mark.parametrize("level", [0, 1])
def test_both_levels_have_every_score_of_each_class(study, found, level):
    scores = found.levels[level]
    given = scores.arms["scratch"]
    lines = stored(score_tables.class_table(study, scores))
    assert [(one["class"], one["arm"]) for one in lines] == [
        (name, arm) for name in CLASSES for arm in CHANCES
    ]
    for k, line in enumerate(lines[::2]):
        for name in ("precision", "recall", "f1"):
            score = getattr(sk, f"{name}_score")
            seeds = [
                score(p.labels == k, p.probabilities.argmax(1) == k) for p in given
            ]
            title = "F1" if name == "f1" else name
            assert float(line[title]) == pytest.approx(np.mean(seeds))
        areas = [sk.roc_auc_score(p.labels == k, p.probabilities[:, k]) for p in given]
        assert float(line["AUROC"]) == pytest.approx(np.mean(areas))
        for title in ("precision", "recall", "F1", "AUROC"):
            low, high = (float(line[f"{title} {end}"]) for end in ("low", "high"))
            assert low < float(line[title]) < high
        counted = "test patches" if level == 0 else "test regions"
        assert int(line[counted]) == (given[0].labels == k).sum()


@pytest.mark.parametrize("level", [0, 1])
def test_confusion_counts_are_in_a_table_by_true_and_predicted_class(found, level):
    scores = found.levels[level]
    lines = stored(score_tables.confusion_table(scores))
    assert list(lines[0]) == ["arm", "true class", "predicted class", "count"]
    assert len(lines) == 2 * 3 * 3
    for arm, seeds in scores.arms.items():
        expected = sum(
            sk.confusion_matrix(one.labels, one.probabilities.argmax(1))
            for one in seeds
        )
        for line in lines:
            if line["arm"] == arm:
                true, said = (
                    CLASSES.index(line[f"{which} class"])
                    for which in ("true", "predicted")
                )
                assert int(line["count"]) == expected[true, said]


@pytest.mark.parametrize("level", [0, 1])
def test_notes_say_what_has_an_interval_and_what_a_spread(study, found, level):
    scores = found.levels[level]
    shown = (
        score_tables.scores_table(study, found, scores),
        score_tables.class_table(study, scores),
        score_tables.calibration_table(study, scores),
    )
    for table in shown:
        assert f"{('patch', 'region')[level]} level" in table.caption
        assert "95 % confidence intervals over test patients and seeds" in table.note
    assert "ECE: mean ± standard deviation over seeds; no interval" in shown[2].note


@pytest.mark.parametrize("train", [{"balance": True}, {"balance": False}, {}])
def test_probabilities_for_equal_class_frequencies_have_a_caveat(tmp_path, train):
    folder = write_study(tmp_path, CHANCES, patches=9, train=train)
    shown = tables_of(reported(folder)[0])
    for name in ("calibration", "region_calibration", "calibration_intercepts"):
        told = "train.balance" in shown[name].note
        assert told == bool(train.get("balance"))


def test_recall_is_the_accuracy_of_the_patients_that_have_the_class():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(12), 8)
    labels = np.where(groups < 7, np.arange(96) % 3, 0)
    arms = {
        arm: [
            predictions(labels, groups, generator.random(96) < chance, seed)
            for seed in (0, 1)
        ]
        for arm, chance in (("a", 0.6), ("b", 0.8))
    }
    found = class_intervals(pair(arms), resamples=500)
    for a, seeds in enumerate(arms.values()):
        for k in range(3):
            alone = [
                predictions(
                    one.labels[labels == k],
                    one.groups[labels == k],
                    (one.probabilities.argmax(1) == labels)[labels == k],
                    one.seed,
                )
                for one in seeds
            ]
            expected = interval(alone, "accuracy", resamples=500)
            recall = found[k]["recall"][a]
            assert recall.estimate == pytest.approx(expected.estimate)
            # The resamples are the same ones for all arms.
            assert (recall.low, recall.high) == pytest.approx(
                (expected.low, expected.high)
            )


def test_recall_of_a_class_of_few_patients_or_none_has_no_interval():
    groups = np.repeat(np.arange(8), 6)
    labels = np.where(groups < 4, np.arange(48) % 2, 0)
    right = np.random.default_rng(0).random(48) < 0.7
    paired = pair({"a": [predictions(labels, groups, right)]})
    often, rarely, never = class_intervals(paired, resamples=200)
    (recall,) = often["recall"]
    assert recall.low < recall.estimate < recall.high
    (recall,) = rarely["recall"]
    assert recall.estimate == pytest.approx(right[labels == 1].mean())
    assert recall.low is None
    assert recall.reason.startswith("class 1 occurs in 4 test groups")
    assert "recall" not in never and "auroc" not in never


def test_values_are_shown_rounded_and_stored_whole():
    columns = [
        Column("arm", "arm"), Column("score", "score"), Column("gain", "points"),
        Column("p", "p"), Column("n", "count"), Column("seeds", "spread"),
        Column("match", "match"),
    ]  # fmt: skip
    row = [
        "two_stage", Interval(0.51234, 0.4, 0.6), Interval(-0.02, None, None), 0.0004,
        1234.0, [0.5, 0.7], Match(10, 20.5, 0.0, np.inf, "20 (a to b)"),
    ]  # fmt: skip
    table = Table("t", "Caption", columns, [row, [None] * 7])
    shown = [c.show(v) for c, v in zip(columns, row, strict=True)]
    assert shown == [
        "two-stage", "51.2 (40.0 to 60.0)", "−2.0", "< 0.001", "1,234",
        "0.600 ± 0.141", "20 (a to b)",
    ]  # fmt: skip
    header, line, empty = csv.reader(io.StringIO(tables.csv_text(table)))
    assert line == [
        "two_stage", "0.51234", "0.4", "0.6", "-0.02", "", "", "0.0004", "1234.0",
        "0.6", str(np.std([0.5, 0.7], ddof=1)), "20.5", "0.0", "inf",
    ]  # fmt: skip
    assert len(header) == len(line) == len(empty) and set(empty) == {""}
    assert "| –" in tables.markdown(table)


@pytest.mark.parametrize(
    ("p_value", "expected"),
    [
        (0.0004, "< 0.001"),
        (0.0494, "0.049"),
        (0.0496, "0.0496"),
        (0.04996, "0.04996"),
        (0.05, "0.050"),
        (0.0504, "0.050"),
        (1.0, "1.000"),
    ],
)
def test_a_significant_p_value_is_never_shown_as_the_level(p_value, expected):
    assert tables.p_text(p_value) == expected


def test_agreement_is_undefined_where_true_fractions_do_not_vary():
    rng = np.random.default_rng(0)
    arms = {}
    for share in (2, 3):  # Patches of class 1 among the four of the last patient.
        labels = np.array([0, 0, 1, 1] * 7 + [1] * share + [0] * (4 - share))
        chances = rng.dirichlet((1, 1), len(labels))
        ids, groups = np.arange(32).astype(str), np.repeat(np.arange(8), 4).astype(str)
        one = Predictions(ids, groups, labels, chances, class_names=("a", "b"))
        scores = analysis.of_arms({"scratch": [one]}, 200)
        (_, arms[share]) = score_tables.patient_tables(scores)
    assert [row[4] for row in arms[2].rows] == [None, None]
    assert "same true fraction" in arms[2].note
    assert all(row[4].estimate is not None for row in arms[3].rows)
    assert "same true fraction" not in arms[3].note
