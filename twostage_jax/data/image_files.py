"""Image files of common formats as 8-bit arrays of one size."""

import io
import warnings
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from twostage_jax.data.dataset import Kind
from twostage_jax.errors import UserError

# 16-bit grey modes; 'I' is how some versions of Pillow open 16-bit PNG and PGM.
GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def check(size: int, channels: int, kind: str) -> None:
    """Raises a UserError for settings that no image set can have."""
    if size < 1:
        raise UserError(f"size is {size}: give a number of pixels, at least 1.")
    if channels not in (1, 3):
        raise UserError(f"channels is {channels}: use 1 (grey) or 3 (RGB).")
    if kind not in get_args(Kind):
        raise UserError(f"kind is '{kind}': use one of {', '.join(get_args(Kind))}.")


def read(source: Path | bytes, channels: int, name: str = "") -> Image.Image:
    """Decodes an image to 8 bits a channel.

    16-bit grey is divided by 257 (65535 becomes 255). Alpha is dropped, a palette is
    looked up, colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B). EXIF
    rotation is ignored.

    Args:
      source: A path, or the encoded bytes.
      channels: 1 (grey) or 3 (RGB).
      name: What to call the image in errors; the path if empty.

    Raises:
      UserError: The image cannot be decoded, has several pages, or has pixels whose
        range is not known (floating point, 32 bits); or it is larger than
        `Image.MAX_IMAGE_PIXELS`, as a decompression bomb is.
    """
    name = name or str(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source
            )
            with opened as image:
                # A camera's JPEG may carry a preview as a second page.
                pages = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
                if pages == 1:
                    image.load()
                    image = _to_8_bit(image)
                    if image is not None:
                        return image.convert("L" if channels == 1 else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"image {name} is too large: {error}") from error
    except Exception as error:
        raise UserError(
            f"image {name} cannot be decoded ({error}): replace or remove it."
        ) from error
    if pages > 1:
        raise UserError(f"image {name} has {pages} pages: save each as a file.")
    raise UserError(
        f"image {name} has pixels of mode '{opened.mode}', whose range is not known: "
        "save it with 8 or 16 bits."
    )


def _to_8_bit(image: Image.Image) -> Image.Image | None:
    if image.mode in GREY_16:
        values = np.asarray(image).astype(np.int64)
        # A 32-bit TIFF has mode 'I' as well.
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            return None
        return Image.fromarray(((values * 2 + 257) // 514).astype(np.uint8))
    if image.mode == "F":
        return None
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "LA":
        return image.getchannel("L")
    # By way of RGBA a palette's transparency is dropped like any other.
    return image.convert("RGBA").convert("RGB") if image.mode != "RGB" else image


def whole(image: Image.Image, size: int) -> np.ndarray:
    """Returns the largest centred square, resized to `[size, size, C]`.

    uint8, or float32 of an image of mode 'F'.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _resized(image, (left, top, left + side, top + side), size)


def crops(
    image: Image.Image, size: int, crop: int, stride: int
) -> list[tuple[int, int, np.ndarray]]:
    """Returns (top, left, `[size, size, C]`) of a centred grid of square crops.

    Args:
      image: At least `crop` pixels high and wide.
      size: Side of the results; what is cut is resized where it differs from `crop`.
      crop: Side of the squares, pixels of the image.
      stride: Distance between neighbouring squares, pixels of the image.
    """
    spare_x, spare_y = image.width - crop, image.height - crop
    # What the grid leaves over is shared between both sides.
    return [
        (top, left, _resized(image, (left, top, left + crop, top + crop), size))
        for top in range(spare_y % stride // 2, spare_y + 1, stride)
        for left in range(spare_x % stride // 2, spare_x + 1, stride)
    ]


def _resized(
    image: Image.Image, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """Cuts `box` and resizes it by Pillow's bicubic filter, which does not alias."""
    # Cut first: `resize(box=...)` would let in pixels from outside the box.
    square = image.crop(box)
    if square.width != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, -1)
