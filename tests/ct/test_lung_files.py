"""Lung masks of other programs: their series, and their effect."""

import json

import nibabel
import numpy as np
import pydicom
import pytest
from basics import refused_at
from chest import chest, how, write_chest
from PIL import Image
from prepare_runs import rows_of, run
from roi_files import write_nifti, write_seg

from twostage_jax.ct import lung_files
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.ct.series import find_series
from twostage_jax.data import ct_patches
from twostage_jax.errors import UserError
from twostage_jax.maps.run import map_folder

LUNGS = chest(3)[1]
# Image columns increase towards the patient's left.
RIGHT, LEFT = LUNGS.copy(), LUNGS.copy()
RIGHT[..., 48:] = False
LEFT[..., :48] = False
# Different from the lungs that the program would find.
UPPER = LUNGS.copy()
UPPER[:, 60:] = False


def images(folder):
    found = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    for image in found:
        for keyword in ("PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(image, keyword, "")
        image.StudyDate, image.StudyTime = "20200101", "120000"
        image.ReferringPhysicianName = ""
    return found


def write_labels(path, folder, labels, names=None):
    """Writes a NIfTI volume, with a table of labels as TotalSegmentator does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_nifti(path, images(folder), np.asarray(labels))
    if names:
        image = nibabel.load(path)
        rows = "".join(
            f'<Label Key="{key}" Red="0.0" Green="1" Blue="0" Alpha="1">'
            f"<![CDATA[{name}]]></Label>\n"
            for key, name in names.items()
        )
        text = f"<CaretExtension><LabelTable>\n{rows}</LabelTable></CaretExtension>"
        extension = nibabel.nifti1.Nifti1Extension(0, text.encode())
        image.header.extensions.append(extension)
        data = np.asarray(image.dataobj)
        nibabel.save(nibabel.Nifti1Image(data, image.affine, image.header), path)


def read(folder, masks, *, salt=""):
    """Returns the given masks `[Z, H, W]` of series by the last number of their UID."""
    found, _ = find_series(folder, salt=salt)
    matched = lung_files.match(masks, folder, found, salt=salt)
    result = {}
    for one in found:
        loaded = matched.of(one.uid).read(one.headers)
        key = int(one.uid.rpartition(".")[2])
        result[key] = np.stack([loaded[header.key] for header in one.headers])
    return result


@pytest.fixture
def slices(tmp_path):
    """Returns a folder with one series of three slices."""
    write_chest(tmp_path / "dicom" / "one")
    return tmp_path / "dicom" / "one"


LOBES = np.where(RIGHT, 1, 0) + np.where(LEFT, 4, 0)
LOBES[..., 30:48, :] += LUNGS[..., 30:48, :]
LOBES[..., 62:, :48] += RIGHT[..., 62:, :48] * 2


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(LUNGS * 1, id="ones"),
        pytest.param(LUNGS * 255, id="white"),
        pytest.param(RIGHT * 1 + LEFT * 2, id="right and left, as lungmask"),
        pytest.param(RIGHT * 4 + LEFT * 3, id="right and left, as LUNA16"),
        pytest.param(LOBES, id="lobes"),
    ],
)
def test_lung_volumes_are_read_whatever_their_values(slices, tmp_path, labels):
    write_labels(tmp_path / "masks" / "result.nii.gz", slices, labels)
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks").values()
    np.testing.assert_array_equal(mask, LUNGS)
    # The file may be given instead of its folder.
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks" / "result.nii.gz").values()
    np.testing.assert_array_equal(mask, LUNGS)


def test_one_file_per_structure_is_read_by_name(slices, tmp_path):
    case = tmp_path / "masks" / "s0001"
    middle = np.zeros_like(LUNGS)
    middle[:, 40:60, 44:52] = True
    lower = LUNGS & ~UPPER
    for name, mask in (
        ("lung_upper_lobe_left", LEFT & UPPER),
        ("lung_lower_lobe_left", LEFT & lower),
        ("lung_upper_lobe_right", RIGHT & UPPER),
        ("lung_lower_lobe_right", RIGHT & lower),
        ("lung_middle_lobe_right", np.zeros_like(LUNGS)),
        ("heart", middle),
        ("trachea", middle),
        ("lung_vessels", middle),
        ("aorta", middle),
    ):
        write_labels(case / f"{name}.nii.gz", slices, mask)
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks").values()
    np.testing.assert_array_equal(mask, LUNGS)


def test_masks_without_any_lung_are_refused(slices, tmp_path):
    for name in ("lung_left", "lung_right"):
        path = tmp_path / "masks" / f"{name}.nii.gz"
        write_labels(path, slices, np.zeros_like(LUNGS))
    with pytest.raises(UserError) as error:
        read(tmp_path / "dicom", tmp_path / "masks")
    assert error.value.where.startswith(str(tmp_path / "masks"))


def test_label_table_determines_the_lungs(slices, tmp_path):
    labels = RIGHT * 12 + LEFT * 10
    labels[:, 40:60, 44:52] = 51
    labels[:, :5, :5] = 5
    names = {51: "heart", 10: "lung_upper_lobe_left", 12: "lung_upper_lobe_right"}
    names |= {5: "liver", 11: "lung_lower_lobe_left", 16: "trachea", 20: "lung_vessels"}
    path = tmp_path / "masks" / "segmentations.nii.gz"
    write_labels(path, slices, labels, names)
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks").values()
    np.testing.assert_array_equal(mask, LUNGS & (labels != 51))


@pytest.mark.parametrize(
    "values", [(1, 2, 3), (3, 4, 5), (10, 11, 51), (1, 2, 3, 4, 5, 6), (2, 7)]
)
def test_ambiguous_values_are_refused(slices, tmp_path, values):
    labels = np.zeros(LUNGS.shape, int)
    for number, value in enumerate(values):
        labels[:, 40, 20 + number] = value
    path = tmp_path / "masks" / "result.nii.gz"
    write_labels(path, slices, labels)
    with refused_at(path) as error:
        read(tmp_path / "dicom", tmp_path / "masks")
    assert all(str(value) in str(error.value) for value in values)


def test_segments_are_chosen_by_label(slices, tmp_path):
    labels = (RIGHT * 1 + LEFT * 2).astype(np.uint8)
    labels[:, 40:60, 44:52] = 3
    names = ["Lung, right", "Left lung", "Heart"]
    (tmp_path / "masks").mkdir()
    write_seg(tmp_path / "masks" / "any.dcm", images(slices), labels, names)
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks").values()
    np.testing.assert_array_equal(mask, LUNGS & (labels != 3))


def test_other_structures_are_skipped(slices, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    labels = LUNGS.astype(np.uint8)
    write_seg(masks / "heart.dcm", images(slices), labels, ["Heart"])
    write_labels(masks / "trachea.nii.gz", slices, LUNGS)
    write_labels(masks / "all.nii.gz", slices, LUNGS, {1: "liver"})
    (masks / "notes.txt").write_text("lungs")
    with refused_at(masks):
        read(tmp_path / "dicom", masks)
    write_labels(masks / "x_lungs.nii.gz", slices, UPPER)
    (mask,) = read(tmp_path / "dicom", masks).values()
    np.testing.assert_array_equal(mask, UPPER)
    found, _ = find_series(tmp_path / "dicom")
    skipped = lung_files.match(masks, tmp_path / "dicom", found).skipped
    names = {path.name for path, _ in skipped}
    assert names == {"heart.dcm", "trachea.nii.gz", "all.nii.gz", "notes.txt"}


@pytest.mark.parametrize(
    "name", ["infection_mask", "ggo", "lung_nodules", "lungs_infected", "covid_mask"]
)
def test_masks_of_disease_do_not_count_as_lungs(slices, tmp_path, name):
    masks = tmp_path / "masks"
    write_labels(masks / f"{name}.nii.gz", slices, UPPER)
    with refused_at(masks) as error:
        read(tmp_path / "dicom", masks)
    assert f"{name}." not in str(error.value)  # it may name the patient
    write_labels(masks / "covid_case1_lungs.nii.gz", slices, LUNGS)
    (mask,) = read(tmp_path / "dicom", masks).values()
    np.testing.assert_array_equal(mask, LUNGS)


def test_two_masks_of_the_same_lungs_are_refused(slices, tmp_path):
    masks = tmp_path / "masks"
    write_labels(masks / "a_lung.nii.gz", slices, LUNGS)
    write_labels(masks / "b_lung.nii.gz", slices, UPPER)
    with pytest.raises(UserError) as error:
        read(tmp_path / "dicom", masks)
    assert error.value.where.startswith(str(masks))
    (masks / "other").mkdir()
    (masks / "b_lung.nii.gz").rename(masks / "other" / "b_lung.nii.gz")
    with pytest.raises(UserError):
        read(tmp_path / "dicom", masks)


def two_patients(root):
    """Writes two scans with equal geometry, as is frequent with one protocol."""
    for number, patient in ((1, "P1"), (2, "P2")):
        write_chest(
            root / f"scan{number}",
            series=number,
            PatientID=patient,
            StudyInstanceUID=f"1.2.3.{number}",
            FrameOfReferenceUID=f"1.2.4.{number}",
        )
    return [root / "scan1", root / "scan2"]


@pytest.mark.parametrize(
    "name", ["{uid}.nii.gz", "{study}/lungs.nii.gz", "{id}_lungs.nii.gz", "{hash}.nii"]
)
def test_names_select_between_scans_with_equal_geometry(tmp_path, name):
    folders = two_patients(tmp_path / "dicom")
    for folder, mask in zip(folders, (LUNGS, UPPER), strict=True):
        first = images(folder)[0]
        path = (
            tmp_path
            / "masks"
            / name.format(
                uid=first.SeriesInstanceUID,
                study=first.StudyInstanceUID,
                id=first.PatientID,
                hash=patient_hash(first.PatientID, "salt"),
            )
        )
        write_labels(path, folder, mask)
    found = read(tmp_path / "dicom", tmp_path / "masks", salt="salt")
    np.testing.assert_array_equal(found[11], LUNGS)
    np.testing.assert_array_equal(found[12], UPPER)


def test_equal_folder_names_select_the_scan(tmp_path):
    folders = two_patients(tmp_path / "dicom")
    for folder, mask in zip(folders, (LUNGS, UPPER), strict=True):
        write_labels(tmp_path / "masks" / folder.name / "lung.nii.gz", folder, mask)
    found = read(tmp_path / "dicom", tmp_path / "masks")
    np.testing.assert_array_equal(found[11], LUNGS)
    np.testing.assert_array_equal(found[12], UPPER)


def test_a_mask_named_after_another_series_is_not_used(tmp_path):
    """The UID of one series, 1.2...11, begins the UID 1.2...112 in the mask's name."""
    folder = two_patients(tmp_path / "dicom")[0]
    uid = images(folder)[0].SeriesInstanceUID
    found, _ = find_series(tmp_path / "dicom")
    for name, there in ((uid, True), (f"{uid}2", False), (f"{uid}.2", False)):
        path = tmp_path / name / f"lung_{name}.nii.gz"
        write_labels(path, folder, LUNGS)
        matched = lung_files.match(path.parent, tmp_path / "dicom", found)
        assert (uid in matched.found) == there


def test_unnamed_mask_that_matches_two_scans_is_refused_for_both(tmp_path):
    folders = two_patients(tmp_path / "dicom")
    write_labels(tmp_path / "masks" / "case7.nii.gz", folders[0], LUNGS)
    found, _ = find_series(tmp_path / "dicom")
    matched = lung_files.match(tmp_path / "masks", tmp_path / "dicom", found)
    for one in found:
        with refused_at(tmp_path / "masks"):
            matched.of(one.uid)


def test_position_selects_between_distant_scans(tmp_path):
    root = tmp_path / "dicom"
    write_chest(root / "a", series=1)
    away = [-140, -144, 0]
    write_chest(root / "b", 1, series=2, ImagePositionPatient=away)
    write_labels(tmp_path / "masks" / "case1.nii.gz", root / "a", LUNGS)
    found, _ = find_series(root)
    matched = lung_files.match(tmp_path / "masks", root, found)
    uids = {int(one.uid.rpartition(".")[2]): one.uid for one in found}
    assert matched.of(uids[11]).files[0].path.name == "case1.nii.gz"
    with pytest.raises(UserError):
        matched.of(uids[12])


def test_reconstructions_of_one_scan_share_a_mask(tmp_path):
    for number, kernel in ((1, "B30f"), (2, "B70f")):
        folder = tmp_path / "dicom" / kernel
        write_chest(folder, series=number, ConvolutionKernel=kernel)
    write_labels(tmp_path / "masks" / "m.nii.gz", folder, UPPER)
    found = read(tmp_path / "dicom", tmp_path / "masks")
    np.testing.assert_array_equal(found[11], UPPER)
    np.testing.assert_array_equal(found[12], UPPER)


INSPIRATION = {"AcquisitionNumber": 1, "AcquisitionTime": "101500"}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (INSPIRATION, {**INSPIRATION, "AcquisitionNumber": 2}),
        (INSPIRATION, {**INSPIRATION, "AcquisitionTime": "101800"}),
        ({"AcquisitionUID": "1.2.3.4.5"}, {"AcquisitionUID": "1.2.3.4.6"}),
    ],
    ids=["number", "time", "UID"],
)
def test_unnamed_mask_belongs_to_reconstructions_of_one_acquisition_only(
    tmp_path, first, second
):
    root, masks = tmp_path / "dicom", tmp_path / "masks"
    write_chest(root / "inspiration", series=1, **first)
    write_chest(root / "kernel", series=2, ConvolutionKernel="B70f", **first)
    write_labels(masks / "lungs.nii.gz", root / "kernel", LUNGS)
    assert sorted(read(root, masks)) == [11, 12]
    write_chest(root / "expiration", series=3, **second)
    found, _ = find_series(root)
    matched = lung_files.match(masks, root, found)
    assert not matched.found
    with refused_at(masks):
        matched.of(found[0].uid)


def test_mask_is_placed_by_its_position_whatever_its_axes(slices, tmp_path):
    lungs = LUNGS.copy()
    lungs[0] = False
    lungs[1, :, :48] = False
    path = tmp_path / "masks" / "m.nii.gz"
    write_labels(path, slices, lungs)
    image = nibabel.load(path)
    turned = image.as_reoriented([[1, -1], [2, 1], [0, -1]])
    nibabel.save(turned, path)
    (mask,) = read(tmp_path / "dicom", tmp_path / "masks").values()
    # Files are ordered from the head, series from the feet.
    np.testing.assert_array_equal(mask, lungs[::-1])


def mapped(out):
    (folder,) = out.glob("patient-*")
    with np.load(folder / "probabilities.npz") as file:
        lungs = file["lungs"]
    about = json.loads((folder / "series.json").read_text(encoding="utf-8"))
    return lungs, about, rows_of(out / "report.csv")


def test_maps_are_limited_to_the_given_lungs_and_record_it(
    classifier, slices, tmp_path, capsys
):
    root, masks, out = tmp_path / "dicom", tmp_path / "masks", tmp_path / "maps"
    path = masks / "SMITH_lungs.nii.gz"
    write_labels(path, slices, UPPER)
    (masks / "SMITH.txt").write_text("notes")
    map_folder(root, out, classifier, how(), lungs=masks)
    lungs, about, rows = mapped(out)
    np.testing.assert_array_equal(lungs, UPPER)
    found, _ = find_series(root)
    digest = lung_files.match(masks, root, found).of(found[0].uid).digest
    assert digest[:16] in about["lungs"] and digest[:16] in rows[0]["lungs"]
    assert "SMITH" not in capsys.readouterr().out + json.dumps(about)
    assert "SMITH" not in (out / "skipped.csv").read_text(encoding="utf-8")
    map_folder(root, out, classifier, how(), lungs=masks)
    assert "exists already" in capsys.readouterr().out
    # The content differs, but not the name and the size.
    write_labels(path, slices, LUNGS)
    map_folder(root, out, classifier, how(), lungs=masks)
    assert "exists already" not in capsys.readouterr().out
    np.testing.assert_array_equal(mapped(out)[0], LUNGS)
    map_folder(root, out, classifier, how())
    assert "SHA-256" not in mapped(out)[1]["lungs"]


def test_mask_that_ends_where_lung_continues_is_remarked_on(
    classifier, tmp_path, capsys
):
    root, masks, (_, lungs, _) = tmp_path / "dicom", tmp_path / "masks", chest(6)
    write_chest(root, 6, gap=5.0)
    half = lungs.copy()
    half[3:] = False
    for mask, complete in ((half, False), (half[::-1], False), (lungs, True)):
        write_labels(masks / "lungs.nii.gz", root, mask)
        map_folder(root, tmp_path / "maps", classifier, how(), lungs=masks)
        _, about, rows = mapped(tmp_path / "maps")
        assert ("3 of 6 slices" not in about["remarks"]) == complete
        assert rows[0]["remarks"] == about["remarks"]


def test_mask_may_end_where_the_lungs_do():
    hu, lungs, _ = chest(5)
    hu, lungs = hu.copy(), lungs.copy()
    for z in (0, 4):  # soft tissue; the lungs end between two slices
        hu[z], lungs[z] = 40, False
    assert lung_files.cut_remark(hu, lungs) == ""
    lungs[3] = False
    assert lung_files.cut_remark(hu, lungs) != ""


def test_series_without_a_mask_is_refused_and_listed(classifier, tmp_path, capsys):
    root, out = tmp_path / "dicom", tmp_path / "maps"
    write_chest(root / "a", series=1)
    write_chest(root / "b", 2, series=2, ImagePositionPatient=None)
    write_chest(root / "c", 4, series=3, gap=7.0)
    write_labels(tmp_path / "masks" / "m.nii.gz", root / "a", LUNGS)
    map_folder(root, out, classifier, how(), lungs=tmp_path / "masks")
    assert "1 of " in capsys.readouterr().out
    reasons = [row["reason"] for row in rows_of(out / "skipped.csv")]
    assert sum("lung mask" in reason for reason in reasons) == 1
    assert not any(str(tmp_path) in reason for reason in reasons)


def test_mask_outside_the_lungs_is_refused(classifier, slices, tmp_path):
    shifted = np.zeros_like(LUNGS)
    shifted[:, 40:60, 44:52] = True
    write_labels(tmp_path / "masks" / "lung.nii.gz", slices, shifted)
    with pytest.raises(UserError):
        map_folder(
            tmp_path / "dicom",
            tmp_path / "maps",
            classifier,
            how(),
            lungs=tmp_path / "masks",
        )
    assert not list((tmp_path / "maps").glob("patient-*"))


def write_regions(folder, labels):
    (folder / "rois").mkdir()
    for image in images(folder):
        path = folder / "rois" / f"{image.SOPInstanceUID}.png"
        Image.fromarray(labels.astype(np.uint8)).save(path)


def test_patches_are_limited_to_the_given_lungs(slices, tmp_path):
    write_regions(slices, np.ones((96, 96)))
    masks = tmp_path / "masks"
    given = UPPER.copy()
    given[1] = False
    write_labels(masks / "m.nii.gz", slices, given)
    flags = [f"--source={tmp_path / 'dicom'}", "--classes=a", "--patch=4", "--stride=4"]
    flags += ["--coverage=1", "--per_class=0", f"--lungs={masks}", "--workers=1"]
    run(*flags, f"--out={tmp_path / 'out'}")
    rows = rows_of(tmp_path / "out" / "patches.csv")
    expected = {
        (z + 1, r, c)
        for z in (0, 2)
        for r in range(0, 93, 4)
        for c in range(0, 93, 4)
        if given[z, r : r + 4, c : c + 4].all()
    }
    found = {
        (int(row["slice_number"]), int(row["row"]), int(row["column"])) for row in rows
    }
    assert found == expected and len(rows) == len(expected) > 20


def test_patches_are_not_cut_from_lungs_without_air(slices, tmp_path):
    write_regions(slices, np.ones((96, 96)))
    masks = tmp_path / "masks"
    hu, _, _ = chest(3)
    write_labels(masks / "m.nii.gz", slices, hu == 40)  # the body wall
    recipe = ct_patches.recipe(
        path=str(tmp_path / "dicom"), classes="a", size=4, lungs=str(masks)
    )
    with refused_at("lungs"):
        recipe.make(recipe.tasks[0])


def test_patches_are_cut_again_when_a_mask_changes(slices, tmp_path):
    write_regions(slices, np.ones((96, 96)))
    masks = tmp_path / "masks"
    settings = {"path": str(tmp_path / "dicom"), "classes": "a", "size": 4}
    keys = {
        ct_patches.recipe(**settings, lungs=word).key for word in ("given", "found")
    }
    for mask in (UPPER, LUNGS, UPPER):
        write_labels(masks / "m.nii.gz", slices, mask)
        keys.add(ct_patches.recipe(**settings, lungs=str(masks)).key)
    assert len(keys) >= 4


def test_annotated_series_without_a_mask_is_refused_or_listed(tmp_path):
    root = tmp_path / "dicom"
    write_chest(root / "a", series=1, PatientID="P1")
    write_chest(root / "c", 4, series=2, gap=7.0, PatientID="P2")
    for name in "ac":
        write_regions(root / name, np.ones((96, 96)))
    masks = tmp_path / "masks"
    write_labels(masks / "m.nii.gz", root / "a", LUNGS)
    settings = {"path": str(root), "classes": "a", "size": 4, "lungs": str(masks)}
    recipe = ct_patches.recipe(**settings)
    with refused_at(masks):
        for task in recipe.tasks:
            recipe.make(task)
    recipe = ct_patches.recipe(**settings, go_on=True)
    made = [recipe.make(task) for task in recipe.tasks]
    assert sorted(len(one) > 0 for one in made) == [False, True]
    assert sum("lung mask" in why for one in made for _, why in one.skipped) == 1


@pytest.mark.parametrize("word", ["given", "found", "off", ""])
def test_words_of_the_setting_are_not_folders(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lung_files.folder(word) is None


def test_folder_that_does_not_exist_is_refused(tmp_path):
    with refused_at("lungs"):
        lung_files.folder(str(tmp_path / "nowhere"))
