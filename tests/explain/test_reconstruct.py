"""Propagation from activations back to pixels, against NumPy loops and gradients."""

import functools

import jax
import jax.numpy as jnp
import network_by_hand
import numpy as np
import pytest
from basics import refused_at

from twostage_jax.explain.backward import METHODS
from twostage_jax.explain.saliency import reconstruct


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
