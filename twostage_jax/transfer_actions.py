"""The shape changes that a transfer rule can name: pure functions of one kernel.

Each takes the source's kernel and the shape the target wants, and returns a new kernel
of the source's dtype, computed in float64. A kernel it does not apply to is a
`ValueError` that says why.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from twostage_jax.errors import did_you_mean

Shape = tuple[int, ...]
Change = Callable[[np.ndarray, Shape], np.ndarray]

ACTIONS = (
    "copy",
    "init",
    "drop",
    "rgb_to_grey",
    "grey_to_rgb",
    "resize_kernel",
    "resize_dense:C",
)


def rgb_to_grey(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Sums `[kh, kw, 3, cout]` over its input channels, to `[kh, kw, 1, cout]`.

    The response to a grey image is the source's response to that image in all three
    channels.
    """
    _require_channels(kernel, 3)
    grey = kernel.astype(np.float64).sum(axis=2, keepdims=True)
    return grey.astype(kernel.dtype)


def grey_to_rgb(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Spreads `[kh, kw, 1, cout]` evenly over three channels: `[kh, kw, 3, cout]`.

    The response to a colour image is the source's response to the mean of its channels.
    """
    _require_channels(kernel, 1)
    third = kernel.astype(np.float64) / 3
    return np.repeat(third, 3, axis=2).astype(kernel.dtype)


def resize_kernel(kernel: np.ndarray, shape: Shape) -> np.ndarray:
    """Resizes the window of a convolution, `[kh, kw, cin, cout]`.

    The new kernel responds to a patch of its own size as the source's does to that
    patch resized, bilinearly, to the source's size. Constant patches keep their
    response; the same size is the identity.
    """
    if kernel.ndim != 4 or len(shape) != 4:
        raise ValueError("it needs kernels [kh, kw, cin, cout]")
    return _resize(kernel, shape[0], shape[1])


def resize_dense(kernel: np.ndarray, shape: Shape, *, channels: int) -> np.ndarray:
    """Resizes the grid of a dense layer behind a flattened square feature map.

    The rows of `[side * side * channels, units]` are in (row, column, channel) order.
    The new layer responds to a feature map of its own size as the source's does to that
    map resized, bilinearly, to the source's grid.
    """
    if kernel.ndim != 2 or len(shape) != 2:
        raise ValueError("it needs kernels [side * side * channels, units]")
    old, new = (_side(rows, channels) for rows in (kernel.shape[0], shape[0]))
    grid = kernel.reshape(old, old, channels, kernel.shape[1])
    return _resize(grid, new, new).reshape(new * new * channels, kernel.shape[1])


_CHANGES: dict[str, Change] = {
    "rgb_to_grey": rgb_to_grey,
    "grey_to_rgb": grey_to_rgb,
    "resize_kernel": resize_kernel,
}


def parse_action(action: str) -> Change | None:
    """Returns the shape change that `action` names, None for those that change none.

    Raises:
      ValueError: The action is unknown, or its argument is missing or wrong.
    """
    name, colon, channels = action.partition(":")
    if name == "resize_dense":
        if not (channels.isascii() and channels.isdecimal() and int(channels)):
            raise ValueError(
                "'resize_dense' needs the number of channels of the feature map that "
                "the layer flattens, such as 'resize_dense:256'."
            )
        return functools.partial(resize_dense, channels=int(channels))
    if action not in ACTIONS:
        known = name in ACTIONS and colon
        hint = f" Write '{name}' alone." if known else did_you_mean(name, ACTIONS)
        raise ValueError(f"unknown action '{action}'.{hint}")
    return _CHANGES.get(name)


def suitable_actions(source: Shape, target: Shape) -> tuple[str, ...]:
    """Returns the actions that bring a source array to the target's shape."""
    if source == target:
        return ("copy",)
    if len(source) == len(target) == 4 and source[3] == target[3]:
        channels = (source[2], target[2])
        if source[:2] == target[:2] and channels == (3, 1):
            return ("rgb_to_grey",)
        if source[:2] == target[:2] and channels == (1, 3):
            return ("grey_to_rgb",)
        if source[2] == target[2]:
            return ("resize_kernel", "init")
    if len(source) == len(target) == 2 and source[1] == target[1]:
        # Some C makes both C times a square just where their product is a square.
        product = source[0] * target[0]
        if product and math.isqrt(product) ** 2 == product:
            return ("resize_dense:C", "init")
    return ("init",)


def _require_channels(kernel: np.ndarray, channels: int) -> None:
    if kernel.ndim != 4 or kernel.shape[2] != channels:
        raise ValueError(f"it needs a source kernel [kh, kw, {channels}, cout]")


def _side(rows: int, channels: int) -> int:
    side = math.isqrt(rows // channels)
    if side * side * channels != rows or not rows:
        raise ValueError(f"{rows} rows are no square map of {channels} channels")
    return side


def _resize(kernel: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes the first two axes of `[h, w, c, n]` by the transpose of interpolation.

    <W', x> = <W, R x> for every map x, with R the interpolation from the new grid to
    the old one, gives W' = R^T W. Interpolating W itself would change the sum of the
    weights, and so every response, with the number of positions.
    """
    rows = _interpolation(height, kernel.shape[0])
    columns = _interpolation(width, kernel.shape[1])
    resized = np.einsum(
        "hi,wj,hwcn->ijcn", rows, columns, kernel.astype(np.float64), optimize=True
    )
    return resized.astype(kernel.dtype)


def _interpolation(old: int, new: int) -> np.ndarray:
    """Returns the matrix `[new, old]` of linear interpolation, rows summing to one.

    Pixel centres lie at half-integers; shrinking widens the triangle so that no pixel
    is skipped, as `jax.image.resize(..., 'linear')` does.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old))
    weights = np.maximum(0, 1 - distance / max(1, old / new))
    return weights / weights.sum(axis=1, keepdims=True)
