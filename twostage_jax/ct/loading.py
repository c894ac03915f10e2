"""One DICOM file -> its data set; refused where the file shows that it is damaged."""

import io
import os
import re
import zlib
from collections.abc import Container
from pathlib import Path

import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from twostage_jax.ct.refusing import quiet
from twostage_jax.errors import UserError

# A whole-body series as one multi-frame file.
MAX_FILE_BYTES = 2 * 2**30
# Deflated files may hold a thousand times their size.
MAX_INFLATED_BYTES = 512 * 2**20
_PIXEL_DATA = pydicom.tag.Tag("PixelData")
_UNDEFINED = 0xFFFFFFFF
# Groups of a data set that begins without a header: its file meta information, or its
# first attributes, little or big endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00", b"\x00\x08")
# How files begin that people keep next to DICOM, or in its place (offset, bytes, kind).
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
# Reasons of `why_not_dicom` for files whose content never came.
EMPTY = ("empty", "holds nothing but zeros: was it copied completely?")
# Formats that are ZIP files inside, and are not meant to be unpacked.
_ZIPPED = (".docx", ".xlsx", ".pptx", ".odt", ".ods", ".jar", ".apk", ".npz", ".pt")
_TYPES = {str(vr) for vr in VR if len(vr) == 2}
# Old writers put question marks where they did not know.
_TYPE = re.compile(r"[A-Z]{2}|\?\?")
# Numbers, names and codes written as text.
_TEXT = {"CS", "DS", "IS", "UI"}


def why_not_dicom(path: Path) -> str:
    """Returns why a file is not read as DICOM, by its content; '' if it is DICOM.

    A data set without the header (128 bytes, 'DICM') is DICOM if it names one of the
    storage classes of the standard.

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


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, whatever its name; see `why_not_dicom`."""
    return not why_not_dicom(path)


def _bare(path: Path) -> pydicom.Dataset:
    """Returns some attributes of what may be a data set without a header, or nothing."""
    try:
        with quiet():
            found = peek(path, "SOPClassUID", "Modality", "Rows", "Columns")
            # Values are parsed only now.
            return pydicom.Dataset({e.tag: e for e in found})
    # Random bytes make pydicom raise nearly everything.
    except Exception:
        return pydicom.Dataset()


def peek(path: Path, *keywords: str) -> pydicom.Dataset:
    """Returns some attributes of a DICOM file, without its checks; see `is_dicom`."""
    start, meta = _meta(path)
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _inflated(path, start, meta)
    with _Bounded(path, os.stat(path).st_size) as file:
        return pydicom.dcmread(
            file, force=True, stop_before_pixels=True, specific_tags=list(keywords)
        )


def other_class(path: Path, classes: Container[str]) -> str:
    """Returns the name of a file's storage class, by its meta information.

    '' if it is one of `classes`, or is not named, or not one of the standard's. The meta
    information comes first in a file, and is whole in most damaged ones.
    """
    try:
        with quiet():
            uid = pydicom.uid.UID(_meta(path)[1].get("MediaStorageSOPClassUID") or "")
    # Broken files raise nearly everything in pydicom.
    except Exception:
        return ""
    return uid.name if uid not in classes and _is_storage(uid) else ""


def _is_storage(uid: pydicom.uid.UID) -> bool:
    return uid.name.endswith("Storage") and not uid.is_private


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
            f"(at most {MAX_FILE_BYTES / 2**20:.0f}): export smaller files.",
            where=path,
        )
    start, meta = _meta(path)
    syntax = meta.get("TransferSyntaxUID")
    if syntax is None and len(meta):
        raise UserError(
            f"{path}: the transfer syntax is missing: export the file again.",
            where=path,
        )
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        return _inflated(path, start, meta)
    with _Bounded(path, size) as file:
        dataset = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
    if syntax is None:
        _name_syntax(dataset, path)
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
            raise UserError(
                f"{path}: {tag} is of no known type: the file is damaged.", where=path
            )
        # Readers differ in what they make of it: to some the text ends there.
        if _is_text(raw) and b"\0" in (raw.value or b"").rstrip(b"\0 "):
            raise UserError(
                f"{path}: {tag} holds a zero byte: the file is damaged.", where=path
            )


def _is_text(raw: RawDataElement) -> bool:
    if raw.VR is not None:
        return raw.VR in _TEXT
    known = pydicom.datadict.dictionary_has_tag(raw.tag)
    return known and pydicom.datadict.dictionary_VR(raw.tag) in _TEXT


def _meta(path: Path) -> tuple[int, pydicom.dataset.FileMetaDataset]:
    """Returns where a file's meta information begins, in bytes, and what it holds.

    Files without the 128 bytes and 'DICM', and data sets without meta information, are
    read as well.
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


def _name_syntax(dataset: pydicom.Dataset, path: Path) -> None:
    """Writes down the transfer syntax of a data set that has no meta information."""
    raw = dataset.get_item(_PIXEL_DATA) if _PIXEL_DATA in dataset else None
    if isinstance(raw, RawDataElement) and raw.length == _UNDEFINED:
        raise UserError(
            f"{path}: has compressed pixels, but lacks the header that says how they "
            "are compressed: export the file again.",
            where=path,
        )
    implicit, little = dataset.original_encoding
    if implicit:
        syntax = pydicom.uid.ImplicitVRLittleEndian
    elif little:
        syntax = pydicom.uid.ExplicitVRLittleEndian
    else:
        syntax = pydicom.uid.ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = syntax


def _check_end(dataset: pydicom.Dataset, path: Path, size: int) -> None:
    """Raises a UserError if something other than attributes comes after the pixels.

    Then bytes were put in before the end of the pixels, which are shifted. Attributes
    ascend by tag (PS3.5 7.1), fill the file to its end, and are private ones, or those
    few of the standard that have higher tags than the pixels.
    """
    tags = list(dataset.keys())
    if _PIXEL_DATA not in tags:
        return
    after = tags[tags.index(_PIXEL_DATA) + 1 :]
    at = _end_of(dataset.get_item(_PIXEL_DATA))
    if at is not None and at > size:
        raise UserError(
            f"{path}: its pixels end {at - size} bytes before they claim to: it is cut "
            "off.",
            where=path,
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
        raise UserError(
            f"{path}: has unknown data after its pixels: it is damaged.", where=path
        )


def _end_of(item: RawDataElement | pydicom.DataElement) -> int | None:
    """Returns where an element ends in its file, in bytes; None if it does not say."""
    if not isinstance(item, RawDataElement) or item.length == _UNDEFINED:
        return None
    return item.value_tell + item.length


def _may_follow(
    item: RawDataElement | pydicom.DataElement, dataset: pydicom.Dataset
) -> bool:
    """Whether an element may come after the pixels."""
    tag = item.tag
    if not tag.is_private:
        return pydicom.datadict.dictionary_has_tag(tag)
    if item.VR is not None:
        return item.VR in _TYPES
    # Without a type, a few bytes of pixels look like an element: what the standard asks
    # of private ones (PS3.5 7.8.1) is needed, that somebody reserved their block.
    if 0x10 <= tag.elem <= 0xFF:
        return bool(item.value) and item.value.strip(b"\0 ").isascii()
    return (tag.group << 16 | tag.elem >> 8) in dataset


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


def _inflated(
    path: Path, start: int, meta: pydicom.dataset.FileMetaDataset
) -> pydicom.Dataset:
    """Returns the data set of a deflated file, which must not grow without bounds."""
    length = meta.get("FileMetaInformationGroupLength")
    if length is None:
        raise UserError(
            f"{path}: its file meta information does not say its length.", where=path
        )
    # The length's own element has 12 bytes, and does not count.
    packed = path.read_bytes()[start + 12 + int(length) :]
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = stream.decompress(packed, MAX_INFLATED_BYTES)
    if stream.unconsumed_tail:
        raise UserError(
            f"{path}: unpacks to more than {MAX_INFLATED_BYTES / 2**20:.0f} MiB.",
            where=path,
        )
    if not stream.eof:
        raise UserError(f"{path}: the deflated data set is cut off.", where=path)
    if len(stream.unused_data) > 1:
        raise UserError(
            f"{path}: the deflated data set ends before the file does.", where=path
        )
    dataset = pydicom.filereader.read_dataset(
        io.BytesIO(plain), is_implicit_VR=False, is_little_endian=True
    )
    check_elements(dataset, path)
    _check_end(dataset, path, len(plain))
    return pydicom.dataset.FileDataset(
        path, dataset, file_meta=meta, is_implicit_VR=False, is_little_endian=True
    )
