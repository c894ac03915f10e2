"""What absurd and broken headers lead to: refusals that repeat no value."""

import logging

import numpy as np
import pytest
from ct_files import write_ct

from twostage_jax.ct.dicom import read_slice
from twostage_jax.errors import UserError


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"RescaleSlope": "1e-30"}, "RescaleSlope is 1e-30"),
        ({"RescaleSlope": "1e-300"}, "RescaleSlope is 1e-300"),
        ({"RescaleSlope": 0.015}, "16 bits span 983.04 HU"),
        ({"RescaleSlope": 101}, "slope of at most 100"),
        ({"PixelSpacing": ["1e30", "1e30"]}, "0.01 to 10 mm"),
        ({"PixelSpacing": ["1e-5", "1e-5"]}, "0.01 to 10 mm"),
        ({"PixelSpacing": ["1e-300", "1"]}, "0.01 to 10 mm"),
        ({"SliceThickness": "1e300"}, "SliceThickness.*0 to 200 mm"),
        ({"ImagePositionPatient": [0, 0, "1e300"]}, "-10000 to 10000 mm"),
        ({"ImageOrientationPatient": [0] * 6}, "perpendicular"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "perpendicular"),
        ({"ImageOrientationPatient": ["1e300", 0, 0, 0, 1, 0]}, "perpendicular"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 0.5, 0]}, "perpendicular"),
    ],
)
def test_what_no_ct_can_be_is_refused_with_the_range_that_is_believed(
    tmp_path, tags, reason
):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), **tags)
    with pytest.raises(UserError, match=reason) as caught:
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
    with pytest.raises(UserError, match="cannot be read as DICOM") as caught:
        read_slice(path)
    heard = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert "SMITH" not in heard
    # Nobody else is silenced.
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text
