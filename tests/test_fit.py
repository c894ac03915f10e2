"""The loop: resuming, stopping, selecting, and losses that are not finite."""

import jax
import numpy as np
import pytest
from conftest import make_dataset
from test_training import constants, fresh, step_settings

from twostage_jax import checkpoint, fit, runtime, training
from twostage_jax.config import OptimConfig, TrainConfig
from twostage_jax.data import feed
from twostage_jax.errors import UserError

TRAIN = TrainConfig(steps=24, batch_size=8, eval_every=6, save_every=4)


def run(folder, *, train=TRAIN, stop_after=None, optim=None, scores=None, watched=None):
    """Trains 'tiny'; asks it to stop after so many looks at the flag."""
    settings = step_settings(
        optim=optim or OptimConfig(learning_rate=0.05), steps=train.steps
    )
    dataset = make_dataset()
    given = iter(scores or [])
    looks = iter(range(1000))

    def score(variables):
        total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(variables))
        best = next(given) if scores else total
        return {"loss": total, "balanced_accuracy": best}

    task = fit.Task(
        name="made",
        settings=train,
        programs=training.compiled(settings),
        feed=feed.feed(dataset),
        constants=constants(),
        indices=np.arange(40, dtype=np.int32),
        order_seed=(0, 7),
        key=jax.random.key(3),
        score=score,
    )
    watch = fit.Watch(
        lambda step, metrics: watched is not None and watched.append((step, metrics)),
        lambda: stop_after is not None and next(looks) >= stop_after,
    )
    store = checkpoint.StateStore(folder / "states")
    try:
        return fit.fit(
            task, training.create_state(settings, fresh(settings)), store, watch
        )
    finally:
        store.close()


def assert_identical(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, other)


def test_resumed_run_is_bit_identical_to_an_undisturbed_one(tiny, tmp_path):
    whole, history = run(tmp_path / "whole")
    for stop_after in (0, 2, 3):
        folder = tmp_path / str(stop_after)
        with pytest.raises(runtime.Interrupted):
            run(folder, stop_after=stop_after)
        resumed, resumed_history = run(folder)
        assert_identical(whole, resumed)
        assert history == resumed_history


def test_run_interrupted_again_and_again_ends_the_same(tiny, tmp_path):
    whole, history = run(tmp_path / "whole")
    interruptions = 0
    while True:
        try:
            resumed, resumed_history = run(tmp_path / "again", stop_after=0)
            break
        except runtime.Interrupted:
            interruptions += 1
    assert interruptions == 4
    assert_identical(whole, resumed)
    assert history == resumed_history


def test_best_on_validation_is_kept(tiny, tmp_path):
    short = TrainConfig(steps=12, batch_size=8, eval_every=6, save_every=100)
    early, _ = run(tmp_path / "a", train=short, scores=[0.9, 0.1])
    last = TrainConfig(
        steps=12, batch_size=8, eval_every=6, save_every=100, select="last"
    )
    late, history = run(tmp_path / "b", train=last, scores=[0.9, 0.1])
    assert [entry["step"] for entry in history] == [6, 12]
    assert (early["params"]["head"]["kernel"] != late["params"]["head"]["kernel"]).any()


def test_tie_on_validation_goes_to_the_smaller_loss():
    entry = {"validation_balanced_accuracy": 0.5, "validation_loss": 1.0}
    assert fit._better({**entry, "validation_loss": 0.9}, entry)
    assert not fit._better(entry, entry)


def test_infinite_loss_names_stage_step_and_causes(tiny, tmp_path):
    with pytest.raises(UserError, match=r"stage 'made'.*at step \d+.*learning rate"):
        run(tmp_path, optim=OptimConfig(learning_rate=1e30))


def test_loss_of_an_entry_is_the_mean_since_the_last_score(tiny, tmp_path):
    watched = []
    _, history = run(tmp_path, watched=watched)
    chunks = [m["loss"] for step, m in watched if "accuracy" in m and step <= 6]
    np.testing.assert_allclose(history[0]["loss"], np.mean(chunks), rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "every", "chunk"), [(300, 50, 25), (24, 6, 6), (10, 20, 10), (7, 3, 1)]
)
def test_chunks_divide_steps_and_scores(steps, every, chunk):
    assert fit.chunk_length(TrainConfig(steps=steps, eval_every=every)) == chunk


def test_damaged_export_is_named(tmp_path):
    checkpoint.export_variables(tmp_path / "variables", {"params": {"a": np.ones(3)}})
    loaded = checkpoint.load_variables(tmp_path / "variables")
    np.testing.assert_array_equal(loaded["params"]["a"], 1)
    for file in (tmp_path / "variables").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load_variables(tmp_path / "variables")
    with pytest.raises(UserError, match="no exported variables"):
        checkpoint.load_variables(tmp_path / "nothing")
