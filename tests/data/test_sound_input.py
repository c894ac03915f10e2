"""Valid files are read; values that are not HU are refused even in valid files."""

import os

import numpy as np
import pydicom
import pytest
from basics import refused_at
from chest import how, write_chest
from ct_files import compress, write_ct, write_marked
from phantom_regions import phantom, write, write_slices
from prepare_runs import rows_of, run

from twostage_jax.ct.dicom import read_slice
from twostage_jax.ct.series import check_air, find_series, read_in_turn, read_volume
from twostage_jax.data import ct_patches
from twostage_jax.errors import UserError
from twostage_jax.maps.run import map_folder

__all__ = ["phantom"]
STORED = np.random.default_rng(0).integers(0, 2000, (6, 6)).astype(np.int16)
EXPLICIT = {"implicit_vr": False, "little_endian": True}
IMPLICIT = {"implicit_vr": True, "little_endian": True}


def private(dataset, group=0x7FE1, creator="GEMS_XR3DCAL_01"):
    if creator:
        dataset.add_new((group, 0x0010), "LO", creator)
    dataset.add_new((group, 0x1001), "UN", b"\x01\x02\x03\x04" * 8)


def sequence(dataset):
    private(dataset)
    item = pydicom.Dataset()
    item.add_new((0x7FE1, 0x0010), "LO", "GEMS_XR3DCAL_01")
    dataset.add_new((0x7FE1, 0x1002), "SQ", [item])
    dataset.add_new((0x7FE3, 0x0010), "LO", "SOMEBODY")


def padding(dataset):
    private(dataset, 0x7FE3)
    dataset.add_new((0xFFFC, 0xFFFC), "OB", b"\0" * 30)


def several(dataset):
    private(dataset)
    private(dataset, 0x7FE5, "SOMEBODY ELSE")


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT], ids=["explicit", "implicit"])
@pytest.mark.parametrize("add", [private, sequence, padding, several])
def test_private_groups_may_follow_the_pixels(tmp_path, syntax, add):
    path = write_ct(tmp_path / "a", STORED)
    dataset = pydicom.dcmread(path)
    add(dataset)
    uid = pydicom.uid.ImplicitVRLittleEndian
    if not syntax["implicit_vr"]:
        uid = pydicom.uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = uid
    dataset.save_as(path, **syntax, overwrite=True)
    np.testing.assert_array_equal(read_slice(path)[1], STORED - 1024)
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))[0]
    np.testing.assert_array_equal(found, STORED - 1024)


def test_private_groups_may_follow_compressed_pixels(tmp_path):
    path = write_ct(tmp_path / "a", STORED)
    dataset = compress(path)
    private(dataset)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_slice(path)[1], STORED - 1024)


@pytest.mark.parametrize("where", [1, 30, 71])
@pytest.mark.parametrize("count", [2, 8, 16, 40])
@pytest.mark.parametrize("value", [b"\0", b"\x18\xfc", b"\xe1\x7f", b"LO"])
def test_bytes_inserted_before_the_end_of_the_pixels_are_refused(
    tmp_path, where, count, value
):
    path = write_ct(tmp_path / "a", STORED)
    dataset = pydicom.dcmread(path)
    private(dataset)
    dataset.save_as(path)
    whole = path.read_bytes()
    at = whole.index(STORED.tobytes()) + where
    noise = (value * count)[:count]
    path.write_bytes(whole[:at] + noise + whole[at:])
    with refused_at(path):
        read_slice(path)


@pytest.mark.parametrize(
    "after",
    [
        # Tags that do not ascend; a group that is not private; longer than the file.
        b"\xe3\x7f\x10\0LO\2\0AB\xe1\x7f\x10\0LO\2\0AB",
        b"\xe2\x7f\x10\0LO\2\0AB",
        b"\xe1\x7f\x10\0LO\x40\0AB",
        b"\xe1\x7f\x10\0ZZ\2\0AB",
        b"\xe1\x7f\x10\0LO\2\0AB\1\2\3",
    ],
)
def test_garbage_after_the_pixels_is_refused(tmp_path, after):
    path = write_ct(tmp_path / "a", STORED)
    path.write_bytes(path.read_bytes() + after)
    with refused_at(path):
        read_slice(path)


def write_slices_of(folder, spacings, side=8, **tags):
    folder.mkdir(exist_ok=True)
    for z, spacing in enumerate(spacings):
        write_ct(
            folder / f"{z}",
            np.full((side, side), 24 + z, np.int16),
            uid=z + 1,
            PixelSpacing=[spacing, spacing],
            ImagePositionPatient=[0, 0, z],
            **tags,
        )


def test_spacings_that_are_rounded_differently_are_one_series(tmp_path):
    spacings = ["0.683594", "0.683594", "0.6835937", "0.68359375"]
    write_slices_of(tmp_path / "a", spacings, side=512)
    ((series,), _) = find_series(tmp_path / "a")
    assert series.notes == series.remarks == ()
    assert read_volume(series)[:, 0, 0].tolist() == [-1000, -999, -998, -997]


def test_different_spacings_are_refused(tmp_path):
    write_slices_of(tmp_path / "a", ["0.6836", "0.6875"], side=512)
    with refused_at(tmp_path / "a" / "1"):
        find_series(tmp_path / "a")


def test_rounded_geometry_is_one_series(tmp_path):
    turned = ([0.999848, 0.017452, 0, -0.017452, 0.999848, 0], "5", [0, 0, 0])
    rounded = ([0.9998, 0.0175, 0, -0.0175, 0.9998, 0], "5.0000001", [0, 0, 2.50001])
    third = ([1, 0.0175, -0.0, -0.0175, 1, 0], "4.999", [0, 0, 5.0])
    for i, (cosines, thickness, position) in enumerate((turned, rounded, third)):
        write_ct(
            tmp_path / str(i),
            STORED,
            uid=i + 1,
            ImageOrientationPatient=cosines,
            SliceThickness=thickness,
            ImagePositionPatient=position,
        )
    ((series,), _) = find_series(tmp_path)
    assert series.notes == series.remarks == ()
    # Distances are in mm although the length of the cosines is not exactly one.
    assert series.step == pytest.approx(2.5, abs=1e-3)


def lost(hu):
    return hu + np.int16(1024)


def write_halves(folder, hu, **tags):
    """Writes a slice per HU array, and a mask of two classes on the first."""
    mask = np.ones(hu[0].shape, np.uint8)
    mask[: len(mask) // 2] = 2
    write_marked(folder, [image + np.int16(1024) for image in hu], [mask], **tags)


def chest_of(side=32):
    """Returns HU of a chest: air around it, lungs of -850, soft tissue of 40."""
    hu = np.full((side, side), -1000, np.int16)
    hu[4:-4, 4:-4] = 40
    hu[10:-10, 6:14] = hu[10:-10, -14:-6] = -850
    rng = np.random.default_rng(0)
    return (hu + rng.normal(0, 15, hu.shape)).astype(np.int16)


def patches(folder, **settings):
    recipe = ct_patches.recipe(path=str(folder), classes="a,b", size=4, **settings)
    return [recipe.make(task) for task in recipe.tasks]


def test_series_without_its_intercept_is_refused(tmp_path):
    write_halves(tmp_path / "a", [lost(chest_of())] * 3)
    with refused_at(tmp_path / "a" / "0"):
        patches(tmp_path / "a")
    (made,) = patches(tmp_path / "a", go_on=True)
    assert list(made) == [] and len(made.skipped) == 1


def test_padding_does_not_hide_a_lost_intercept(tmp_path):
    hu = lost(chest_of())
    hu[0] = hu[:, 0] = -2000
    write_halves(tmp_path / "a", [hu], PixelPaddingValue=-976)
    with refused_at(tmp_path / "a" / "0"):
        patches(tmp_path / "a")


def test_slice_without_air_is_read_if_others_contain_air(tmp_path):
    tissue = np.full((32, 32), 40, np.int16)
    write_halves(tmp_path / "a", [tissue, chest_of(), tissue])
    (made,) = patches(tmp_path / "a")
    assert len(made) > 0


@pytest.mark.parametrize("kind", ["lung alone", "padded tissue", "spine"])
def test_images_with_air_or_fat_are_in_hu(kind):
    rng = np.random.default_rng(0)
    if kind == "lung alone":
        hu = rng.normal(-850, 60, (32, 32))
    elif kind == "padded tissue":
        hu = rng.normal(40, 15, (32, 32))
        hu[:4] = -1000
    else:
        hu = rng.normal(40, 15, (32, 32))
        hu[:6] = rng.normal(-100, 15, (6, 32))
        hu[10:14] = 900
    check_air([hu.astype(np.int16)], "x")


def test_real_slices_have_air(real_data):
    found, skipped = find_series(real_data / "ct_dicom")
    assert len(found) >= 20 and skipped == []
    for series in found[:6]:
        slices = (hu for _, hu in read_in_turn(series.headers))
        check_air(slices, series.headers[0].path)


def test_series_without_its_intercept_is_not_mapped(tmp_path, classifier):
    write_chest(tmp_path / "dicom", 2, RescaleIntercept=0)
    with pytest.raises(UserError) as error:
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert "RescaleIntercept" in str(error.value)
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert "RescaleIntercept" in row["reason"]


def test_series_with_one_slice_without_its_intercept_is_not_mapped(
    tmp_path, classifier
):
    write_chest(tmp_path / "dicom", 3)
    path = sorted((tmp_path / "dicom").iterdir())[1]
    dataset = pydicom.dcmread(path)
    dataset.RescaleIntercept = 0
    dataset.save_as(path)
    with pytest.raises(UserError):
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert "RescaleIntercept" in row["reason"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("form", ["rtstruct", "csv", "seg", "nifti"])
def test_rois_may_be_one_file(phantom, tmp_path, inside, form):
    folder, apart = tmp_path / "ct", tmp_path / "apart"
    for place in (folder, apart):
        place.mkdir()
    write_slices(phantom, folder)
    write(form, phantom, apart)
    (path,) = apart.iterdir()
    names = ",".join(phantom[3])
    settings = {"size": 8, "stride": 8, "coverage": 0.5, "classes": names}
    ids = []
    for rois in (apart, path):
        if rois == path and inside:
            rois = path.rename(folder / path.name)
        recipe = ct_patches.recipe(path=str(folder), rois=str(rois), **settings)
        ids.append([e.id for task in recipe.tasks for e in recipe.make(task)])
        assert path.name not in {path.name for path, _ in recipe.tasks.skipped}
    assert ids[0] == ids[1] and len(ids[0]) > 10


def latin(folder, name):
    """Returns the path of a file whose name is in Latin-1, as in old archives."""
    return os.fsdecode(os.fsencode(folder) + b"/Gr\xf6\xdfe " + name)


def test_names_that_are_not_utf8_are_read_and_written(tmp_path):
    root = tmp_path / os.fsdecode(b"M\xfcller")
    write_halves(root, [chest_of()] * 2)
    os.rename(root / "0", latin(root, b"0"))
    with open(latin(root, b"letter.txt"), "w") as file:
        file.write("x")
    arguments = (f"--source={root}", "--classes=a,b", "--patch=4", "--show_paths")
    run(*arguments, f"--out={tmp_path / 'out'}")
    (row,) = rows_of(tmp_path / "out" / "skipped.csv")
    assert row["file"].endswith(r"letter.txt") and r"\xf6" in row["file"]


def test_predict_lists_names_that_are_not_utf8(tmp_path, classifier, capsys):
    root = tmp_path / os.fsdecode(b"M\xfcller")
    write_chest(root, 1)
    with open(latin(root, b"letter.txt"), "w") as file:
        file.write("x")
    map_folder(root, tmp_path / "maps", classifier, how(), show_paths=True)
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert r"\xf6" in row["file"] and r"\xf6" in capsys.readouterr().out
