"""Saliency maps `[N, H, W]` of a class: higher where pixels matter more.

All functions take `(module, variables, images, labels)`: images `[N, H, W, C]` as the
network takes them, and classes `[N]` whose logits are explained.

There are two kinds. A sensitivity is the magnitude of a gradient, or of its substitute:
it shows where a change would change the logit, up or down; it is the maximum over
channels (Simonyan et al. 2014, section 3.1). An attribution distributes the logit over
the pixels, and is negative for pixels against the class; channels are summed.

`reconstruct` goes back to the pixels from any activation, by the rules of `backward`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.explain import backward, networks
from twostage_jax.models import HEAD

PyTree = Any
# Sundararajan et al. 2017 use 20 to 300; with the midpoint rule 32 is within 1 %.
PATH_STEPS = 32
# Smilkov et al. 2017 (arXiv 1706.03825): 10 to 20 % noise, little gained beyond 50.
NOISE_SAMPLES, NOISE_SHARE = 25, 0.15


def _in_batches(program: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """Returns a function of any number of images from one of a batch."""

    @functools.wraps(program)
    def explain(
        module: Any, variables: PyTree, images: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        labels = np.asarray(labels, np.int32)
        of_network = functools.partial(program, module, variables)
        return networks.in_batches(of_network, images, labels)

    return explain


def _chosen(module, variables, images, labels) -> jax.Array:
    logits = module.apply(variables, images, train=False)[0]
    return jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]


@functools.partial(jax.jit, static_argnums=0)
def _gradient(module, variables, images, labels) -> jax.Array:
    """Returns the gradient of the logits, `[N, H, W, C]`."""
    return jax.grad(lambda x: _chosen(module, variables, x, labels).sum())(images)


def _mean_gradient(module, variables, labels, images_of, count: int) -> jax.Array:
    """Returns the mean gradient over `images_of(i)` for i below `count`.

    A single compiled call would hold all of them in memory, and a loop inside a compiled
    function is slow on a CPU (see `train.parallel`). So the host loops.
    """
    total = 0.0
    for i in range(count):
        total = total + _gradient(module, variables, images_of(i), labels)
    return total / count


@_in_batches
def gradient_x_input(module, variables, images, labels):
    """Returns gradient times input (Shrikumar et al. 2016, arXiv 1605.01713)."""
    found = np.asarray(_gradient(module, variables, images, labels))
    return (found * images).sum(-1)


@_in_batches
def integrated_gradients(module, variables, images, labels):
    """Returns integrated gradients from the mean grey (Sundararajan et al. 2017).

    arXiv 1703.01365; midpoint rule with `PATH_STEPS` steps. The mean grey of normalised
    images is 0. A map sums to the logit of the image minus that of the grey image.
    """

    def along(i: int) -> np.ndarray:
        return (i + 0.5) / PATH_STEPS * images

    mean = _mean_gradient(module, variables, labels, along, PATH_STEPS)
    return (images * mean).sum(-1)


@_in_batches
def smoothgrad(module, variables, images, labels):
    """Returns the magnitude of the mean gradient over noisy copies (Smilkov et al. 2017).

    There are `NOISE_SAMPLES` copies. The standard deviation of the noise is `NOISE_SHARE`
    of the image's range; its seed is fixed, and every image gets the same noise.
    """
    axes = (1, 2, 3)
    deviation = NOISE_SHARE * (
        images.max(axes, keepdims=True) - images.min(axes, keepdims=True)
    )

    def noisy(i: int) -> np.ndarray:
        noise = np.random.default_rng(i).standard_normal((1, *images.shape[1:]))
        return (images + deviation * noise).astype(np.float32)

    return _size(_mean_gradient(module, variables, labels, noisy, NOISE_SAMPLES))


@_in_batches
def grad_cam(module, variables, images, labels):
    """Returns channels weighted by their mean gradient (Selvaraju et al. 2017).

    arXiv 1610.02391, equations 1 and 2, for `last_map`, resized linearly to the image.
    An orderless head reads the standard deviation of each channel as well, whose gradient
    sums to 0 over the map, and earlier maps: Grad-CAM shows neither.
    """
    tap = last_map(module, variables, images)
    return _cam_program(_mean_weights, tap, module, variables, images, labels)


@_in_batches
def grad_cam_pp(module, variables, images, labels):
    """Returns Grad-CAM++ maps (Chattopadhay et al. 2018, arXiv 1710.11063).

    Equations 10 and 19, for the exponential of the logit, whose factor is omitted: it is
    one number per image. The equations assume a non-negative tap, as after a ReLU.
    """
    tap = last_map(module, variables, images)
    return _cam_program(_plus_weights, tap, module, variables, images, labels)


@_in_batches
def occlusion(module, variables, images, labels):
    """Returns the drop of the logit when a square is covered (Zeiler & Fergus 2014).

    Squares have a quarter of the image's side, and overlap by half. They are covered
    with 0, the mean grey of normalised images. The value of a pixel is the mean over the
    squares that cover it.
    """
    side = max(images.shape[1] // 4, 2)
    masks = jnp.asarray(_squares(images.shape[1:3], side, max(side // 2, 1)))
    before = _chosen_program(module, variables, images, labels)
    lost = 0.0
    for mask in masks:
        after = _covered_program(module, variables, images, labels, mask)
        lost = lost + mask[None, :, :, 0] * (before - after)[:, None, None]
    return lost / masks.sum(0)[None, :, :, 0]


def _at_head(method: str) -> Callable:
    def explain(module, variables, images, labels):
        pictures = reconstruct(
            module, variables, images, HEAD, method=method, channels=labels
        )
        return _size(pictures)

    return explain


def _size(pictures: Any) -> np.ndarray:
    return np.abs(np.asarray(pictures)).max(-1)


# Every method that explains a class, by name; the sensitivities first.
SALIENCY: dict[str, Callable[..., np.ndarray]] = {
    **{method: _at_head(method) for method in backward.METHODS},
    "smoothgrad": smoothgrad,
    "gradient_x_input": gradient_x_input,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
    "grad_cam_pp": grad_cam_pp,
    "occlusion": occlusion,
}

# Below 0 where a pixel speaks against the class.
SIGNED = ("gradient_x_input", "integrated_gradients", "occlusion")


def methods_for(module: Any) -> list[str]:
    """Returns the methods of `SALIENCY` that this network supports."""
    missing = set(backward.METHODS) - set(backward.methods_for(module))
    return [name for name in SALIENCY if name not in missing]


def last_map(module: Any, variables: PyTree, images: np.ndarray) -> str:
    """Returns the last tap with positions that is not a pooling, as for Grad-CAM."""
    shapes = networks.tap_shapes(module, variables, images)
    maps = [name for name, shape in shapes.items() if len(shape) == 3]
    return [name for name in maps if not name.startswith("pool")][-1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _cam_program(weights, tap, module, variables, images, labels):
    # The derivative with respect to an offset added to the tap is that with respect to
    # the tap, which a call of the module alone cannot give.
    def chosen(offset: jax.Array) -> Any:
        def moved(name: str, value: jax.Array) -> jax.Array:
            return value + offset.astype(value.dtype) if name == tap else value

        with backward.replaced(tap=moved):
            logits, taps = module.apply(variables, images, train=False)
        return jnp.take_along_axis(logits, labels[:, None], 1).sum(), taps[tap]

    # A tap before a pooling has zeros that tie, and the result depends on which of them
    # gets the gradient: the first, as with the switches.
    with backward.rules("salinet"):
        shape = jax.eval_shape(lambda: chosen(jnp.zeros(())))[1].shape
        gradients, value = jax.grad(chosen, has_aux=True)(jnp.zeros(shape))
    heat = jax.nn.relu((weights(gradients, value) * value).sum(-1))
    return jax.image.resize(heat, images.shape[:3], "linear")


def _mean_weights(gradients: jax.Array, value: jax.Array) -> jax.Array:
    return gradients.mean((1, 2), keepdims=True)


def _plus_weights(gradients: jax.Array, value: jax.Array) -> jax.Array:
    total = value.sum((1, 2), keepdims=True)
    below = 2 * gradients**2 + total * gradients**3
    alpha = jnp.where(below == 0, 0, gradients**2 / jnp.where(below == 0, 1, below))
    return (alpha * jax.nn.relu(gradients)).sum((1, 2), keepdims=True)


def _squares(shape: tuple[int, int], side: int, step: int) -> np.ndarray:
    """Returns masks of squares of side `side` that cover an image, `[M, H, W, 1]` bool."""
    rows, columns = (
        np.unique(np.append(np.arange(0, max(n - side, 0), step), max(n - side, 0)))
        for n in shape
    )
    masks = np.zeros((len(rows), len(columns), *shape, 1), bool)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            masks[i, j, row : row + side, column : column + side] = True
    return masks.reshape(-1, *shape, 1)


_chosen_program = functools.partial(jax.jit, static_argnums=0)(_chosen)


@functools.partial(jax.jit, static_argnums=0)
def _covered_program(module, variables, images, labels, mask):
    return _chosen(module, variables, jnp.where(mask, 0.0, images), labels)


def reconstruct(
    module: Any,
    variables: PyTree,
    images: np.ndarray,
    tap: str,
    *,
    method: str = "desalinet",
    channels: np.ndarray | int,
    positions: np.ndarray | None = None,
) -> np.ndarray:
    """Propagates a neuron of a tap back to the pixels, for a batch of images.

    It starts from 1 at one position of a channel; with 'salinet' this gives the gradient
    of the neuron.

    Args:
      module, variables: The network.
      images: `[N, H, W, C]`, as the network takes them.
      tap: Name of the tap to start from; see the network's docstring.
      method: One of `backward.METHODS`.
      channels: One channel, or one per image, `[N]`.
      positions: Row and column in the tap for each image, `[N, 2]`; None takes the
        position of the channel's largest value. Omit it for taps without positions.

    Returns:
      Pictures `[N, H, W, C]` float32.

    Raises:
      UserError: The tap, the channel, the position or the method does not exist.
    """
    backward.check_method(method, module)
    shapes = networks.tap_shapes(module, variables, images)
    networks.check_tap(shapes, tap)
    shape, count = shapes[tap], len(images)
    channels = np.broadcast_to(np.asarray(channels, np.int32), (count,))
    for channel in (channels.min(), channels.max()):
        if not 0 <= channel < shape[-1]:
            raise UserError(
                f"'{tap}' has channels 0 to {shape[-1] - 1}, not {channel}.",
                where="channels",
            )
    places = np.full((count, 2), -1, np.int32)
    if positions is not None:
        places = np.asarray(positions, np.int32).reshape(count, 2)
        sizes = shape[:2] if len(shape) == 3 else (1, 1)
        if (places < 0).any() or (places >= sizes).any():
            raise UserError(
                f"'{tap}' has {sizes[0]} x {sizes[1]} positions.", where="positions"
            )
    program = functools.partial(_go_back, module, tap, method, variables)
    return networks.in_batches(program, images, channels, places)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _go_back(module, tap, method, variables, images, channels, places):
    def forward(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, train=False)[1][tap]

    with backward.rules(method):
        value, transpose = jax.vjp(forward, images)
    flat = value.reshape(len(value), -1, value.shape[-1])
    of_channel = jnp.take_along_axis(flat, channels[:, None, None], 2)[..., 0]
    columns = value.shape[2] if value.ndim == 4 else 1
    given = places[:, 0] * columns + places[:, 1]
    place = jnp.where(places[:, 0] < 0, of_channel.argmax(1), given)
    start = jnp.zeros_like(flat).at[jnp.arange(len(flat)), place, channels].set(1)
    return transpose(start.reshape(value.shape))[0].astype(jnp.float32)
