"""Scores on an external set in the report."""

import json
import shutil
from pathlib import Path

import pytest
from study_files import read_results, write_results, write_study

from twostage_jax.report import external, study_table
from twostage_jax.report.analysis import analyse
from twostage_jax.report.parts import Text

CHANCES = {"scratch": 0.7, "two_stage": 0.85}
SET = "external/other-0123456789ab"


@pytest.fixture
def folder(tmp_path):
    """A study whose networks predict, on an external set, what they predict on theirs."""
    return write_folder(tmp_path)


@pytest.fixture
def with_baselines(tmp_path):
    return write_folder(tmp_path, baselines={"descriptors": 0.6, "mean_grey": 0.5})


def write_folder(tmp_path, **more):
    write_study(
        tmp_path, CHANCES, seeds=(0, 1), patients=9, patches=9, rich=True, **more
    )
    study = study_table.load([tmp_path])
    (tmp_path / SET).mkdir(parents=True)
    made = {}
    for record in study.records.values():
        place = record.place
        name = f"{place.arm}-seed{place.seed}-fraction1-fold0.npz"
        shutil.copy(tmp_path / "predictions" / name, tmp_path / SET / name)
        made[name] = record.stage_runs[-1]
    describe(tmp_path, stage_runs=made)
    return tmp_path


def score_baselines(folder, key):
    """Baselines, fitted with `key`, predict on the external set what they do on theirs."""
    results = read_results(folder)
    for row in results["baselines"]:
        row["key"] = "now"
        shutil.copy(folder / row["predictions"], folder / SET)
    write_results(
        folder, results["config"], results["rows"], baselines=results["baselines"]
    )
    names = {Path(row["predictions"]).name: key for row in results["baselines"]}
    describe(folder, baselines=names)


def describe(folder, **changes):
    path = folder / SET / "set.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(
        json.dumps({"name": "other", "shared_patients": 0, **kept, **changes})
    )


def section(folder):
    study = study_table.load([folder])
    analysis, notes = analyse(study, 200), []
    return analysis, external.section(study, analysis, notes), notes


def test_scores_are_of_all_networks_on_all_examples(folder):
    analysis, (table, _), notes = section(folder)
    assert not notes
    for arm, score, *_ in table.rows:
        expected = analysis.full.scores.intervals["balanced_accuracy"][arm]
        assert score.estimate == pytest.approx(expected.estimate)
        assert score.low is not None


def test_networks_that_were_trained_again_are_not_mixed_with_the_old(folder):
    describe(folder, stage_runs={})
    _, parts, (note,) = section(folder)
    assert not parts and SET.partition("/")[2] in note


def test_baselines_are_compared_with_the_champion(with_baselines):
    score_baselines(with_baselines, "now")
    analysis, (_, table, _), notes = section(with_baselines)
    assert not notes
    expected = {one.name: one for one in analysis.full.baselines}
    assert (
        [row[0] for row in table.rows] == list(expected) == ["descriptors", "mean_grey"]
    )
    for name, score, gain, *_ in table.rows:
        assert score.estimate == pytest.approx(expected[name].score.estimate)
        assert gain.estimate == pytest.approx(expected[name].difference.estimate)


def test_baselines_that_were_fitted_again_are_not_shown(with_baselines):
    score_baselines(with_baselines, "earlier")
    _, (_, text), (note,) = section(with_baselines)
    assert isinstance(text, Text)
    assert "descriptors" in note and "mean-grey" in note


def test_patients_of_the_target_are_named_as_such(folder):
    describe(folder, shared_patients=2)
    _, (_, text), _ = section(folder)
    assert isinstance(text, Text) and text.text.startswith("2 of its patients")


def test_without_external_sets_there_is_no_section(folder):
    shutil.rmtree(folder / "external")
    assert section(folder)[1:] == ([], [])


def test_networks_of_a_seed_that_is_incomplete_are_left_out(folder):
    results = read_results(folder)
    write_results(folder, results["config"], results["rows"][:-1])
    analysis, (table, _), notes = section(folder)
    assert not notes and analysis.full.scores.seeds == (0,)
    for arm, score, *_ in table.rows:
        expected = analysis.full.scores.intervals["balanced_accuracy"][arm]
        assert score.estimate == pytest.approx(expected.estimate)
