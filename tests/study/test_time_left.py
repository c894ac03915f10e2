"""Estimates of the remaining time, from stage runs with known durations."""

import json
import re

import pytest
from small_study import datasets, parsed, runs_of

from twostage_jax.data import sources
from twostage_jax.study import run as study
from twostage_jax.study import stage


class Planned:
    """A study of a texture and a target stage for each of 3 seeds, not yet trained."""

    def __init__(self, workdir, model):
        arms = {"study.arms": ("texture",), "study.seeds": (0, 1, 2)}
        network = {"model.name": model, "model.image_size": 8}
        self.config = parsed(**arms, **network, **{"study.side_by_side": 1})
        self.workdir = workdir
        runs = runs_of(self.config)
        self.textures = [run for run in runs if run.stage == "texture"]
        self.targets = [run for run in runs if run.stage == "target"]

    def finish(self, run, seconds):
        folder = stage.Materials(self.config, {}, self.workdir).folder(run)
        folder.mkdir(parents=True)
        (folder / "lineage.json").write_text(json.dumps({"seconds": seconds}))

    def lines(self, capsys):
        """Returns the lines on the number of finished runs, when all are trained."""
        with study.trained(self.config, self.workdir, self.workdir / "data"):
            printed = capsys.readouterr().out
        return [line for line in printed.splitlines() if "stage runs" in line]

    def left(self, capsys):
        """Returns the remaining time in the first line; '' if none."""
        found = re.search(r"About (.+) left", self.lines(capsys)[0])
        return found[1] if found else ""


@pytest.fixture
def planned(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(
        sources,
        "load",
        lambda data, *_: datasets()[
            {"textures": "texture", "phantoms": "target"}[data.source]
        ],
    )
    # Nothing is trained.
    monkeypatch.setattr(study, "run_stages", lambda *_: None)
    return Planned(tmp_path, tiny)


def test_time_left_is_that_of_runs_of_the_same_stage(planned, capsys):
    planned.finish(planned.textures[0], 10.0)
    planned.finish(planned.textures[1], 30.0)
    # No target is done: how long one takes is not known.
    assert planned.left(capsys) == ""
    planned.finish(planned.targets[0], 15.0)
    # One texture and two targets.
    assert planned.left(capsys) == "50 s"


def test_no_time_is_left_when_all_is_done(planned, capsys):
    for run in (*planned.textures, *planned.targets):
        planned.finish(run, 10.0)
    assert planned.lines(capsys) == ["6 stage runs, 6 done."]


@pytest.mark.parametrize(
    ("seconds", "words"), [(89.0, "89 s"), (90.0, "2 min"), (2400.0, "40 min")]
)
def test_a_run_that_was_cut_off_tells_no_time(planned, capsys, seconds, words):
    for run in planned.textures:
        planned.finish(run, 10.0)
    planned.finish(planned.targets[0], None)
    assert planned.left(capsys) == ""
    planned.finish(planned.targets[1], seconds)
    assert planned.left(capsys) == words


def test_study_says_the_time_left_once_it_can(planned, monkeypatch, capsys):
    seconds = {"texture": 120.0, "target": 600.0}

    def run_stages(materials, group, progress):
        for run in group:
            planned.finish(run, seconds[run.stage])
        progress.done += len(group)

    monkeypatch.setattr(study, "run_stages", run_stages)
    planned.finish(planned.textures[0], seconds["texture"])
    assert planned.lines(capsys) == [
        "6 stage runs, 1 done.",
        "2 of 6 stage runs done.",
        "3 of 6 stage runs done.",
        "4 of 6 stage runs done. About 20 min left.",
        "5 of 6 stage runs done. About 10 min left.",
    ]
