"""Headers and Hounsfield units of CT slices.

Stored value -> modality rescale (slope, intercept) -> HU -> padding set to air. A file
that cannot be trusted is refused with its path and the reason; nothing is guessed.
"""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pydicom
import scipy

from twostage_jax.ct import decode
from twostage_jax.ct.decode import refusing
from twostage_jax.errors import UserError

# From micro-CT of a specimen to the full field of a scanner on a coarse matrix.
SPACING_MM = (0.01, 10.0)
# The widest detector covers 160 mm; 0 means unknown.
THICKNESS_MM = (0.0, 200.0)
# No couch travels 10 m.
POSITION_MM = (-10_000.0, 10_000.0)
# Cosines are rounded to a few decimals.
COSINE_TOLERANCE = 0.01
AIR_HU = -1000
# Values outside a round field of view, often without PixelPaddingValue; some scanners
# write them as stored values, some as HU.
UNTAGGED_PADDING = (-2000, -2048)
# Lowest value of a 12-bit CT: lower values do not represent tissue or air.
LOWEST_HU = -1024
# Less than -3072, the lowest value of 12 signed bits with the usual intercept.
IMPOSSIBLE_BELOW_HU = -4096
# Noise reaches below air, but only a small fraction of pixels this far.
UNMEASURED_BELOW_HU, MOST_UNMEASURED = -1500, 0.01
# The usual window of lung: centre and width, HU.
LUNG_WINDOW = (-600.0, 1500.0)
# A tagged padding value above this could also be tissue.
TISSUE_HU = -900
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
CT_CLASSES = (CT_IMAGE, *decode.ENHANCED_CT)
# PS3.3 C.12.1 and C.7.6.1: 'YES' for synthetic images and for images of a phantom.
NOT_A_PATIENT = ("SyntheticData", "QualityControlImage")
# Ages above 89 identify people (HIPAA safe harbour, 45 CFR 164.514): 90 stands for them.
OLDEST = 90
AGE_UNITS = {"Y": 1, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


class NotCTError(UserError):
    """Valid DICOM file that is not a CT slice: a localiser, a report, an MR image."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Header of a slice.

    Attributes:
      path: The file.
      sop_uid: SOPInstanceUID, which identifies the slice.
      series_uid: SeriesInstanceUID.
      patient: Salted hash of the PatientID (see `patient_hash`); '' if it is missing.
      shape: (rows, columns).
      spacing: (row, column) distance between pixel centres, mm; None if not given.
      position: Centre of the first pixel (x, y, z), mm, in the patient's axes; None if
        not given.
      orientation: Direction cosines of a row, then of a column; None if not given.
      number: InstanceNumber; in a multi-frame file, the number of the frame from 1.
      frame: Index of the frame in its file, from 0.
      kernel: ConvolutionKernel; '' if not given.
      thickness: SliceThickness, mm; None if not given.
      reference: FrameOfReferenceUID, which identifies the axes; '' if not given.
      study: StudyInstanceUID; '' if not given.
      acquisition: AcquisitionUID, or else AcquisitionNumber and AcquisitionTime; equal
        for all reconstructions of an acquisition, '' if not given.
      repeated: Whether a slice of another series has the same SOPInstanceUID.
      intercept: RescaleIntercept, HU; None if a table replaces it.
      raised: Whether another slice of its series has a lower RescaleIntercept.
      lossy: Whether lossy compression, which smooths texture, was ever applied.
      synthetic: Whether the image is generated or shows a phantom, by SyntheticData
        (0008,001C) or QualityControlImage (0028,0300).
      scanner: Manufacturer and ManufacturerModelName; '' if not given.
      sex: PatientSex, 'F', 'M' or 'O'; '' if not given.
      age: PatientAge in years, at most `OLDEST`; None if not given.
    """

    path: Path
    sop_uid: str
    series_uid: str
    patient: str
    shape: tuple[int, int]
    spacing: tuple[float, float] | None
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    number: int | None
    frame: int = 0
    kernel: str = ""
    thickness: float | None = None
    reference: str = ""
    lossy: bool = False
    study: str = ""
    acquisition: str = ""
    repeated: bool = False
    intercept: float | None = None
    raised: bool = False
    synthetic: bool = False
    scanner: str = ""
    sex: str = ""
    age: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """Identifier of the slice: (SOPInstanceUID, frame).

        If several series contain the SOPInstanceUID, the first part is
        'SeriesInstanceUID/SOPInstanceUID'.
        """
        name = f"{self.series_uid}/{self.sop_uid}" if self.repeated else self.sop_uid
        return name, self.frame


def hashed(kind: str, name: str, salt: str = "") -> str:
    """Returns 'kind-' and 10 hex digits: the only form in which names are stored.

    Without a secret salt, the hash of a known name can be recomputed.

    Args:
      kind: Kind of the name: 'patient', 'series', 'slice' or 'file'.
      name: PatientID, UID or path.
      salt: Secret mixed into the hash.
    """
    text = (salt + name).encode(errors="surrogateescape")
    return f"{kind}-{hashlib.sha256(text).hexdigest()[:10]}"


def patient_hash(patient_id: str, salt: str = "") -> str:
    """Returns the salted hash of a PatientID; see `hashed`."""
    return hashed("patient", patient_id, salt)


def read_headers(path: Path, salt: str = "") -> list[Header]:
    """Returns one header per frame of a CT file.

    Raises:
      NotCTError: The file is sound but not a CT slice.
      UserError: The file cannot be trusted as a CT slice.
    """
    with refusing(path):
        return _headers(decode.load(path, pixels=False), path, salt)


def series_uid(path: Path) -> str:
    """Returns the SeriesInstanceUID of a file; '' if it is missing or unreadable."""
    tag = "SeriesInstanceUID"
    try:
        with refusing(path):
            return str(decode.peek(path, tag).get(tag) or "")
    except UserError:
        return ""


def read_slice(path: Path) -> tuple[Header, np.ndarray]:
    """Returns the header and the Hounsfield units `[H, W]` int16 of a file's first slice.

    Padding becomes `AIR_HU`; fractions of HU are rounded. MONOCHROME1 does not change HU,
    which are a physical quantity.

    Raises:
      NotCTError: The file is sound but not a CT slice.
      UserError: The file cannot be trusted as a CT slice, or cannot be decoded.
    """
    return next(read_slices(path, [0]))


def read_slices(
    path: Path, indices: Sequence[int]
) -> Iterator[tuple[Header, np.ndarray]]:
    """Yields header and HU of some frames of a file, which is read once.

    Args:
      path: Path of the file.
      indices: Indices of the frames, from 0.

    Raises:
      NotCTError, UserError: See `read_slice`.
    """
    with refusing(path):
        dataset = decode.load(path, pixels=True)
        headers = _headers(dataset, path)
        views = decode.frames(dataset)
    for index in indices:
        with refusing(path):
            hu = _hounsfield(dataset, views[index], index)
        yield headers[index], hu


def window(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """Returns HU mapped linearly from the window to [0, 1], float32, and clipped.

    Args:
      hu: Hounsfield units, any shape.
      centre: Centre of the window, HU.
      width: Width of the window, HU.
    """
    shown = np.clip((hu.astype(np.float32) - (centre - width / 2)) / width, 0, 1)
    return shown.astype(np.float32)


def _hounsfield(
    dataset: pydicom.Dataset, view: pydicom.Dataset, frame: int
) -> np.ndarray:
    """Returns the HU `[H, W]` int16 of a frame; `view` has its attributes."""
    to_hu = decode.transform(view)
    values = decode.container_values(dataset, frame)
    tagged = _tagged_padding(values, view, to_hu)
    stored = decode.pixel_cell(values, tagged, dataset)
    hu = to_hu(stored)
    untagged = np.isin(stored, UNTAGGED_PADDING) | np.isin(hu, UNTAGGED_PADDING)
    hu[tagged | (untagged & (hu < LOWEST_HU))] = AIR_HU
    if hu.min() < IMPOSSIBLE_BELOW_HU or hu.max() > 32767:
        raise UserError(
            f"rescales to {hu.min():.0f} to {hu.max():.0f} HU, which are not "
            "CT values: the sign of its pixels or its rescale is wrong."
        )
    strange = np.mean(hu < UNMEASURED_BELOW_HU)
    if strange > MOST_UNMEASURED:
        raise UserError(
            f"{100 * strange:.0f} % of its pixels are below "
            f"{UNMEASURED_BELOW_HU} HU and are not a known padding value."
        )
    return np.rint(hu).astype(np.int16)


def _headers(dataset: pydicom.Dataset, path: Path, salt: str = "") -> list[Header]:
    _check_is_ct(dataset)
    shape = decode.check_shape(dataset)
    views = decode.frames(dataset)
    return [_header(view, path, salt, shape, i) for i, view in enumerate(views)]


def _header(
    dataset: pydicom.Dataset,
    path: Path,
    salt: str,
    shape: tuple[int, int],
    frame: int,
) -> Header:
    _check_is_slice(dataset)
    decode.transform(dataset)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(keyword):
            raise UserError(f"{keyword} is missing.")
    patient = str(dataset.get("PatientID") or "").strip()
    intercept = dataset.get("RescaleIntercept")
    sex = str(dataset.get("PatientSex") or "").strip().upper()
    number = dataset.get("InstanceNumber")
    thickness = _lengths(dataset, "SliceThickness", 1, THICKNESS_MM)
    kernel = dataset.get("ConvolutionKernel") or ""
    kernel = kernel if isinstance(kernel, str) else "/".join(map(str, kernel))
    return Header(
        path=path,
        sop_uid=str(dataset.SOPInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        patient=patient_hash(patient, salt) if patient else "",
        shape=shape,
        spacing=_lengths(dataset, "PixelSpacing", 2, SPACING_MM),
        position=_lengths(dataset, "ImagePositionPatient", 3, POSITION_MM),
        orientation=_orientation(dataset),
        number=None if number is None else int(number),
        frame=frame,
        kernel=kernel,
        thickness=(thickness[0] or None) if thickness else None,
        reference=str(dataset.get("FrameOfReferenceUID") or ""),
        intercept=None if intercept is None else float(intercept),
        lossy=dataset.get("LossyImageCompression") == "01",
        study=str(dataset.get("StudyInstanceUID") or ""),
        acquisition=_acquisition(dataset),
        synthetic="YES" in [dataset.get(keyword) for keyword in NOT_A_PATIENT],
        scanner=_scanner(dataset),
        sex=sex if sex in ("F", "M", "O") else "",
        age=_age(dataset),
    )


def _acquisition(dataset: pydicom.Dataset) -> str:
    keywords = ("AcquisitionNumber", "AcquisitionTime")
    numbers = " ".join(str(dataset.get(keyword) or "") for keyword in keywords)
    return str(dataset.get("AcquisitionUID") or numbers.strip())


def _scanner(dataset: pydicom.Dataset) -> str:
    """Returns manufacturer and model as one line of at most 64 characters."""
    keywords = ("Manufacturer", "ManufacturerModelName")
    words = " ".join(str(dataset.get(keyword) or "") for keyword in keywords).split()
    return " ".join(words)[:64]


def _age(dataset: pydicom.Dataset) -> float | None:
    """Returns PatientAge ('045Y') in years; None if it is missing or not an age."""
    value = str(dataset.get("PatientAge") or "").strip().upper()
    number, unit = value[:-1], value[-1:]
    if not (number.isascii() and number.isdigit() and unit in AGE_UNITS):
        return None
    return min(round(int(number) * AGE_UNITS[unit], 1), OLDEST)


def _lengths(
    dataset: pydicom.Dataset,
    keyword: str,
    count: int,
    limits: tuple[float, float],
) -> tuple[float, ...] | None:
    """Returns an attribute of `count` lengths in mm, or None if it is missing.

    `limits` are the smallest and the largest plausible value, mm.

    Raises:
      UserError: The attribute has another number of values, or one is out of range.
    """
    values = _numbers(dataset, keyword, count)
    low, high = limits
    if values is not None and not all(low <= value <= high for value in values):
        raise UserError(
            f"{keyword} is {values}; {low:g} to {high:g} mm are plausible. "
            "Export the file again, or exclude it."
        )
    return values


def _orientation(dataset: pydicom.Dataset) -> tuple[float, ...] | None:
    """Returns ImageOrientationPatient, or None if it is missing.

    Raises:
      UserError: It is not two perpendicular unit vectors.
    """
    values = _numbers(dataset, "ImageOrientationPatient", 6)
    if values is None:
        return None
    vectors = np.reshape(values, (2, 3))
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(vectors @ vectors.T - np.eye(2)).max()
    if not error <= 2 * COSINE_TOLERANCE:
        raise UserError(
            f"ImageOrientationPatient {values} is not two perpendicular unit "
            "vectors. Export the file again, or exclude it."
        )
    return values


def _numbers(
    dataset: pydicom.Dataset, keyword: str, count: int
) -> tuple[float, ...] | None:
    raw = dataset.get(keyword)
    if raw is None or raw == "":
        return None
    values = tuple(float(v) for v in np.atleast_1d(raw))
    if len(values) != count or not all(math.isfinite(v) for v in values):
        raise UserError(f"{keyword} is {values}; {count} numbers are needed.")
    return values


def _check_is_ct(dataset: pydicom.Dataset) -> None:
    modality, sop_class = dataset.get("Modality"), dataset.get("SOPClassUID", CT_IMAGE)
    if not modality and dataset.get("SOPClassUID") == CT_IMAGE:
        raise UserError("a CT image whose Modality is missing.")
    if modality != "CT":
        raise NotCTError(f"modality {modality or 'not given'}, not CT.")
    if sop_class not in CT_CLASSES:
        name = pydicom.uid.UID(sop_class).name
        raise NotCTError(f"not a CT image but {name}.")
    if dataset.get("BurnedInAnnotation") == "YES":
        raise NotCTError("has annotations burned into its pixels.")
    _check_is_slice(dataset)


def _check_is_slice(dataset: pydicom.Dataset) -> None:
    image_type = dataset.get("ImageType") or []
    image_type = [image_type] if isinstance(image_type, str) else image_type
    for kind in ("LOCALIZER", "SCREEN SAVE"):
        if kind in image_type:
            raise NotCTError(f"{kind.lower()}, not a CT slice.")


def _tagged_padding(
    values: np.ndarray, dataset: pydicom.Dataset, to_hu: decode.Transform
) -> np.ndarray:
    """Returns the pixels `[H, W]` bool marked by PixelPaddingValue (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, bool)
    last = dataset.get("PixelPaddingRangeLimit")
    last = first if last is None else last
    first, last = (_as_pixel(v, dataset) for v in (first, last))
    low, high = sorted((first, last))
    padding = (values >= low) & (values <= high)
    if to_hu(np.array(high)) <= TISSUE_HU:
        return padding
    # The value may occur inside the body: only regions at the border are padding.
    regions, _ = scipy.ndimage.label(padding)
    border = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
    return padding & np.isin(regions, border[border > 0])


def _as_pixel(value: int | bytes, dataset: pydicom.Dataset) -> int:
    """Returns a value with the sign of the pixels, because writers confuse US and SS."""
    bits = dataset.BitsAllocated
    if isinstance(value, bytes):
        value = int.from_bytes(value[: bits // 8], "little")
    value = int(value) % 2**bits
    signed = dataset.PixelRepresentation == 1 and value >= 2 ** (bits - 1)
    return value - 2**bits if signed else value
