"""The layers against NumPy written out in loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostage_jax.models import layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pool_by_hand(x, pad, ceil):
    n, height, width, channels = x.shape
    rounding = np.ceil if ceil else np.floor
    rows, columns = (
        int(rounding(max(side + 2 * pad - 3, 0) / 2)) + 1 for side in (height, width)
    )
    y = np.full((n, rows, columns, channels), -np.inf, np.float32)
    for i in range(rows):
        for j in range(columns):
            for r in range(max(2 * i - pad, 0), min(2 * i - pad + 3, height)):
                for c in range(max(2 * j - pad, 0), min(2 * j - pad + 3, width)):
                    y[:, i, j] = np.maximum(y[:, i, j], x[:, r, c])
    return y


def lrn_by_hand(x):
    y = np.zeros(x.shape)
    channels = x.shape[-1]
    for c in range(channels):
        total = 0.0
        for k in range(max(c - 2, 0), min(c + 2, channels - 1) + 1):
            total = total + x[..., k].astype(np.float64) ** 2
        y[..., c] = x[..., c] / (1 + 1e-4 / 5 * total) ** 0.75
    return y


def slope(function, x, direction, step=1e-3):
    """Central difference of sum(function) along a direction, in float64."""
    x = x.astype(np.float64)
    up, down = function(x + step * direction), function(x - step * direction)
    return (up.sum() - down.sum()) / (2 * step)


@pytest.mark.parametrize("height, width", [(1, 2), (3, 4), (6, 7), (8, 5)])
@pytest.mark.parametrize("pad, ceil", [(0, True), (1, False), (0, False)])
def test_max_pool_takes_the_largest_of_each_window(height, width, pad, ceil):
    x = normal(2, height, width, 3)
    np.testing.assert_array_equal(
        jax.jit(lambda x: layers.max_pool(x, pad=pad, ceil=ceil))(x),
        pool_by_hand(x, pad, ceil),
    )


@pytest.mark.parametrize("side, pooled", [(55, 28 - 1), (27, 13), (13, 6), (16, 8)])
def test_max_pool_has_the_sizes_of_caffe(side, pooled):
    y = jax.eval_shape(layers.max_pool, jnp.zeros((1, side, side, 1)))
    assert y.shape == (1, pooled, pooled, 1)


def test_max_pool_sends_the_gradient_to_the_largest_value():
    x = normal(1, 6, 7, 2)
    gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x).sum()))(x)
    expected = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            for c in range(2):
                window = x[0, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
                r, s = np.unravel_index(window.argmax(), window.shape)
                expected[0, 2 * i + r, 2 * j + s, c] += 1
    np.testing.assert_array_equal(gradient, expected)


def test_max_pool_shares_the_gradient_of_a_tie():
    gradient = jax.jit(jax.grad(lambda x: layers.max_pool(x).sum()))(
        jnp.ones((1, 3, 3, 1))
    )
    assert float(gradient.sum()) == pytest.approx(1)
    assert float(gradient.min()) > 0


def test_mean_pool_leaves_an_odd_row_and_column():
    x = normal(2, 5, 6, 3)
    expected = x[:, :4].reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(layers.mean_pool(x), expected, rtol=1e-5, atol=1e-6)


def test_relu_and_its_gradient():
    x = jnp.array([-1.0, 0.0, 2.0])
    np.testing.assert_array_equal(layers.relu(x), [0, 0, 2])
    gradient = jax.vmap(jax.grad(layers.relu))(x)
    np.testing.assert_array_equal(gradient, [0, 0, 1])


@pytest.mark.parametrize("channels", [1, 3, 9])
def test_local_response_norm_and_its_gradient(channels):
    # Large values, so that the sum of squares matters beside the 1.
    x = 100 * normal(2, 3, 2, channels)
    np.testing.assert_allclose(
        layers.local_response_norm(x), lrn_by_hand(x), rtol=1e-5, atol=1e-5
    )
    direction = normal(*x.shape, seed=1)
    gradient = jax.jit(jax.grad(lambda x: layers.local_response_norm(x).sum()))(x)
    np.testing.assert_allclose(
        (np.asarray(gradient) * direction).sum(),
        slope(lrn_by_hand, x, direction),
        rtol=1e-3,
    )


def test_convolution_layer_has_one_kernel_for_all_groups_and_a_bias():
    layer = layers.Conv(6, 3, groups=2, pad=1)
    x = normal(1, 4, 4, 4)
    params = layer.init(jax.random.key(0), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 2, 6), "bias": (6,)}
    shifted = {**params, "bias": jnp.arange(6.0)}
    difference = layer.apply({"params": shifted}, x) - layer.apply(
        {"params": params}, x
    )
    np.testing.assert_allclose(
        difference, np.broadcast_to(np.arange(6.0), (1, 4, 4, 6)), atol=1e-5
    )


def test_kernels_start_with_the_variance_of_he():
    layer = layers.Conv(256, 3, groups=2)
    kernel = layer.init(jax.random.key(0), jnp.zeros((1, 3, 3, 64)))["params"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / (3 * 3 * 32), rel=0.05)


@functools.partial(jax.jit, static_argnames="axis_name")
def drop(x, key, axis_name=None):
    layer = layers.Dropout(0.25, axis_name)
    return layer.apply({}, x, train=True, rngs={"dropout": key})


def test_dropout_keeps_the_stated_share_and_scales_it():
    y = np.asarray(drop(jnp.ones((64, 256)), jax.random.key(0)))
    kept = y != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(y[kept], 1 / 0.75)


def test_dropout_does_nothing_in_evaluation_or_at_rate_zero():
    x = normal(4, 8)
    np.testing.assert_array_equal(layers.Dropout(0.5).apply({}, x, train=False), x)
    np.testing.assert_array_equal(layers.Dropout(0.0).apply({}, x, train=True), x)


def test_dropout_mask_belongs_to_the_place_in_the_batch():
    x = jnp.ones((8, 32))
    y = drop(x, jax.random.key(0))
    np.testing.assert_array_equal(drop(x[:3], jax.random.key(0)), y[:3])
    assert len({row.tobytes() for row in np.asarray(y)}) == 8
    assert (y != drop(x, jax.random.key(1))).any()


def test_dropout_masks_are_the_same_on_one_device_and_on_all(devices):
    x = normal(2 * devices, 16)
    key = jax.random.key(0)
    spread = jax.pmap(lambda x: drop(x, key, axis_name="batch"), axis_name="batch")(
        x.reshape(devices, 2, 16)
    )
    np.testing.assert_array_equal(spread.reshape(x.shape), drop(x, key))
