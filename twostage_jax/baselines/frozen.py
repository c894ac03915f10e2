"""Features of networks that are not trained on the target."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.models import HEAD, Network, layers
from twostage_jax.train import augment

PyTree = Any
BATCH = 256


def features(
    module: Network,
    variables: PyTree,
    fresh: PyTree,
    images: np.ndarray,
    normalise: str,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns the features of images by layer, `[N, F]` float32.

    A feature is the mean or the standard deviation of a channel over the image.

    Args:
      module: Network for the classes of the target.
      variables: Variables of the network, for any classes.
      fresh: Variables for the classes of the target; their head replaces the other.
      images: `[N, H, W, C]` in [0, 1].
      normalise, mean, deviation: Scaling of the images, see `augment.normalise`.
    """
    # With one shape of head all networks share a compiled program.
    params = {**variables["params"], HEAD: fresh["params"][HEAD]}
    variables = {**variables, "params": params}
    parts: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(images), BATCH):
        batch = images[first : first + BATCH]
        padded = np.pad(batch, [(0, BATCH - len(batch)), *[(0, 0)] * 3])
        found = _forward(module, variables, padded, normalise, mean, deviation)
        for name, values in found.items():
            parts.setdefault(name, []).append(np.asarray(values)[: len(batch)])
    return {name: np.concatenate(values) for name, values in parts.items()}


@functools.partial(jax.jit, static_argnames=("module", "normalise"))
def _forward(
    module: Network,
    variables: PyTree,
    images: jax.Array,
    normalise: str,
    mean: jax.Array,
    deviation: jax.Array,
) -> dict[str, jax.Array]:
    images = augment.normalise(jnp.asarray(images), normalise, mean, deviation)
    _, taps = module.apply(variables, images, train=False)
    # A network without such layers is described by the input of its head.
    names = module.RECTIFIED or list(taps)[-2:][:1]
    return {name: layers.moments(taps[name]) for name in names}
