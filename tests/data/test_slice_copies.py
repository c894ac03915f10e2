"""Copies of a slice have the same series, UID, position and pixels."""

import shutil

import numpy as np
import pytest
from basics import refused_at
from chest import how, write_chest
from ct_files import SERIES, compress, write_ct, write_enhanced
from PIL import Image
from prepare_runs import rows_of

from twostage_jax.ct.series import find_series, read_volume, scan
from twostage_jax.data import ct_patches
from twostage_jax.errors import UserError
from twostage_jax.maps.run import map_folder

STORED = np.random.default_rng(0).integers(0, 1500, (8, 8)).astype(np.int16)


def write(path, z=0, *, uid=1, stored=STORED, **tags):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_ct(path, stored, uid=uid, ImagePositionPatient=[0, 0, z], **tags)


@pytest.mark.parametrize("change", ["", "another tag", "compressed"])
def test_copies_are_skipped_and_listed(tmp_path, change):
    write(tmp_path / "a")
    tags = {"AccessionNumber": "7"} if change == "another tag" else {}
    write(tmp_path / "b", **tags)
    if change == "compressed":
        compress(tmp_path / "b")
    found = scan(tmp_path)
    assert [header.path.name for header in found.headers] == ["a"]
    assert [path.name for path, _ in found.others] == ["b"]
    assert found.lost == []
    ((series,), _) = find_series(tmp_path)
    assert series.left_out == 0


def test_a_sound_copy_takes_the_place_of_a_cut_off_one(tmp_path):
    write(tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    write(tmp_path / "c", AccessionNumber="7")
    (tmp_path / "a").write_bytes(whole[:-40])
    with refused_at(tmp_path / "a"):
        scan(tmp_path)
    found = scan(tmp_path, go_on=True)
    assert [header.path.name for header in found.headers] == ["c"]
    ((path, reason),) = found.others
    assert path.name == "a" and "cut off" in reason


def test_copies_of_multi_frame_files_are_skipped(tmp_path):
    frames = np.stack([STORED, STORED + np.int16(1)])
    write_enhanced(tmp_path / "a", frames, [0, 1])
    write_enhanced(tmp_path / "b", frames, [0, 1], AccessionNumber="7")
    write_enhanced(tmp_path / "c", frames + np.int16(1), [0, 1])
    with pytest.raises(UserError):
        find_series(tmp_path)
    (tmp_path / "c").unlink()
    ((series,), skipped) = find_series(tmp_path)
    assert len(series.headers) == 2
    assert [path.name for path, _ in skipped] == ["b"]


def one_uid(folder, count=4, same=()):
    for z in range(count):
        stored = STORED if "pixels" in same else STORED + np.int16(z)
        write(folder / f"{z}", 0 if "place" in same else z, stored=stored)


@pytest.mark.parametrize("same", [(), ("pixels",), ("place",)])
def test_one_uid_for_all_slices_is_refused(tmp_path, same):
    one_uid(tmp_path, same=same)
    with pytest.raises(UserError) as error:
        find_series(tmp_path)
    named = {str(tmp_path / "0"), str(tmp_path / "1")}
    assert error.value.where in named
    assert all(name in str(error.value) for name in named)
    found, skipped = find_series(tmp_path, go_on=True)
    assert found == []
    assert {path.name for path, _ in skipped} == {"0", "1", "2", "3"}


def test_slices_with_one_uid_are_not_mapped(tmp_path, classifier):
    write_chest(tmp_path / "dicom", 3, SOPInstanceUID=f"{SERIES}.5")
    with pytest.raises(UserError):
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    rows = rows_of(tmp_path / "maps" / "skipped.csv")
    assert len(rows) == 3 and any("SOPInstanceUID" in row["reason"] for row in rows)


def two_series(root, **second):
    """Writes two series with equal SOPInstanceUIDs, in two folders."""
    for index, name in enumerate("ab"):
        for z in range(3):
            write(
                root / name / f"{z}",
                z,
                uid=z + 1,
                stored=STORED + np.int16(100 * index),
                SeriesInstanceUID=f"{SERIES}.9.{index}",
                **(second if index else {}),
            )


def test_two_series_may_repeat_uids(tmp_path):
    two_series(tmp_path)
    found, skipped = find_series(tmp_path)
    assert skipped == []
    volumes = [read_volume(series) for series in found]
    np.testing.assert_array_equal(volumes[1], volumes[0] + 100)
    assert len({h.key for series in found for h in series.headers}) == 6


def test_two_patients_may_repeat_uids(tmp_path):
    two_series(tmp_path, PatientID="Jones")
    found, _ = find_series(tmp_path)
    assert len(found) == len({series.patient for series in found}) == 2


def table(path, rows):
    lines = ["patient,series,slice,label,points"]
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([*lines, *rows]) + "\n")


def test_regions_that_name_the_series_are_placed_on_it(tmp_path):
    two_series(tmp_path / "ct")
    points = "-0.5 -0.5; 3.5 -0.5; 3.5 7.5; -0.5 7.5"
    rows = [
        f",{SERIES}.9.{index},{SERIES}.2,{label},{points}"
        for index, label in enumerate("ab")
    ]
    table(tmp_path / "rois.csv", rows)
    recipe = ct_patches.recipe(
        path=str(tmp_path / "ct"), rois=str(tmp_path / "rois.csv"), size=4, stride=4
    )
    (task,) = recipe.tasks
    made = recipe.make(task)
    assert len({e.id for e in made}) == len(made) == 4
    for example in made:
        row = int(example.details["row"])
        expected = STORED[row : row + 4, :4] - 1024 + 100 * example.label
        np.testing.assert_array_equal(example.image[..., 0], expected)


def test_a_mask_named_after_a_repeated_uid_is_refused(tmp_path):
    two_series(tmp_path / "ct")
    (tmp_path / "rois").mkdir()
    path = tmp_path / "rois" / f"{SERIES}.2.png"
    Image.fromarray(np.ones((8, 8), np.uint8)).save(path)
    recipe = ct_patches.recipe(
        path=str(tmp_path / "ct"), rois=str(tmp_path / "rois"), size=4, classes="a"
    )
    with refused_at(path):
        [recipe.make(task) for task in recipe.tasks]


def test_unique_uids_are_the_keys_of_slices(tmp_path):
    for z in range(2):
        write(tmp_path / "ct" / f"{z}", z, uid=z + 1)
    first = scan(tmp_path / "ct").headers[0]
    assert first.key == (f"{SERIES}.1", 0)


def test_copied_folders_are_skipped(tmp_path):
    two_series(tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "z")
    found, skipped = find_series(tmp_path)
    assert len(found) == 2
    assert {path.parent.name for path, _ in skipped} == {"z"}
