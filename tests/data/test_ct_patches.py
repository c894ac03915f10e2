"""Patches of annotated regions from DICOM files."""

import json
import pickle

import numpy as np
import pytest
from basics import refused_at
from ct_files import RAMP, SERIES, write_ct, write_marked, write_patient
from PIL import Image

from twostage_jax.ct.dicom import patient_hash
from twostage_jax.data import ct_patches


def cut(folder, **settings):
    settings = {"class_names": ("a", "b"), "size": 4, "stride": 4, **settings}
    return ct_patches.patient_examples(folder, coverage=0.75, **settings)


def test_patches_contain_the_hu_at_their_position(tmp_path):
    write_patient(tmp_path / "x")
    found = cut(tmp_path / "x")
    assert [e.label for e in found] == [0, 1, 0, 1]
    assert [e.image[0, 0, 0] for e in found] == [-500, -496, -460, -456]
    assert found[0].image.shape == (4, 4, 1)
    assert found[0].image.dtype == np.int16
    assert len({e.id for e in found}) == 4
    np.testing.assert_array_equal(found[3].image[..., 0], RAMP[4:, 4:] - 1024)


def test_groups_are_salted_hashes(tmp_path):
    write_patient(tmp_path / "x", patient="Smith^1")
    found = cut(tmp_path / "x", salt="s")
    assert {e.group for e in found} == {patient_hash("Smith^1", "s")}
    assert not any("Smith" in e.id or SERIES in e.id for e in found)


def test_folders_distinguish_patients_without_an_id(tmp_path):
    write_patient(tmp_path / "x", patient="")
    write_patient(tmp_path / "y", patient="")
    groups = [cut(tmp_path / name)[0].group for name in "xy"]
    assert groups[0] != groups[1]


def test_patients_may_share_a_folder_if_masks_name_slices(tmp_path):
    write_patient(tmp_path / "x")
    write_ct(
        tmp_path / "x" / "two.dcm",
        RAMP + 1,
        uid=6,
        PatientID="p2",
        SeriesInstanceUID=f"{SERIES}.9",
    )
    labels = np.full((8, 8), 2, np.uint8)
    Image.fromarray(labels).save(tmp_path / "x" / "rois" / f"{SERIES}.6.png")
    recipe = ct_patches.recipe(path=str(tmp_path), size=4, stride=4, classes="a,b")
    first, second = (recipe.make(task) for task in recipe.tasks)
    assert [e.label for e in first] == [0, 1, 0, 1]
    assert [e.label for e in second] == [1, 1, 1, 1]
    assert second[0].image[0, 0, 0] == first[0].image[0, 0, 0] + 1
    Image.fromarray(labels).save(tmp_path / "x" / "rois" / "1.png")
    with refused_at(tmp_path / "x" / "rois" / "1.png"):
        ct_patches.recipe(path=str(tmp_path), classes="a,b").tasks[0]


def test_regions_outside_the_lungs_do_not_count(tmp_path):
    lungs = np.zeros((8, 8), np.uint8)
    lungs[:4] = 255
    write_patient(tmp_path / "x", lungs=lungs)
    assert len(cut(tmp_path / "x")) == 2
    assert len(cut(tmp_path / "x", lungs="off")) == 4


def test_slice_without_a_lung_mask_is_refused_if_others_have_one(tmp_path):
    write_patient(tmp_path / "x", lungs=np.ones((8, 8), np.uint8))
    write_ct(tmp_path / "x" / "two.dcm", RAMP, uid=6, PatientID="p1")
    Image.fromarray(np.ones((8, 8), np.uint8)).save(
        tmp_path / "x" / "rois" / f"{SERIES}.6.png"
    )
    with refused_at(tmp_path / "x" / "two.dcm"):
        cut(tmp_path / "x")


def test_resampling_to_twice_the_pixel_size(tmp_path):
    write_patient(tmp_path / "x")
    found = cut(tmp_path / "x", spacing=1.0, size=2, stride=2)
    assert [e.label for e in found] == [0, 1, 0, 1]
    # The new pixel (1, 1) lies in the middle of old pixels 2 and 3, both ways; the
    # blur does not move a ramp away from the border.
    assert found[0].image[1, 1, 0] == pytest.approx(-500 + 25 + 2.5, abs=1)


def test_resampling_without_a_spacing_is_refused(tmp_path):
    write_patient(tmp_path / "x", PixelSpacing=None)
    assert len(cut(tmp_path / "x")) == 4
    with refused_at(tmp_path / "x" / "one.dcm"):
        cut(tmp_path / "x", spacing=1.0)


def test_number_of_patches_is_limited(tmp_path):
    write_patient(tmp_path / "x")
    found = cut(tmp_path / "x", stride=1, per_class=3)
    assert np.bincount([e.label for e in found]).tolist() == [3, 3]
    again = cut(tmp_path / "x", stride=1, per_class=3)
    assert [e.id for e in found] == [e.id for e in again]


@pytest.mark.parametrize("settings", [{"size": 9}, {"class_names": ("a",)}])
def test_patches_and_labels_that_do_not_fit_are_refused(tmp_path, settings):
    write_patient(tmp_path / "x")
    with refused_at(tmp_path / "x" / "one.dcm"):
        cut(tmp_path / "x", **settings)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"PatientID": "p2"}, "mixed patients"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "mixed orientations"),
    ],
)
def test_mixed_series_is_refused_or_skipped(tmp_path, tags, reason):
    write_patient(tmp_path / "good", uid=9, SeriesInstanceUID=f"{SERIES}.7")
    write_patient(tmp_path / "mixed")
    tags = {"ImagePositionPatient": [0, 0, 1], **tags}
    write_ct(tmp_path / "mixed" / "two.dcm", RAMP, uid=6, **{"PatientID": "p1", **tags})
    settings = {"path": str(tmp_path), "size": 4, "stride": 4, "classes": "a,b"}
    with refused_at(tmp_path / "mixed" / "two.dcm"):
        ct_patches.recipe(**settings)
    recipe = ct_patches.recipe(**settings, go_on=True)
    (patient,) = recipe.tasks
    assert {header.path.parent.name for header in patient.headers} == {"good"}
    skipped = {path.name: why for path, why in recipe.tasks.skipped}
    assert set(skipped) == {"one.dcm", "two.dcm", f"{SERIES}.5.png"}
    assert reason in skipped["two.dcm"]


def test_recipe_has_one_task_per_patient(tmp_path):
    for uid, name in enumerate("yx"):
        uids = {"uid": uid, "SeriesInstanceUID": f"{SERIES}.7{uid}"}
        write_patient(tmp_path / name, patient=name, **uids)
    (tmp_path / "no patient").mkdir()
    recipe = ct_patches.recipe(path=str(tmp_path), size=4, stride=4, classes="a, b")
    assert recipe.class_names == ("a", "b")
    assert recipe.kind == "ct"
    make = pickle.loads(pickle.dumps(recipe.make))
    groups = [{e.group for e in make(task)} for task in recipe.tasks]
    assert groups == [{patient_hash("x")}, {patient_hash("y")}]


def test_key_follows_settings_and_files(tmp_path):
    write_patient(tmp_path / "x")

    def key(**settings):
        return ct_patches.recipe(path=str(tmp_path), classes="a,b", **settings).key

    first = key()
    assert key() == first
    assert key(stride=7) != first
    assert key(salt="s") != first
    write_patient(tmp_path / "y", uid=6)
    assert key() != first


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.json", json.dumps(["n", "ggo"])),
        ("classes.csv", "value,name\n2,ggo\n1,n\n"),
    ],
)
def test_class_names_come_from_a_file(tmp_path, name, text):
    write_patient(tmp_path / "x")
    (tmp_path / name).write_text(text)
    assert ct_patches.recipe(path=str(tmp_path)).class_names == ("n", "ggo")


def test_a_missing_file_of_class_names_is_named(tmp_path):
    write_patient(tmp_path / "x")
    with refused_at("classes"):
        ct_patches.recipe(path=str(tmp_path), classes="none.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [("classes.csv", "value,name\n2,ggo\n"), ("classes.json", '{"n": 1}')],
)
def test_file_without_class_names_is_refused(tmp_path, name, text):
    write_patient(tmp_path / "x")
    with refused_at("classes"):
        ct_patches.recipe(path=str(tmp_path))
    (tmp_path / name).write_text(text)
    with refused_at(tmp_path / name):
        ct_patches.recipe(path=str(tmp_path))


def write_medgift(folder):
    folder.mkdir()
    for number in (1, 2):
        write_ct(folder / f"CT-X-{number:04d}.dcm", RAMP + number, uid=number)
    (folder / "CT-X.txt").write_text(
        "SpacingX: 0.5\nSpacingY: 0.5\nSpacingZ: 10\nlabel: healthy\nslice_number: 2\n"
        "nb_points_on_contour: 4\n-0.1 -0.1\n1.9 -0.1\n1.9 1.9\n-0.1 1.9\n"
        "label: fibrosis\nslice_number: 1\n"
        "nb_points_on_contour: 4\n1.9 1.9\n3.9 1.9\n3.9 3.9\n1.9 3.9\n"
    )


def test_medgift_folders(tmp_path):
    write_medgift(tmp_path / "7")
    recipe = ct_patches.recipe(path=str(tmp_path), size=4, stride=4)
    assert recipe.class_names == ("fibrosis", "healthy")
    found = recipe.make(recipe.tasks[0])
    assert [(e.label, e.image[0, 0, 0]) for e in found] == [(0, -455), (1, -498)]
    recipe = ct_patches.recipe(path=str(tmp_path), size=4, stride=4, classes="healthy")
    assert [e.label for e in recipe.make(recipe.tasks[0])] == [0]
    with refused_at("classes"):
        ct_patches.recipe(path=str(tmp_path), classes="fibrosi")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"size": 0}, "size"),
        ({"seed": -1}, "seed"),
        ({"stride": 0}, "stride"),
        ({"coverage": 0.0}, "coverage"),
        ({"per_class": -1}, "per_class"),
        ({"per_roi": -1}, "per_roi"),
        ({"overlap": 1.5}, "overlap"),
        ({"lungs": "maybe"}, "lungs"),
        ({"rois": "/no/such/file"}, "rois"),
        ({"spacing": 0.0}, "spacing"),
        ({"classes": "a,,b"}, "classes"),
        ({"path": "/no/such/folder"}, "path = '/no/such/folder'"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, where):
    write_patient(tmp_path / "x")
    settings = {"path": str(tmp_path), "classes": "a,b", **settings}
    with refused_at(where):
        ct_patches.recipe(**settings)


def big_patient(folder, labels, hu=-850):
    """Writes a patient with one slice of constant HU and a label mask."""
    stored = np.full(labels.shape, 1024 + hu, np.int16)
    write_marked(folder, [stored], [labels.astype(np.uint8)], PatientID="p1")


def test_caps_of_regions_and_patients(tmp_path):
    labels = np.zeros((64, 64), int)
    labels[:28], labels[36:, :28], labels[36:, 36:] = 1, 1, 2
    big_patient(tmp_path / "x", labels)
    settings = {"size": 4, "stride": 4}
    assert len(cut(tmp_path / "x", **settings)) == 7 * 16 + 2 * 7 * 7
    found = cut(tmp_path / "x", per_roi=5, **settings)
    places = [(e.label, e.details["row"] > 30) for e in found]
    assert [places.count(p) for p in ((0, False), (0, True), (1, True))] == [5, 5, 5]
    found = cut(tmp_path / "x", per_roi=5, per_class=7, **settings)
    assert np.bincount([e.label for e in found]).tolist() == [7, 5]
    found = cut(tmp_path / "x", per_roi=5, per_class=7, per_patient=4, **settings)
    assert len(found) == 4
    again = cut(tmp_path / "x", per_roi=5, per_class=7, per_patient=4, **settings)
    assert [e.id for e in found] == [e.id for e in again]
    other = cut(tmp_path / "x", per_patient=4, seed=1, **settings)
    assert [e.id for e in found] != [e.id for e in other]


def test_overlap_keeps_the_best_covered_patches(tmp_path):
    labels = np.zeros((64, 64), int)
    labels[3:11, 3:11] = 1
    big_patient(tmp_path / "x", labels)
    found = cut(tmp_path / "x", size=8, stride=1, overlap=0.0)
    assert [(e.details["row"], e.details["coverage"]) for e in found] == [(3, 1.0)]


def test_details_state_the_origin_of_a_patch(tmp_path):
    write_patient(tmp_path / "x", InstanceNumber=12)
    found = cut(tmp_path / "x", spacing=1.0, size=2, stride=2, salt="s")
    details = found[3].details
    assert details["slice_number"] == 12
    assert (details["row"], details["column"]) == (2, 2)
    assert (details["row_mm"], details["column_mm"]) == (1.0, 1.0)
    assert details["coverage"] == 1.0
    hashed = patient_hash(SERIES, "s").removeprefix("patient-")
    assert details["series"] == f"series-{hashed}"


def test_lungs_are_found_without_a_mask(tmp_path):
    side = 240
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) * 1.4
    body = (x / 145) ** 2 + (y / 105) ** 2 <= 1
    lungs = ((abs(x) - 65) / 42) ** 2 + (y / 70) ** 2 <= 1
    hu = np.where(lungs, -850, np.where(body, 40, -1000))
    stored = (hu + 1024).astype(np.int16)
    write_marked(
        tmp_path / "x", [stored], [body.astype(np.uint8)], PixelSpacing=[1.4, 1.4]
    )
    settings = {"size": 16, "stride": 8, "class_names": ("a",)}
    everywhere = cut(tmp_path / "x", **settings)
    inside = cut(tmp_path / "x", lungs="found", **settings)
    assert 20 < len(inside) < len(everywhere) / 2
    assert max(np.mean(e.image != -850) for e in inside) <= 0.26
    np.testing.assert_array_equal(
        [e.image.mean() < -600 for e in inside], [True] * len(inside)
    )


def test_broken_slice_is_refused_or_skipped_without_naming_it(tmp_path):
    write_patient(tmp_path / "Smith")
    broken = write_ct(tmp_path / "Smith" / "late.dcm", RAMP, uid=6, PatientID="p1")
    labels = np.ones((8, 8), np.uint8)
    Image.fromarray(labels).save(tmp_path / "Smith" / "rois" / f"{SERIES}.6.png")
    broken.write_bytes(broken.read_bytes()[:-40])
    settings = {"path": str(tmp_path), "size": 4, "stride": 4, "classes": "a,b"}
    recipe = ct_patches.recipe(**settings)
    with refused_at(broken):
        recipe.make(recipe.tasks[0])
    recipe = ct_patches.recipe(**settings, go_on=True)
    made = recipe.make(recipe.tasks[0])
    assert len(made) == 4
    ((name, reason),) = made.skipped
    assert name.startswith("file-")
    assert "cut off" in reason
    # Four patches of 'a' were to be cut from it.
    flow = [
        (r["level"], r["count"], r["class"], r["reason"]) for r in made.facts["flow"]
    ]
    assert ("slices", 1, "", ct_patches.REFUSED) in flow
    assert ("patches", 4, "a", ct_patches.REFUSED) in flow
    assert "Smith" not in reason
    assert str(tmp_path) not in reason


def test_a_slice_that_lost_its_intercept_is_refused_or_skipped(tmp_path):
    """Its series has air; it alone has none, and no fat."""
    write_patient(tmp_path)
    path = write_ct(
        tmp_path / "late.dcm", RAMP, uid=6, PatientID="p1", RescaleIntercept=0
    )
    labels = np.ones((8, 8), np.uint8)
    Image.fromarray(labels).save(tmp_path / "rois" / f"{SERIES}.6.png")
    settings = {"path": str(tmp_path), "size": 4, "stride": 4, "classes": "a,b"}
    recipe = ct_patches.recipe(**settings)
    with refused_at(path):
        recipe.make(recipe.tasks[0])
    recipe = ct_patches.recipe(**settings, go_on=True)
    made = recipe.make(recipe.tasks[0])
    assert len(made) == 4 and len(made.skipped) == 1


def test_white_marks_the_only_class(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 4:] = 255
    write_patient(tmp_path / "x", labels=labels)
    settings = {"path": str(tmp_path), "size": 4, "stride": 4}
    recipe = ct_patches.recipe(**settings, classes="a")
    assert len(recipe.make(recipe.tasks[0])) == 2
    recipe = ct_patches.recipe(**settings, classes="a,b")
    with refused_at(tmp_path / "x" / "one.dcm"):
        recipe.make(recipe.tasks[0])


def test_patient_with_an_unfitting_mask_is_skipped_on_request(tmp_path):
    write_patient(tmp_path / "x")
    uids = {"uid": 7, "SeriesInstanceUID": f"{SERIES}.9"}
    write_patient(tmp_path / "y", patient="p2", **uids)
    wrong = np.ones((4, 4), np.uint8)
    Image.fromarray(wrong).save(tmp_path / "y" / "rois" / f"{SERIES}.7.png")
    settings = {"path": str(tmp_path), "size": 4, "stride": 4, "classes": "a,b"}
    recipe = ct_patches.recipe(**settings, go_on=True)
    made = [recipe.make(task) for task in recipe.tasks]
    assert [len(examples) for examples in made] == [4, 0]
    assert made[1].skipped[0][1].startswith("the mask is [4, 4]")


def test_rois_may_be_in_a_separate_folder(tmp_path):
    write_patient(tmp_path / "slices" / "x")
    (tmp_path / "slices" / "x" / "rois").rename(tmp_path / "marked")
    (tmp_path / "marked" / f"{SERIES}.5.png").rename(tmp_path / "marked" / "1.png")
    recipe = ct_patches.recipe(
        path=str(tmp_path / "slices"),
        rois=str(tmp_path / "marked"),
        classes="a,b",
        size=4,
        stride=4,
    )
    assert [e.label for e in recipe.make(recipe.tasks[0])] == [0, 1, 0, 1]
