"""Optimisers against sums by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from basics import Tiny, refused_at

from twostage_jax.config import OptimConfig
from twostage_jax.train import optim


def params():
    return {
        "conv1": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), -0.0)},
        "head": {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.ones((2,))},
    }


def run(settings, steps=1, gradient=1.0, transferred=(), total=10):
    tx = optim.optimiser(settings, total, transferred=transferred)

    @jax.jit
    def step(now, state):
        gradients = jax.tree.map(lambda p: jnp.full_like(p, gradient), now)
        updates, state = tx.update(gradients, state, now)
        return optim.apply_updates(now, updates, settings.freeze), state

    now = params()
    state = tx.init(now)
    for _ in range(steps):
        now, state = step(now, state)
    return jax.tree.map(np.asarray, now)


PLAIN = {"schedule": "constant", "weight_decay": 0.0, "momentum": 0.0}


def test_sgd_with_momentum_by_hand():
    settings = OptimConfig(
        learning_rate=0.1, momentum=0.5, weight_decay=0.0, schedule="constant"
    )
    after = run(settings, steps=2)
    # Velocities 1 and 1.5.
    np.testing.assert_allclose(after["conv1"]["kernel"], 2 - 0.1 * 2.5, rtol=1e-6)


def test_weight_decay_spares_biases():
    settings = OptimConfig(**PLAIN | {"weight_decay": 0.5}, learning_rate=0.1)
    after = run(settings, gradient=0.0)
    np.testing.assert_allclose(after["conv1"]["kernel"], 2 - 0.1 * 0.5 * 2)
    np.testing.assert_array_equal(after["head"]["bias"], 1)


def test_adamw_decay_is_decoupled():
    settings = OptimConfig(
        name="adamw", learning_rate=0.1, weight_decay=0.5, schedule="constant"
    )
    after = run(settings, gradient=3.0)
    # Adam's first step is the sign of the gradient.
    np.testing.assert_allclose(after["conv1"]["kernel"], 2 - 0.1 * (1 + 1), rtol=1e-5)
    np.testing.assert_allclose(after["head"]["bias"], 1 - 0.1, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_frozen_parameters_stay_bit_identical(name):
    settings = OptimConfig(name=name, weight_decay=0.1, freeze=("conv1/.*",))
    after = run(settings, steps=3)
    for leaf in ("kernel", "bias"):
        # tobytes tells -0.0 from 0.0.
        assert (
            after["conv1"][leaf].tobytes()
            == np.asarray(params()["conv1"][leaf]).tobytes()
        )
    assert (after["head"]["kernel"] != 4).all()


def test_freezing_pattern_must_match_the_whole_path():
    after = run(OptimConfig(freeze=("conv",)))
    assert (after["conv1"]["kernel"] != 2).all()


def test_layer_factors_scale_the_step():
    factors = (("conv1/.*", 0.5), ("conv1/kernel", 100.0))
    settings = OptimConfig(**PLAIN, learning_rate=0.1, lr_factors=factors)
    after = run(settings)
    np.testing.assert_allclose(after["conv1"]["kernel"], 2 - 0.05)
    np.testing.assert_allclose(after["head"]["kernel"], 4 - 0.1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_head_alone_moves_during_head_steps(name):
    settings = OptimConfig(name=name, weight_decay=0.1, head_steps=2)
    two, three = run(settings, steps=2), run(settings, steps=3)
    np.testing.assert_array_equal(two["conv1"]["kernel"], 2)
    assert (two["head"]["kernel"] != 4).all()
    assert (three["conv1"]["kernel"] != 2).all()


def test_statistics_of_the_head_alone_move_during_head_steps():
    before = {"norm1": {"mean": jnp.zeros(2)}, "head_norm": {"mean": jnp.zeros(2)}}
    after = jax.tree.map(lambda old: old + 1, before)
    settings = OptimConfig(head_steps=2)
    for step, moved in ((1, 0), (2, 1)):
        kept = optim.keep_statistics(before, after, settings, jnp.array(step))
        np.testing.assert_array_equal(kept["norm1"]["mean"], moved)
        np.testing.assert_array_equal(kept["head_norm"]["mean"], 1)


def test_adam_starts_afresh_after_head_steps():
    """With a constant gradient, every step has the size of the learning rate."""
    settings = OptimConfig(
        name="adamw",
        learning_rate=0.1,
        weight_decay=0.0,
        schedule="constant",
        head_steps=20,
    )
    after = [run(settings, steps=steps, total=40) for steps in (20, 21, 24)]
    first, second, third = (one["conv1"]["kernel"] for one in after)
    np.testing.assert_allclose(first - second, 0.1, rtol=1e-4)
    np.testing.assert_allclose(second - third, 0.3, rtol=1e-4)


def test_decay_and_l2_sp_leave_biases_and_scales_alone():
    """Whatever their shape: the scale of a ConvNeXt block is `[1, 1, C]`."""
    params = {
        "block": {"kernel": jnp.ones((1, 1, 2, 2)), "layer_scale": jnp.ones((1, 1, 2))}
    }
    settings = OptimConfig(learning_rate=0.1, weight_decay=0.5, momentum=0.0, l2_sp=0.5)
    transferred = {"block/layer_scale"}
    optimiser = optim.optimiser(settings, 10, transferred=transferred)
    still = jax.tree.map(jnp.zeros_like, params)
    moved = jax.tree.map(lambda p: p + 1, params)
    updates, _ = optimiser.update(still, optimiser.init(params), moved)
    np.testing.assert_allclose(updates["block"]["kernel"], -0.1 * 0.5 * 2)
    np.testing.assert_array_equal(updates["block"]["layer_scale"], 0)


def test_momentum_starts_empty_after_head_steps():
    settings = OptimConfig(
        learning_rate=0.1,
        momentum=0.9,
        weight_decay=0.5,
        schedule="constant",
        head_steps=5,
    )
    after = run(settings, steps=6)
    # One step from rest: gradient 1 and decay 0.5 * 2.
    np.testing.assert_allclose(after["conv1"]["kernel"], 2 - 0.1 * 2, rtol=1e-6)


def test_l2_sp_pulls_transferred_kernels_to_their_start():
    settings = OptimConfig(
        **PLAIN | {"weight_decay": 0.3}, learning_rate=0.1, l2_sp=0.5
    )
    after = run(settings, steps=2, transferred=("conv1/kernel", "conv1/bias"))
    # At the start the pull is zero; then 0.5 * (1.9 - 2). No decay towards zero.
    np.testing.assert_allclose(after["conv1"]["kernel"], 1.9 - 0.1 * (1 - 0.05))
    # The head is new: it decays.
    first = 4 - 0.1 * (1 + 0.3 * 4)
    np.testing.assert_allclose(
        after["head"]["kernel"], first - 0.1 * (1 + 0.3 * first), rtol=1e-6
    )


def test_clipping_looks_at_the_global_norm_of_what_moves():
    settings = OptimConfig(
        **PLAIN, learning_rate=1.0, clip_norm=1.0, freeze=("conv1/.*",)
    )
    after = run(settings)
    # Six moving values with gradient 1: norm sqrt(6).
    np.testing.assert_allclose(after["head"]["kernel"], 4 - 1 / np.sqrt(6), rtol=1e-6)


def test_warmup_rises_linearly_to_the_cosine():
    rate = optim.schedule(OptimConfig(learning_rate=1.0, warmup_steps=4), steps=14)
    values = [float(rate(step)) for step in (0, 1, 2, 3, 4, 9, 14)]
    np.testing.assert_allclose(values, [0.2, 0.4, 0.6, 0.8, 1.0, 0.5, 0.0], atol=1e-6)


def test_pattern_that_matches_nothing_is_an_error():
    variables = {"params": params(), "batch_stats": {}}
    for setting, value in (
        ("freeze", ("conv9/.*",)),
        ("lr_factors", (("conv9/.*", 0.1),)),
    ):
        settings = OptimConfig(**{setting: value})
        with refused_at(f"config.x.{setting}") as error:
            optim.check_patterns(settings, variables, "config.x")
        assert "'conv9/.*'" in str(error.value)


def test_freezing_everything_is_an_error():
    variables = {"params": params(), "batch_stats": {}}
    with refused_at("config.x.freeze"):
        optim.check_patterns(OptimConfig(freeze=(".*",)), variables, "config.x")


def test_batch_statistics_can_be_frozen():
    before = {"norm1": {"mean": jnp.zeros(2)}, "norm2": {"mean": jnp.zeros(2)}}
    after = {"norm1": {"mean": jnp.ones(2)}, "norm2": {"mean": jnp.ones(2)}}
    kept = optim.keep_frozen(before, after, ("norm1/.*",))
    np.testing.assert_array_equal(kept["norm1"]["mean"], 0)
    np.testing.assert_array_equal(kept["norm2"]["mean"], 1)


def test_frozen_statistics_normalise_in_training():
    module = Tiny(num_classes=3, dropout=0.0)
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    variables = module.init(jax.random.key(1), images, train=False)
    variables["batch_stats"] = {
        "norm1": {"mean": jnp.arange(4.0), "var": jnp.full(4, 3.0)}
    }
    variables["params"]["norm1"]["scale"] = jnp.full(4, 2.0)
    expected, _ = module.apply(variables, images, train=False)

    def trained(freeze, head_steps=0, step=0):
        settings = OptimConfig(freeze=freeze, head_steps=head_steps)
        with optim.held_norms(settings, jnp.array(step)):
            (logits, _), changed = module.apply(
                variables, images, train=True, mutable=["batch_stats"]
            )
        return logits, changed["batch_stats"]["norm1"]["mean"]

    logits, mean = trained(("(?!head).*/(mean|var)",))
    np.testing.assert_allclose(logits, expected, rtol=1e-5)
    np.testing.assert_array_equal(mean, jnp.arange(4.0))
    for freeze in ((), ("conv1/.*",), ("norm1/mean",)):
        logits, mean = trained(freeze)
        assert np.abs(logits - expected).max() > 1e-4
        assert np.abs(mean - jnp.arange(4.0)).max() > 0.01
    # While the head alone is trained, it sees the features that evaluation sees.
    for step, near in ((0, True), (1, True), (2, False)):
        logits, _ = trained((), head_steps=2, step=step)
        assert np.allclose(logits, expected, rtol=1e-5) == near
