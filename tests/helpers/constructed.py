"""Networks with known responses, for the measures of features."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from explained import network
from skimage.filters import gabor_kernel

from twostage_jax import models

FREQUENCIES, ORIENTATIONS = (0.12, 0.22), np.arange(4) * np.pi / 4
SIDE = 11


def gabor_bank() -> np.ndarray:
    """Returns quadrature pairs `[11, 11, 1, 16]` of scikit-image, real parts first."""
    filters = []
    for frequency in FREQUENCIES:
        for theta in ORIENTATIONS:
            sigma = 0.45 / frequency
            kernel = gabor_kernel(
                frequency, theta, sigma_x=sigma, sigma_y=sigma, n_stds=5
            )
            middle = np.array(kernel.shape) // 2
            filters.append(
                kernel[
                    middle[0] - SIDE // 2 : middle[0] + SIDE // 2 + 1,
                    middle[1] - SIDE // 2 : middle[1] + SIDE // 2 + 1,
                ]
            )
    stack = np.stack([*np.real(filters), *np.imag(filters)], -1)
    stack = stack - stack.mean((0, 1))
    return (stack / np.linalg.norm(stack, axis=(0, 1)))[:, :, None].astype(np.float32)


class Visual(models.Network):
    """Simple cells, complex cells (energy), and products of complex cells.

    Convolutions are circular, so that a periodic image and noise of the same
    spectrum have exactly the same mean energy.
    """

    num_classes: int = 2

    @nn.compact
    def __call__(self, images, *, train):
        conv1 = nn.Conv(
            16, (SIDE, SIDE), padding="CIRCULAR", use_bias=False, name="conv1"
        )(images)
        even, odd = jnp.split(conv1, 2, -1)
        energy = even**2 + odd**2
        products = [energy * jnp.roll(energy, k, -1) for k in (1, 4)]
        product = nn.avg_pool(jnp.concatenate(products, -1), (4, 4), (4, 4))
        logits = nn.Dense(self.num_classes, name="head")(energy.mean((1, 2)))
        taps = {
            "conv1": conv1,
            "simple": nn.relu(conv1),
            "energy": energy,
            "product": product,
            "head": logits,
        }
        return logits, taps


class Small(models.Network):
    """A convolution, a hidden layer and a head: enough for every measure."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images, *, train):
        conv1 = nn.Conv(6, (5, 5), strides=2, name="conv1")(images)
        x = nn.relu(conv1).mean((1, 2))
        fc6 = nn.Dense(7, name="fc6")(x)
        logits = nn.Dense(self.num_classes, name="head")(nn.relu(fc6))
        return logits, {"conv1": conv1, "fc6": fc6, "head": logits}


def as_network(
    module, variables, size, arm="made", seed=0, stage="target", parent=None
):
    """Returns a network of grey images of `size` pixels, scaled as (x - 0.5) / 0.25."""
    made = network(module, {}, size, arm=arm, seed=seed, parent=parent)
    classes = tuple("abcdefgh"[: module.num_classes])
    return made._replace(variables=variables, stage=stage, class_names=classes)


def visual(size=32, kernel=None):
    """Returns `Visual` with the Gabor bank, or with another first kernel."""
    kernel = gabor_bank() if kernel is None else kernel
    head = {"kernel": np.ones((8, 2), np.float32), "bias": np.zeros(2, np.float32)}
    return as_network(
        Visual(), {"params": {"conv1": {"kernel": kernel}, "head": head}}, size
    )
