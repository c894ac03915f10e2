"""Features of networks that are not trained on the target."""

import functools
from collections.abc import Iterable
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
    batches: Iterable[np.ndarray],
    size: int,
    normalise: str,
    mean: np.ndarray,
    deviation: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns the features of images by layer, `[N, F]` float32.

    A feature is the mean or the standard deviation of a channel over a window, averaged
    over the windows that cover the image.

    Args:
      module: Network for the classes of the target.
      variables: Variables of the network, for any classes.
      fresh: Variables for the classes and the image size of the target; their head and
        dense layers replace the others.
      batches: Images in [0, 1], `[n, H, W, C]` with n up to `BATCH`.
      size: Side of the network's input.
      normalise, mean, deviation: Scaling of the images, see `augment.normalise`.
    """
    # With one shape of head all networks share a compiled program. Dense layers are
    # those of the target, since their shape may depend on the size of the image.
    later = {HEAD, *module.HIDDEN} & set(fresh["params"])
    params = {**variables["params"], **{name: fresh["params"][name] for name in later}}
    variables = {**variables, "params": params}
    parts: dict[str, list[np.ndarray]] = {}
    for batch in batches:
        padded = np.pad(batch, [(0, BATCH - len(batch)), *[(0, 0)] * 3])
        found = []
        for top, left in augment.windows(*batch.shape[1:3], size):
            window = padded[:, top : top + size, left : left + size]
            found.append(
                _forward(module, variables, window, normalise, mean, deviation)
            )
        for name in found[0]:
            values = sum(np.asarray(one[name]) for one in found) / len(found)
            parts.setdefault(name, []).append(values[: len(batch)])
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
