"""Reads image files of common formats as 8-bit arrays of one size."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import get_args

import numpy as np
from PIL import Image, ImageChops, TiffImagePlugin, UnidentifiedImageError

from twostage_jax.data.dataset import Kind
from twostage_jax.errors import Notes, UserError, require

# 16-bit grey modes; 'I' is how some versions of Pillow open 16-bit PNG and PGM.
GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
# Name of a measure (see `Recipe.measure`): bits used by 16-bit grey images.
DEPTH = "bits"
# Tags of TIFF and EXIF, and some of their values (TIFF 6.0).
BITS_PER_SAMPLE, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339
WHITE_IS_ZERO, SIGNED = 0, 2
# Big-endian TIFFs of 16 bits in which white is 0: Pillow opens only little-endian ones.
TiffImagePlugin.OPEN_INFO.setdefault(
    (b"MM", WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B")
)
# Transposition that makes an image upright, by orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Largest value of images noted as dark; number of levels up to which the conversion of
# 16-bit images is noted.
DARK, FEW_LEVELS = 31, 32
# Largest difference between the channels of a grey image, from JPEG's rounding.
TINT = 16
TURNED = "are rotated or mirrored according to their EXIF or TIFF orientation."
TRANSPARENT = (
    "have transparent pixels: transparency is ignored, and the colours stored under it "
    "are used."
)
USED_BITS = (
    "have 16 bits, but the set uses fewer: they are read with {:,} as white instead of "
    "65,535."
)
LOST_LEVELS = (
    f"have 16 bits but keep at most {FEW_LEVELS} of their grey levels, because they use "
    "a small part of the range. Save them with 8 bits, scaled for display."
)
COLOUR = "are in colour and read as grey; config.model.channels=3 keeps the colours."
DEEP_COLOUR = "have 16 bits per colour channel; the upper 8 are used."
DARK_IMAGES = (
    f"are dark, with all values at most {DARK} of 255: unless intended, rescale them."
)


def check(size: int, channels: int, kind: str) -> None:
    """Raises a UserError for impossible settings of an image set."""
    kinds = get_args(Kind)
    require(size >= 1, "size", size, "at least 1 pixel")
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (RGB)")
    require(kind in kinds, "kind", kind, f"one of {', '.join(kinds)}")


def measure(source: Path | bytes) -> dict[str, float]:
    """Returns the number of bits, 1 to 16, used by a 16-bit grey image, as {DEPTH: bits}.

    The result is empty for other images, for files that state their depth, and for files
    that cannot be decoded, which `read` refuses.
    """
    try:
        with _opened(source) as image:
            if _stated_depth(image):
                return {}
            image.load()
            return {DEPTH: max(1, int(np.asarray(image).max()).bit_length())}
    # `read` names the file and the reason.
    except Exception:
        return {}


def read(
    source: Path | bytes,
    channels: int,
    name: str = "",
    *,
    found: Mapping[str, float] = MappingProxyType({}),
    notes: Notes | None = None,
) -> Image.Image:
    """Returns an image with 8 bits per channel, as a viewer shows it.

    16-bit grey is scaled so that the largest value of its bit depth becomes 255. TIFFs
    of 12 bits and PGM files state their depth; for others it is that of the data set,
    `found[DEPTH]`, so that all images of a set share one factor. 16-bit colour is
    truncated to the upper 8 bits. Images are rotated and mirrored according to their EXIF
    or TIFF orientation, TIFFs in which white is 0 are inverted, palettes are looked up,
    colour becomes grey by ITU-R 601 (0.299 R + 0.587 G + 0.114 B). Alpha is dropped: the
    colour stored under transparent pixels is used.

    Args:
      source: Path of the image, or its encoded bytes.
      channels: 1 (grey) or 3 (RGB).
      name: Name of the image in errors; the path if empty.
      found: Largest value of each measure in the set (see `measure`); without `DEPTH`,
        16 bits are assumed.
      notes: Counts to which peculiarities of the image are added.

    Raises:
      UserError: The image cannot be decoded, has several pages, has pixels of unknown
        range (floating point, 32 bits, signed), or is larger than
        `Image.MAX_IMAGE_PIXELS`, like a decompression bomb.
    """
    name = name or str(source)
    notes = Notes() if notes is None else notes
    try:
        with _opened(source) as opened:
            # A camera's JPEG may carry a preview as a second page.
            pages = getattr(opened, "n_frames", 1) if opened.format != "MPO" else 1
            kind = opened.mode
            image = _decoded(opened, found, notes) if pages == 1 else None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"image {name} is too large: {error}", where=name) from error
    except Exception as error:
        # Pillow's message names the object that it read from.
        unknown = isinstance(error, UnidentifiedImageError)
        why = "its format is unknown" if unknown else error
        raise UserError(
            f"image {name} cannot be decoded ({why}): save it again as an 8-bit or "
            "16-bit PNG, or remove it.",
            where=name,
        ) from error
    if pages > 1:
        raise UserError(
            f"image {name} has {pages} pages: save each page as a file.", where=name
        )
    if image is None:
        raise UserError(
            f"image {name} has pixels of mode '{kind}', whose range is unknown. "
            "Save grey values with unsigned 8 or 16 bits. In a set in HU, save every image "
            "as a signed or floating-point TIFF.",
            where=name,
        )
    if channels == 1 and _in_colour(image):
        notes.add("images", COLOUR)
    return image.convert("L" if channels == 1 else "RGB")


def _in_colour(image: Image.Image) -> bool:
    """Returns whether channels differ by more than JPEG makes those of grey images."""
    if image.mode != "RGB":
        return False
    red, green, blue = image.split()
    pairs = ((red, green), (green, blue))
    return any(ImageChops.difference(*two).getextrema()[1] > TINT for two in pairs)


@contextlib.contextmanager
def _opened(source: Path | bytes) -> Iterator[Image.Image]:
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Not opened by name: Pillow would map the file into memory, and garble TIFFs
        # with an orientation.
        file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
        stack.enter_context(file)
        yield stack.enter_context(Image.open(file))


def _decoded(
    image: Image.Image, found: Mapping[str, float], notes: Notes
) -> Image.Image | None:
    """Returns an opened image in mode L or RGB; None if the range is unknown."""
    tags = getattr(image, "tag_v2", {})
    depth, deep = _stated_depth(image), ";16" in str(image.tile)
    white_is_zero = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    orientation = tags.get(ORIENTATION, 1)
    if SIGNED in tags.get(SAMPLE_FORMAT, ()) and image.mode == "L":
        return None
    image.load()
    if _has_transparency(image):
        notes.add("images", TRANSPARENT)
    if image.mode in GREY_16:
        # A 32-bit TIFF has mode 'I' as well.
        if image.mode == "I" and image.format not in ("PNG", "PPM"):
            return None
        grey = _grey_8_bit(image, int(depth or found.get(DEPTH, 16)), notes)
        # Pillow itself inverts TIFFs of 8 bits and fewer.
        made = Image.fromarray(255 - grey if white_is_zero else grey)
        if not depth and (bits := int(found.get(DEPTH, 16))) < 16:
            notes.add("images", USED_BITS.format(2**bits - 1))
    elif image.mode == "F":
        return None
    else:
        made = _without_alpha(image)
        if deep:
            notes.add("images", DEEP_COLOUR)
    # Pillow itself rotates TIFFs.
    if image.format != "TIFF":
        orientation = _exif_orientation(image)
        if orientation in TURNS:
            made = made.transpose(TURNS[orientation])
    if orientation in TURNS:
        notes.add("images", TURNED)
    if np.max(made.getextrema()) <= DARK:
        notes.add("images", DARK_IMAGES)
    notes.add("images")
    return made


def _stated_depth(image: Image.Image) -> int:
    """Returns the bits per channel that an opened file states, or 0 if unknown.

    Files of 16-bit grey do not state how many bits are used. Neither does the sBIT chunk
    of PNG, because the standard requires samples to be scaled to the full range.
    """
    if image.mode not in GREY_16:
        return 8
    if image.format == "PPM":
        # Pillow scales by the maximum that the file states, if it is not 65,535.
        return 16 if image.tile[0][0] == "ppm" else 0
    bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, (16,))
    return bits[0] if bits[0] != 16 else 0


def _grey_8_bit(image: Image.Image, bits: int, notes: Notes) -> np.ndarray:
    values, white = np.asarray(image).astype(np.int64), 2**bits - 1
    grey = np.minimum((values * 510 + white) // (2 * white), 255).astype(np.uint8)
    before, after = len(np.unique(values)), len(np.unique(grey))
    if after <= FEW_LEVELS and before > 2 * after:
        notes.add("images", LOST_LEVELS)
    return grey


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode in ("LA", "La"):
        return image.convert("LA").getchannel("L")
    # Via RGBA, because the transparency of a palette is then dropped like any other.
    return image.convert("RGBA").convert("RGB") if image.mode != "RGB" else image


def _has_transparency(image: Image.Image) -> bool:
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return image.getchannel(image.mode[-1]).getextrema()[0] < 255
    if "transparency" not in image.info:
        return False
    if image.mode in GREY_16:
        return bool((np.asarray(image) == image.info["transparency"]).any())
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def is_turned(image: Image.Image) -> bool:
    """Loads an opened image, and returns whether its orientation is not upright."""
    # When Pillow loads a TIFF, it rotates it and removes its orientation.
    orientation = getattr(image, "tag_v2", {}).get(ORIENTATION)
    image.load()
    return (orientation or _exif_orientation(image)) in TURNS


def _exif_orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    # Viewers ignore a damaged EXIF block.
    with contextlib.suppress(Exception):
        exif.load(image.info.get("exif", b""))
        return int(exif.get(ORIENTATION, 1))
    return 1


def whole(image: Image.Image, size: int) -> np.ndarray:
    """Returns the largest centred square, resized to `[size, size, C]`.

    The result is uint8, or float32 for an image of mode 'F'.
    """
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return _resized(image, (left, top, left + side, top + side), size)


def crops(
    image: Image.Image, size: int, crop: int, stride: int
) -> list[tuple[int, int, np.ndarray]]:
    """Returns (top, left, `[size, size, C]`) of a centred grid of square crops.

    Args:
      image: Image that is at least `crop` pixels high and wide.
      size: Side of the results, pixels; crops are resized if it differs from `crop`.
      crop: Side of the squares, pixels of the image.
      stride: Distance between neighbouring squares, pixels of the image.
    """
    spare_x, spare_y = image.width - crop, image.height - crop
    # The remainder is divided between both sides.
    return [
        (top, left, _resized(image, (left, top, left + crop, top + crop), size))
        for top in range(spare_y % stride // 2, spare_y + 1, stride)
        for left in range(spare_x % stride // 2, spare_x + 1, stride)
    ]


def _resized(
    image: Image.Image, box: tuple[int, int, int, int], size: int
) -> np.ndarray:
    """Returns `box` resized with Pillow's bicubic filter, which does not alias."""
    # Cut first: `resize(box=...)` would mix in pixels from outside the box.
    square = image.crop(box)
    if square.width != size:
        square = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).reshape(size, size, -1)
