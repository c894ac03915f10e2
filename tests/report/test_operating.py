"""The section on operating points: thresholds of each model from its validation."""

import numpy as np
import pytest
from arms_scored import predictions
from study_files import write_study

from twostage_jax.report import operating, study_table
from twostage_jax.report.analysis import analyse
from twostage_jax.report.artefacts import gather
from twostage_jax.report.tables import Table
from twostage_jax.stats.arms import pair

CHANCES = {"scratch": 0.7, "two_stage": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operating")
    write_study(folder, CHANCES, seeds=(0, 1), folds=2, patches=9, rich=True)
    return folder


def section(folder):
    study = study_table.load([folder])
    full = analyse(study, 200).full
    return full.scores, operating.section(study, full, gather(study))


def test_runs_without_validation_predictions_have_no_operating_point(folder):
    _, (text,) = section(folder)
    assert text.text == operating.NOT_RECORDED


def test_threshold_is_that_of_the_model_that_predicted_the_patient(folder):
    study = study_table.load([folder])
    chosen = {}
    for place, record in study.records.items():
        # Others' chances are all 0.2 and 0.3 in one fold, 0.4 and 0.3 in the other.
        low = 0.2 if place.fold == 0 else 0.4
        labels = np.repeat([0, 1, 2], 40)
        rest = np.full(120, low)
        chances = np.stack([rest, np.full(120, 0.3), 0.7 - rest], axis=1)
        path = folder / "stages" / record.stage_runs[-1] / "validation.npz"
        np.savez(path, labels=labels, probabilities=chances)
        chosen[place] = low
    scores, (table,) = section(folder)
    assert isinstance(table, Table)
    right = total = 0
    for seed in (0, 1):
        for fold in (0, 1):
            place = study_table.Place("two_stage", seed, 1.0, fold)
            given = study.records[place].predictions
            own = given.labels == 0
            right += (given.probabilities[own, 0] > chosen[place]).sum()
            total += own.sum()
    (row,) = (r for r in table.rows if r[:2] == [scores.class_names[0], "two_stage"])
    assert row[2].estimate == pytest.approx(right / total)
    assert row[4] == pytest.approx(0.3)
    assert "equally frequent" not in table.note
    study.config["stages"]["target"]["train"]["balance"] = True
    full = analyse(study, 200).full
    (table,) = operating.section(study, full, gather(study))
    assert "equally frequent" in table.note


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
    paired = pair({"arm": [predictions(labels, chances, list("aabbcc"))]})
    # The models of three patients have thresholds of their own.
    threshold = np.array([0.3, 0.3, 0.7, 0.7, 0.4, 0.4])[None, None]
    sensitivity, specificity = (
        one.score(one.sums.sum(2)).item()
        for one in operating.at_threshold(paired, threshold, 1)
    )
    assert sensitivity == pytest.approx(2 / 3)
    assert specificity == pytest.approx(2 / 3)
