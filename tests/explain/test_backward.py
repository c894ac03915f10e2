"""Propagation back to pixels: rules of single layers by hand, whole networks by loops."""

import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import network_by_hand
import numpy as np
import pytest
from basics import refused_at

from twostage_jax import models
from twostage_jax.explain import backward
from twostage_jax.explain.backward import METHODS
from twostage_jax.explain.saliency import reconstruct
from twostage_jax.models import layers


def going_back(method, layer, x, g):
    with backward.rules(method):
        value, transpose = jax.vjp(lambda x: getattr(layers, layer)(x), jnp.asarray(x))
    return np.asarray(value), np.asarray(transpose(jnp.asarray(g))[0])


def test_relu_lets_through_what_the_table_says():
    x = np.array([-1.0, 2.0, 3.0, -4.0], np.float32)
    g = np.array([5.0, -6.0, 7.0, -8.0], np.float32)
    expected = {
        "salinet": [0, -6, 7, 0],
        "deconvnet": [5, 0, 7, 0],
        "desalinet": [0, 0, 7, 0],
        "guided": [0, 0, 7, 0],
    }
    for method, back in expected.items():
        value, found = going_back(method, "relu", x, g)
        np.testing.assert_array_equal(value, [0, 2, 3, 0])
        np.testing.assert_array_equal(found, back)


@pytest.mark.parametrize("method", backward.METHODS)
def test_equal_maxima_send_back_to_the_first_of_them(method):
    x = np.zeros((1, 5, 5, 1), np.float32)
    x[0, 2, 2] = 1  # the largest of all four windows
    g = np.arange(1, 5, dtype=np.float32).reshape(1, 2, 2, 1)
    value, back = going_back(method, "max_pool", x, g)
    assert (value == 1).all()
    assert back[0, 2, 2, 0] == 10 and np.count_nonzero(back) == 1
    back = going_back(method, "max_pool", np.zeros_like(x), g)[1][0, :, :, 0]
    np.testing.assert_array_equal(np.argwhere(back), [[0, 0], [0, 2], [2, 0], [2, 2]])
    np.testing.assert_array_equal(back[back > 0], [1, 2, 3, 4])


def test_pooling_keeps_its_sizes_and_values_at_every_size_and_padding():
    rng = np.random.default_rng(0)
    for size in (2, 7):
        x = rng.normal(size=(2, size, size, 3)).astype(np.float32)
        for pad, ceil in ((0, True), (1, False)):
            expected = layers.max_pool(x, pad=pad, ceil=ceil)
            found, transpose = jax.vjp(
                lambda x, p=pad, c=ceil: backward.pool_with_switches(x, pad=p, ceil=c),
                x,
            )
            np.testing.assert_array_equal(found, expected)
            back = transpose(jnp.ones_like(found))[0]
            assert back.shape == x.shape
            # Each window sends its 1 to one place.
            assert float(back.sum()) == expected.size


def test_normalisation_passes_the_signal_on_or_has_its_derivative():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 100, (1, 2, 2, 7)).astype(np.float32)
    g = rng.normal(size=x.shape).astype(np.float32)
    gradient = jax.vjp(layers.local_response_norm, x)[1](g)[0]
    for method in backward.METHODS:
        value, back = going_back(method, "local_response_norm", x, g)
        np.testing.assert_array_equal(value, layers.local_response_norm(x))
        expected = g if method in ("desalinet", "deconvnet") else gradient
        np.testing.assert_array_equal(back, expected)


class Shortcut(models.Network):
    """A residual block of dense layers; `ResNet` calls the same `layers.relu`."""

    CHAIN: ClassVar = False

    @nn.compact
    def __call__(self, x, *, train):
        y = layers.relu(nn.Dense(6, use_bias=False, name="first")(x))
        z = layers.relu(x + nn.Dense(5, use_bias=False, name="second")(y))
        return z, {"block": z, "head": z}


def test_guided_backpropagation_goes_through_both_ways_of_a_shortcut():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 6)), rng.normal(size=(6, 5))
    x = rng.normal(size=(3, 5))
    variables = {"params": {"first": {"kernel": first}, "second": {"kernel": second}}}
    before = x @ first
    after = x + np.maximum(before, 0) @ second
    start = np.zeros_like(x)
    start[:, 2] = 1
    g = start * (after > 0)
    inner = np.maximum(g @ second.T, 0) * (before > 0)
    found = reconstruct(
        Shortcut(5), variables, np.float32(x), "block", method="guided", channels=2
    )
    expected = g + inner @ first.T
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_layers_are_as_before_after_an_error_too():
    before = layers.relu, layers.max_pool, layers.local_response_norm
    with pytest.raises(ZeroDivisionError), backward.rules("desalinet"):
        assert layers.relu is not before[0]
        raise ZeroDivisionError
    assert before == (layers.relu, layers.max_pool, layers.local_response_norm)


def test_methods_are_checked():
    residual = models.build("resnet18", num_classes=2)
    chain = models.build("caffenet_small", num_classes=2)
    for method in backward.METHODS:
        backward.check_method(method, chain)
    for method in ("salinet", "guided"):
        backward.check_method(method, residual)
    for method in backward.CHAIN_ONLY:
        with refused_at("method"):
            backward.check_method(method, residual)
    without_relu = models.build("convnext_tiny", num_classes=2)
    assert backward.methods_for(without_relu) == ["salinet"]
    with refused_at("method"):
        backward.check_method("guided", without_relu)
    with refused_at("method"):
        backward.check_method("giuded", chain)


@pytest.fixture(scope="module")
def tiny_caffenet():
    return network_by_hand.tiny_caffenet()


def test_network_by_hand_computes_the_same_taps(tiny_caffenet):
    module, variables, images, by_hand = tiny_caffenet
    taps = jax.jit(functools.partial(module.apply, train=False))(variables, images)[1]
    for name, value in by_hand.forward(images[1])[0].items():
        np.testing.assert_allclose(taps[name][1], value, rtol=1e-3, atol=1e-3)
    before, after = by_hand.forward(images[1])[0]["pool1"], taps["norm1"][1]
    assert np.abs(after - before).max() > 0.1 * np.abs(before).max()


@pytest.mark.parametrize(
    ("method", "tap"),
    [*((method, "conv5") for method in METHODS), ("desalinet", "head")],
)
def test_pictures_are_those_of_the_network_by_hand(tiny_caffenet, method, tap):
    module, variables, images, by_hand = tiny_caffenet
    found = reconstruct(module, variables, images, tap, method=method, channels=2)
    for image, picture in zip(images, found, strict=True):
        value = by_hand.forward(image)[0][tap]
        start = np.zeros_like(value)
        # At the largest value of the channel.
        place = np.unravel_index(value[..., 2].argmax(), value.shape[:-1])
        start[(*place, 2)] = 1
        expected = by_hand.backward(image, tap, start, method)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(picture, expected, rtol=2e-3, atol=2e-4 * scale)


def test_one_neuron_may_be_given_by_its_place(tiny_caffenet):
    module, variables, images, by_hand = tiny_caffenet
    places = np.array([[0, 3], [2, 1]])
    found = reconstruct(
        module, variables, images, "conv2", channels=np.array([4, 1]), positions=places
    )
    for i, channel in enumerate((4, 1)):
        start = np.zeros_like(by_hand.forward(images[i])[0]["conv2"])
        start[(*places[i], channel)] = 1
        expected = by_hand.backward(images[i], "conv2", start, "desalinet")
        np.testing.assert_allclose(found[i], expected, rtol=2e-3, atol=1e-4)


def test_salinet_of_a_neuron_is_its_gradient(tiny_caffenet):
    module, variables, images, _ = tiny_caffenet
    positions = np.array([[1, 1], [0, 1]])

    @jax.jit
    @jax.grad
    def gradient(x):
        conv3 = module.apply(variables, x, train=False)[1]["conv2"]
        return conv3[jnp.arange(2), positions[:, 0], positions[:, 1], 2].sum()

    back = reconstruct(
        module, variables, images, "conv2", method="salinet", channels=2,
        positions=positions,
    )  # fmt: skip
    np.testing.assert_allclose(back, gradient(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("where", "tap", "wrong"),
    [
        ("conv9", "conv9", {}),
        ("method", "conv3", {"method": "desalinte"}),
        ("channels", "conv3", {"channels": 4}),
        ("channels", "conv3", {"channels": -1}),
        ("positions", "conv3", {"positions": [[0, 0], [0, 9]]}),
    ],
)
def test_what_does_not_exist_is_named(tiny_caffenet, where, tap, wrong):
    module, variables, images, _ = tiny_caffenet
    with refused_at(where):
        reconstruct(module, variables, images, tap, **{"channels": 0, **wrong})
