"""The loop: resuming, stopping, selecting, and losses that are not finite."""

import dataclasses
import re
import shutil

import jax
import numpy as np
import pytest
from basics import make_dataset, refused_at
from small_training import constants, fresh, step_settings

from twostage_jax import runtime
from twostage_jax.config import OptimConfig, TrainConfig
from twostage_jax.errors import UserError
from twostage_jax.train import checkpoint, feed, loop, parallel
from twostage_jax.train import steps as training
from twostage_jax.train.parallel import alone, side_by_side

TRAIN = TrainConfig(steps=24, batch_size=8, eval_every=6, save_every=4)


def run(
    folder,
    *,
    train=TRAIN,
    stop_after=None,
    optim=None,
    scores=None,
    losses=None,
    watched=None,
    width=1,
):
    """Trains runs of 'tiny'; requests a stop after a number of checks of the flag."""
    settings = step_settings(
        optim=optim or OptimConfig(learning_rate=0.05), steps=train.steps
    )
    dataset = make_dataset()
    given, given_losses = iter(scores or []), iter(losses or [])
    looks = iter(range(1000))

    placement = side_by_side(width) if width > 1 else alone()

    def score(variables):
        found = []
        for i in range(width):
            leaves = jax.tree.leaves(placement.take(variables, i))
            total = sum(float(np.abs(leaf).sum()) for leaf in leaves)
            best = next(given) if scores else total
            loss = next(given_losses) if losses else total
            found.append({"loss": loss, "balanced_accuracy": best})
        return found

    stores = [checkpoint.StateStore(folder / f"states{i}") for i in range(width)]
    task = loop.Task(
        settings=train,
        programs=parallel.programs(settings, placement.axis_name),
        feed=feed.feed(dataset, placement.devices),
        placement=placement,
        runs=[
            loop.Run(
                name=f"made{i}",
                state=training.create_state(settings, fresh(settings)),
                indices=np.arange(40 - i, dtype=np.int32),
                order_seed=(i, 7),
                key=np.asarray(jax.random.key_data(jax.random.key(i))),
                constants=constants(),
                store=store,
            )
            for i, store in enumerate(stores)
        ],
        score=score,
    )
    watch = loop.Watch(
        lambda place, step, metrics: (
            watched is not None and watched.append((step, metrics))
        ),
        lambda: stop_after is not None and next(looks) >= stop_after,
    )
    try:
        fitted = loop.fit(task, watch)
    finally:
        for store in stores:
            store.close()
    return [(one.variables, one.history) for one in fitted]


def assert_identical(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, other)


def test_resumed_run_is_bit_identical_to_an_undisturbed_one(tiny, tmp_path):
    [(whole, history)] = run(tmp_path / "whole")
    for stop_after in (0, 2, 3):
        folder = tmp_path / str(stop_after)
        with pytest.raises(runtime.Interrupted):
            run(folder, stop_after=stop_after)
        [(resumed, resumed_history)] = run(folder)
        assert_identical(whole, resumed)
        assert history == resumed_history


def test_run_interrupted_again_and_again_ends_the_same(tiny, tmp_path):
    [(whole, history)] = run(tmp_path / "whole")
    interruptions = 0
    while True:
        try:
            [(resumed, resumed_history)] = run(tmp_path / "again", stop_after=0)
            break
        except runtime.Interrupted:
            interruptions += 1
    assert interruptions == 4
    assert_identical(whole, resumed)
    assert history == resumed_history


def test_runs_side_by_side_resume_at_the_newest_step_that_all_have(tiny, tmp_path):
    """A kill between their saves leaves one ahead of the other."""
    whole = run(tmp_path / "whole", width=3)
    folder = tmp_path / "cut"
    with pytest.raises(runtime.Interrupted):
        run(folder, stop_after=2, width=3)
    ahead, *_ = sorted(folder.glob("states1/*"), key=lambda p: -int(p.name))
    shutil.rmtree(ahead)
    resumed = run(folder, width=3)
    for (one, history), (other, other_history) in zip(whole, resumed, strict=True):
        assert_identical(one, other)
        assert history == other_history
    alone = run(tmp_path / "alone")[0][0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
        alone,
        whole[0][0],
    )


def test_best_on_validation_is_kept_if_asked(tiny, tmp_path):
    last = TrainConfig(steps=12, batch_size=8, eval_every=6, save_every=100)
    assert last.select == "last"
    best = dataclasses.replace(last, select="best")
    [(early, _)] = run(tmp_path / "a", train=best, scores=[0.9, 0.1])
    [(late, history)] = run(tmp_path / "b", train=last, scores=[0.9, 0.1])
    assert [entry["step"] for entry in history] == [6, 12]
    assert (early["params"]["head"]["kernel"] != late["params"]["head"]["kernel"]).any()


@pytest.mark.parametrize(
    ("losses", "kept"), [((1.0, 0.9), 1), ((0.9, 1.0), 0), ((1.0, 1.0), 0)]
)
def test_tie_on_validation_goes_to_the_smaller_loss(tiny, tmp_path, losses, kept):
    """Or, if they are equal as well, to the earlier step."""
    best = TrainConfig(
        steps=12, batch_size=8, eval_every=6, save_every=100, select="best"
    )
    [(tied, _)] = run(tmp_path / "tied", train=best, scores=[0.5, 0.5], losses=losses)
    scores = [0.1, 0.1]
    scores[kept] = 0.9
    [(expected, _)] = run(tmp_path / "expected", train=best, scores=scores)
    assert_identical(tied, expected)


def test_infinite_loss_names_stage_step_and_causes(tiny, tmp_path):
    with refused_at("made0") as error:
        run(tmp_path, optim=OptimConfig(learning_rate=1e30))
    assert re.search(r"step \d+", str(error.value))
    assert "optim.learning_rate" in str(error.value)


def test_loss_of_an_entry_is_the_mean_since_the_last_score(tiny, tmp_path):
    watched = []
    [(_, history)] = run(tmp_path, watched=watched)
    chunks = [m["loss"] for step, m in watched if "accuracy" in m and step <= 6]
    np.testing.assert_allclose(history[0]["loss"], np.mean(chunks), rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "every", "chunk"), [(300, 50, 25), (24, 6, 6), (10, 20, 10), (7, 3, 1)]
)
def test_chunks_divide_steps_and_scores(steps, every, chunk):
    assert loop.chunk_length(TrainConfig(steps=steps, eval_every=every)) == chunk


def test_damaged_export_is_named(tmp_path):
    checkpoint.export_variables(tmp_path / "variables", {"params": {"a": np.ones(3)}})
    loaded = checkpoint.load_variables(tmp_path / "variables")
    np.testing.assert_array_equal(loaded["params"]["a"], 1)
    for file in (tmp_path / "variables").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    for name in ("variables", "nothing"):
        with pytest.raises(UserError) as refused:
            checkpoint.load_variables(tmp_path / name)
        assert refused.value.where == str(tmp_path / name)
