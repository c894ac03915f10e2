"""Series of slices: search, order and irregularities."""

import numpy as np
import pytest
from basics import refused_at
from ct_files import SERIES, write_ct, write_enhanced

from twostage_jax.ct.series import TOGETHER, find_series, read_volume
from twostage_jax.errors import UserError


def write_slice(path, z, *, uid=None, **tags):
    """Writes a 2 x 2 slice at height z (mm) whose HU are all z."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = {"ImagePositionPatient": [0, 0, z], **tags}
    stored = np.full((2, 2), 1024 + round(z), np.int16)
    return write_ct(path, stored, uid=uid or int(z * 10) + 1, **tags)


def test_slices_are_sorted_by_position_whatever_their_names(tmp_path):
    for z, name in [(10, "b/001.dcm"), (0, "z"), (30, "a/IM0.7"), (20, "c/d/e.txt")]:
        write_slice(tmp_path / name, z)
    (series,), skipped = find_series(tmp_path)
    assert [h.position[2] for h in series.headers] == [0, 10, 20, 30]
    assert series.step == pytest.approx(10)
    assert series.notes == ()
    assert skipped == []
    assert read_volume(series)[:, 0, 0].tolist() == [0, 10, 20, 30]


def test_order_follows_the_slice_normal(tmp_path):
    # With rows along y and columns along z, the normal is +x; then it is reversed.
    for sign, folder in [(1, "sagittal"), (-1, "mirrored")]:
        orientation = [0, sign, 0, 0, 0, 1]
        for i, x in enumerate([4, 0, 2]):
            write_slice(
                tmp_path / folder / f"{i}",
                0,
                uid=i + 1,
                ImagePositionPatient=[x, 0, 0],
                ImageOrientationPatient=orientation,
            )
        (series,), _ = find_series(tmp_path / folder)
        assert [h.position[0] for h in series.headers] == [0, 2, 4][::sign]


def test_files_other_than_ct_slices_are_skipped_and_listed(tmp_path):
    write_slice(tmp_path / "ct", 0)
    write_slice(tmp_path / "mr", 1, Modality="MR")
    write_slice(tmp_path / "scout", 2, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(tmp_path / "shot", 3, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    write_slice(tmp_path / "ct copy", 0)
    (tmp_path / "notes.txt").write_text("hello")
    (series,), skipped = find_series(tmp_path)
    reasons = {path.name: reason for path, reason in skipped}
    assert len(series.headers) == 1
    assert set(reasons) == {"mr", "scout", "shot", "ct copy", "notes.txt"}
    assert "doubled" in reasons["ct copy"]
    assert "not a DICOM file" in reasons["notes.txt"]
    assert "modality MR" in reasons["mr"]
    assert "localizer" in reasons["scout"]


def test_slices_are_grouped_by_series(tmp_path):
    for i in range(4):
        series_uid = f"{SERIES}.{i % 2}"
        write_slice(tmp_path / str(i), i, SeriesInstanceUID=series_uid)
    found, _ = find_series(tmp_path)
    assert [[h.position[2] for h in s.headers] for s in found] == [[0, 2], [1, 3]]


def test_missing_doubled_and_uneven_slices_are_reported(tmp_path):
    for i, z in enumerate([0, 1, 2, 4, 5, 5, 6.4, 7.4]):
        write_slice(tmp_path / f"s{i}", z, uid=i + 1)
    (series,), _ = find_series(tmp_path)
    assert series.notes == (
        "1 missing between slices 3 and 4 (s2 and s3)",
        "doubled: equal position of slices 5 and 6 (s4 and s5)",
        "uneven: 1.40 mm instead of 1.00 mm between slices 6 and 7 (s5 and s6)",
    )
    with refused_at(tmp_path):
        read_volume(series)


def test_attributes_of_a_frame_override_those_of_the_file_for_that_frame_only(tmp_path):
    """DICOM requires InstanceNumber in the file; some writers repeat the others."""
    stored = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
    twice = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    write_enhanced(
        tmp_path / "one", stored, [0, 2, 4], InstanceNumber=7, RescaleSlope=1,
        RescaleIntercept=-1024, ImagePositionPatient=[-5, 3, 0],
        own={2: {"PixelValueTransformationSequence": twice}},
    )  # fmt: skip
    (series,), skipped = find_series(tmp_path)
    assert skipped == []
    found = [(h.frame, h.number, h.position[2]) for h in series.headers]
    assert found == [(0, 1, 0), (1, 2, 2), (2, 3, 4)]
    expected = np.stack([stored[0] - 1024, stored[1] - 1024, 2 * stored[2] - 1000])
    np.testing.assert_array_equal(read_volume(series), expected)


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]},
        {"PixelSpacing": [0.5, 0.6]},
        {"PatientID": "Jones"},
        {"ImagePositionPatient": None},
    ],
)
def test_slices_that_do_not_fit_together_are_refused(tmp_path, tags):
    write_slice(tmp_path / "a", 0)
    write_slice(tmp_path / "b", 1, **tags)
    with pytest.raises(UserError) as error:
        find_series(tmp_path)
    found, skipped = find_series(tmp_path, go_on=True)
    assert found == []
    assert {path.name for path, _ in skipped} == {"a", "b"}
    (culprit,) = [path for path, why in skipped if why.startswith(f"{path}: ")]
    assert error.value.where == str(culprit)
    assert [why for path, why in skipped if path != culprit] == [TOGETHER]


def test_broken_file_is_refused_or_listed_on_request(tmp_path):
    write_slice(tmp_path / "a", 0)
    write_slice(tmp_path / "b", 1, RescaleSlope=None)
    (tmp_path / "c.dcm").write_bytes(b"nothing")
    with refused_at(tmp_path / "b"):
        find_series(tmp_path)
    (series,), skipped = find_series(tmp_path, go_on=True)
    assert len(series.headers) == 1
    assert [path.name for path, _ in skipped] == ["b", "c.dcm"]
    with refused_at(tmp_path / "nowhere"):
        find_series(tmp_path / "nowhere")


def test_tilted_gantry_is_reported_and_the_volume_still_read(tmp_path):
    # The normal is tilted by atan(0.6 / 0.8) from the direction of the table.
    for i in range(3):
        write_slice(
            tmp_path / str(i),
            10 * i,
            ImageOrientationPatient=[1, 0, 0, 0, 0.8, 0.6],
        )
    (series,), _ = find_series(tmp_path)
    assert series.remarks == ("tilted gantry: slices are shifted by 36.9 degrees",)
    assert series.step == pytest.approx(8)
    assert read_volume(series).shape == (3, 2, 2)


def test_mixed_kernels_thicknesses_and_lossy_compression_are_reported(tmp_path):
    write_slice(tmp_path / "a", 0, ConvolutionKernel="B30f", SliceThickness=1)
    write_slice(
        tmp_path / "b",
        1,
        ConvolutionKernel=["B70f", "3"],
        SliceThickness=5,
        LossyImageCompression="01",
    )
    (series,), _ = find_series(tmp_path)
    assert series.remarks == (
        "mixed kernels: 'B30f', 'B70f/3'",
        "mixed slice thicknesses: 1 to 5 mm",
        "compressed with loss: 1 of 2 slices",
    )


def test_frames_of_an_enhanced_ct_are_slices(tmp_path):
    stored = np.arange(12, dtype=np.int16).reshape(3, 2, 2)
    twice = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    write_enhanced(
        tmp_path / "one",
        stored,
        [4, 2, 0],
        own={1: {"PixelValueTransformationSequence": twice}},
    )
    (series,), skipped = find_series(tmp_path)
    assert skipped == []
    assert [(h.frame, h.number, h.position[2]) for h in series.headers] == [
        (2, 3, 0),
        (1, 2, 2),
        (0, 1, 4),
    ]
    assert series.step == 2
    assert series.headers[0].spacing == (0.7, 0.6)
    expected = np.stack([stored[2] - 1024, 2 * stored[1] - 1000, stored[0] - 1024])
    np.testing.assert_array_equal(read_volume(series), expected)


@pytest.mark.parametrize(
    "tags",
    [
        {"NumberOfFrames": 2},
        {"NumberOfFrames": 65535},
        {"PerFrameFunctionalGroupsSequence": None},
        {"shared": {"PixelValueTransformationSequence": {}}},
        {"Rows": 4096, "Columns": 4096},
    ],
)
def test_enhanced_ct_that_contradicts_itself_is_refused(tmp_path, tags):
    stored = np.zeros((3, 2, 2), np.int16)
    write_enhanced(tmp_path / "one", stored, [0, 1, 2], **tags)
    with refused_at(tmp_path / "one"):
        read_volume(find_series(tmp_path)[0][0])


def test_localizer_frames_of_an_enhanced_ct_are_skipped(tmp_path):
    kind = {"CTImageFrameTypeSequence": {"FrameType": ["ORIGINAL", "LOCALIZER"]}}
    stored = np.zeros((1, 2, 2), np.int16)
    write_enhanced(tmp_path / "one", stored, [0], shared=kind)
    found, skipped = find_series(tmp_path)
    assert found == []
    assert "localizer" in skipped[0][1]


def test_file_that_changes_after_the_search_is_refused(tmp_path):
    write_slice(tmp_path / "a", 0)
    write_slice(tmp_path / "b", 1)
    (series,), _ = find_series(tmp_path)
    write_slice(tmp_path / "b", 1, uid=99)
    with refused_at(tmp_path / "b"):
        read_volume(series)


def test_two_patients_with_the_same_slice_are_refused(tmp_path):
    write_slice(tmp_path / "a", 0)
    write_slice(tmp_path / "b", 0, PatientID="Jones")
    with refused_at(tmp_path / "b"):
        find_series(tmp_path)
    (series,), skipped = find_series(tmp_path, go_on=True)
    assert len(series.headers) == len(skipped) == 1
