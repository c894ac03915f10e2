"""Strongest responses of each channel of a layer, and their receptive fields."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.explain import networks
from twostage_jax.explain.backward import methods_for
from twostage_jax.explain.networks import Network
from twostage_jax.explain.saliency import reconstruct
from twostage_jax.models import HEAD

# Below this fraction of a picture's largest value, a pixel is outside the receptive
# field.
SEEN_SHARE = 1e-5


class Strongest(NamedTuple):
    """The strongest responses of a layer's channels, at most one per image.

    Attributes:
      values: Responses, largest first, `[K, P]`.
      images: Indices of the images, `[K, P]`.
      places: Row and column in the tap, `[K, P, 2]`.
      dead: Whether the channel is never above 0 or, for a tap without a ReLU, has the
        same response to all images; `[K]` bool.
    """

    values: np.ndarray
    images: np.ndarray
    places: np.ndarray
    dead: np.ndarray


class Patches(NamedTuple):
    """Contents of a figure of some channels of a layer of one network.

    Attributes:
      patches: Receptive fields of neurons in the images, `[K, P, s, s, C]` in [0, 1].
      pictures: Pictures of the neurons, `[K, P, s, s, C]`.
      answered: Whether the channel responds to the image, `[K, P]` bool.
      dead: Whether the channel is dead (see `Strongest`), `[K]` bool.
    """

    patches: np.ndarray
    pictures: np.ndarray
    answered: np.ndarray
    dead: np.ndarray


def default_layers(module: Any, shapes: Mapping[str, tuple]) -> list[str]:
    """Returns `MAPS` of the network or, if it is empty, all taps that are maps.

    Args:
      module: The network.
      shapes: Shapes of its taps; see `networks.tap_shapes`.
    """
    return list(module.MAPS) or [n for n, shape in shapes.items() if len(shape) == 3]


def signed(module: Any, layer: str) -> bool:
    """Returns whether negative responses of the tap are as meaningful as positive ones."""
    return layer == HEAD or layer in module.SIGNED


def find_strongest(
    network: Network, images: np.ndarray, layers: Sequence[str], count: int
) -> dict[str, Strongest]:
    """Returns the `count` strongest responses of each channel of each layer.

    Args:
      network: The network.
      images: `[N, H, W, C]` in [0, 1].
      layers: Names of taps.
      count: Responses per channel, P; fewer if there are fewer images.

    Raises:
      UserError: A tap does not exist, or a response is not a finite number.
    """
    found = networks.activations(network, images, layers, _peaks)
    strongest = {}
    for layer, peaks in found.items():
        values, places = peaks["value"].T, np.moveaxis(peaks["place"], 1, 0)
        if not np.isfinite(values).all():
            raise UserError(
                f"arm '{network.arm}', seed {network.seed}: '{layer}' has responses "
                "that are not finite.",
                where=layer,
            )
        dead = values.max(1) <= 0
        if signed(network.module, layer):
            dead = values.max(1) == peaks["least"].min(0)
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        strongest[layer] = Strongest(
            np.take_along_axis(values, order, 1),
            order,
            np.take_along_axis(places, order[..., None], 1),
            dead,
        )
    return strongest


def _peaks(tap: jax.Array) -> dict[str, jax.Array]:
    """Returns each channel's largest and least response, and where the largest is."""
    flat = tap.reshape(len(tap), -1, tap.shape[-1])
    index = flat.argmax(1)
    columns = tap.shape[2] if tap.ndim == 4 else 1
    place = jnp.stack([index // columns, index % columns], -1)
    return {"value": flat.max(1), "least": flat.min(1), "place": place}


def spread_channels(dead: np.ndarray, wanted: int) -> np.ndarray:
    """Returns `wanted` channel indices, spread evenly; all of them if 0.

    They are chosen among the channels that respond in most arms. Otherwise the choice
    ignores the responses, so that it does not flatter any arm, and is the same for all
    arms: channels of one index have the same origin if arms share a stage.

    Args:
      dead: Whether a channel is dead in an arm, `[A, K]` bool.
      wanted: Number of channels.
    """
    wanted = min(wanted or dead.shape[1], dead.shape[1])
    alive = (~dead).sum(0)
    most = np.flatnonzero(alive >= np.sort(alive)[-wanted])
    return most[np.arange(wanted) * len(most) // wanted]


def best_method(module: Any) -> str:
    """Returns 'desalinet', or 'guided' or 'salinet' if the network does not support it."""
    known = methods_for(module)
    return next(m for m in ("desalinet", "guided", "salinet") if m in known)


def show(
    found: Mapping[str, tuple[Network, Strongest]],
    images: np.ndarray,
    layer: str,
    channels: np.ndarray,
) -> dict[str, Patches]:
    """Returns patches and pictures of some channels for every arm, at one size.

    The patches are as large as the largest receptive field of these neurons, and lie
    within the image.

    Args:
      found: Arm -> its network and the layer's strongest responses.
      images: Images in which the responses were found, `[N, H, W, C]` in [0, 1].
      layer: Name of the tap.
      channels: Indices of the channels, `[K]`.
    """
    pictures = {
        arm: _pictures(network, images, layer, strongest, channels)
        for arm, (network, strongest) in found.items()
    }
    boxes = {arm: boxes_of(of_arm) for arm, of_arm in pictures.items()}
    side = max(int((box[:, 1] - box[:, 0]).max(initial=1)) for box in boxes.values())
    shown = {}
    for arm, (network, strongest) in found.items():
        chosen = strongest.images[channels]
        shape = (*chosen.shape, side, side, images.shape[-1])
        starts = _starts(boxes[arm], side, images.shape[1:3])
        shown[arm] = Patches(
            _cut(images[chosen.reshape(-1)], starts, side).reshape(shape),
            _cut(pictures[arm], starts, side).reshape(shape),
            (strongest.values[channels] > 0) | signed(network.module, layer),
            strongest.dead[channels],
        )
    return shown


def _pictures(
    network: Network,
    images: np.ndarray,
    layer: str,
    strongest: Strongest,
    channels: np.ndarray,
) -> np.ndarray:
    """Returns the pictures of K channels' P neurons, `[K * P, H, W, C]`."""
    chosen = strongest.images[channels]
    return reconstruct(
        network.module,
        network.variables,
        networks.scaled(network, images[chosen.reshape(-1)]),
        layer,
        method=best_method(network.module),
        channels=np.repeat(channels, chosen.shape[1]),
        positions=strongest.places[channels].reshape(-1, 2),
    )


def boxes_of(pictures: np.ndarray) -> np.ndarray:
    """Returns the bounding boxes of non-zero pixels, `[M, 2, 2]`.

    The axes are (first, after the last) by (row, column); the box of an empty picture is
    its centre pixel.
    """
    size = np.abs(pictures).max(-1)
    seen = size > SEEN_SHARE * size.max((1, 2), keepdims=True)
    boxes = np.zeros((len(pictures), 2, 2), int)
    for axis in (0, 1):
        line = seen.any(2 - axis)
        length = line.shape[1]
        some = line.any(1)
        boxes[:, 0, axis] = np.where(some, line.argmax(1), length // 2)
        after = length - line[:, ::-1].argmax(1)
        boxes[:, 1, axis] = np.where(some, after, length // 2 + 1)
    return boxes


def _starts(boxes: np.ndarray, side: int, shape: tuple[int, int]) -> np.ndarray:
    """Returns the first row and column of squares centred on boxes, `[M, 2]`."""
    starts = (boxes.sum(1) - side) // 2
    return np.clip(starts, 0, np.maximum(np.array(shape) - side, 0))


def _cut(images: np.ndarray, starts: np.ndarray, side: int) -> np.ndarray:
    return np.stack(
        [
            image[row : row + side, column : column + side]
            for image, (row, column) in zip(images, starts, strict=True)
        ]
    )
