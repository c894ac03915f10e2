"""Going back from activations to pixels, against gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostage_jax import models
from twostage_jax.errors import UserError
from twostage_jax.explain.reconstruct import reconstruct
from twostage_jax.models import layers


@pytest.fixture(scope="module")
def network():
    module = models.build("caffenet_small", num_classes=3)
    variables = models.init(module, jax.random.key(0), 32, 1)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype(np.float32)
    return module, variables, images


def test_salinet_of_a_neuron_is_its_gradient(network):
    module, variables, images = network
    positions = np.array([[1, 1], [0, 1]])

    def neurons(x):
        conv3 = module.apply(variables, x, train=False)[1]["conv3"]
        return conv3[jnp.arange(2), positions[:, 0], positions[:, 1], 5].sum()

    back = reconstruct(
        module, variables, images, "conv3", method="salinet", channels=5,
        positions=positions,
    )  # fmt: skip
    np.testing.assert_allclose(back, jax.grad(neurons)(images), rtol=1e-3, atol=1e-5)


def test_methods_differ_and_leave_the_network_as_it_was(network):
    module, variables, images = network
    before = layers.relu, layers.max_pool, layers.local_response_norm
    pictures = [
        reconstruct(module, variables, images, "conv3", method=method, channels=5)
        for method in ("salinet", "deconvnet", "desalinet")
    ]
    assert before == (layers.relu, layers.max_pool, layers.local_response_norm)
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert np.abs(one - other).max() > 1e-6


def test_tap_or_method_that_does_not_exist_is_named(network):
    module, variables, images = network
    with pytest.raises(UserError, match="conv9"):
        reconstruct(module, variables, images, "conv9", channels=0)
    with pytest.raises(UserError, match="desalinet"):
        reconstruct(module, variables, images, "conv3", method="desalinte", channels=0)
