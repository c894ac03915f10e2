"""What absurd and broken headers lead to: refusals that repeat no value."""

import logging

import numpy as np
import pytest
from ct_files import refused_at, write_ct

from twostage_jax.ct.dicom import read_slice


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": "1e-30"},
        {"RescaleSlope": "1e-300"},
        {"RescaleSlope": 0.015},
        {"RescaleSlope": 101},
        {"PixelSpacing": ["1e30", "1e30"]},
        {"PixelSpacing": ["1e-5", "1e-5"]},
        {"PixelSpacing": ["1e-300", "1"]},
        {"SliceThickness": "1e300"},
        {"ImagePositionPatient": [0, 0, "1e300"]},
        {"ImageOrientationPatient": [0] * 6},
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": ["1e300", 0, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 0.5, 0]},
    ],
)
def test_what_no_ct_can_be_is_refused_with_the_range_that_is_believed(tmp_path, tags):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), **tags)
    with refused_at(path) as caught:
        read_slice(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": 100, "RescaleIntercept": -1000},
        {"RescaleSlope": 0.016},
        {"PixelSpacing": [0.01, 10]},
        {"ImagePositionPatient": [-10000, 0, 10000]},
        {"SliceThickness": 200},
        {"ImageOrientationPatient": [0.999, 0, 0.04, 0, 1, 0]},
    ],
)
def test_what_a_ct_can_just_be_is_read(tmp_path, tags):
    read_slice(write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), **tags))


def test_reading_repeats_no_value_that_is_out_of_order(tmp_path, capfd, caplog):
    caplog.set_level("DEBUG")
    tags = {
        "StudyInstanceUID": "SMITH-UID",
        "FrameOfReferenceUID": "SMITH-UID",
        "PatientBirthDate": "SMITH 1947",
        "PatientID": "SMITH" * 60,
        "SpecificCharacterSet": "SMITH",
    }
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), **tags)
    read_slice(path)
    path = write_ct(tmp_path / "b", np.zeros((2, 2), np.int16), SliceThickness="SMITH")
    with refused_at(path) as caught:
        read_slice(path)
    heard = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert "SMITH" not in heard
    # Nobody else is silenced.
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text
