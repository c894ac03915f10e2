"""Pooled rows of folds, one per seed, as in the report."""

import numpy as np
import pytest
from basics import refused_at
from study_files import read_results, write_results, write_study

from twostage_jax.report import analysis, study_table
from twostage_jax.report.run import pool_folds, write_run
from twostage_jax.stats.metrics import METRICS


def save(folder, fold, labels, predicted):
    """Writes the predictions of a fold; returns its row, with nonsense as scores."""
    name = f"fold{fold}.npz"
    np.savez(
        folder / name,
        ids=np.array([f"{fold}-{i}" for i in range(len(labels))]),
        labels=np.array(labels),
        probabilities=np.eye(2)[predicted],
    )
    return {
        "arm": "scratch", "seed": 4, "fraction": 1.0, "fold": fold,
        "n_train": 90 + fold, "n_test": len(labels), "metrics": {"accuracy": 0.123},
        "predictions": name,
    }  # fmt: skip


def test_scores_are_of_all_folds_together(tmp_path):
    # Fold 1 has no example of class 1: its own balanced accuracy is of one class.
    rows = [
        save(tmp_path, 0, [0, 0, 1, 1], [0, 1, 1, 0]),
        save(tmp_path, 1, [0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]),
    ]
    (one,) = pool_folds(tmp_path, rows, 2)
    # 6 of 8 of class 0 and 1 of 2 of class 1 are right, 3 are said to be of class 1.
    assert one["metrics"]["accuracy"] == pytest.approx(7 / 10)
    assert one["metrics"]["balanced_accuracy"] == pytest.approx((6 / 8 + 1 / 2) / 2)
    f1 = (2 * 6 / (8 + 7) + 2 * 1 / (2 + 3)) / 2
    assert one["metrics"]["macro_f1"] == pytest.approx(f1)
    assert (one["n_test"], one["n_train"]) == (10, [90, 91])
    assert (one["arm"], one["seed"], one["fraction"]) == ("scratch", 4, 1.0)


def test_a_seed_that_lacks_a_fold_has_no_score(tmp_path):
    (one,) = pool_folds(tmp_path, [save(tmp_path, 1, [0, 1], [0, 1])], 3)
    assert one["lacks"] == [0, 2] and one["metrics"] == {}


def test_without_folds_nothing_is_read(tmp_path):
    row = {"arm": "scratch", "seed": 0, "fraction": 1.0, "fold": 0, "n_train": 9,
           "n_test": 2, "metrics": {"accuracy": 0.5}, "predictions": "no.npz"}  # fmt: skip
    assert pool_folds(tmp_path, [row], 0) == [row | {"n_train": [9], "lacks": []}]


def test_predictions_that_are_missing_are_named(tmp_path):
    rows = [save(tmp_path, fold, [0, 1], [0, 1]) for fold in (0, 1)]
    (tmp_path / "fold1.npz").unlink()
    with refused_at(tmp_path / "fold1.npz"):
        pool_folds(tmp_path, rows, 2)


def test_scores_are_those_of_the_report(tmp_path):
    write_study(tmp_path, {"scratch": 0.7, "natural": 0.8}, folds=4, seeds=(0, 1))
    pooled = pool_folds(tmp_path, read_results(tmp_path)["rows"], 4)
    scores = analysis.analyse(study_table.load([tmp_path]), 200).full.scores
    for metric in [name for name, one in METRICS.items() if one.counts]:
        for arm, interval in scores.intervals[metric].items():
            seeds = [row["metrics"][metric] for row in pooled if row["arm"] == arm]
            assert np.mean(seeds) == pytest.approx(interval.estimate, abs=1e-12)


@pytest.mark.parametrize(
    ("folds", "words"),
    [(0, "or selection; 480 test"), (2, "all 2 folds are pooled; 480 test")],
)
def test_a_run_gets_tables_figures_and_report_once(tmp_path, capsys, folds, words):
    chances = {"scratch": 0.7, "natural": 0.8}
    run = write_study(tmp_path / "run", chances, folds=folds, seeds=(0,), rich=True)
    write_run(run)
    printed = capsys.readouterr().out
    page = (run / "results.md").read_text()
    assert f"{words} examples, 1 seed." in page
    (line,) = (line for line in page.splitlines() if line.startswith("| scratch"))
    assert line in printed and str(run / "report" / "report.html") in printed
    names = {path.name for path in (run / "figures").iterdir()}
    stems = ["learning_curves", "confusion_matrices"]
    stems += [f"examples_{stage}" for stage in ("natural", "texture", "target")]
    assert names == {f"{stem}{end}" for stem in stems for end in (".png", ".pdf")}
    made = (run / "report" / "report.html").stat()
    write_run(run)
    assert (run / "report" / "report.html").stat() == made
    assert capsys.readouterr().out == printed


def test_a_study_that_cannot_be_reported_has_its_table(tmp_path, capsys):
    run = write_study(tmp_path / "run", {"scratch": 0.7}, folds=2, seeds=(0,))
    found = read_results(run)
    write_results(run, found["config"], found["rows"][:1], baselines=[])
    write_run(run)
    printed = capsys.readouterr().out
    assert "The report is missing: " in printed and "| scratch" in printed
    assert "Missing: scratch (fraction 1, seed 0, fold 1)." in printed
