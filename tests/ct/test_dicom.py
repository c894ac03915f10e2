"""Headers and HU of single CT files."""

import logging
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from basics import refused_at
from ct_files import compress, write_ct

from twostage_jax.ct import decode
from twostage_jax.ct.dicom import (
    NotCTError,
    patient_hash,
    read_headers,
    read_slice,
    window,
)


def hu_of(path):
    return read_slice(path)[1].tolist()


def test_slope_and_intercept(tmp_path):
    path = write_ct(tmp_path / "a", np.array([[-4, 0], [10, 1000]], np.int16))
    assert hu_of(path) == [[-1028, -1024], [-1014, -24]]
    assert read_slice(path)[1].dtype == np.int16
    stored = np.array([[0, 3], [500, 40000]], np.uint16)
    path = write_ct(tmp_path / "b", stored, RescaleSlope=0.5, RescaleIntercept=-1000)
    # 3 * 0.5 - 1000 = -998.5 is rounded to the even neighbour.
    assert hu_of(path) == [[-1000, -998], [-750, 19000]]


UNEXPLAINED = np.full((20, 20), 24, np.int16)
UNEXPLAINED[:, 0] = -1500


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        # -2000 written as unsigned, and not declared as padding.
        (np.array([[63536, 1024]], np.uint16), {}),
        (np.array([[-4000, 1024]], np.int16), {}),
        (UNEXPLAINED, {}),
        (np.array([[5000]], np.uint16), {"BitsStored": 12}),
        (np.zeros((8, 8), np.int16), {"Rows": 7}),
    ],
    ids=["sign", "far below air", "padding", "bits", "rows"],
)
def test_implausible_pixels_are_refused(tmp_path, stored, tags):
    path = write_ct(tmp_path / "a", stored, **tags)
    with refused_at(path):
        read_slice(path)


def test_damaged_stream_is_not_decoded_by_a_lenient_decoder(tmp_path):
    pytest.importorskip("jpeg_ls", reason="needs the extra 'dicom'")
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 2000, (64, 64)).astype(np.int16)
    path = write_ct(tmp_path / "a", stored)
    compress(path, pydicom.uid.JPEGLSLossless)
    assert hu_of(path) == (stored - 1024).tolist()
    whole = bytearray(path.read_bytes())
    at = whole.index(b"\xff\xda") + 2000
    whole[at : at + 4] = b"\xff" * 4
    path.write_bytes(whole)
    with refused_at(path):
        read_slice(path)


def test_monochrome1_keeps_hu(tmp_path):
    stored = np.array([[24, 1024]], np.uint16)
    path = write_ct(tmp_path / "a", stored, PhotometricInterpretation="MONOCHROME1")
    assert hu_of(path) == [[-1000, 0]]


def test_window_maps_its_edges_to_0_and_1():
    hu = np.array([[-1000, 0]], np.int16)
    np.testing.assert_allclose(window(hu, -500, 2000), [[0.25, 0.75]])
    np.testing.assert_allclose(window(hu, -500, 500), [[0.0, 1.0]])


def int16(*values):
    return np.array([values], np.int16)


@pytest.mark.parametrize(
    ("stored", "tags", "hu"),
    [
        (int16(-2000, 1064), {"PixelPaddingValue": -2000}, [-1000, 40]),
        # The same bits, written as unsigned.
        (int16(-2000, 1064), {"PixelPaddingValue": 65536 - 2000}, [-1000, 40]),
        (
            int16(-1400, -1399, -1200, -1000, -999),
            {
                "RescaleIntercept": 0,
                "PixelPaddingValue": -1399,
                "PixelPaddingRangeLimit": -1000,
            },
            [-1400, -1000, -1000, -1000, -999],
        ),
        (
            np.array([[63536, 4095]], np.uint16),
            {"BitsStored": 12, "PixelPaddingValue": 63536},
            [-1000, 3071],
        ),
        # Without a tag: stored values, with both intercepts, and HU.
        (int16(-2000, 50), {"RescaleIntercept": 0}, [-1000, 50]),
        (int16(-2048, 50), {"RescaleIntercept": 0}, [-1000, 50]),
        (int16(-2000, 1074), {}, [-1000, 50]),
        (int16(-2048, 1074), {}, [-1000, 50]),
        (int16(-976, 1024), {}, [-1000, 0]),
    ],
)
def test_padding_becomes_air(tmp_path, stored, tags, hu):
    assert hu_of(write_ct(tmp_path / "a", stored, **tags)) == [hu]


def test_padding_value_that_occurs_in_tissue_is_padding_at_the_border_only(tmp_path):
    stored = np.full((5, 5), 30, np.int16)
    stored[0, 0] = stored[2, 2] = 0
    path = write_ct(tmp_path / "a", stored, RescaleIntercept=0, PixelPaddingValue=0)
    hu = read_slice(path)[1]
    assert hu[0, 0] == -1000
    assert hu[2, 2] == 0


def test_noise_below_air_is_kept(tmp_path):
    stored = np.full((20, 20), 24, np.int16)
    stored[3, :3] = -1999, -10, -100
    path = write_ct(tmp_path / "a", stored)
    assert hu_of(path)[3][:4] == [-3023, -1034, -1124, -1000]


def test_bytes_after_the_pixels_are_refused_but_for_one_and_for_known_elements(
    tmp_path,
):
    path = write_ct(tmp_path / "a", np.arange(16, dtype=np.int16).reshape(4, 4))
    whole, hu = path.read_bytes(), hu_of(path)
    path.write_bytes(whole + b"\0")
    assert hu_of(path) == hu
    padding = b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0\0\0\0\0"
    path.write_bytes(whole + padding)
    assert hu_of(path) == hu
    for garbage in (b"\0" * 6, b"\1\2\3\4\5\6\7", b"\xf0\x7f\1\2OB\0\0\2\0\0\0\1\1"):
        path.write_bytes(whole + garbage)
        with refused_at(path):
            read_slice(path)


def test_declared_overlay_in_the_unused_bits_is_removed(tmp_path):
    stored = np.array([[1024 + 2**15, 1030]], np.uint16)
    path = write_ct(tmp_path / "a", stored, BitsStored=12)
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0100), "US", 16)
    dataset.add_new((0x6000, 0x0102), "US", 15)
    dataset.save_as(path)
    assert hu_of(path) == [[0, 6]]


@pytest.mark.parametrize(
    "tags",
    [
        {"RescaleSlope": None},
        {"RescaleIntercept": None},
        {"RescaleSlope": 0},
        {"RescaleType": "US"},
        {"Modality": "MR"},
        {"Modality": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"SamplesPerPixel": 3},
        {"PhotometricInterpretation": "PALETTE COLOR"},
        {"NumberOfFrames": 2},
        {"PixelSpacing": [0.5, 0]},
        {"PixelSpacing": [0.5]},
        {"SeriesInstanceUID": None},
        {"Rows": 65535, "Columns": 65535},
        {"Rows": 4000, "Columns": 4000},
        {"raw": b"\0\0"},
        {"BitsStored": 0, "HighBit": 0},
    ],
)
def test_untrustworthy_headers_are_refused(tmp_path, tags):
    path = write_ct(tmp_path / "slice-7", np.zeros((2, 2), np.int16), **tags)
    with refused_at(path):
        read_slice(path)


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
def test_implausible_geometry_and_rescale_are_refused(tmp_path, tags):
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
def test_extreme_but_plausible_values_are_read(tmp_path, tags):
    read_slice(write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), **tags))


def test_invalid_values_appear_neither_in_logs_nor_in_errors(tmp_path, capfd, caplog):
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
    # Other logging is not silenced.
    logging.getLogger("pydicom").warning("heard")
    assert "heard" in caplog.text


def test_wrong_modality_is_distinguished_from_a_broken_ct(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), Modality="MR")
    with pytest.raises(NotCTError):
        read_headers(path)
    path = write_ct(tmp_path / "b", np.zeros((2, 2), np.int16), RescaleSlope=None)
    with refused_at(path) as caught:
        read_headers(path)
    assert not isinstance(caught.value, NotCTError)


def test_file_cut_off_anywhere_is_refused(tmp_path):
    whole = write_ct(tmp_path / "a", np.ones((8, 8), np.int16)).read_bytes()
    cut = tmp_path / "cut"
    for length in range(0, len(whole), 7):
        cut.write_bytes(whole[:length])
        with refused_at(cut):
            read_slice(cut)


def damaged(path, good, bad):
    """Replaces the only occurrence of `good` in a file by `bad`."""
    data = path.read_bytes()
    assert data.count(good) == 1 and len(good) == len(bad)
    path.write_bytes(data.replace(good, bad))


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ImplicitVRLittleEndian"])
def test_number_with_a_zero_byte_inside_is_refused(tmp_path, syntax):
    place = ["-219.800", "-187.100", "-335.000"]
    stored = np.zeros((2, 2), np.int16)
    path = write_ct(tmp_path / "a", stored, ImagePositionPatient=place)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    dataset.save_as(path, implicit_vr=syntax.startswith("I"), little_endian=True)
    assert read_headers(path)[0].position == (-219.8, -187.1, -335)
    damaged(path, b"-219.800", b"-219\0\0\0\0")
    with refused_at(path):
        read_headers(path)


def test_zero_bytes_that_pad_a_value_are_accepted(tmp_path):
    place = ["-219.800", "-187.100", "-335.000"]
    stored = np.zeros((2, 2), np.int16)
    path = write_ct(tmp_path / "a", stored, ImagePositionPatient=place)
    damaged(path, b"-335.000", b"-335.0\0\0")
    assert read_headers(path)[0].position == (-219.8, -187.1, -335)


def test_element_of_unknown_type_is_refused(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16), StudyID="17")
    damaged(path, b"SH\x02\x0017", b"L]\x02\x0017")
    with refused_at(path):
        read_headers(path)


def test_compressed_stream_reads_back_and_must_match_the_header(tmp_path):
    stored = np.arange(64, dtype=np.int16).reshape(8, 8)
    path = write_ct(tmp_path / "a", stored)
    dataset = compress(path)
    assert hu_of(path) == (stored - 1024).tolist()
    for rows in (7, 9):
        dataset.Rows = rows
        dataset.save_as(path)
        with refused_at(path):
            read_slice(path)


def test_jpeg_stream_that_claims_a_huge_image_is_refused(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((8, 8), np.int16))
    dataset = pydicom.dcmread(path)
    stream = b"\xff\xd8\xff\xc3\x00\x0b\x10\xff\xff\xff\xff\x01\x01\x11\x00\xff\xd9"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    dataset.PixelData = pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    with refused_at(path):
        read_slice(path)


def test_missing_decoder_is_refused(tmp_path, monkeypatch):
    path = write_ct(tmp_path / "a", np.zeros((8, 8), np.int16))
    compress(path)
    missing = SimpleNamespace(available_plugins=())
    monkeypatch.setattr(decode, "get_decoder", lambda syntax: missing)
    with refused_at(path):
        read_slice(path)


def test_unsupported_compression_is_refused(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((8, 8), np.int16))
    dataset = compress(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    dataset.save_as(path)
    with refused_at(path):
        read_slice(path)


def test_deflated_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    path = write_ct(tmp_path / "a", np.zeros((64, 64), np.int16))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    assert read_slice(path)[1].shape == (64, 64)
    monkeypatch.setattr(decode, "MAX_INFLATED_BYTES", 1000)
    with refused_at(path):
        read_slice(path)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-9])
    with refused_at(path):
        read_slice(path)


def table_of(path, *, first=-3, kind="HU", vr="SS", values=(-1000, -500, 0, 60, 90)):
    """Replaces the rescale of a file by a modality LUT."""
    dataset = pydicom.dcmread(path)
    del dataset.RescaleSlope, dataset.RescaleIntercept
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [len(values), first, 16])
    if kind:
        item.ModalityLUTType = kind
    item.add_new("LUTData", vr, list(values))
    dataset.ModalityLUTSequence = [item]
    return dataset


def test_modality_lut_gives_hu_and_is_clipped_at_its_ends(tmp_path):
    stored = np.array([[-9, -3, -2], [0, 1, 7]], np.int16)
    path = write_ct(tmp_path / "a", stored)
    table_of(path).save_as(path)
    assert hu_of(path) == [[-1000, -1000, -500], [60, 90, 90]]


@pytest.mark.parametrize(
    "change", [{"kind": "OD"}, {"kind": None}, {"vr": "US", "values": (0, 1, 2)}]
)
def test_modality_lut_that_does_not_give_hu_is_refused(tmp_path, change):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16))
    table_of(path, **change).save_as(path)
    with refused_at(path):
        read_slice(path)


def test_modality_lut_with_a_rescale_is_refused(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16))
    dataset = table_of(path)
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.save_as(path)
    with refused_at(path):
        read_slice(path)


def test_patient_id_is_only_kept_as_a_salted_hash(tmp_path):
    path = write_ct(tmp_path / "a", np.zeros((2, 2), np.int16))
    header = read_headers(path, "pepper")[0]
    # printf 'pepperSmith^1' | sha256sum | cut -c1-10
    assert header.patient == patient_hash("Smith^1", "pepper") == "patient-66f71e74a0"
    assert "Smith" not in repr(header)
    assert read_headers(path)[0].patient != header.patient


def test_header_gives_shape_and_spacing(tmp_path):
    header = read_headers(write_ct(tmp_path / "a", np.zeros((2, 3), np.int16)))[0]
    assert header.shape == (2, 3)
    assert header.spacing == (0.5, 0.5)


def test_real_files_have_air_in_their_corners(real_data):
    paths = sorted((real_data / "ct_dicom").rglob("*.dcm"))
    assert len(paths) == 20
    for path in paths:
        header, hu = read_slice(path)
        corners = hu[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert set(corners.tolist()) <= {-1000, -1024}
        assert hu.shape == header.shape == (512, 512)
        assert hu.min() > -1300
        # Every body contains fat and muscle.
        assert np.mean((hu > -150) & (hu < 150)) > 0.1
