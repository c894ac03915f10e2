"""NIfTI against SimpleITK, which reads both the DICOM series and the NIfTI file."""

import csv

import numpy as np
import pytest
from basics import refused_at
from ct_files import write_ct

from twostage_jax.ct.series import find_series, read_volume
from twostage_jax.maps import write
from twostage_jax.maps.extent import Measure
from twostage_jax.notices import NOTICE

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
# Rows and columns turned by 30 degrees about z, and a tilt about the rows.
TURNED = [0.8660254, 0.5, 0.0, -0.4698463, 0.8137977, 0.3420201]
UPSIDE_DOWN = [1, 0, 0, 0, -1, 0]


def write_series(folder, orientation, shear=(0, 0, 0), slices=4):
    folder.mkdir()
    rng = np.random.default_rng(0)
    normal = np.cross(*np.reshape(orientation, (2, 3)))
    for i in range(slices):
        position = np.array([-40.5, 12.25, 7.0]) + 2.5 * i * (normal + shear)
        write_ct(
            folder / f"{i}",
            rng.integers(24, 2000, (5, 7)).astype(np.int16),
            uid=i + 1,
            ImagePositionPatient=[round(v, 6) for v in position.tolist()],
            ImageOrientationPatient=orientation,
            PixelSpacing=[1.5, 0.75],
        )
    ((series,), _) = find_series(folder)
    return series


def nifti(path, series, volume):
    write.write_nifti(path, volume, write.affine(series), NOTICE)
    return path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SimpleITK's own
@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 1, 0], TURNED, UPSIDE_DOWN])
def test_nifti_lies_where_simpleitk_sees_the_series(tmp_path, orientation):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    series = write_series(tmp_path / "dicom", orientation)
    labels = (read_volume(series) // 8 % 251).astype(np.uint8)
    path = nifti(tmp_path / "classes.nii.gz", series, labels)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "dicom"))
    reference = sitk.ReadImage(names)
    found = sitk.ReadImage(str(path))
    assert found.GetSize() == reference.GetSize()
    for voxel in [(0, 0, 0), (6, 0, 0), (0, 4, 0), (0, 0, 3), (6, 4, 3)]:
        np.testing.assert_allclose(
            found.TransformIndexToPhysicalPoint(voxel),
            reference.TransformIndexToPhysicalPoint(voxel),
            atol=1e-3,
        )
        expected = (reference.GetPixel(*voxel) // 8) % 251
        assert found.GetPixel(*voxel) == expected


def test_slices_of_a_tilted_gantry_keep_their_places(tmp_path):
    series = write_series(tmp_path / "dicom", [1, 0, 0, 0, 1, 0], shear=(0, 0.3, 0))
    volume = np.zeros((4, 5, 7), np.uint8)
    image = nibabel.load(nifti(tmp_path / "a.nii.gz", series, volume))
    for k, header in enumerate(series.headers):
        x, y, z = header.position
        np.testing.assert_allclose(
            (image.affine @ [0, 0, k, 1])[:3], [-x, -y, z], atol=1e-4
        )


def test_probabilities_read_as_numbers_from_0_to_1(tmp_path):
    series = write_series(tmp_path / "dicom", [1, 0, 0, 0, 1, 0])
    volume = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 7)).astype(np.uint8)
    path = tmp_path / "p.nii.gz"
    write.write_nifti(path, volume, write.affine(series), NOTICE, scale=1 / 255)
    image = nibabel.load(path)
    assert image.shape == (7, 5, 4, 3)
    np.testing.assert_allclose(image.get_fdata()[2, 1, 3, 0], volume[0, 3, 1, 2] / 255)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert NOTICE in bytes(image.header["descrip"]).decode()


def test_report_holds_no_formula_and_one_line_a_measure(tmp_path):
    measures = [
        Measure("lungs", '=HYPERLINK("x")\n"y"', 0.25, 1.5, 6.0, 0.3),
        Measure("upper", "normal", None, None, None, None),
    ]
    rows = write.report_rows(measures, {"patient": "patient-1", "notice": NOTICE})
    write.write_report(tmp_path / "report.csv", rows)
    with (tmp_path / "report.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["class"] == '\'=HYPERLINK("x") "y"'
    assert float(first["volume_ml"]) == 1.5
    assert float(first["fraction_of_region"]) == 0.25
    assert first["notice"] == second["notice"] == "Research use only, not for diagnosis"
    assert second["volume_ml"] == second["fraction_of_region"] == ""
    read = write.read_report(tmp_path / "report.csv")
    write.write_report(tmp_path / "again.csv", read)
    assert (tmp_path / "again.csv").read_bytes() == (
        tmp_path / "report.csv"
    ).read_bytes()


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setattr(write.importlib.util, "find_spec", lambda name: None)
    with refused_at("highdicom"):
        write.check_installed()
