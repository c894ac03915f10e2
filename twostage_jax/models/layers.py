"""The layers that the networks share.

`relu`, `max_pool`, `local_response_norm` and `tap` are plain functions, and the networks
call them as attributes of this module, so that a feature analysis can put another
backward rule in their place, or a change at a tap.

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
    """Overlapping max-pooling: 3x3 windows, 2 apart.

    Written as maxima over the even and odd rows, then columns: the gradient of
    `lax.reduce_window` scatters, and is 5 to 10 times slower on a CPU. Where the
    largest value occurs more than once, the gradient is shared among the positions
    instead of going to the first; after a ReLU such ties are mostly zeros, where no
    gradient passes.

    Args:
      x: [N, H, W, C], float.
      pad: rows and columns of minus infinity put on all four sides, 0 or 1.
      ceil: Caffe's size rule, in which the last window may reach past the edge:
        ceil((H + 2 pad - 3) / 2) + 1, and at least 1. Otherwise every window lies
        within the padded image: floor((H + 2 pad - 3) / 2) + 1.

    Returns:
      [N, H', W', C].
    """
    return _pool_axis(_pool_axis(x, 1, pad, ceil), 2, pad, ceil)


def _pool_axis(x: jax.Array, axis: int, pad: int, ceil: bool) -> jax.Array:
    size = x.shape[axis]
    free = max(size + 2 * pad - 3, 0)
    out = (free + 1 if ceil else free) // 2 + 1
    # Pairs (a, b) of neighbours: window k is a[k], b[k] and a[k + 1].
    widths = [(0, 0, 0)] * x.ndim
    widths[axis] = (pad, 2 * (out + 1) - pad - size, 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), widths)
    x = x.reshape(*x.shape[:axis], out + 1, 2, *x.shape[axis + 1 :])
    a = lax.index_in_dim(x, 0, axis + 1, keepdims=False)
    b = lax.index_in_dim(x, 1, axis + 1, keepdims=False)
    first = functools.partial(lax.slice_in_dim, start_index=0, limit_index=out)
    last = lax.slice_in_dim(a, 1, out + 1, axis=axis)
    return jnp.maximum(jnp.maximum(first(a, axis=axis), first(b, axis=axis)), last)


def mean_pool(x: jax.Array) -> jax.Array:
    """Returns the means [N, H // 2, W // 2, C] over 2x2 windows, 2 apart."""
    return sum(_shifted(x, 2, 2)) / 4


def local_response_norm(x: jax.Array) -> jax.Array:
    """Divides by a local sum of squares over neighbouring channels, as Caffe does.

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


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int,
    pad: int | str,
    groups: int = 1,
) -> jax.Array:
    """Two-dimensional cross-correlation, [N, H, W, C] with [kh, kw, C / groups, O].

    With groups, input and output channels are cut into that many equal runs, each
    convolved on its own. They are separate convolutions here: XLA's grouped one has a
    kernel gradient that is 10 to 30 times slower on a CPU. So is its convolution of an
    image smaller than the kernel, which is a matrix product here, and its convolution of
    every channel on its own, which is a sum of shifted images.

    Args:
      x: images or activations.
      kernel: square.
      strides: step between windows, pixels.
      pad: rows and columns of zeros on each side, or 'same' for TensorFlow's rule:
        ceil(H / strides) windows, and the odd row of zeros at the end.
      groups: number of runs of channels.
    """
    size = kernel.shape[0]
    margins = [_margins(n, size, strides, pad) for n in x.shape[1:3]]
    if 1 < groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(jnp.pad(x, [(0, 0), *margins, (0, 0)]), kernel, strides)
    if min(x.shape[1:3]) < size:
        conv = functools.partial(_window_product, strides=strides, margins=margins)
    else:
        conv = functools.partial(
            lax.conv_general_dilated,
            window_strides=(strides, strides),
            padding=margins,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    if groups == 1:
        return conv(x, kernel)
    pairs = zip(
        jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True
    )
    return jnp.concatenate([conv(part, weights) for part, weights in pairs], axis=-1)


def _margins(length: int, size: int, strides: int, pad: int | str) -> tuple[int, int]:
    """Returns the zeros before and after an axis of that length."""
    if pad != "same":
        return pad, pad
    total = max((-(-length // strides) - 1) * strides + size - length, 0)
    return total // 2, total - total // 2


def _shifted(x: jax.Array, size: int, strides: int) -> list[jax.Array]:
    """Returns `[..., H', W', C]` per position of a kernel: what it sees there."""
    # The last row and column at which a window can begin.
    rows, columns = x.shape[-3] - size, x.shape[-2] - size
    return [
        x[..., i : i + rows + 1 : strides, j : j + columns + 1 : strides, :]
        for i in range(size)
        for j in range(size)
    ]


def _window_product(
    x: jax.Array, kernel: jax.Array, *, strides: int, margins: list[tuple[int, int]]
) -> jax.Array:
    """Returns the cross-correlation as the product of all windows with the kernel."""
    x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
    windows = jnp.concatenate(_shifted(x, kernel.shape[0], strides), axis=-1)
    return windows @ kernel.reshape(-1, kernel.shape[-1])


def _shifted_sum(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    size, _, _, channels = kernel.shape
    windows = _shifted(x.astype(jnp.float32), size, strides)
    weights = kernel.astype(jnp.float32).reshape(-1, channels)
    total = sum(window * row for window, row in zip(windows, weights, strict=True))
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Returns the cross-correlation of each channel with its own kernel.

    Args:
      x: `[N, H, W, C]`, padded.
      kernel: `[k, k, 1, C]`.
      strides: step between windows, pixels.
    """
    return _shifted_sum(x, kernel, strides)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, strides: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted_sum(x, kernel, strides), (x, kernel)


def _depthwise_backward(
    strides: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    (to_x,) = jax.vjp(lambda x: _shifted_sum(x, kernel, strides), x)[1](g)

    def of_image(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, g = (part.astype(jnp.float32) for part in pair)
        windows = _shifted(x, kernel.shape[0], strides)
        return jnp.stack([(window * g).sum((0, 1)) for window in windows])

    # Image by image, which stays in a CPU's cache: 4 to 6 times faster there.
    to_kernel = lax.platform_dependent(
        (x, g), cpu=functools.partial(lax.map, of_image), default=jax.vmap(of_image)
    ).sum(0)
    return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(nn.Module):
    """Convolution with a square kernel; parameters `kernel` and `bias` are float32.

    Attributes:
      features: output channels.
      size: side of the kernel, pixels.
      strides: step between windows, pixels.
      pad: rows and columns of zeros on each side, or 'same'; see `convolve`.
      groups: see `convolve`; the parameters are one kernel all the same.
      use_bias: adds a bias for each output channel.
      dtype: dtype of the computation and of the result.
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
      rate: probability that a value is set to 0; the others are scaled by
        1 / (1 - rate).
      axis_name: name of the mapped axis that the batch is spread over, or None.
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

    Orderless pooling of first and second order: what distinguishes textures wherever
    they lie, as texture descriptors have had it since Julesz 1981
    (doi:10.1038/290091a0).

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
    kind: str, *, train: bool, dtype: Any, axis_name: str | None, epsilon: float = 1e-5
) -> Callable[..., nn.Module]:
    """Returns a constructor of the normalisation layer, `norm(name=...)`.

    'batch': running statistics move by a tenth each training step, over all devices
    along `axis_name`. 'group': 32 groups of channels (Wu & He 2018, arXiv 1803.08494),
    the same in training and evaluation. Both have a `scale` and a `bias`.
    """
    if kind == "group":
        return lambda **kwargs: nn.GroupNorm(
            num_groups=32, epsilon=epsilon, dtype=dtype, **kwargs
        )
    return lambda **kwargs: nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=dtype,
        axis_name=axis_name, **kwargs,
    )  # fmt: skip


def orderless(
    network: nn.Module, taps: dict[str, jax.Array], *, train: bool
) -> jax.Array:
    """Returns the input of an orderless head: standardised moments, `[N, 2 * channels]`.

    The means and standard deviations of some channels are a hundred times those of
    others, and one learning rate cannot suit the weights of all. So each goes through
    BatchNorm (Ioffe & Szegedy 2015, arXiv 1502.03167), which is part of the head: a
    transfer that re-initialises the head does the same to it.

    Args:
      network: network that calls this; it reads the taps of its `RECTIFIED`.
      taps: activations `[N, h, w, c]` by name.
      train: whether to standardise over the batch.
    """
    x = jnp.concatenate([moments(taps[name]) for name in network.RECTIFIED], axis=-1)
    norm = make_norm(
        "batch", train=train, dtype=jnp.float32, axis_name=network.axis_name
    )
    return norm(name=HEAD_NORM)(x)


def head(num_classes: int) -> nn.Dense:
    """Returns the classifier layer; give it float32, and its result is float32."""
    return nn.Dense(num_classes, kernel_init=head_init, name=HEAD)
