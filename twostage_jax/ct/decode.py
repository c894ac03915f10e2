"""Reads one DICOM file: data set, frames, stored values, and their conversion to HU.

A file that is damaged or contradicts itself is refused; nothing is guessed. Neither
messages nor logs repeat its content, because any value may identify a patient.

The functions raise a `UserError` that does not name the file: call them within
`refusing`, which adds its path.
"""

import contextlib
import copy
import io
import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from twostage_jax.errors import UserError
from twostage_jax.folders import Skipped

_LOGGERS = ("pydicom", "highdicom")
# Python's messages quote values.
_QUOTED = re.compile(r"(['\"]).*?\1")
# Enough for a whole-body series in one multi-frame file.
MAX_FILE_BYTES = 2 * 2**30
# A deflated file may expand to a thousand times its size.
MAX_INFLATED_BYTES = 512 * 2**20
_PIXEL_DATA = pydicom.tag.Tag("PixelData")
_UNDEFINED = 0xFFFFFFFF
# First group of a data set without a header: file meta information, or attributes in
# little or big endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
# Signatures of files that are kept next to DICOM or mistaken for it (offset, bytes, kind).
_ARCHIVE = "archive: unpack it"
_KINDS = (
    (0, b"PK\x03\x04", f"a ZIP {_ARCHIVE}"),
    (0, b"PK\x05\x06", f"an empty ZIP {_ARCHIVE}"),
    (0, b"\x1f\x8b", f"a gzip {_ARCHIVE}"),
    (0, b"7z\xbc\xaf\x27\x1c", f"a 7-Zip {_ARCHIVE}"),
    (0, b"Rar!\x1a\x07", f"a RAR {_ARCHIVE}"),
    (0, b"BZh", f"a bzip2 {_ARCHIVE}"),
    (0, b"\xfd7zXZ\x00", f"an xz {_ARCHIVE}"),
    (0, b"\x28\xb5\x2f\xfd", f"a Zstandard {_ARCHIVE}"),
    (257, b"ustar", f"a tar {_ARCHIVE}"),
    (344, b"n+1\0", "a NIfTI volume, not DICOM"),
    (344, b"ni1\0", "a NIfTI volume, not DICOM"),
    (4, b"n+2\0\r\n", "a NIfTI volume, not DICOM"),
    (0, b"NRRD000", "an NRRD volume, not DICOM"),
    (0, b"ObjectType", "a MetaImage volume, not DICOM"),
    (0, b"DICM", "DICOM whose 128 bytes before 'DICM' are missing: export it again"),
)
# Reasons of `why_not_dicom` for files without content.
EMPTY = ("empty", "contains only zeros: was it copied completely?")
# Formats that are ZIP files inside but are not meant to be unpacked.
_ZIPPED = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".jar", ".apk", ".npz", ".pt")
_TYPES = {str(vr) for vr in VR if len(vr) == 2}
# Old writers put question marks for an unknown type.
_TYPE = re.compile(r"[A-Z]{2}|\?\?")
# Types of numbers, names and codes that are written as text.
_TEXT = {"CS", "DS", "IS", "UI"}
ENHANCED_CT = (
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)
# A study of a few thousand slices is large; the counter could reach 2**31.
MAX_FRAMES = 20_000
# Functional group (DICOM PS3.3 C.7.6.16) -> attributes of a single-frame file.
_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": (
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
    ),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}
_NOT_OF_A_FRAME = {
    pydicom.datadict.tag_for_keyword(keyword)
    for keyword in (
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "NumberOfFrames",
        "PixelData",
    )
}
# The largest CT matrix in use is 2048; more than twice that is an error.
MAX_SIDE = 4096
# Plugins of pydicom, those that are strict about damaged streams first.
_PLUGINS = ("pydicom", "pyjpegls", "pylibjpeg", "gdcm", "pillow")
_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xF7}
Transform = Callable[[np.ndarray], np.ndarray]
Groups = Callable[[str], Sequence[pydicom.Dataset]]
# Every CT image contains air: a table that starts above this does not give HU.
AIR_BELOW_HU = -900
# Distance of air and water: stored values that span less are not CT.
LEAST_SPAN_HU = 1000
# 8 bits for the 4096 HU of a CT need a slope of 16.
STEEPEST_SLOPE = 100


@contextlib.contextmanager
def refusing(path: Path, form: str = "DICOM") -> Iterator[None]:
    """Turns every exception about a broken file into a `UserError`, and silences logs.

    Args:
      path: Path of the file.
      form: Name of the expected format, for the message.

    Raises:
      UserError: Replaces any other exception. Its message begins with the path, and its
        `where` is the path, unless the original already had one.
    """
    try:
        with quiet():
            yield
    except UserError as error:
        if not error.where:
            error.args, error.where = (f"{path}: {error}",), str(path)
        raise
    # Broken files raise almost any exception in pydicom and its codecs.
    except Exception as error:
        text = _QUOTED.sub("'...'", " ".join(str(error).split()))
        why = text or type(error).__name__
        raise UserError.at(path, f"cannot be read as {form}: {why}") from error


@contextlib.contextmanager
def skipping(path: Path, skipped: Skipped | None) -> Iterator[None]:
    """Skips, and lists, what would be refused.

    Args:
      path: Path of the file.
      skipped: List to which the path and the reason are added; None: do not skip.

    Raises:
      UserError: If the block raises it and `skipped` is None.
    """
    try:
        yield
    except UserError as error:
        if skipped is None:
            raise
        skipped.append((path, str(error)))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings and logs of pydicom and highdicom, which repeat values.

    Not thread-safe, like `warnings.catch_warnings`.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # `container_values` turns this warning into an error.
        warnings.filterwarnings("ignore", message="(?!The decoded RLE segment)")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def why_not_dicom(path: Path) -> str:
    """Returns the reason why a file is not read as DICOM, or '' if it is DICOM.

    Only the content counts, not the name. A data set without the header (128 bytes,
    'DICM') is DICOM if it names one of the storage classes of the standard.

    Raises:
      OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head[128:132] == b"DICM":
        return ""
    if head[:2] in _FIRST_GROUPS:
        bare = _bare(path)
        if _is_storage(pydicom.uid.UID(str(bare.get("SOPClassUID") or ""))):
            return ""
        if bare.get("Modality") and bare.get("Rows") and bare.get("Columns"):
            return "looks like DICOM, but lacks its header and SOPClassUID: export it again"
    if not head.strip(b"\0"):
        return EMPTY[bool(head)]
    for offset, start, kind in _KINDS:
        if head[offset:].startswith(start):
            if path.name.lower().endswith((".nii.gz", ".nii.zip")):
                return "a NIfTI volume, not DICOM"
            if start[:2] != b"PK" or path.suffix.lower() not in _ZIPPED:
                return kind
    return "not a DICOM file"


def _bare(path: Path) -> pydicom.Dataset:
    """Returns some attributes of a data set without a header; empty for other files."""
    try:
        with quiet():
            found = peek(path, "SOPClassUID", "Modality", "Rows", "Columns")
            # Values are parsed only here.
            return pydicom.Dataset({e.tag: e for e in found})
    # Random bytes make pydicom raise almost any exception.
    except Exception:
        return pydicom.Dataset()


def peek(path: Path, *keywords: str) -> pydicom.Dataset:
    """Returns some attributes of a DICOM file without checking it; see `why_not_dicom`."""
    start, meta = _meta(path)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _inflated(path, start, meta)
    with _Bounded(path, os.stat(path).st_size) as file:
        return pydicom.dcmread(
            file, force=True, stop_before_pixels=True, specific_tags=list(keywords)
        )


def storage_class(path: Path) -> str:
    """Returns the SOPClassUID of a file, or '' if it is not DICOM.

    Raises:
      UserError: The file cannot be read as DICOM.
    """
    if why_not_dicom(path):
        return ""
    with refusing(path):
        return str(peek(path, "SOPClassUID").get("SOPClassUID") or "")


def other_class(path: Path, classes: Container[str]) -> str:
    """Returns the name of a file's storage class, or '' if it is one of `classes`.

    Also returns '' if the class is missing or not part of the standard. Reads only the
    file meta information, which comes first and is intact in most damaged files.
    """
    try:
        with quiet():
            uid = pydicom.uid.UID(_meta(path)[1].get("MediaStorageSOPClassUID") or "")
    # Broken files raise almost any exception in pydicom.
    except Exception:
        return ""
    return uid.name if uid not in classes and _is_storage(uid) else ""


def _is_storage(uid: pydicom.uid.UID) -> bool:
    return uid.name.endswith("Storage") and not uid.is_private


def load(path: Path, *, pixels: bool) -> pydicom.Dataset:
    """Returns the data set of a file, with or without its pixel data.

    Raises:
      UserError: The file is too large or visibly damaged, or its transfer syntax is
        missing.
    """
    size = os.stat(path).st_size
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{size / 2**20:.0f} MiB are too large for a CT file "
            f"(at most {MAX_FILE_BYTES / 2**20:.0f}). Export smaller files."
        )
    start, meta = _meta(path)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None and len(meta):
        raise UserError("the transfer syntax is missing. Export the file again.")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _inflated(path, start, meta)
    with _Bounded(path, size) as file:
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
    if syntax is None:
        _name_syntax(dataset)
    check_elements(dataset)
    _check_end(dataset, size)
    return dataset


def check_elements(dataset: pydicom.Dataset) -> None:
    """Raises a UserError if an element shows that the file is damaged.

    Skips elements inside sequences: many files contain unreadable private ones.
    """
    for tag in dataset.keys():
        raw = dataset.get_item(tag)
        if not isinstance(raw, RawDataElement):
            continue
        if raw.VR is not None and not _TYPE.fullmatch(raw.VR):
            raise UserError(f"{tag} has an unknown type: the file is damaged.")
        # Readers disagree: for some, the text ends at the zero byte.
        if _is_text(raw) and b"\0" in (raw.value or b"").rstrip(b"\0 "):
            raise UserError(f"{tag} contains a zero byte: the file is damaged.")


def _is_text(raw: RawDataElement) -> bool:
    if raw.VR is not None:
        return raw.VR in _TEXT
    known = pydicom.datadict.dictionary_has_tag(raw.tag)
    return known and pydicom.datadict.dictionary_VR(raw.tag) in _TEXT


def _meta(path: Path) -> tuple[int, pydicom.dataset.FileMetaDataset]:
    """Returns the offset of the file meta information in bytes, and its content.

    Accepts files without the 128 bytes and 'DICM', and without meta information.
    """
    with path.open("rb") as file:
        start = 132 if file.read(132)[128:] == b"DICM" else 0
        file.seek(start)
        meta = pydicom.filereader.read_dataset(
            file,
            is_implicit_VR=False,
            is_little_endian=True,
            stop_when=lambda tag, vr, length: tag >> 16 != 2,
        )
    return start, pydicom.dataset.FileMetaDataset(meta)


def _name_syntax(dataset: pydicom.Dataset) -> None:
    """Sets the transfer syntax of a data set without meta information."""
    raw = dataset.get_item(_PIXEL_DATA) if _PIXEL_DATA in dataset else None
    if isinstance(raw, RawDataElement) and raw.length == _UNDEFINED:
        raise UserError(
            "has compressed pixels, but lacks the header that names the "
            "compression. Export the file again."
        )
    implicit, little = dataset.original_encoding
    if implicit:
        syntax = pydicom.uid.ImplicitVRLittleEndian
    elif little:
        syntax = pydicom.uid.ExplicitVRLittleEndian
    else:
        syntax = pydicom.uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax


def _check_end(dataset: pydicom.Dataset, size: int) -> None:
    """Raises a UserError if something other than attributes follows the pixels.

    It means that bytes were inserted earlier, so that the pixels are shifted. Valid
    attributes ascend by tag (PS3.5 7.1), fill the file to its end, and are private or
    among the few standard ones with higher tags than the pixels.
    """
    tags = list(dataset.keys())
    if _PIXEL_DATA not in tags:
        return
    after = tags[tags.index(_PIXEL_DATA) + 1 :]
    at = _end_of(dataset.get_item(_PIXEL_DATA))
    if at is not None and at > size:
        raise UserError(
            f"its pixels end {at - size} bytes too early: the file is cut off."
        )
    sound = after == sorted(after)
    for tag in after:
        item = dataset.get_item(tag)
        sound &= tag > _PIXEL_DATA and _may_follow(item, dataset)
        if at is not None and isinstance(item, RawDataElement):
            long = not item.is_implicit_VR and item.VR in EXPLICIT_VR_LENGTH_32
            sound &= item.value_tell == at + (12 if long else 8)
        at = _end_of(item)
    if not sound or (at is not None and not 0 <= size - at <= 1):
        raise UserError("has unknown data after its pixels: the file is damaged.")


def _end_of(item: RawDataElement | pydicom.DataElement) -> int | None:
    """Returns the offset of an element's end in bytes; None if its length is unknown."""
    if not isinstance(item, RawDataElement) or item.length == _UNDEFINED:
        return None
    return item.value_tell + item.length


def _may_follow(
    item: RawDataElement | pydicom.DataElement, dataset: pydicom.Dataset
) -> bool:
    """Returns whether an element may follow the pixels."""
    tag = item.tag
    if not tag.is_private:
        return pydicom.datadict.dictionary_has_tag(tag)
    if item.VR is not None:
        return item.VR in _TYPES
    # Without a type, a few bytes of pixels can look like an element. A private one must
    # lie in a reserved block, as the standard demands (PS3.5 7.8.1).
    if 0x10 <= tag.elem <= 0xFF:
        return bool(item.value) and item.value.strip(b"\0 ").isascii()
    return (tag.group << 16 | tag.elem >> 8) in dataset


class _Bounded(io.BufferedReader):
    """File whose reads allocate memory for its real size, not for a claimed length."""

    def __init__(self, path: Path, size: int) -> None:
        # A string, because pydicom puts the name into its messages.
        super().__init__(io.FileIO(str(path)))
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > 0:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


def _inflated(
    path: Path, start: int, meta: pydicom.dataset.FileMetaDataset
) -> pydicom.Dataset:
    """Returns the data set of a deflated file, up to `MAX_INFLATED_BYTES`."""
    length = meta.get("FileMetaInformationGroupLength")
    if length is None:
        raise UserError("the length of its file meta information is missing.")
    # The length excludes the 12 bytes of its own element.
    packed = path.read_bytes()[start + 12 + int(length) :]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(packed, MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise UserError(f"unpacks to more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB.")
    if not stream.eof:
        raise UserError("the deflated data set is cut off.")
    if len(stream.unused_data) > 1:
        raise UserError("the deflated data set ends before the file does.")
    dataset = pydicom.filereader.read_dataset(
        io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True
    )
    check_elements(dataset)
    _check_end(dataset, len(plain))
    return pydicom.dataset.FileDataset(
        path, dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True
    )


def count_frames(dataset: pydicom.Dataset) -> int:
    """Returns the number of frames; 1 for anything but a multi-frame CT.

    Raises:
      UserError: See `check_frames`.
    """
    if dataset.get("SOPClassUID") not in ENHANCED_CT:
        return 1
    number = int(dataset.get("NumberOfFrames") or 0)
    check_frames(dataset, number)
    return number


def check_frames(dataset: pydicom.Dataset, number: int) -> None:
    """Checks the number of frames that a multi-frame file claims.

    Raises:
      UserError: The number is implausible or contradicts the frames' descriptions.
    """
    if not 0 < number <= MAX_FRAMES:
        raise UserError(f"claims {number} frames; 1 to {MAX_FRAMES} are plausible.")
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if described != number:
        raise UserError(f"has {number} frames, but describes {described} of them.")


def frames(dataset: pydicom.Dataset) -> list[pydicom.Dataset]:
    """Returns a data set for each frame, with the attributes of a single-frame CT image.

    Attributes of a frame override those that all frames share. Pixels are omitted.

    Raises:
      UserError: See `count_frames` and `check_elements`.
    """
    number = count_frames(dataset)
    if dataset.get("SOPClassUID") not in ENHANCED_CT:
        return [dataset]
    common = [e for e in dataset if e.tag not in _NOT_OF_A_FRAME]
    found = []
    for index in range(number):
        frame = pydicom.Dataset()
        for element in common:
            # A copy: setting an attribute changes the element that stands there.
            frame.add(copy.copy(element))
        group = functional_groups(dataset, index)
        for name, keywords in _GROUPS.items():
            items = group(name)
            if items:
                check_elements(items[0])
            for keyword in keywords if items else ():
                if keyword in items[0]:
                    setattr(frame, keyword, items[0].get(keyword))
        if "FrameType" in frame:
            frame.ImageType = frame.FrameType
        frame.InstanceNumber = index + 1
        found.append(frame)
    return found


def functional_groups(dataset: pydicom.Dataset, frame: int) -> Groups:
    """Returns a function from the name of a functional group to its items for a frame.

    Groups of the frame override those that all frames share (PS3.3 C.7.6.16).
    """
    own = dataset.PerFrameFunctionalGroupsSequence[frame]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    return lambda name: own.get(name) or shared.get(name) or ()


def check_shape(dataset: pydicom.Dataset) -> tuple[int, int]:
    """Returns (rows, columns) of an image with one grey channel.

    Raises:
      UserError: It is not such an image, or claims an implausible size.
    """
    rows, columns = dataset.get("Rows"), dataset.get("Columns")
    if not rows or not columns:
        raise UserError("Rows or Columns is missing: this is not an image.")
    if max(rows, columns) > MAX_SIDE:
        raise UserError(
            f"claims {rows} x {columns} pixels; at most {MAX_SIDE} per side are "
            "plausible."
        )
    number = int(dataset.get("NumberOfFrames") or 1)
    if number != count_frames(dataset):
        raise UserError(
            f"has {number} frames, but is not an enhanced CT, which gives "
            "the position of each frame. Export single-frame files."
        )
    if dataset.get("SamplesPerPixel") != 1:
        raise UserError(
            f"{dataset.get('SamplesPerPixel')} samples per pixel: not a grey image."
        )
    photometric = dataset.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise UserError(f"photometric interpretation {photometric!r} is not grey.")
    bits = dataset.get("BitsAllocated"), dataset.get("BitsStored")
    if bits[0] not in (8, 16, 32) or not bits[1] or not 0 < bits[1] <= bits[0]:
        raise UserError(f"{bits[1]} bits stored in {bits[0]} are not possible.")
    if dataset.get("PixelRepresentation") not in (0, 1):
        raise UserError("PixelRepresentation (signed or not) is missing.")
    if dataset.get("HighBit", bits[1] - 1) != bits[1] - 1:
        raise UserError("HighBit is not BitsStored - 1, which is not supported.")
    return int(rows), int(columns)


def container_values(dataset: pydicom.Dataset, frame: int) -> np.ndarray:
    """Returns the 8-, 16- or 32-bit cells of a frame, `[H, W]` int64.

    Raises:
      UserError: The pixel data are missing, do not match the size of the image, cannot
        be decoded, or need a decoder that is not installed.
    """
    rows, columns = check_shape(dataset)
    if "PixelData" not in dataset or not dataset.PixelData:
        raise UserError("the pixel data are missing or cut off.")
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = ""
    if syntax.is_encapsulated:
        plugin = _plugin(syntax)
        _check_stream(dataset, frame, (rows, columns))
    else:
        number = count_frames(dataset)
        expected = rows * columns * dataset.BitsAllocated // 8 * number
        held = len(dataset.PixelData)
        if held < expected:
            raise UserError(
                f"{number} x {rows} x {columns} pixels need {expected} bytes, "
                f"the file has {held}: it is cut off."
            )
        if held - expected >= columns * dataset.BitsAllocated // 8:
            raise UserError(
                f"{number} x {rows} x {columns} pixels need {expected} bytes, "
                f"the file has {held}: its Rows, Columns or frames are wrong."
            )
        # Some writers leave more than the one byte of padding that is allowed.
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
            f"decodes to {values.shape}, not to the {rows} x {columns} pixels "
            "of its header."
        )
    return values.astype(np.int64)


def pixel_cell(
    values: np.ndarray, known: np.ndarray, dataset: pydicom.Dataset
) -> np.ndarray:
    """Returns the stored values `[H, W]` int64, without the unused bits of their cells.

    A value that does not fit BitsStored is either an overlay in the unused bits, which
    is removed if it is declared, or an error of the writer.

    Args:
      values: Cells from `container_values`, `[H, W]`.
      known: Pixels known to be padding, which are not checked, `[H, W]` bool.
      dataset: Data set of the image.

    Raises:
      UserError: Values do not fit BitsStored, and no overlay is declared.
    """
    stored, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    if stored == dataset.BitsAllocated:
        return values
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    if np.all((values >= low) & (values < high) | known):
        return values
    if not _has_embedded_overlay(dataset):
        raise UserError(
            f"pixel values from {values.min()} to {values.max()} do not fit "
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


def _plugin(syntax: pydicom.uid.UID) -> str:
    """Returns the name of the strictest installed decoder.

    By default, pydicom tries all decoders in turn, so that a lenient one decodes a
    damaged stream that a strict one refuses.
    """
    try:
        installed = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise UserError(f"{syntax.name} is not supported.") from None
    if not installed:
        raise UserError(
            f"is compressed with {syntax.name}, whose decoder is not "
            "installed: pip install 'twostage_jax[dicom]'."
        )
    return min(installed, key=lambda name: (*_PLUGINS, name).index(name))


def _check_stream(dataset: pydicom.Dataset, frame: int, shape: tuple[int, int]) -> None:
    """Raises a UserError if the sizes in a compressed stream and the header differ."""
    number = count_frames(dataset)
    stream = get_frame(dataset.PixelData, frame, number_of_frames=number)
    found = _stream_shape(stream)
    if found is not None and found != shape:
        raise UserError(
            f"the compressed stream contains {found[0]} x {found[1]} pixels, the "
            f"header claims {shape[0]} x {shape[1]}."
        )


def _stream_shape(frame: bytes) -> tuple[int, int] | None:
    """Returns (rows, columns) of a JPEG, JPEG-LS or JPEG 2000 stream, or None.

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


def transform(dataset: pydicom.Dataset) -> Transform:
    """Returns the function from stored values to HU, float64 (DICOM PS3.3 C.11.1).

    Raises:
      UserError: Rescale and table are both missing or both given, the unit is not HU,
        or the slope is implausible.
    """
    rescaled = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if dataset.get("ModalityLUTSequence"):
        if rescaled != (None, None):
            raise UserError("has both a modality LUT and a rescale.")
        return _lookup(dataset)
    if None in rescaled:
        raise UserError(
            "RescaleSlope or RescaleIntercept is missing: its values cannot "
            "be converted to HU."
        )
    slope, intercept = map(float, rescaled)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope > 0):
        raise UserError(
            f"rescale slope {slope} and intercept {intercept} are not valid."
        )
    span = slope * 2**dataset.BitsStored
    if span < LEAST_SPAN_HU or slope > STEEPEST_SLOPE:
        raise UserError(
            f"RescaleSlope is {slope:g}: {dataset.BitsStored} bits span "
            f"{span:g} HU. At least {LEAST_SPAN_HU} HU and a slope of at most "
            f"{STEEPEST_SLOPE} are plausible. Export the file again, or exclude it."
        )
    _check_unit(dataset.get("RescaleType"))
    return lambda stored: stored * slope + intercept


def _check_unit(unit: str | None) -> None:
    unit = str(unit or "HU").strip().lower()
    # 'Houndsfield Unit' occurs in practice. HU_MOD (modified HU) is another quantity.
    if unit != "hu" and not unit.startswith("houn"):
        raise UserError(f"rescales to {unit!r}, not to HU.")


def _lookup(dataset: pydicom.Dataset) -> Transform:
    item = dataset.ModalityLUTSequence[0]
    if not item.get("ModalityLUTType"):
        raise UserError("the unit of its modality LUT is missing.")
    _check_unit(item.ModalityLUTType)
    entries, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = entries or 2**16
    # The first value of the descriptor has the sign of the pixels, whatever its VR.
    if dataset.PixelRepresentation == 1 and first >= 2**15:
        first -= 2**16
    table = item.LUTData
    if isinstance(table, bytes):
        table = np.frombuffer(table, "<u2" if bits > 8 else "u1")
    table = np.asarray(table, np.float64).ravel()
    if len(table) != entries or table.min() > AIR_BELOW_HU:
        raise UserError(
            f"its modality LUT has {len(table)} of {entries} entries, from "
            f"{table.min(initial=0):.0f}: this is not a table of HU."
        )
    return lambda stored: table[np.clip(stored - first, 0, entries - 1).astype(int)]
