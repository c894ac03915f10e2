"""How long a study says that it will take, from stage runs whose time is put in."""

import json

import pytest
from small_study import datasets, parsed

from twostage_jax.study import plan
from twostage_jax.study import run as study
from twostage_jax.study.stage import Materials

SECONDS = {"texture": 120.0, "target": 600.0}


@pytest.fixture
def planned(tmp_path):
    """Materials, rows and runs: a texture and a target stage for each of 3 seeds."""
    arms = {"study.arms": ("texture",), "study.seeds": (0, 1, 2)}
    config = parsed(**arms, **{"study.side_by_side": 1})
    rows = plan.rows(config, datasets())
    return Materials(config, datasets(), tmp_path), rows, plan.stage_runs(rows)


def finish(materials, run, seconds):
    folder = materials.folder(run)
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps({"seconds": seconds}))


def of_stage(runs, name):
    return [run for run in runs if run.stage == name]


def test_time_left_is_that_of_runs_of_the_same_stage(planned):
    materials, _, runs = planned
    textures, targets = of_stage(runs, "texture"), of_stage(runs, "target")
    finish(materials, textures[0], 10.0)
    finish(materials, textures[1], 30.0)
    # No target is done: how long one takes is not known.
    groups = [[textures[2]], targets[:2], targets[2:]]
    assert study._seconds_left(materials, runs, groups) is None
    finish(materials, targets[0], 100.0)
    groups = [[textures[2]], targets[1:]]
    assert study._seconds_left(materials, runs, groups) == 20 + 2 * 100
    assert study._seconds_left(materials, runs, []) == 0


def test_a_run_that_was_cut_off_tells_no_time(planned):
    materials, _, runs = planned
    targets = of_stage(runs, "target")
    finish(materials, targets[0], None)
    assert study._seconds_left(materials, runs, [targets[1:]]) is None
    finish(materials, targets[1], 100.0)
    assert study._seconds_left(materials, runs, [targets[2:]]) == 100


def test_study_says_the_time_left_once_it_can(planned, monkeypatch, capsys):
    materials, rows, runs = planned

    def run_stages(materials, group, progress):
        for run in group:
            finish(materials, run, SECONDS[run.stage])
        progress.done += len(group)

    monkeypatch.setattr(study, "run_stages", run_stages)
    finish(materials, of_stage(runs, "texture")[0], SECONDS["texture"])
    study._run_missing(materials, rows, lambda: False)
    counted = [
        line for line in capsys.readouterr().out.splitlines() if "stage runs" in line
    ]
    assert counted == [
        "6 stage runs, 1 done.",
        "2 of 6 stage runs done.",
        "3 of 6 stage runs done.",
        "4 of 6 stage runs done. About 20 min left.",
        "5 of 6 stage runs done. About 10 min left.",
    ]
    (materials.folder(runs[-1]) / "lineage.json").unlink()
    monkeypatch.setattr(study, "run_stages", lambda *_: None)
    study._run_missing(materials, rows, lambda: False)
    assert "6 stage runs, 5 done. About 10 min left." in capsys.readouterr().out


def test_a_time_is_said_in_seconds_or_minutes():
    assert study._minutes(89) == "89 s" and study._minutes(2400) == "40 min"
