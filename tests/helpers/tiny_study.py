"""A whole study of a tiny network in one process, and ways to interrupt it."""

import shutil

import numpy as np
import pytest
from basics import Tiny
from small_study import datasets, parsed

from twostage_jax import io, models
from twostage_jax.data import sources
from twostage_jax.study import artifacts, results, stage
from twostage_jax.study import run as study
from twostage_jax.train import checkpoint

TINY = {
    "model.name": "tiny",
    "model.image_size": 8,
    "study.seeds": (0, 1),
    "study.side_by_side": 2,
    "study.arms": ("texture",),
    "study.baselines": (),
    **{
        f"stages.{name}.{setting}": value
        for name in ("natural", "texture", "target")
        for setting, value in {
            "train.steps": 18,
            "train.eval_every": 6,
            "train.save_every": 4,
            "train.batch_size": 16,
            "augment.shift": 1,
        }.items()
    },
}


class Killed(BaseException):
    """Ends the program immediately."""


@pytest.fixture
def tiny_study(monkeypatch):
    """Returns a function that runs a tiny study; no report is written."""
    return tiny_studies(monkeypatch)


def tiny_studies(monkeypatch):
    by_source = {
        "natural_surrogate": "natural",
        "textures": "texture",
        "phantoms": "target",
    }
    made = datasets()
    drawn = []

    def load(data, *_):
        return made[by_source[data.source]]

    def save_examples(materials, rows):
        # The report, which is not written here, would follow.
        page = materials.workdir / results.REPORT
        page.parent.mkdir(exist_ok=True)
        page.write_text("")
        drawn.append(rows)

    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    monkeypatch.setattr(sources, "load", load)
    monkeypatch.setattr(results, "save_examples", save_examples)

    def run(workdir, **changes):
        config = parsed(**{**TINY, **changes})
        return study.run(config, workdir, workdir / "data")

    run.made, run.drawn = made, drawn
    return run


@pytest.fixture
def events(monkeypatch):
    """Counts the steps of writing; `events.kill_at` names the one at which to die."""

    class Events:
        count, kill_at = 0, None

        def __call__(self):
            self.count += 1
            if self.count == self.kill_at:
                raise Killed

    seen = Events()

    def watched(function):
        def call(*arguments, **named):
            seen()
            returned = function(*arguments, **named)
            seen()
            return returned

        return call

    for owner, name in [
        (checkpoint.StateStore, "save"),
        (checkpoint, "export_variables"),
        (artifacts, "save_predictions"),
        (io, "write_json"),
        (stage, "clear"),
        (shutil, "rmtree"),
    ]:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return seen


def restored_at(monkeypatch, run):
    """Returns the steps at which stage runs begin, None = at the start."""
    steps, restore = [], checkpoint.StateStore.restore

    def watched(store, step, template):
        steps.append(step)
        return restore(store, step, template)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.StateStore, "restore", watched)
        run()
    return steps


def assert_close(one, other):
    """Predictions are the same to float tolerance."""
    paths = list(one.glob("predictions/*.npz"))
    assert paths
    for path in paths:
        np.testing.assert_allclose(
            np.load(path)["probabilities"],
            np.load(other / "predictions" / path.name)["probabilities"],
            rtol=1e-3,
            atol=1e-5,
        )


# One seed, in the layout that several processes share.
ONE = {"study.seeds": (0,), "study.side_by_side": 1}
