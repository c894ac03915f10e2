"""Patches from slice images with lung and label masks."""

import os
import pickle

import numpy as np
import pytest
from basics import refused_at
from ct_files import write_ct
from PIL import Image

from twostage_jax.ct.dicom import patient_hash
from twostage_jax.data import slices

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)


def write_set(root, *, image=GREY, lungs=None, labels=None, table=None):
    """Writes two patients with one 8 x 8 slice each: all lung, a quarter labelled."""
    if lungs is None:
        lungs = np.full((8, 8), 255, np.uint8)
    if labels is None:
        labels = np.zeros((8, 8), np.uint8)
        labels[4:, 4:] = 255
    for folder, pixels in [("ct", image), ("lungs", lungs), ("infection", labels)]:
        (root / folder).mkdir()
        for name in ("1.png", "2.png"):
            Image.fromarray(pixels).save(root / folder / name)
    table = table or "patient,slice\nsmith,1.png\njones,2.png\n"
    (root / "slices.csv").write_text(table)


def make_all(root, **settings):
    settings = {"size": 4, "stride": 4, **settings}
    recipe = slices.recipe(path=str(root), **settings)
    return [recipe.make(task) for task in recipe.tasks]


def test_healthy_lung_and_labelled_regions(tmp_path):
    write_set(tmp_path)
    jones, smith = make_all(tmp_path)
    assert [e.label for e in jones] == [0, 0, 0, 1]
    assert [int(e.image[0, 0, 0]) for e in jones] == [0, 4, 32, 36]
    assert jones[0].image.shape == (4, 4, 1)
    assert jones[0].image.dtype == np.uint8
    assert {e.group for e in jones} == {patient_hash("jones")}
    assert {e.group for e in smith} == {patient_hash("smith")}
    assert len({e.id for e in jones + smith}) == 8


def test_a_single_labelled_pixel_is_not_healthy(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[0, 0] = 1
    write_set(tmp_path, labels=labels)
    (found, _) = make_all(tmp_path)
    assert [int(e.image[0, 0, 0]) for e in found] == [4, 32, 36]


def test_healthy_patch_needs_enough_lung(tmp_path):
    lungs = np.zeros((8, 8), np.uint8)
    lungs[:, :2] = 1
    write_set(tmp_path, lungs=lungs, labels=np.zeros((8, 8), np.uint8))
    assert make_all(tmp_path) == [[], []]
    found, _ = make_all(tmp_path, lung_coverage=0.5)
    assert [int(e.image[0, 0, 0]) for e in found] == [0, 32]


def test_values_name_classes_in_order(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[4:, :4], labels[4:, 4:] = 1, 2
    write_set(tmp_path, labels=labels)
    found, _ = make_all(tmp_path, classes="healthy,ggo,consolidation")
    assert [e.label for e in found] == [0, 0, 1, 2]
    found, _ = make_all(tmp_path, classes="ggo,consolidation", lungs="")
    assert [e.label for e in found] == [0, 1]


def test_value_without_a_class_is_refused(tmp_path):
    write_set(tmp_path)
    with refused_at(tmp_path / "infection" / "2.png"):
        make_all(tmp_path, classes="healthy,ggo,consolidation")


def test_dicom_slices_give_hu(tmp_path):
    table = "patient,slice\nsmith,a/1.dcm\n"
    write_set(tmp_path, table=table)
    for folder in ("lungs", "infection", "ct"):
        (tmp_path / folder / "a").mkdir()
    for folder in ("lungs", "infection"):
        (tmp_path / folder / "1.png").rename(tmp_path / folder / "a" / "1.png")
    write_ct(tmp_path / "ct" / "a" / "1.dcm", GREY.astype(np.int16))
    (found,) = make_all(tmp_path)
    assert found[0].image.dtype == np.int16
    assert [int(e.image[0, 0, 0]) for e in found] == [-1024, -1020, -992, -988]


def test_grey_saved_in_three_channels_is_read_and_colour_is_not(tmp_path):
    write_set(tmp_path, image=np.stack([GREY] * 3, axis=-1))
    assert make_all(tmp_path)[0][1].image[0, 0, 0] == 4
    colour = np.stack([GREY, GREY, GREY + 1], axis=-1)
    Image.fromarray(colour).save(tmp_path / "ct" / "2.png")
    with refused_at(tmp_path / "ct" / "2.png"):
        make_all(tmp_path)


@pytest.mark.parametrize("folder", ["ct", "lungs", "infection"])
@pytest.mark.parametrize(("suffix", "orientation"), [("png", 3), ("tif", 6)])
def test_slices_and_masks_with_an_orientation_are_refused(
    tmp_path, folder, suffix, orientation
):
    """Programs that drew the masks may or may not have rotated the slices."""
    table = f"patient,slice\nsmith,1.{suffix}\njones,2.{suffix}\n"
    write_set(tmp_path, table=table)
    for path in tmp_path.glob("*/?.png"):
        Image.open(path).save(path.with_suffix(f".{suffix}"))
    assert len(make_all(tmp_path)) == 2
    path = tmp_path / folder / f"2.{suffix}"
    for value in (1, orientation):
        exif = Image.Exif()
        exif[274] = value
        with Image.open(path.with_suffix(".png")) as image:
            image.load()
        image.save(path, exif=exif)
        if value == 1:
            assert len(make_all(tmp_path)) == 2
    with refused_at(path):
        make_all(tmp_path)


def test_cap_repeats_and_the_seed_changes_the_draw(tmp_path):
    write_set(tmp_path)
    first = [e.id for e in make_all(tmp_path, stride=1, per_class=2)[0]]
    assert len(first) == 4
    assert [e.id for e in make_all(tmp_path, stride=1, per_class=2)[0]] == first
    others = [
        [e.id for e in make_all(tmp_path, stride=1, per_class=2, seed=seed)[0]]
        for seed in range(1, 5)
    ]
    assert any(other != first for other in others)


def test_key_follows_settings_and_files_and_the_recipe_travels(tmp_path):
    write_set(tmp_path)
    recipe = slices.recipe(path=str(tmp_path))
    assert slices.recipe(path=str(tmp_path)).key == recipe.key
    assert slices.recipe(path=str(tmp_path), coverage=0.6).key != recipe.key
    assert pickle.loads(pickle.dumps(recipe)).key == recipe.key
    os.utime(tmp_path / "lungs" / "1.png", ns=(1, 1))
    assert slices.recipe(path=str(tmp_path)).key != recipe.key


def test_folders_with_equal_names_sizes_and_times_are_different_sets(tmp_path):
    keys = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        write_set(tmp_path / name)
        for path in (tmp_path / name).rglob("*.*"):
            os.utime(path, ns=(1, 1))
        keys.add(slices.recipe(path=str(tmp_path / name)).key)
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ("patient,slice\na,3.png\n", "ct/3.png"),
        ("patient,slice\na,../1.png\n", "slices.csv"),
        ("patient,slice\na,1.png\nb,1.png\n", "slices.csv"),
        ("patient,slice\na,\n", "slices.csv"),
        ("name,slice\na,1.png\n", "slices.csv"),
        ("patient,slice\n", "slices.csv"),
        ("patient,slice\na,1.png\na,2.dcm\n", "slices.csv"),
    ],
)
def test_table_that_does_not_fit_is_refused(tmp_path, table, where):
    write_set(tmp_path, table=table)
    with refused_at(tmp_path / where):
        slices.recipe(path=str(tmp_path))


@pytest.mark.parametrize("folder", ["ct", "lungs", "infection"])
def test_file_that_cannot_be_decoded_or_has_another_shape_is_refused(tmp_path, folder):
    write_set(tmp_path)
    path = tmp_path / folder / "2.png"
    path.write_bytes(path.read_bytes()[:50])
    with refused_at(path):
        make_all(tmp_path)
    Image.fromarray(GREY[:7]).save(path)
    with refused_at(
        tmp_path / ("lungs" if folder == "infection" else folder) / "2.png"
    ):
        make_all(tmp_path)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"size": 9}, "ct/2.png"),
        ({"size": 0}, "size"),
        ({"seed": -1}, "seed"),
        ({"coverage": 2.0}, "coverage"),
        ({"lung_coverage": 0.0}, "lung_coverage"),
        ({"classes": "one"}, "classes"),
        ({"images": "slices"}, "images = '{}/slices'"),
        ({"csv": "other.csv"}, "other.csv"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, settings, where):
    write_set(tmp_path)
    where = tmp_path / where if where.endswith(("png", "csv")) else where
    with refused_at(str(where).format(tmp_path)):
        make_all(tmp_path, **settings)


def test_real_slices_give_both_classes_by_patient(real_data):
    recipe = slices.recipe(path=str(real_data / "covid_ct"), stride=32)
    assert len(recipe.tasks) == 17
    found = [e for task in recipe.tasks[:3] for e in recipe.make(task)]
    assert {e.label for e in found} == {0, 1}
    assert len({e.group for e in found}) == 3
    assert {e.image.shape for e in found} == {(32, 32, 1)}


def test_lung_coverage_applies_to_every_class(tmp_path):
    # A labelled region extends over the edge of the lung: one of its patches is half
    # outside, the other one is inside.
    lungs = np.full((8, 8), 255, np.uint8)
    lungs[6:, 4:] = 0
    labels = np.zeros((8, 8), np.uint8)
    labels[0:4, 4:] = 255
    labels[4:6, 4:] = 255
    write_set(tmp_path, lungs=lungs, labels=labels)
    (found, _) = make_all(tmp_path, coverage=0.5)
    assert [(e.label, int(e.image[0, 0, 0])) for e in found] == [
        (0, 0),
        (1, 4),
        (0, 32),
    ]
    (found, _) = make_all(tmp_path, coverage=0.5, lung_coverage=0.5)
    assert [(e.label, int(e.image[0, 0, 0])) for e in found][-1] == (1, 36)
