"""Pictures of what an activation responds to, by going back from it to the pixels."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.explain import backward, networks

PyTree = Any
What = Literal["neuron", "channel", "layer"]


def reconstruct(
    module: Any,
    variables: PyTree,
    images: np.ndarray,
    tap: str,
    *,
    method: str = "desalinet",
    what: What = "neuron",
    channels: np.ndarray | int | None = None,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Goes back from a tap to the pixels, for a batch of images.

    'neuron' starts from 1 at one place of a channel; with 'salinet' that is the
    gradient of the neuron. 'channel' starts from a channel's values and 'layer' from
    all, as Zeiler & Fergus (2014) do; with 'salinet' that is the gradient of half the
    sum of their squares.

    Args:
      module, variables: The network.
      images: `[N, H, W, C]`, as the network takes them.
      tap: Where to start; see the network's docstring.
      method: One of `backward.METHODS`.
      what: What of the tap to start from.
      channels: For 'neuron' and 'channel': one channel, or one an image, `[N]`.
      positions: For 'neuron': row and column in the tap for each image, `[N, 2]`; None
        takes the place of the channel's largest value. Taps without places take none.

    Returns:
      Pictures `[N, H, W, C]` float32.

    Raises:
      UserError: The tap, the channel, the position or the method does not exist.
    """
    backward.check_method(method, module)
    shapes = networks.tap_shapes(module, variables, images)
    networks.check_tap(shapes, tap)
    shape, count = shapes[tap], len(images)
    if what == "layer":
        channels = 0
    elif channels is None:
        raise UserError(f"a {what} of '{tap}' needs the number of its channel.")
    channels = np.broadcast_to(np.asarray(channels, np.int32), (count,))
    for channel in (channels.min(), channels.max()):
        if not 0 <= channel < shape[-1]:
            raise UserError(
                f"'{tap}' has channels 0 to {shape[-1] - 1}, not {channel}."
            )
    places = np.full((count, 2), -1, np.int32)
    if positions is not None:
        places = np.asarray(positions, np.int32).reshape(count, 2)
        sizes = shape[:2] if len(shape) == 3 else (1, 1)
        if (places < 0).any() or (places >= sizes).any():
            raise UserError(f"'{tap}' has {sizes[0]} x {sizes[1]} places.")
    program = functools.partial(_go_back, module, tap, method, what, variables)
    return networks.in_batches(program, images, channels, places)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _go_back(module, tap, method, what, variables, images, channels, places):
    def forward(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=False)[1][tap]

    with backward.rules(method):
        value, transpose = jax.vjp(forward, images)
    start = value
    if what != "layer":
        flat = value.reshape(len(value), -1, value.shape[-1])
        of_channel = jnp.arange(value.shape[-1]) == channels[:, None, None]
        start = jnp.where(of_channel, flat, 0)
        if what == "neuron":
            map_of = jnp.take_along_axis(flat, channels[:, None, None], 2)[..., 0]
            columns = value.shape[2] if value.ndim == 4 else 1
            given = places[:, 0] * columns + places[:, 1]
            place = jnp.where(places[:, 0] < 0, map_of.argmax(1), given)
            here = jnp.arange(flat.shape[1])[:, None] == place[:, None, None]
            start = (of_channel & here).astype(value.dtype)
        start = start.reshape(value.shape)
    return transpose(start)[0].astype(jnp.float32)
