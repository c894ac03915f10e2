"""Disease maps as NumPy, NIfTI and CSV files."""

import collections
import csv
import importlib.util
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from twostage_jax import io
from twostage_jax.ct.series import Series
from twostage_jax.errors import UserError
from twostage_jax.maps.extent import Measure

# A qform that displaces corner voxels by more than this, in voxels, is not written.
QFORM_VOXELS = 0.05

# Name of patients without a PatientID, of whom there may be several.
UNKNOWN_PATIENT = "patient-unknown"
COUNT = "series_of_patient"
COLUMNS = (
    "patient",
    "series",
    "region",
    "class",
    "volume_ml",
    "fraction_of_region",
    "mean_probability",
    "region_volume_ml",
    "fraction_unlike_training",
    "slices",
    "files_left_out",
    "step_mm",
    "lungs",
    "remarks",
    "model",
    "arm",
    "trained_on",
    "data_fingerprint",
    "settings",
    "notice",
)


def check_installed() -> None:
    """Raises a UserError if a package for DICOM or NIfTI files is missing."""
    missing = [
        name
        for name in ("highdicom", "nibabel")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise UserError(
            f"maps need {' and '.join(missing)}: pip install 'twostage_jax[dicom]'.",
            where=missing[0],
        )


def affine(series: Series) -> np.ndarray:
    """Returns the matrix `[4, 4]` from (column, row, slice) to mm, as NIfTI has it.

    DICOM's axes point to the patient's left, back and head, NIfTI's to right, front and
    head. Without this information a series is assumed axial, at the origin, 1 mm thick.
    The matrix of a series with tilted gantry is sheared.
    """
    first, last = series.headers[0], series.headers[-1]
    row, column = np.reshape(first.orientation or (1, 0, 0, 0, 1, 0), (2, 3))
    row_mm, column_mm = first.spacing or (1.0, 1.0)
    through = np.cross(row, column) * (first.thickness or 1.0)
    if len(series.headers) > 1:
        # Not necessarily along the normal: a tilted gantry shears the volume.
        through = np.subtract(last.position, first.position) / (len(series.headers) - 1)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = row * column_mm, column * row_mm
    matrix[:3, 2], matrix[:3, 3] = through, first.position or (0, 0, 0)
    return np.diag([-1, -1, 1, 1]) @ matrix


def write_nifti(
    path: Path, volume: np.ndarray, matrix: np.ndarray, text: str, *, scale: float = 1
) -> None:
    """Writes `[Z, H, W]` or `[K, Z, H, W]` uint8 as NIfTI, `[W, H, Z]` or `[W, H, Z, K]`.

    A qform holds rotations only (nifti1.h), so a sheared matrix is stored only in the
    sform and the qform has code 0. Readers of the sform, such as nibabel, FSL and
    `prepare`, place the voxels correctly; ITK (SimpleITK, ITK-SNAP, 3D Slicer) refuses
    the file. With a qform, it would misplace the voxels.

    Args:
      path: Path that ends in `.nii.gz`.
      volume: Stored values.
      matrix: Voxel coordinates to mm, see `affine`.
      text: Description for the header; cut at 79 bytes.
      scale: Factor by which readers multiply the stored values.

    Raises:
      ImportError: nibabel is not installed.
    """
    import nibabel

    # The transpose of C order is NIfTI's Fortran order, so nothing is copied.
    image = nibabel.Nifti1Image(volume.T, matrix)
    image.header["descrip"] = text.encode("ascii", "replace")[:79]
    image.header.set_slope_inter(scale, 0)
    image.header.set_xyzt_units("mm")
    image.set_sform(matrix, 1)
    image.set_qform(matrix, 1)
    ends = [(0, size - 1) for size in image.shape[:3]]
    corners = np.array([(*corner, 1) for corner in itertools.product(*ends)])
    away = np.linalg.norm(corners @ (matrix - image.get_qform()).T, axis=1)
    if away.max() > QFORM_VOXELS * min(image.header.get_zooms()[:3]):
        image.header["qform_code"] = 0
    nibabel.save(image, path)


def report_rows(
    measures: Iterable[Measure], common: Mapping[str, str]
) -> list[dict[str, str]]:
    """Returns the rows of `report.csv`; `common` holds the columns that all share."""
    return [
        {
            "region": m.region,
            "class": m.class_name,
            "volume_ml": _number(m.volume_ml, 2),
            "fraction_of_region": _number(m.fraction, 5),
            "mean_probability": _number(m.probability, 5),
            "region_volume_ml": _number(m.region_ml, 2),
            "fraction_unlike_training": _number(m.unlike, 5),
            **common,
        }
        for m in measures
    ]


def write_report(
    path: Path, rows: Iterable[Mapping[str, str]], columns: Sequence[str] = COLUMNS
) -> None:
    """Writes `report.csv`, one row per series, region and class.

    Args:
      path: Path of the file.
      rows: Texts by column; columns that a row lacks are empty.
      columns: Names of the columns.
    """
    texts = ({name: io.inert(text) for name, text in row.items()} for row in rows)
    io.write_csv(path, columns, texts)


def write_joined(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Writes a `report.csv` of several series, with the column `series_of_patient`.

    It counts the series of the row's patient in this report; empty for an unknown patient.
    Their volumes are not added up, because they mostly show the same lungs.

    Args:
      path: Path of the file.
      rows: Rows of `write_report`.
    """
    series = collections.defaultdict(set)
    for row in rows:
        series[row["patient"]].add(row["series"])
    counts = {patient: str(len(found)) for patient, found in series.items()}
    counts[UNKNOWN_PATIENT] = ""
    counted = ({**row, COUNT: counts[row["patient"]]} for row in rows)
    write_report(path, counted, (COLUMNS[0], COUNT, *COLUMNS[1:]))


def read_report(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a `report.csv`."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
