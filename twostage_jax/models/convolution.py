"""Convolutions that are fast on both CPUs and accelerators.

XLA's convolution suits most networks. For some shapes it is many times slower on a CPU
than the same sums in another form, and this module has those forms:
`experiments/throughput.md` has the speeds.

Images and activations are [N, H, W, C], kernels [kh, kw, C in / groups, C out].
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

# Zeros above and below an image, and on its left and right.
Margins = tuple[tuple[int, int], tuple[int, int]]
_CONVERTING = contextvars.ContextVar("converting", default=False)


@contextlib.contextmanager
def convertible() -> Iterator[None]:
    """Makes networks use only operations that other formats have, while it lasts."""
    before = _CONVERTING.set(True)
    try:
        yield
    finally:
        _CONVERTING.reset(before)


def is_converting() -> bool:
    """Whether the code runs inside `convertible`."""
    return _CONVERTING.get()


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int,
    pad: int | str,
    groups: int = 1,
) -> jax.Array:
    """Returns the cross-correlation of [N, H, W, C] with [kh, kw, C / groups, O].

    With groups, input and output channels are divided into equal groups, each convolved
    separately: the kernel gradient of XLA's grouped convolution is 10 to 30 times slower
    on a CPU.

    Where XLA's convolution is slow on a CPU, another form with the same result replaces
    it: one matrix product for windows that do not overlap and for very small maps, a sum
    of shifted images for a kernel on every channel, and a sum of products of matrices
    for the kernel gradient of large maps.

    Args:
      x: Images or activations.
      kernel: Square kernel.
      strides: Step between windows, pixels.
      pad: Rows and columns of zeros on each side, or 'same' for TensorFlow's rule:
        ceil(H / strides) windows, and the odd row of zeros at the end.
      groups: Number of groups of channels.
    """
    size = kernel.shape[0]
    margins = [_margins(n, size, strides, pad) for n in x.shape[1:3]]
    if is_converting():
        return _plain(x, kernel, strides, margins, groups)
    windows = [
        (n + sum(margin) - size) // strides + 1
        for n, margin in zip(x.shape[1:3], margins, strict=True)
    ]
    kernel, margins = _reaching(kernel, x.shape[1:3], windows, strides, margins)
    if 1 < groups == x.shape[-1] == kernel.shape[-1]:
        return _depthwise(x, kernel, strides, margins)
    small = min(x.shape[1:3]) < size or max(windows) <= 2
    form = _window_product if small or strides >= size else _convolution
    conv = functools.partial(form, strides=strides, margins=margins)
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


def _reaching(
    kernel: jax.Array,
    lengths: tuple[int, int],
    windows: list[int],
    strides: int,
    margins: list[tuple[int, int]],
) -> tuple[jax.Array, Margins]:
    """Returns the part of a kernel that reaches the image, and the margins for it.

    The other rows and columns only meet zeros: on a map of one pixel, for example, one
    weight of nine remains, and on a map of two pixels nine of 49.

    Args:
      kernel: Square kernel; what remains is square, too.
      lengths: Height and width of the image.
      windows: Numbers of windows along both.
      strides: Step between windows, pixels.
      margins: Zeros around the image, for the whole kernel.
    """
    axes = list(zip(lengths, windows, margins, strict=True))
    first = min(max(0, above - strides * (w - 1)) for _, w, (above, _) in axes)
    end = max(min(len(kernel), n + above) for n, _, (above, _) in axes)
    if end - first == len(kernel):
        return kernel, tuple(margins)
    read = [strides * (w - 1) + end - first for w in windows]
    margins = tuple(
        (above - first, max(0, r - n - above + first))
        for (n, _, (above, _)), r in zip(axes, read, strict=True)
    )
    return kernel[first:end, first:end], margins


def shifted(x: jax.Array, size: int, strides: int) -> list[jax.Array]:
    """Returns the input `[..., H', W', C]` at each position of a kernel."""
    # The last row and column at which a window can begin.
    rows, columns = x.shape[-3] - size, x.shape[-2] - size
    return [
        x[..., i : i + rows + 1 : strides, j : j + columns + 1 : strides, :]
        for i in range(size)
        for j in range(size)
    ]


def _window_product(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins
) -> jax.Array:
    """Returns the cross-correlation as the product of all windows with the kernel.

    The product is one of two matrices: the gradients of a product of arrays with more
    axes take XLA up to three times as long on a CPU.
    """
    x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
    windows = jnp.concatenate(shifted(x, kernel.shape[0], strides), axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    product = windows.reshape(-1, len(matrix)) @ matrix
    return product.reshape(*windows.shape[:-1], -1)


def _plain(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins, groups: int = 1
) -> jax.Array:
    """Returns the cross-correlation as XLA computes it."""
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), margins, feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins
) -> jax.Array:
    """Returns the cross-correlation, with a kernel gradient that suits the device."""
    return _plain(x, kernel, strides, margins)


def _convolution_forward(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolution(x, kernel, strides, margins), (x, kernel)


def _convolution_backward(
    strides: int, margins: Margins, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size = len(kernel)
    (to_x,) = jax.vjp(lambda x: _plain(x, kernel, strides, margins), x)[1](g)

    def plainly(x: jax.Array, g: jax.Array) -> jax.Array:
        back = jax.vjp(lambda kernel: _plain(x, kernel, strides, margins), kernel)[1]
        return back(g)[0]

    def in_blocks(x: jax.Array, g: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
        return _kernel_gradient(x, g, size, strides).astype(kernel.dtype)

    if g.shape[1] * g.shape[2] < 6 * size**2:
        # As fast or faster for these: maps up to 7 x 7 for a kernel of 3 x 3.
        return to_x, plainly(x, g)
    return to_x, lax.platform_dependent(x, g, cpu=in_blocks, default=plainly)


_convolution.defvjp(_convolution_forward, _convolution_backward)


def _kernel_gradient(x: jax.Array, g: jax.Array, size: int, strides: int) -> jax.Array:
    """Returns the gradient of a kernel as a sum of products, a block of rows at a time.

    The windows of a block, about a thousand, stay in a CPU's cache: 1.5 to 4 times
    faster there than XLA's convolution.

    Args:
      x: `[N, H, W, C]`, padded.
      g: Gradient of the result, `[N, H', W', O]`.
      size: Side of the kernel.
      strides: Step between windows, pixels.

    Returns:
      float32 `[size, size, C, O]`.
    """
    count, height, width, features = g.shape
    channels = x.shape[-1]
    blocks = -(-height * width // 1024)
    rows = -(-height // blocks)
    below = blocks * rows - height
    g = jnp.pad(g, [(0, 0), (0, below), (0, 0), (0, 0)])
    x = jnp.pad(x, [(0, 0), (0, below * strides), (0, 0), (0, 0)])
    seen = (rows - 1) * strides + size

    def add(total: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple:
        index, g = item
        image, block = index // blocks, index % blocks
        part = lax.dynamic_index_in_dim(x, image, keepdims=False)
        part = lax.dynamic_slice_in_dim(part, block * rows * strides, seen)
        windows = jnp.concatenate(shifted(part, size, strides), axis=-1)
        windows = windows.reshape(rows * width, -1)
        product = lax.dot_general(
            g, windows, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
        )
        return total + product, None

    start = jnp.zeros((features, size * size * channels), jnp.float32)
    items = jnp.arange(count * blocks), g.reshape(-1, rows * width, features)
    total, _ = lax.scan(add, start, items)
    return total.T.reshape(size, size, channels, features)


def _sum_of_shifted(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Returns the sum of `[..., H, W, C]` at each position of a depthwise kernel.

    On a CPU, large kernels are applied to one image after the other: XLA would otherwise
    compute the sum again in everything that reads it, such as the mean and the variance
    of a norm and their gradients, up to seven times.
    """
    size, _, _, channels = kernel.shape
    weights = kernel.astype(jnp.float32).reshape(-1, channels)

    def together(x: jax.Array) -> jax.Array:
        windows = shifted(x.astype(jnp.float32), size, strides)
        total = sum(window * row for window, row in zip(windows, weights, strict=True))
        return total.astype(x.dtype)

    if size < 5:  # Several short sums are faster than one loop.
        return together(x)
    in_turn = functools.partial(lax.map, together)
    return lax.platform_dependent(x, cpu=in_turn, default=together)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins
) -> jax.Array:
    """Returns the cross-correlation of each channel with its own kernel `[k, k, 1, C]`."""
    x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
    return _sum_of_shifted(x, kernel, strides)


def _depthwise_forward(
    x: jax.Array, kernel: jax.Array, strides: int, margins: Margins
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _depthwise(x, kernel, strides, margins), (x, kernel)


def _depthwise_backward(
    strides: int,
    margins: Margins,
    saved: tuple[jax.Array, jax.Array],
    g: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    size = kernel.shape[0]
    # The image's gradient is a sum of shifted gradients, too, for the mirrored kernel and
    # with zeros between them for strides. jax's own writes one padded image per weight
    # and then adds them: 3 to 6 times the CPU's time for kernels of 7 x 7 at stride 1.
    apart = [
        (size - 1 - above, n + above - strides * (w - 1) - 1, strides - 1)
        for n, w, (above, _) in zip(x.shape[1:3], g.shape[1:3], margins, strict=True)
    ]
    spread = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *apart, (0, 0, 0)])
    to_x = _sum_of_shifted(spread, kernel[::-1, ::-1], 1)

    to_kernel = lax.platform_dependent(
        jnp.pad(x, [(0, 0), *margins, (0, 0)]).astype(jnp.float32),
        g.astype(jnp.float32),
        cpu=functools.partial(_depthwise_by_rows, size=size, strides=strides),
        default=functools.partial(_depthwise_by_weights, size=size, strides=strides),
    )
    return to_x, to_kernel.reshape(kernel.shape).astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_by_weights(
    x: jax.Array, g: jax.Array, size: int, strides: int
) -> jax.Array:
    """Returns a depthwise kernel's gradient `[k, k, C]`, one sum per weight."""
    sums = [(window * g).sum((0, 1, 2)) for window in shifted(x, size, strides)]
    return jnp.stack(sums).reshape(size, size, -1)


def _depthwise_by_rows(
    x: jax.Array, g: jax.Array, size: int, strides: int
) -> jax.Array:
    """Returns a depthwise kernel's gradient `[k, k, C]`, summed over one row at a time.

    The sums of all weights for a row stay in a CPU's cache: 2 to 6 times faster there
    than one sum per weight and image.

    Args:
      x: `[N, H, W, C]`, padded.
      g: Gradient of the result, `[N, H', W', C]`.
      size: Side of the kernel.
      strides: Step between windows, pixels.
    """
    count, height, width, channels = g.shape
    span = strides * (width - 1) + 1

    def add(sums: list, item: tuple[jax.Array, jax.Array]) -> tuple[list, None]:
        index, row = item
        image = lax.dynamic_index_in_dim(x, index // height, keepdims=False)
        top = index % height * strides
        seen = lax.dynamic_slice_in_dim(image, top, size)
        return [
            sum_ + seen[:, j : j + span : strides] * row for j, sum_ in enumerate(sums)
        ], None

    start = [jnp.zeros((size, width, channels), jnp.float32)] * size
    rows = jnp.arange(count * height), g.reshape(-1, width, channels)
    sums, _ = lax.scan(add, start, rows)
    return jnp.stack(sums, 1).sum(2)
