"""The stored values of one DICOM image, checked before any memory is taken."""

import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array

from twostage_jax.ct import frames
from twostage_jax.errors import UserError

# The largest CT matrix in use is 2048; a larger claim than twice that is an error.
MAX_SIDE = 4096
# Plugins of pydicom, the ones that are strict about damaged streams first.
_PLUGINS = ("pydicom", "pyjpegls", "pylibjpeg", "gdcm", "pillow")
_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xF7}


def check_shape(dataset: pydicom.Dataset, path: Path) -> tuple[int, int]:
    """Returns (rows, columns) of an image of one grey channel.

    Raises:
      UserError: It is none, or claims an absurd size.
    """
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise UserError(f"{path}: Rows or Columns is missing: this is no image.")
    if max(rows, columns) > MAX_SIDE:
        raise UserError(
            f"{path}: claims {rows} x {columns} pixels; at most {MAX_SIDE} a side are "
            "believed."
        )
    number = int(dataset.get("NumberOfFrames") or 1)
    if number != frames.count(dataset, path):
        raise UserError(
            f"{path}: has {number} frames, but is no enhanced CT, which says where "
            "each of them lies: export single-frame files."
        )
    if dataset.get("SamplesPerPixel") != 1:
        raise UserError(
            f"{path}: {dataset.get('SamplesPerPixel')} samples a pixel: no grey image."
        )
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"{path}: photometric interpretation {photometric!r}: no grey.")
    bits = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if bits[0] not in (8, 16, 32) or not bits[1] or not 0 < bits[1] <= bits[0]:
        raise UserError(f"{path}: {bits[1]} bits stored in {bits[0]} are not possible.")
    if dataset.get("PixelRepresentation") not in (0, 1):
        raise UserError(f"{path}: PixelRepresentation (signed or not) is missing.")
    if dataset.get("HighBit", bits[1] - 1) != bits[1] - 1:
        raise UserError(f"{path}: HighBit is not BitsStored - 1; this is not read.")
    return int(rows), int(columns)


def container_values(
    dataset: pydicom.Dataset, path: Path, frame: int = 0
) -> np.ndarray:
    """Returns a frame as it lies in its 8, 16 or 32-bit cells, `[H, W]` int64.

    Raises:
      UserError: The pixel data are missing, shorter than the image they claim to be,
        cannot be decoded, or need a decoder that is not installed.
    """
    rows, columns = check_shape(dataset, path)
    if "PixelData" not in dataset or not dataset.PixelData:
        raise UserError(f"{path}: the pixel data are missing or cut off.")
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = ""
    if syntax.is_encapsulated:
        plugin = _plugin(syntax, path)
        _check_stream(dataset, path, frame, (rows, columns))
    else:
        number = frames.count(dataset, path)
        expected = rows * columns * dataset.BitsAllocated // 8 * number
        held = len(dataset.PixelData)
        if held < expected:
            raise UserError(
                f"{path}: {number} x {rows} x {columns} pixels need {expected} bytes, "
                f"the file holds {held}: it is cut off."
            )
        if held - expected >= columns * dataset.BitsAllocated // 8:
            raise UserError(
                f"{path}: {number} x {rows} x {columns} pixels need {expected} bytes, "
                f"the file holds {held}: the size that it claims is wrong."
            )
        # Writers leave more than the one byte of padding that is allowed.
        if held > expected + expected % 2:
            dataset.PixelData = dataset.PixelData[: expected + expected % 2]
    with warnings.catch_warnings():
        # A damaged run-length stream decodes to more pixels than there are.
        warnings.filterwarnings("error", message="The decoded RLE segment contains")
        values = pixel_array(
            dataset,
            index=frame,
            raw=True,
            correct_unused_bits=False,
            decoding_plugin=plugin,
        )
    if values.shape != (rows, columns):
        raise UserError(
            f"{path}: decodes to {values.shape}, not to the {rows} x {columns} pixels "
            "that it claims."
        )
    return values.astype(np.int64)


def pixel_cell(
    values: np.ndarray, known: np.ndarray, dataset: pydicom.Dataset, path: Path
) -> np.ndarray:
    """Returns the stored values without what lies in the unused bits of their cells.

    A value that does not fit BitsStored is either an overlay in the unused bits (which
    is then declared, and removed) or a writer's error, which nothing can tell from it.

    Args:
      values: What `container_values` gave, `[H, W]`.
      known: `[H, W]` bool, pixels whose meaning is known already (padding).
      dataset: The image's data set.
      path: For the message.

    Raises:
      UserError: Values do not fit BitsStored, and no overlay explains it.
    """
    stored, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    if stored == dataset.BitsAllocated:
        return values
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    if np.all((values >= low) & (values < high) | known):
        return values
    if not _has_embedded_overlay(dataset):
        raise UserError(
            f"{path}: pixel values from {values.min()} to {values.max()} do not fit "
            f"the {stored} {'signed' if signed else 'unsigned'} bits that are declared."
        )
    cell = values & (2**stored - 1)
    return np.where(signed & (cell >= 2 ** (stored - 1)), cell - 2**stored, cell)


def _has_embedded_overlay(dataset: pydicom.Dataset) -> bool:
    for group in range(0x6000, 0x6020, 2):
        position = dataset.get((group, 0x0102))
        if position is not None and (group, 0x3000) not in dataset:
            if int(position.value) >= dataset.BitsStored:
                return True
    return False


def _plugin(syntax: pydicom.uid.UID, path: Path) -> str:
    """Returns the decoder to use: the strictest of those that are installed.

    Left to itself, pydicom tries one after the other, and a lenient one makes pixels of
    a damaged stream that a strict one refuses.
    """
    try:
        installed = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise UserError(f"{path}: {syntax.name} is not read.") from None
    if not installed:
        raise UserError(
            f"{path}: is compressed with {syntax.name}, whose decoder is not "
            "installed: pip install 'twostage_jax[dicom]'."
        )
    return min(installed, key=lambda name: (*_PLUGINS, name).index(name))


def _check_stream(
    dataset: pydicom.Dataset, path: Path, frame: int, shape: tuple[int, int]
) -> None:
    """Raises a UserError if a compressed stream would unpack to another size."""
    number = frames.count(dataset, path)
    stream = get_frame(dataset.PixelData, frame, number_of_frames=number)
    found = _stream_shape(stream)
    if found is not None and found != shape:
        raise UserError(
            f"{path}: the compressed stream holds {found[0]} x {found[1]} pixels, the "
            f"header claims {shape[0]} x {shape[1]}."
        )


def _stream_shape(frame: bytes) -> tuple[int, int] | None:
    """Returns (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream, None of others.

    ITU-T T.81 and T.87 (start of frame), T.800 (SIZ).
    """
    start = frame.find(b"\xff\x4f\xff\x51")  # a JP2 box may come before the stream
    if start >= 0 and len(frame) >= start + 24:
        x1, y1, x0, y0 = struct.unpack_from(">4I", frame, start + 8)
        return y1 - y0, x1 - x0
    if not frame.startswith(b"\xff\xd8"):
        return None
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack_from(">H", frame, at + 2)[0]
        if marker in _START_OF_FRAME:
            return struct.unpack_from(">2H", frame, at + 5)
        at += 2 + length
    return None
