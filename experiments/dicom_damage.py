"""Ways to damage a CT file, and to write it in other transfer syntaxes."""

from collections.abc import Callable, Iterator

import numpy as np
import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

SYNTAXES = (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
# Values that are impossible in CT images, or that contradict other attributes.
ABSURD = {
    "Rows": (0, 1, 511, 513, 65535),
    "Columns": (0, 1, 511, 513, 65535),
    "NumberOfFrames": ("0", "2", "65535", "-1", "2147483647"),
    "SamplesPerPixel": (0, 3, 65535),
    "BitsAllocated": (0, 1, 8, 12, 32, 64, 65535),
    "BitsStored": (0, 1, 8, 17, 65535),
    "HighBit": (0, 7, 40, 65535),
    "PixelRepresentation": (0, 1, 2, 65535),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "MONOCHROME1", ""),
    "RescaleSlope": ("0", "-1", "1e300", "nan", "", "1e-300", "1e-30", "2"),
    "RescaleIntercept": ("nan", "inf", "1e30", "", "-99999"),
    "RescaleType": ("US", "", "HU_MOD"),
    "PixelSpacing": (
        *(["0", "0"], ["-1", "1"], ["nan", "1"], "1", ["1", "1", "1"]),
        *(["1e-5", "1e-5"], ["1e-300", "1"], ["1e30", "1e30"]),
    ),
    "ImagePositionPatient": (["nan", "0", "0"], ["1e300", "0", "0"], ["0", "0"]),
    "ImageOrientationPatient": (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["1"]),
    "PixelPaddingValue": (0, 1, 32767),
    "Modality": ("MR", "", "CT\\MR"),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7", "x"),
    "SOPInstanceUID": ("", "x" * 64),
    "SeriesInstanceUID": ("",),
    "PatientID": ("../../x", "<script>", "", "x" * 10_000),
    "InstanceNumber": ("", "-1", "99999999999", "x"),
    "SliceThickness": ("0", "nan", "-5", "", "1e300"),
    "SpacingBetweenSlices": ("x", "0", "1e300"),
    "PatientBirthDate": ("1947-11-02", "x"),
    "PatientSex": ("unknown", "m"),
    "PatientWeight": ("70 kg",),
    "StudyDate": ("19471399", "0"),
    "StudyTime": ("noon",),
    "StudyInstanceUID": ("", "x"),
    "FrameOfReferenceUID": ("", "x" * 100),
    "PixelData": (b"", b"\0", b"\0" * 1000),
}
Damage = Callable[[bytes, np.random.Generator], tuple[str, bytes]]


def flipped(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file with a few bytes changed, mostly in the header."""
    broken = bytearray(data)
    end = len(data) if rng.random() < 0.3 else min(len(data), 6000)
    for at in rng.integers(128, end, rng.integers(1, 9)):
        broken[at] = rng.integers(256)
    return "bytes changed", bytes(broken)


def truncated(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file with its end cut off."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 6000)
    return "cut off", data[: rng.integers(0, end)]


def stuffed(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file with bytes inserted, removed or repeated."""
    at, length = rng.integers(132, min(len(data), 6000)), rng.integers(1, 40)
    match rng.integers(3):
        case 0:
            middle = rng.integers(0, 256, length, np.uint8).tobytes()
            return "bytes put in", data[:at] + middle + data[at:]
        case 1:
            return "bytes taken out", data[:at] + data[at + length :]
    return "bytes repeated", data[: at + length] + data[at:]


def lengths(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file with an absurd value in what may be a length field."""
    broken = bytearray(data)
    at = 2 * rng.integers(66, min(len(data), 6000) // 2 - 4)
    values = (b"\xff" * 4, b"\xfe\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4)
    broken[at : at + 4] = values[rng.integers(len(values))]
    return "length absurd", bytes(broken)


def untagged(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file without one to three of its elements."""
    dataset = _dataset(data)
    tags = [element.tag for element in dataset if element.keyword != "PixelData"]
    for index in rng.choice(len(tags), rng.integers(1, 4), replace=False):
        del dataset[tags[index]]
    return "elements removed", _bytes(dataset)


def absurd(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Returns the file with one or two elements set to impossible values."""
    dataset = _dataset(data)
    for keyword in rng.choice(list(ABSURD), rng.integers(1, 3), replace=False):
        values = ABSURD[keyword]
        value = values[rng.integers(len(values))]
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
        if keyword == "PixelData":
            vr = dataset[tag].VR
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                value = pydicom.encaps.encapsulate([value + b"\0\0"])
        dataset.add(pydicom.DataElement(tag, vr, value, already_converted=True))
    return "values absurd", _bytes(dataset)


DAMAGES: tuple[Damage, ...] = (flipped, truncated, stuffed, lengths, untagged, absurd)


def _dataset(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(data))


def _bytes(dataset: pydicom.Dataset) -> bytes:
    file = pydicom.filebase.DicomBytesIO()
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def recoded(data: bytes) -> Iterator[bytes]:
    """Yields a file in other transfer syntaxes."""
    for syntax in SYNTAXES:
        dataset = _dataset(data)
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
            if not syntax.is_little_endian:
                values = np.frombuffer(dataset.PixelData, "<u2")
                dataset.PixelData = values.byteswap().tobytes()
        file = pydicom.filebase.DicomBytesIO()
        pydicom.dcmwrite(
            file,
            dataset,
            implicit_vr=False,
            little_endian=syntax.is_little_endian,
            enforce_file_format=True,
        )
        yield file.getvalue()
