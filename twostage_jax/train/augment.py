"""From stored images to network input, on the device: window, augmentation, scale."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.config import AugmentConfig

# No changes in training, and predictions of the centre alone.
NONE = AugmentConfig()
FIXED_MEAN, FIXED_DEVIATION = 0.5, 0.25
# Contrast below this is noise: a constant patch must not be amplified.
MIN_DEVIATION = 1e-3


def to_unit(
    images: jax.Array,
    window: tuple[float, ...],
    channels: int,
    centre_shift: jax.Array | float = 0.0,
    width_factor: jax.Array | float = 1.0,
) -> jax.Array:
    """Maps stored images to float32 in [0, 1].

    Args:
      images: `[..., H, W, C]` uint8 (0 to 255), int16 (HU) or float32 ([0, 1]).
      window: (centre, width) pairs in HU, flattened; one pair per channel. For int16 only.
      channels: Number of channels of the result; a single grey channel is repeated.
      centre_shift: Shift of the window's centre, as a fraction of its width.
      width_factor: Factor of the window's width.

    Returns:
      `[..., H, W, channels]` float32.
    """
    if images.dtype == jnp.uint8:
        unit = images.astype(jnp.float32) / 255
    elif images.dtype == jnp.int16:
        centre = jnp.asarray(window[0::2], jnp.float32)
        width = jnp.asarray(window[1::2], jnp.float32)
        low = centre + centre_shift * width - width * width_factor / 2
        unit = (images.astype(jnp.float32) - low) / (width * width_factor)
        unit = jnp.clip(unit, 0, 1)
    else:
        unit = images.astype(jnp.float32)
    if unit.shape[-1] == 1 and channels > 1:
        unit = jnp.repeat(unit, channels, axis=-1)
    return unit


class Draws(NamedTuple):
    """Random numbers of one image, each uniform in [0, 1)."""

    centre: jax.Array
    width: jax.Array
    top: jax.Array
    left: jax.Array
    mirror: jax.Array
    upend: jax.Array
    transpose: jax.Array
    brightness: jax.Array
    contrast: jax.Array


def augment(
    key: jax.Array,
    image: jax.Array,
    *,
    settings: AugmentConfig,
    window: tuple[float, ...],
    channels: int,
    size: int,
) -> jax.Array:
    """Returns one stored image `[H, W, C]`, randomly changed, in [0, 1].

    The result is `[size, size, channels]`: a random crop where the stored image is
    larger. Every random number comes from `key`, the example's own, so that a batch
    spread over several devices is the batch of one device.
    """
    # One call for all: each adds a third of a second to the compilation of every step.
    # Of 16, a power of two, because nine numbers take seconds to compile.
    draws = Draws(*jax.random.uniform(key, (16,))[: len(Draws._fields)])

    def symmetric(draw: jax.Array, largest: float) -> jax.Array:
        return largest * (2 * draw - 1)

    image = to_unit(
        image,
        window,
        channels,
        symmetric(draws.centre, settings.window),
        jnp.exp(symmetric(draws.width, settings.window)),
    )
    image = _crop(image, size, settings.shift, draws.top, draws.left)
    if settings.flip != "none":
        image = _mirrored(image, draws.mirror < 0.5)
    if settings.flip == "dihedral":
        image = _turned(image, draws.upend < 0.5, draws.transpose < 0.5)
    if settings.brightness or settings.contrast:
        mean = image.mean()
        contrast = jnp.exp(symmetric(draws.contrast, settings.contrast))
        shift = symmetric(draws.brightness, settings.brightness)
        image = jnp.clip(mean + shift + contrast * (image - mean), 0, 1)
    return image


def windows(rows: int, columns: int, size: int) -> np.ndarray:
    """Returns top and left of the fewest windows that cover an image, `[N, 2]` int32.

    They are evenly spaced, and overlap unless `size` divides the sides of the image.
    """
    places = [
        np.linspace(0, side - size, -(-side // size)).astype(np.int32)
        for side in (rows, columns)
    ]
    return np.stack(np.meshgrid(*places, indexing="ij"), axis=-1).reshape(-1, 2)


def views(settings: AugmentConfig, rows: int, columns: int, size: int) -> np.ndarray:
    """Returns the views whose mean is the prediction of an image, `[V, 3]` int32.

    With `settings.average`, these are all orientations of all `windows`; otherwise the
    centre as stored.

    Args:
      settings: Changes in training.
      rows, columns: Size of the stored image.
      size: Side of the network's input.
    """
    if not settings.average:
        return np.array([[0, (rows - size) // 2, (columns - size) // 2]], np.int32)
    places = windows(rows, columns, size)
    numbers = np.arange(settings.orientations, dtype=np.int32)
    return np.column_stack(
        [np.repeat(numbers, len(places)), np.tile(places, (len(numbers), 1))]
    )


def seen(images: jax.Array, view: jax.Array, size: int) -> jax.Array:
    """Returns one view of stored images, `[..., size, size, C]`.

    Args:
      images: Images `[..., H, W, C]`.
      view: Orientation, top and left of the window. Orientation 0 is the image as it is,
        1 its mirror image, and the higher ones, up to 7, are upside down or transposed.
      size: Side of the window.
    """
    number, *corner = view
    for axis, start in zip((-3, -2), corner, strict=True):
        images = jax.lax.dynamic_slice_in_dim(images, start, size, axis % images.ndim)
    return _turned(_mirrored(images, number & 1), number & 2, number & 4)


def _mirrored(images: jax.Array, mirror: jax.Array) -> jax.Array:
    return jnp.where(mirror, images[..., ::-1, :], images)


def _turned(images: jax.Array, upend: jax.Array, transpose: jax.Array) -> jax.Array:
    images = jnp.where(upend, images[..., ::-1, :, :], images)
    return jnp.where(transpose, images.swapaxes(-3, -2), images)


def centre_crop(images: jax.Array, size: int) -> jax.Array:
    """Returns the central `[..., size, size, C]`."""
    top = (images.shape[-3] - size) // 2
    left = (images.shape[-2] - size) // 2
    return images[..., top : top + size, left : left + size, :]


def normalise(
    images: jax.Array,
    how: Literal["fixed", "dataset", "patch", "weights"],
    mean: jax.Array,
    deviation: jax.Array,
) -> jax.Array:
    """Scales `[N, H, W, C]` images in [0, 1] for the network.

    'patch' scales each image to mean 0 and standard deviation 1, which keeps only
    structure; the others subtract `mean` and divide by `deviation`, `[C]`.
    """
    if how == "patch":
        axes = (-3, -2, -1)
        centred = images - images.mean(axes, keepdims=True)
        spread = jnp.sqrt(jnp.mean(centred**2, axes, keepdims=True))
        return centred / jnp.maximum(spread, MIN_DEVIATION)
    return (images - mean) / deviation


def _crop(
    image: jax.Array, size: int, shift: int, top: jax.Array, left: jax.Array
) -> jax.Array:
    """Crops at a place between the first (`top` = `left` = 0) and the last (below 1)."""
    if shift:
        image = jnp.pad(image, ((shift, shift), (shift, shift), (0, 0)), mode="reflect")
    rows, columns, channels = image.shape
    if (rows, columns) == (size, size):
        return image
    row, column = (
        (draw * (side - size + 1)).astype(jnp.int32)
        for draw, side in ((top, rows), (left, columns))
    )
    return jax.lax.dynamic_slice(image, (row, column, 0), (size, size, channels))
