"""The layers that the networks share.

`relu`, `max_pool`, `local_response_norm` and `tap` are plain functions, and the networks
call them as attributes of this module, so that a feature analysis can replace their
backward rules, or modify a tap.

Images and activations are [N, H, W, C], kernels [kh, kw, C in / groups, C out].
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from twostage_jax.errors import UserError
from twostage_jax.models.convolution import convolve, is_converting, shifted

# Name of the classifier layer and of its tap, in every network.
HEAD = "head"
# Name of the standardisation before it, in an orderless head.
HEAD_NORM = "head_norm"
# He et al. 2015 (arXiv 1502.01852): keeps the variance of the signal through a ReLU at
# any width and kernel size. Caffe's fixed Gaussians (0.01 and 0.005 wide) fit the
# widths of CaffeNet only, and let the signal fade in a narrower network.
he_normal = nn.initializers.he_normal()
# Small, so that training starts from nearly equal class probabilities. Caffe's 0.01 is
# not small enough for the signal that He's deviations and max-pooling let through.
head_init = nn.initializers.normal(0.001)


def check_size(images: jax.Array, least: int) -> None:
    """Raises a UserError if images `[N, H, W, C]` have a side of fewer pixels."""
    rows, columns = images.shape[1:3]
    if min(rows, columns) < least:
        raise UserError(
            f"images of {rows} x {columns} pixels are too small for this network, which "
            f"needs {least}. Enlarge them, or use another model.name.",
            where="model.image_size",
        )


def tap(name: str, value: jax.Array) -> jax.Array:
    """Returns `value`: every tap of a network passes here on its way to the next layer."""
    del name
    return value


def recorder() -> tuple[dict[str, jax.Array], Callable[[str, jax.Array], jax.Array]]:
    """Returns an empty dict and a function that passes a value on and records it.

    The function calls `tap(name, value)`, stores the result in the dict under the name,
    and returns it.
    """
    taps: dict[str, jax.Array] = {}

    def record(name: str, value: jax.Array) -> jax.Array:
        taps[name] = value = tap(name, value)
        return value

    return taps, record


def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0); the gradient at 0 is 0."""
    return jax.nn.relu(x)


def max_pool(x: jax.Array, *, pad: int = 0, ceil: bool = True) -> jax.Array:
    """Returns overlapping max-pooling: 3x3 windows with stride 2.

    Written as maxima of three rows, then of three columns: the gradient of
    `lax.reduce_window` scatters, and is 10 times slower on a CPU. If the largest value
    occurs more than once, the gradient is divided among the positions instead of going
    to the first; after a ReLU such ties are mostly zeros, which block gradients.

    Args:
      x: [N, H, W, C], float.
      pad: Rows and columns of minus infinity put on all four sides, 0 or 1.
      ceil: Caffe's size rule, in which the last window may reach past the edge:
        ceil((H + 2 pad - 3) / 2) + 1, and at least 1. Otherwise every window lies
        within the padded image: floor((H + 2 pad - 3) / 2) + 1.

    Returns:
      [N, H', W', C].
    """
    return _largest_of_three(_largest_of_three(x, 1, pad, ceil), 2, pad, ceil)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _largest_of_three(x: jax.Array, axis: int, pad: int, ceil: bool) -> jax.Array:
    """Returns the maxima over windows of three along an axis, 2 apart."""
    return functools.reduce(jnp.maximum, _threes(x, axis, pad, ceil))


def _largest_forward(
    x: jax.Array, axis: int, pad: int, ceil: bool
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _largest_of_three(x, axis, pad, ceil)
    return y, (x, y)


def _largest_backward(
    axis: int, pad: int, ceil: bool, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array]:
    # jax's own gradient of the maxima takes 4 times as long on a CPU: more passes over
    # the image.
    x, y = saved
    places, transpose = jax.vjp(lambda x: _threes(x, axis, pad, ceil), x)
    largest = [(place == y).astype(g.dtype) for place in places]
    share = g / sum(largest)
    return transpose([here * share for here in largest])


_largest_of_three.defvjp(_largest_forward, _largest_backward)


def _threes(x: jax.Array, axis: int, pad: int, ceil: bool) -> list[jax.Array]:
    """Returns the inputs at the first, second and third position of each window."""
    size = x.shape[axis]
    free = max(size + 2 * pad - 3, 0)
    last = (free + 1 if ceil else free) // 2 * 2  # where the last window begins
    after = last + 3 - pad - size
    if is_converting():  # Converters lack `lax.pad` for batches of any size.
        edge = jnp.full_like(lax.slice_in_dim(x, 0, 1, axis=axis), -jnp.inf)
        x = jnp.concatenate([*[edge] * pad, x, *[edge] * max(after, 0)], axis)
    else:
        widths = [(0, 0, 0)] * x.ndim
        widths[axis] = (pad, after, 0)
        x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), widths)
    return [lax.slice_in_dim(x, i, i + last + 1, 2, axis) for i in range(3)]


def mean_pool(x: jax.Array) -> jax.Array:
    """Returns the means [N, H // 2, W // 2, C] over 2x2 windows, 2 apart."""
    return sum(shifted(x, 2, 2)) / 4


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides by a local sum of squares over neighbouring channels, as in Caffe.

    y = x / (1 + alpha / n * s) ** beta, with s the sum of x ** 2 over the n = 5
    channels centred on this one (fewer at the ends), alpha = 1e-4, beta = 0.75:
    section 3.3 of Krizhevsky et al. 2012, with the constants of Caffe's
    `bvlc_reference_caffenet`.

    Args:
      x: [N, H, W, C], float. The sum is taken in float32.

    Returns:
      The same shape and dtype.
    """
    square = jnp.square(x.astype(jnp.float32))
    window = (1,) * (x.ndim - 1) + (5,)
    padding = ((0, 0),) * (x.ndim - 1) + ((2, 2),)
    total = lax.reduce_window(square, 0.0, lax.add, window, (1,) * x.ndim, padding)
    # s ** -0.75 as two roots: a general power costs several times more.
    root = lax.rsqrt(1.0 + 1e-4 / 5 * total)
    return x * (root * jnp.sqrt(root)).astype(x.dtype)


class Conv(nn.Module):
    """Convolution with a square kernel; parameters `kernel` and `bias` are float32.

    Attributes:
      features: Output channels.
      size: Side of the kernel, pixels.
      strides: Step between windows, pixels.
      pad: Rows and columns of zeros on each side, or 'same'; see `convolve`.
      groups: Number of groups; see `convolve`. The parameters are one kernel.
      use_bias: Whether to add a bias for each output channel.
      dtype: Data type of the computation and of the result.
    """

    features: int
    size: int
    strides: int = 1
    pad: int | str = 0
    groups: int = 1
    use_bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", he_normal, shape)
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=self.strides,
            pad=self.pad,
            groups=self.groups,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y


class Dropout(nn.Module):
    """Dropout whose mask for an example depends on its position in the global batch.

    Example i of the global batch draws from `fold_in(key of this layer, i)`, so that
    one device and eight give the same masks. Inside `jax.pmap` every device must be
    given the same 'dropout' key.

    Attributes:
      rate: Probability that a value is set to 0; the others are scaled by
        1 / (1 - rate).
      axis_name: Name of the mapped axis that the batch is spread over, or None.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train or self.rate == 0:
            return x
        count, *shape = x.shape
        index = jnp.arange(count)
        if self.axis_name is not None and not self.is_initializing():
            index = index + lax.axis_index(self.axis_name) * count
        key = self.make_rng("dropout")
        keep = jax.vmap(
            lambda i: jax.random.bernoulli(
                jax.random.fold_in(key, i), 1 - self.rate, tuple(shape)
            )
        )(index)
        # A product, which no compiler rewrites: a quotient by a constant may be.
        return jnp.where(keep, x * (1 / (1 - self.rate)), 0)


def means(x: jax.Array) -> jax.Array:
    """Returns each channel's mean over the image.

    Args:
      x: [N, H, W, C], or [N, C] features without positions.

    Returns:
      float32 [N, C]; features without positions as they are.
    """
    x = x.astype(jnp.float32)
    return x.mean((1, 2)) if x.ndim == 4 else x


def moments(x: jax.Array) -> jax.Array:
    """Returns each channel's mean and standard deviation over the image.

    Orderless pooling of first and second order: it distinguishes textures regardless of
    position, as texture descriptors have done since Julesz 1981 (doi:10.1038/290091a0).

    Args:
      x: [N, H, W, C], or [N, C] features without positions.

    Returns:
      float32 [N, 2 C]: all means, then all standard deviations; features without
      positions as they are.
    """
    mean = means(x)
    if x.ndim == 2:
        return mean
    variance = jnp.square(x.astype(jnp.float32) - mean[:, None, None]).mean((1, 2))
    # The root's gradient is infinite at 0, where a channel is silent.
    return jnp.concatenate([mean, jnp.sqrt(variance + 1e-5)], axis=-1)


def make_norm(
    network: nn.Module, *, train: bool, epsilon: float = 1e-5
) -> Callable[..., nn.Module]:
    """Returns a constructor of a network's normalisation layer, `norm(name=...)`.

    The field `norm` of the network is its kind. 'batch': running statistics move by a
    tenth each training step, over all devices along `axis_name`. 'group': 32 groups of
    channels (Wu & He 2018, arXiv 1803.08494), the same in training and evaluation. Both
    have a `scale` and a `bias`.
    """
    if network.norm == "group":
        return functools.partial(
            nn.GroupNorm, num_groups=32, epsilon=epsilon, dtype=network.dtype
        )
    return functools.partial(
        nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=epsilon,
        dtype=network.dtype, axis_name=network.axis_name,
    )  # fmt: skip


def orderless(
    network: nn.Module, taps: dict[str, jax.Array], *, train: bool
) -> jax.Array:
    """Returns the input of an orderless head: standardised moments, `[N, 2 * channels]`.

    The means and standard deviations of some channels are a hundred times those of
    others, so one learning rate cannot suit all weights. Each therefore goes through
    BatchNorm (Ioffe & Szegedy 2015, arXiv 1502.03167), which is part of the head: a
    transfer that re-initialises the head re-initialises it, too.

    Args:
      network: Network that calls this; it reads the taps of its `RECTIFIED`.
      taps: Activations `[N, h, w, c]` by name.
      train: Whether to standardise over the batch.
    """
    x = jnp.concatenate([moments(taps[name]) for name in network.RECTIFIED], axis=-1)
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, dtype=jnp.float32,
        axis_name=network.axis_name, name=HEAD_NORM,
    )  # fmt: skip
    return norm(x)


def pooled(
    network: nn.Module,
    x: jax.Array,
    taps: dict[str, jax.Array],
    tap: Callable[..., jax.Array],
    *,
    train: bool,
) -> jax.Array:
    """Returns the input of a head that is 'mean' or 'orderless', `[N, features]`.

    Args:
      network: Network that calls this, with the fields `head` and `dropout`.
      x: Its last map `[N, h, w, c]`.
      taps: Activations `[N, h, w, c]` by name.
      tap: Adds to them: 'mean' or 'moments', before dropout.
      train: Whether to drop out, and to standardise moments over the batch.
    """
    if network.head == "orderless":
        return tap("moments", orderless(network, taps, train=train))
    x = tap("mean", means(x))
    return Dropout(network.dropout, network.axis_name)(x, train=train)


def head(num_classes: int) -> nn.Dense:
    """Returns the classifier layer; float32 inputs give float32 logits."""
    return nn.Dense(num_classes, kernel_init=head_init, name=HEAD)
