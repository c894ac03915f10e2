"""One DICOM file -> its data set; refused where the file shows that it is damaged."""

import io
import os
import re
import zlib
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement

from twostage_jax.errors import UserError

# A whole-body series as one multi-frame file.
MAX_FILE_BYTES = 2 * 2**30
# Deflated files may hold a thousand times their size.
MAX_INFLATED_BYTES = 512 * 2**20
_PIXEL_DATA = pydicom.tag.Tag("PixelData")
# Digital signatures, padding at the end of the data set.
_AFTER_PIXELS = {pydicom.tag.Tag(0xFFFA, 0xFFFA), pydicom.tag.Tag(0xFFFC, 0xFFFC)}
# Old writers put question marks where they did not know.
_TYPE = re.compile(r"[A-Z]{2}|\?\?")
# Numbers, names and codes written as text.
_TEXT = {"CS", "DS", "IS", "UI"}


def load(path: Path, *, pixels: bool) -> pydicom.Dataset:
    """Returns a file's data set, without its pixel data unless asked for them.

    Raises:
      UserError: The file is too large, names no transfer syntax, or is damaged in a way
        that shows.
    """
    size = os.stat(path).st_size
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{path}: {size / 2**20:.0f} MiB are too many for one CT file "
            f"(at most {MAX_FILE_BYTES / 2**20:.0f}): export smaller files."
        )
    meta = pydicom.filereader.read_file_meta_info(path)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None:
        raise UserError(f"{path}: no transfer syntax: export the file again.")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _inflated(path, meta)
    with _Bounded(path, size) as file:
        dataset = pydicom.dcmread(file, stop_before_pixels=not pixels)
    check_elements(dataset, path)
    _check_end(dataset, path, size)
    return dataset


def check_elements(dataset: pydicom.Dataset, path: Path) -> None:
    """Raises a UserError if an element cannot have been written as it is.

    The elements of a data set, not those of its sequences: many files have private ones
    that nobody can read.
    """
    for tag in dataset.keys():
        raw = dataset.get_item(tag)
        if not isinstance(raw, RawDataElement):
            continue
        if raw.VR is not None and not _TYPE.fullmatch(raw.VR):
            raise UserError(f"{path}: {tag} is of no known type: the file is damaged.")
        # Readers differ in what they make of it: to some the text ends there.
        if _is_text(raw) and b"\0" in (raw.value or b"").rstrip(b"\0 "):
            raise UserError(f"{path}: {tag} holds a zero byte: the file is damaged.")


def _is_text(raw: RawDataElement) -> bool:
    if raw.VR is not None:
        return raw.VR in _TEXT
    known = pydicom.datadict.dictionary_has_tag(raw.tag)
    return known and pydicom.datadict.dictionary_VR(raw.tag) in _TEXT


def _check_end(dataset: pydicom.Dataset, path: Path, size: int) -> None:
    """Raises a UserError if something unknown comes after the pixels.

    Then bytes were put in before the end of the pixels, which are shifted.
    """
    later = [tag for tag in dataset.keys() if tag > _PIXEL_DATA]
    left_over = 0
    raw = dataset.get_item(_PIXEL_DATA)
    if isinstance(raw, RawDataElement) and not later:
        if raw.length != 0xFFFFFFFF:
            left_over = size - raw.value_tell - raw.length
    if left_over < 0:
        raise UserError(
            f"{path}: its pixels end {-left_over} bytes before they claim to: it is cut "
            "off."
        )
    if left_over > 1 or any(tag not in _AFTER_PIXELS for tag in later):
        raise UserError(f"{path}: has unknown data after its pixels: it is damaged.")


class _Bounded(io.BufferedReader):
    """A file that gives memory only for what it holds, not for what a length claims."""

    def __init__(self, path: Path, size: int) -> None:
        # As a string: pydicom puts the name into its messages.
        super().__init__(io.FileIO(str(path)))
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > 0:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


def _inflated(path: Path, meta: pydicom.dataset.FileMetaDataset) -> pydicom.Dataset:
    """Returns the data set of a deflated file, which must not grow without bounds."""
    length = meta.get("FileMetaInformationGroupLength")
    if length is None:
        raise UserError(f"{path}: its file meta information does not say its length.")
    # Preamble, 'DICM', and the element that holds the length itself.
    packed = path.read_bytes()[128 + 4 + 12 + int(length) :]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(packed, MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise UserError(
            f"{path}: unpacks to more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB."
        )
    if not stream.eof:
        raise UserError(f"{path}: the deflated data set is cut off.")
    if len(stream.unused_data) > 1:
        raise UserError(f"{path}: the deflated data set ends before the file does.")
    dataset = pydicom.filereader.read_dataset(
        io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True
    )
    check_elements(dataset, path)
    _check_end(dataset, path, len(plain))
    return pydicom.dataset.FileDataset(
        path, dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True
    )
