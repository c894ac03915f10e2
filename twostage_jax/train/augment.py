"""From stored images to network input, on the device: window, augmentation, scale."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from twostage_jax.config import AugmentConfig

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
    # One call: each would add a third of a second to the compilation of every step.
    draws = Draws(*jax.random.uniform(key, (len(Draws._fields),)))

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


def oriented(images: jax.Array, number: jax.Array) -> jax.Array:
    """Returns square images `[..., H, H, C]` in one of their eight orientations.

    Args:
      images: Images.
      number: Scalar, 0 to 7: 0 is the image as it is, 1 its mirror image, and the higher
        ones are upside down or transposed.
    """
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
