"""Every format of regions gives the same label masks and the same patches."""

import numpy as np
import pydicom
import pytest
from basics import refused_at

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
import roi_files
from phantom_regions import cut, phantom, write, write_slices

__all__ = ["phantom"]
FORMATS = (
    "tiff",
    "npy",
    "nifti",
    "seg",
    "seg fractional",
    "seg labelmap",
    "rtstruct",
    "csv",
    "medgift",
)


@pytest.fixture(scope="module")
def expected(phantom):
    folder, images, labels, names = phantom
    found = cut(folder, names)
    assert len(found) > 50
    assert len({example.label for example in found}) == len(names) > 2
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_same_patches(phantom, expected, tmp_path, form):
    slices, rois = tmp_path / "slices", tmp_path / "regions"
    slices.mkdir()
    rois.mkdir()
    # The order of pages is unambiguous only if all numbers start at the feet.
    stack = form in ("tiff", "npy")
    write_slices(phantom, slices, from_feet=stack)
    write(form, phantom, rois)
    found = cut(slices, phantom[3], rois)

    def described(example):
        details = dict(example.details)
        if stack:
            details["slice_number"] = 4 - details["slice_number"]
        return example.id, example.label, details

    found.sort(key=lambda example: example.id)
    expected = sorted(expected, key=lambda example: example.id)
    assert list(map(described, found)) == [
        (e.id, e.label, dict(e.details)) for e in expected
    ]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a.image, b.image)


@pytest.mark.parametrize("form", ["seg", "rtstruct", "medgift"])
def test_regions_are_found_among_the_slices(phantom, expected, tmp_path, form):
    write_slices(phantom, tmp_path)
    write(form, phantom, tmp_path)
    found = cut(tmp_path, phantom[3])
    assert [e.id for e in found] == [e.id for e in expected]


def test_labels_match_class_names_regardless_of_case(phantom, tmp_path):
    write_slices(phantom, tmp_path)
    square = np.array([[9.5, 9.5], [29.5, 9.5], [29.5, 29.5], [9.5, 29.5]])
    drawn = [(1, "Ground  GLASS ", square)]
    roi_files.write_csv(tmp_path / "x.csv", phantom[1], drawn)
    table = tmp_path / "x.csv"
    (((_, mask),), _) = roi_files.label_masks(tmp_path, ["ground glass"], table)
    assert mask.sum() == 400


def test_files_on_one_slice_are_merged_without_pixels_of_two_classes(phantom, tmp_path):
    write_slices(phantom, tmp_path)
    left = np.array([[-0.5, -0.5], [9.5, -0.5], [9.5, 9.5], [-0.5, 9.5]])
    regions = tmp_path / "rois"
    regions.mkdir()
    roi_files.write_csv(regions / "a.csv", phantom[1], [(0, "a", left)])
    roi_files.write_rtstruct(
        regions / "b", phantom[1], [(0, "b", left + [5, 0])], ["b"]
    )
    (((_, mask),), _) = roi_files.label_masks(tmp_path, ["a", "b"])
    assert mask[0, :16].tolist() == [1] * 5 + [0] * 5 + [2] * 5 + [0]


def write_changed(form, phantom, folder, **changes):
    """Writes the slices, and regions of slices with other values; returns their path.

    A change is a value, or a function of the old one.
    """
    source, images, labels, names = phantom
    write_slices(phantom, folder)
    (folder / "regions").mkdir()
    copies = [pydicom.dcmread(image.filename) for image in images]
    for copy in copies:
        for keyword, value in changes.items():
            old = copy.get(keyword)
            setattr(copy, keyword, value(old) if callable(value) else value)
    write(form, (source, copies, labels, names), folder / "regions")
    (path,) = (folder / "regions").iterdir()
    return path


@pytest.mark.parametrize("form", ["seg", "rtstruct", "csv"])
def test_regions_of_a_missing_series_are_refused(phantom, tmp_path, form):
    path = write_changed(form, phantom, tmp_path, SeriesInstanceUID="1.2.3.4.5.6")
    with refused_at(path) as error:
        cut(tmp_path, phantom[3], path.parent)
    assert "1.2.3.4.5.6" in str(error.value)


def test_volume_between_the_slices_is_refused(phantom, tmp_path):
    def away(position):
        return [*position[:2], float(position[2]) + 5]

    path = write_changed("nifti", phantom, tmp_path, ImagePositionPatient=away)
    with refused_at(path):
        cut(tmp_path, phantom[3], path.parent)


@pytest.mark.parametrize(
    "form", ["csv", "medgift", "rtstruct", "npy", "seg", "seg labelmap", "nifti"]
)
def test_regions_of_a_missing_slice_are_refused(phantom, tmp_path, form):
    path = write_changed(form, phantom, tmp_path)
    missing = tmp_path / "IM-0003.dcm"
    z = float(pydicom.dcmread(missing).ImagePositionPatient[2])
    first = phantom[3][phantom[2][2][phantom[2][2] > 0].min() - 1]
    missing.unlink()
    with refused_at(path) as error:
        cut(tmp_path, phantom[3], path.parent)
    text = str(error.value)
    if form.startswith("seg") or form == "rtstruct":
        assert f"'{first}'" in text and f"z = {z:g} mm" in text
    elif form == "nifti":
        assert f"z = {z:.1f} to {z:.1f} mm" in text


@pytest.mark.parametrize("form", ["seg", "rtstruct"])
def test_regions_in_another_frame_of_reference_are_refused(phantom, tmp_path, form):
    path = write_changed(form, phantom, tmp_path, FrameOfReferenceUID="1.2.3")
    with refused_at(path):
        cut(tmp_path, phantom[3], path.parent)


@pytest.mark.parametrize(
    "row",
    [
        ",{uid},1,a,1 2 3 4",
        ",{uid},1,a,1 2; 3 4; 5 x",
        ",{uid},1,a,1 2; 3 4; nan 6",
        "p,{uid},1,a,0 0; 9 0; 9 9",
        ",,1,a,0 0; 9 0; 9 9",
        ",{uid},1,,0 0; 9 0; 9 9",
        ",{uid},1,a,0 9000; 9 9000; 9 9009",  # outside the slice
    ],
)
def test_invalid_rows_are_refused(phantom, tmp_path, row):
    write_slices(phantom, tmp_path)
    text = row.format(uid=phantom[1][0].SeriesInstanceUID)
    table = tmp_path / "table.csv"
    table.write_text(f"patient,series,slice,label,points\n{text}\n")
    with refused_at(table) as error:
        cut(tmp_path, ["a"], table)
    assert "line 2" in str(error.value)


@pytest.mark.parametrize("form", ["csv", "medgift", "rtstruct"])
def test_contours_outside_their_slice_are_refused(phantom, tmp_path, form):
    """Not dropped: their coordinates may be of another unit."""
    write_slices(phantom, tmp_path)
    images, regions = phantom[1], tmp_path / "regions"
    regions.mkdir()
    corners = 9000 + np.array([[0, 0], [9, 0], [9, 9]])
    names = {"csv": "x.csv", "medgift": "x.txt", "rtstruct": "x.dcm"}
    path, drawn = regions / names[form], [(0, "a", corners)]
    if form == "csv":
        roi_files.write_csv(path, images, drawn)
    elif form == "medgift":
        roi_files.write_medgift(path, images, drawn)
    else:
        roi_files.write_rtstruct(path, images, drawn, ["a"])
    with refused_at(path):
        cut(tmp_path, ["a"], regions)


def test_nifti_without_position_or_with_fractions_is_refused(phantom, tmp_path):
    import nibabel

    write_slices(phantom, tmp_path)
    path = tmp_path / "x.nii"
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.float32) / 3, np.eye(4))
    nibabel.save(image, path)
    with refused_at(path):
        cut(tmp_path, ["a"], path)
    image = nibabel.Nifti1Image(np.ones((4, 4, 4), np.uint8), None)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nibabel.save(image, path)
    with refused_at(path):
        cut(tmp_path, ["a"], path)
