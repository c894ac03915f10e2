"""Pixels marked by two classes are counted by pair of classes, and reported."""

import json

import numpy as np
import pytest
from basics import refused_at

from twostage_jax.data import ct_patches, prepared_folder
from twostage_jax.data.store import folder_of, metadata_of, prepare

pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
import roi_files
from roi_files import SIDE, box, write_series

PLAIN = {"size": 4, "stride": 4, "coverage": 1.0, "lungs": "off", "per_class": 0}
# Boxes of 16 x 16 and 8 x 8 pixels that overlap in 4 x 8.
LARGE, SMALL = (4, 4, 20, 20), (16, 8, 24, 16)
BOTH, ALL_LARGE, ALL_SMALL = 32, 256, 64


def marks(*classes):
    """Returns the box of each class on slices 2 and 3, `[6, SIDE, SIDE, K]` bool."""
    found = np.zeros((6, SIDE, SIDE, len(classes)), bool)
    for index, (top, left, bottom, right) in enumerate(classes):
        found[2:4, top:bottom, left:right, index] = True
    return found


def write(form, folder, images):
    drawn = [
        (z, name, box(*place))
        for z in (2, 3)
        for name, place in (("large", LARGE), ("small", SMALL))
    ]
    if form == "rtstruct":
        names = ["large", "small"]
        roi_files.write_rtstruct(folder / "x", images, drawn, names)
    elif form == "seg":
        labels = marks(LARGE, SMALL)
        roi_files.write_seg(folder / "x", images, labels, ["large", "small"])
    else:
        folder.mkdir()
        mine = [one for one in drawn if form == "csv" or one[1] == "small"]
        roi_files.write_csv(folder / "x.csv", images, mine)
        if form == "two files":
            labels = marks(LARGE).any(-1).astype(np.uint8)
            roi_files.write_seg(folder / "y", images, labels, ["large"])


def recipe_of(folder, classes, **settings):
    return ct_patches.recipe(
        path=str(folder / "ct"),
        rois=str(folder / "r"),
        classes=classes,
        **{**PLAIN, **settings},
    )


@pytest.mark.parametrize("form", ["rtstruct", "seg", "csv", "two files"])
def test_every_source_of_regions_counts_what_two_classes_mark(tmp_path, form):
    images = write_series(tmp_path / "ct")
    write(form, tmp_path / "r", images)
    recipe = recipe_of(tmp_path, "small,large")
    made = recipe.make(recipe.tasks[0])
    (row,) = made.facts["overlaps"]
    assert row["classes"] == ["small", "large"]
    assert (row["pixels"], row["slices"]) == (2 * BOTH, 2)
    marked = {row["class"]: row["pixels"] for row in made.facts["marked"]}
    assert marked == {"small": 2 * ALL_SMALL, "large": 2 * ALL_LARGE}
    assert {e.details["coverage"] for e in made} == {1.0}  # None is in both.
    (line,) = list(recipe.remarks([], made.facts))
    for fact in ("'small'", "'large'", "64 pixels", "50 %", "12 %", "2 slices"):
        assert fact in line


def test_patients_are_added_up_and_kept_with_the_set(tmp_path):
    for number, patient in enumerate(("p", "q", "r")):
        images = write_series(
            tmp_path / "ct" / patient,
            phase=number + 1,
            series=f"{roi_files.SERIES}.{number}",
            PatientID=patient,
        )
        small = SMALL if patient != "r" else (24, 24, 32, 32)
        drawn = [(2, "large", box(*LARGE)), (2, "small", box(*small))]
        names = ["large", "small"]
        roi_files.write_rtstruct(tmp_path / "r" / patient, images, drawn, names)
    recipe = recipe_of(tmp_path, "small,large")
    made = prepare(recipe, tmp_path / "out", workers=1, progress=False)
    (line,) = [line for line in made.notes if "'small'" in line]
    assert "64 pixels" in line and "33 %" in line and "patients: 2" in line
    metadata = metadata_of(folder_of(recipe, tmp_path / "out"))
    prepared_folder.write(tmp_path / "out", recipe, made, metadata, [], [])
    facts = json.loads((tmp_path / "out" / "dataset.json").read_text())["facts"]
    assert len({row["patient"] for row in facts["overlaps"]}) == 2
    assert [row["pixels"] for row in facts["overlaps"]] == [BOTH, BOTH]
    assert not any(name in json.dumps(facts) for name in ("Smith", str(tmp_path)))


def nested(folder, **classes):
    images = write_series(folder / "ct")
    drawn = [(z, name, box(*place)) for name, place in classes.items() for z in (2, 3)]
    roi_files.write_rtstruct(folder / "r" / "x", images, drawn, list(classes))


@pytest.mark.parametrize("body", [(0, 0, 32, 32), LARGE], ids=["class", "set"])
def test_error_of_an_empty_class_or_set_states_the_overlap(tmp_path, body):
    nested(tmp_path, body=body, lung=LARGE, other=(24, 24, 32, 32))
    recipe = recipe_of(tmp_path, "body,lung")
    with refused_at("dicom") as error:
        prepare(recipe, tmp_path / "out", workers=1, progress=False)
    for fact in ("'lung'", "'body'", "512 pixels", "100 %"):
        assert fact in str(error.value)


def test_three_classes_are_counted_by_pair(tmp_path):
    nested(tmp_path, body=(0, 0, 32, 32), lung=LARGE, fibrosis=(6, 6, 14, 14))
    recipe = recipe_of(tmp_path, "")
    made = recipe.make(recipe.tasks[0])
    pixels = {tuple(row["classes"]): row["pixels"] for row in made.facts["overlaps"]}
    assert pixels == {
        ("body", "lung"): 512,
        ("body", "fibrosis"): 128,
        ("fibrosis", "lung"): 128,
    }


def test_regions_of_one_class_that_overlap_are_not_counted(tmp_path):
    images = write_series(tmp_path / "ct")
    drawn = [(2, "a", box(*LARGE)), (2, "a", box(*SMALL)), (3, "b", box(*SMALL))]
    roi_files.write_rtstruct(tmp_path / "r" / "x", images, drawn, ["a", "b"])
    recipe = recipe_of(tmp_path, "a,b")
    made = recipe.make(recipe.tasks[0])
    assert made.facts["overlaps"] == []
    assert list(recipe.remarks([], made.facts)) == []


def test_labels_that_no_class_has_are_counted(tmp_path):
    images = write_series(tmp_path / "ct")
    drawn = [(1, "a", box(*SMALL)), (2, "B", box(*SMALL)), (3, "a 2", box(*SMALL))]
    (tmp_path / "r").mkdir()
    roi_files.write_csv(tmp_path / "r" / "x.csv", images, drawn)
    recipe = recipe_of(tmp_path, "A,b")
    (line,) = list(recipe.remarks([], recipe.make(recipe.tasks[0]).facts))
    assert "'a 2' (1)" in line and "'b'" not in line
