"""HU and geometry, compared with an independent reader, SimpleITK (GDCM)."""

import struct

import numpy as np
import pydicom
import pytest
from ct_files import SERIES, compress, write_ct, write_enhanced
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLSLossless,
    RLELossless,
)

from twostage_jax.ct.dicom import AIR_HU, LOWEST_HU, read_slice
from twostage_jax.ct.series import find_series, read_volume

sitk = pytest.importorskip("SimpleITK")
pytest.importorskip("pylibjpeg", reason="needs the extra 'dicom'")

PLAIN = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
PACKED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)
# name -> (type, BitsStored, lowest, highest stored value)
CELLS = {
    "int16": (np.int16, 16, -1024, 3071),
    "uint16": (np.uint16, 16, 0, 4095),
    "uint12": (np.uint16, 12, 0, 4095),
    "int12": (np.int16, 12, -480, 2047),
    "uint8": (np.uint8, 8, 0, 255),
}


def ramp(cell):
    """Returns a 40 x 36 slice from the lowest to the highest value of a cell."""
    kind, _, low, high = CELLS[cell]
    values = np.linspace(low, high, 1440).reshape(40, 36)
    values[::2] = values[::2, ::-1]
    return values.astype(kind)


def write_as(path, cell, syntax):
    """Writes the ramp of a cell in a transfer syntax; HU = stored - 1000, or x 8."""
    kind, bits, *_ = CELLS[cell]
    tags = {"RescaleIntercept": -1000}
    if cell == "uint8":
        tags |= {"BitsAllocated": 8, "RescaleSlope": 8}
    if kind == np.int16 and bits == 16:
        tags["RescaleIntercept"] = 0
    write_ct(path, ramp(cell), BitsStored=bits, **tags)
    if syntax in PACKED:
        compress(path, syntax)
        return
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        swapped = ramp(cell).astype(np.dtype(kind).newbyteorder(">"))
        dataset.PixelData = swapped.tobytes()
        dataset["PixelData"].VR = "OB" if cell == "uint8" else "OW"
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        enforce_file_format=True,
    )


def of_simpleitk(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize("syntax", PLAIN + PACKED, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize("cell", CELLS)
def test_hu_of_every_transfer_syntax(tmp_path, cell, syntax):
    path = tmp_path / "slice"
    write_as(path, cell, syntax)
    hu = read_slice(path)[1]
    np.testing.assert_array_equal(hu, of_simpleitk(path)[0])
    # SimpleITK may have the same error, but the ramp is known.
    dataset = pydicom.dcmread(path)
    slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
    np.testing.assert_array_equal(hu, ramp(cell) * slope + intercept)


@pytest.mark.parametrize("cell", ["int16", "uint16", "uint8"])
def test_hu_of_lossless_jpeg(tmp_path, cell):
    image = sitk.GetImageFromArray(ramp(cell)[None])
    for tag, value in {
        "0008|0060": "CT",
        "0008|0016": pydicom.uid.CTImageStorage,
        "0028|1052": "-1000",
        "0028|1053": "8" if cell == "uint8" else "1",
        "0028|1054": "HU",
        "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
    }.items():
        image.SetMetaData(tag, value)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "slice.dcm"))
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.Execute(image)
    dataset = pydicom.dcmread(tmp_path / "slice.dcm")
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLosslessSV1
    hu = read_slice(tmp_path / "slice.dcm")[1]
    np.testing.assert_array_equal(hu, of_simpleitk(tmp_path / "slice.dcm")[0])


def lossless_jpeg(image, predictor):
    """Returns `[H, W]` uint16 as a lossless JPEG stream (ITU-T T.81, H.1).

    Args:
      image: Values.
      predictor: Predictor of a pixel, 1 to 7.
    """
    rows, columns = image.shape
    values = image.astype(int)
    bits = ""
    for (r, c), value in np.ndenumerate(values):
        left, above = values[r, c - 1], values[r - 1, c]
        corner = values[r - 1, c - 1]
        by = {
            1: left,
            2: above,
            3: corner,
            4: left + above - corner,
            5: left + ((above - corner) >> 1),
            6: above + ((left - corner) >> 1),
            7: (left + above) >> 1,
        }[predictor]
        if r == 0:
            by = left if c else 2**15
        elif c == 0:
            by = above
        difference = (value - by + 2**15) % 2**16 - 2**15
        size = int(abs(difference)).bit_length()
        # The code of every size is the size in 5 bits.
        bits += f"{size:05b}"
        if 0 < size < 16:
            low = difference if difference > 0 else difference + 2**size - 1
            bits += f"{low:0{size}b}"
    bits += "1" * (-len(bits) % 8)
    body = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    counts = bytes([0, 0, 0, 0, 17] + [0] * 11)
    parts = [
        (0xC3, struct.pack(">BHHB", 16, rows, columns, 1) + b"\1\x11\0"),
        (0xC4, b"\0" + counts + bytes(range(17))),
        (0xDA, bytes([1, 1, 0, predictor, 0, 0])),
    ]
    stream = b"\xff\xd8"
    for marker, data in parts:
        stream += bytes([0xFF, marker]) + struct.pack(">H", 2 + len(data)) + data
    return stream + body.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


@pytest.mark.parametrize("predictor", range(1, 8))
def test_hu_of_lossless_jpeg_of_every_predictor(tmp_path, predictor):
    stored = np.random.default_rng(0).integers(0, 4096, (12, 10)).astype(np.uint16)
    path = write_ct(tmp_path / "a", stored)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = JPEGLossless
    stream = lossless_jpeg(stored, predictor)
    dataset.PixelData = pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    hu = read_slice(path)[1]
    np.testing.assert_array_equal(hu, of_simpleitk(path)[0])
    np.testing.assert_array_equal(hu, stored.astype(int) - 1024)


def volume_of_simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(
    "orientation",
    [
        (1, 0, 0, 0, 1, 0),
        (0, 1, 0, 0, 0, -1),
        (0.8, 0.6, 0, 0, 0, -1),
        (1, 0, 0, 0, 0.6, 0.8),
    ],
)
def test_volume_and_geometry_of_a_series(tmp_path, orientation):
    normal = np.cross(orientation[:3], orientation[3:])
    for number in np.random.default_rng(0).permutation(5):
        position = (-100.5, 30, 7) + 2.5 * number * normal
        write_ct(
            tmp_path / f"{number * 7 % 5}",
            ramp("int16") + np.int16(number),
            uid=number + 1,
            RescaleIntercept=0,
            PixelSpacing=[0.7, 0.6],
            ImagePositionPatient=[round(v, 6) for v in position],
            ImageOrientationPatient=list(orientation),
        )
    expected = volume_of_simpleitk(tmp_path)
    (series,), _ = find_series(tmp_path)
    assert series.notes == series.remarks == ()
    np.testing.assert_array_equal(read_volume(series), sitk.GetArrayFromImage(expected))
    first = series.headers[0]
    np.testing.assert_allclose(expected.GetOrigin(), first.position, atol=1e-6)
    np.testing.assert_allclose(
        expected.GetSpacing(), [*first.spacing[::-1], series.step], rtol=1e-5
    )
    row, column = np.reshape(first.orientation, (2, 3))
    direction = np.reshape(expected.GetDirection(), (3, 3))
    np.testing.assert_allclose(direction.T, [row, column, normal], atol=1e-6)


@pytest.mark.parametrize("syntax", [None, *PACKED], ids=str)
def test_enhanced_ct(tmp_path, syntax):
    stored = np.stack([ramp("uint12").astype(np.int16) + k for k in range(4)])
    stored = stored.astype(np.int16)
    path = write_enhanced(tmp_path / "one", stored, [0, 2.5, 5, 7.5])
    if syntax:
        compress(path, syntax)
    expected = sitk.ReadImage(str(path))
    (series,), _ = find_series(tmp_path)
    assert series.notes == series.remarks == ()
    volume = read_volume(series)
    np.testing.assert_array_equal(volume, stored - 1024)
    np.testing.assert_array_equal(volume, sitk.GetArrayFromImage(expected))
    first = series.headers[0]
    np.testing.assert_allclose(expected.GetOrigin(), first.position)
    np.testing.assert_allclose(
        expected.GetSpacing(), [*first.spacing[::-1], series.step]
    )


def test_real_files(real_data):
    paths = sorted((real_data / "ct_dicom").rglob("*.dcm"))
    assert len(paths) == 20
    for path in paths:
        header, hu = read_slice(path)
        image = sitk.ReadImage(str(path))
        expected = sitk.GetArrayFromImage(image)[0]
        inside = expected >= LOWEST_HU
        np.testing.assert_array_equal(hu[inside], expected[inside])
        # SimpleITK does not replace padding, nor noise below all CT numbers.
        padded = hu != expected
        assert set(expected[padded]) <= {-2000, -2048, -3024, -1024}
        assert (hu[padded] == AIR_HU).all()
        np.testing.assert_allclose(image.GetSpacing()[:2], header.spacing[::-1])
        np.testing.assert_allclose(image.GetOrigin(), header.position, atol=1e-4)


def test_series_uid_groups_as_in_simpleitk(tmp_path):
    for number in range(6):
        write_ct(
            tmp_path / str(number),
            ramp("int16"),
            uid=number,
            SeriesInstanceUID=f"{SERIES}.{number % 2}",
            ImagePositionPatient=[0, 0, number],
        )
    expected = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(tmp_path))
    found, _ = find_series(tmp_path)
    assert sorted(series.uid for series in found) == sorted(expected)
