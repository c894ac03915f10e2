"""The command `python -m twostage_jax.prepare`, run like a user."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pydicom
import pytest
from basics import refused_at
from ct_files import SERIES, write_ct
from PIL import Image
from prepare_runs import NAMES, rows_of, run, write_archive

from twostage_jax.config import DataConfig, ModelConfig
from twostage_jax.ct.dicom import hashed
from twostage_jax.data import ct_patches, prepared_folder, sources, store
from twostage_jax.data.dataset import Example, Made, Recipe
from twostage_jax.data.store import prepare
from twostage_jax.train import augment

SECRETS = (
    "Smith",
    "escape",
    "script",
    "ЖЖЖ",
    "19471102",
    "20190304",
    "St. Mary",
    "ACC778",
    SERIES,
)


def content_of(folder):
    """Every name and byte below a folder, compressed records unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(path.relative_to(folder).as_posix().encode())
        if path.is_file():
            parts.append(path.read_bytes())
    data = prepare(prepared_folder.recipe(path=str(folder)), folder)
    parts += [text.encode() for text in (*data.ids, *data.groups, *data.class_names)]
    return b"\0".join(parts)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """(folder of slices, output folder of the command, its result)."""
    root = tmp_path_factory.mktemp("archive")
    write_archive(root / "slices")
    folder = next((root / "slices").iterdir())
    (folder / "Smith letter.txt").write_text("Dear Mrs Smith")
    write_ct(folder / "scout", np.zeros((4, 4), np.int16), uid=900, Modality="MR")
    write_ct(
        folder / "Smith broken", np.zeros((4, 4), np.int16), uid=901, RescaleSlope=None
    )
    shutil.copy(folder / "20190304-0", folder / "Smith copy")
    result = run(
        f"--source={root / 'slices'}",
        f"--out={root / 'out'}",
        "--classes=normal,<script>",
        "--patch=8",
        "--stride=4",
        "--salt=pepper",
        "--go_on",
    )
    return root / "slices", root / "out", result


def test_no_name_id_or_date_gets_out(archive):
    _, out, result = archive
    found = content_of(out) + (result.stdout + result.stderr).encode()
    for secret in SECRETS:
        if secret == "script":
            # The class that was asked for is named so; the patient is not shown.
            assert b"alert" not in found
        else:
            assert secret.encode() not in found, secret


def test_hostile_ids_leave_no_file_elsewhere(archive):
    slices, out, _ = archive
    assert {path.name for path in out.parent.iterdir()} == {"slices", "out"}
    names = {path.name for path in out.rglob("*")}
    assert all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names)
    assert not any("script" in name for name in names)


def test_every_patch_is_listed_with_its_place(archive):
    slices, out, _ = archive
    rows = rows_of(out / "patches.csv")
    data = prepare(prepared_folder.recipe(path=str(out)), out)
    assert [row["id"] for row in rows] == data.ids.tolist()
    assert len({row["patient"] for row in rows}) == len(NAMES)
    headers = {}
    for path in slices.rglob("20190304-*"):
        image = pydicom.dcmread(path)
        name = hashed("slice", image.SOPInstanceUID, "pepper")
        headers[name] = image.pixel_array.astype(int) - 1024
    for row, patch, label in zip(rows, data.images, data.labels, strict=True):
        top, left = int(row["row"]), int(row["column"])
        expected = headers[row["slice"]][top : top + 8, left : left + 8]
        np.testing.assert_array_equal(patch[..., 0], expected)
        assert row["label"] == ("normal", "<script>")[label]
        assert row["row_mm"] == row["column_mm"] == "0.5"
        # The border of the two regions lies at column 12.
        inside = max(min(12, left + 8) - left, left + 8 - max(12, left)) / 8
        assert float(row["coverage"]) == inside


def test_what_was_left_out_is_listed_without_paths(archive):
    _, out, result = archive
    rows = rows_of(out / "skipped.csv")
    reasons = sorted(row["reason"] for row in rows)
    assert len(rows) == 4
    assert all(re.fullmatch("file-[0-9a-f]{10}", row["file"]) for row in rows)
    text = "\n".join(reasons)
    for part in ("not a DICOM file", "modality MR", "RescaleSlope", "doubled"):
        assert part in text
    assert "skipped, 1 files: modality MR" in result.stdout


def test_training_reads_the_prepared_folder(archive):
    _, out, _ = archive
    model = ModelConfig(image_size=8)
    config = DataConfig("prepared", options={"path": str(out)})
    data = sources.load(config, model, out.parent / "nowhere")
    assert data.images.shape[1:] == (8, 8, 1)
    assert data.images.dtype == np.int16
    assert data.class_names == ("normal", "<script>")
    assert not (out.parent / "nowhere").exists()
    description = json.loads((out / "dataset.json").read_text())
    assert description["fingerprint"] == data.fingerprint
    assert description["notice"] == "Research use only, not for diagnosis"
    with refused_at(out):
        sources.load(config, ModelConfig(image_size=16), out)


def test_three_windows_become_three_channels(archive):
    _, out, _ = archive
    data = prepare(prepared_folder.recipe(path=str(out)), out)
    windows = (-600.0, 1500.0, -300.0, 2000.0, 40.0, 400.0)
    shown = np.asarray(augment.to_unit(data.images[:2], windows, 3))
    assert shown.shape == (2, 8, 8, 3)
    for channel in range(3):
        centre, width = windows[2 * channel : 2 * channel + 2]
        expected = (data.images[:2, ..., 0] - (centre - width / 2)) / width
        np.testing.assert_allclose(
            shown[..., channel], np.clip(expected, 0, 1), atol=1e-6
        )


def test_source_dicom_with_the_same_settings_is_the_same_set(archive, tmp_path):
    slices, out, _ = archive
    recipe = ct_patches.recipe(
        path=str(slices),
        classes="normal,<script>",
        size=8,
        stride=4,
        salt="pepper",
        go_on=True,
    )
    made = prepare(recipe, tmp_path, workers=1)
    description = json.loads((out / "dataset.json").read_text())
    assert description["fingerprint"] == made.fingerprint
    assert description["key"] == recipe.key


def test_folder_that_holds_no_prepared_set_is_refused(tmp_path):
    with refused_at(tmp_path):
        prepared_folder.recipe(path=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out=x"], "--source is missing"),
        (["--source={root}", "--out={root}/x", "--classes=a,b"], "RescaleSlope"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(archive, tmp_path, arguments, reason):
    arguments = [a.format(root=archive[0]) for a in arguments]
    result = run(*arguments, check=False)
    assert result.returncode == 2
    assert re.fullmatch(r"(Note: .*\n)?", result.stdout)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_killed_run_goes_on_where_it_was(tmp_path):
    write_archive(tmp_path / "slices", [f"p{i}" for i in range(3)])
    calls = tmp_path / "calls"
    calls.mkdir()
    script = (
        "import sys, os, time, pathlib\n"
        "from twostage_jax.data import ct_patches\n"
        "from twostage_jax.data.store import prepare\n"
        "make = ct_patches.make\n"
        "def slow(patient, **settings):\n"
        "    done = list(pathlib.Path(sys.argv[3]).iterdir())\n"
        "    if len(done) == 2 and sys.argv[4] == 'stop': time.sleep(60)\n"
        "    pathlib.Path(sys.argv[3], patient.name).write_text('')\n"
        "    return make(patient, **settings)\n"
        "ct_patches.make = slow\n"
        "recipe = ct_patches.recipe(path=sys.argv[1], size=8, classes='a,b')\n"
        "print(prepare(recipe, sys.argv[2], workers=1).fingerprint)\n"
    )
    command = [
        sys.executable,
        "-c",
        script,
        tmp_path / "slices",
        tmp_path / "out",
        calls,
    ]
    process = subprocess.Popen([*map(str, command), "stop"])
    deadline = time.monotonic() + 60
    while len(list(calls.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = list((tmp_path / "out").rglob("task-*.npz"))
    assert len(kept) == 2
    for path in calls.iterdir():
        path.unlink()
    result = subprocess.run(
        [*map(str, command), "go on"], capture_output=True, text=True, check=True
    )
    assert len(list(calls.iterdir())) == 1
    recipe = ct_patches.recipe(path=str(tmp_path / "slices"), size=8, classes="a,b")
    whole = prepare(recipe, tmp_path / "other", workers=1)
    assert result.stdout.split()[-1] == whole.fingerprint
    assert not list((tmp_path / "out").rglob("task-*"))


def test_kept_results_read_back_as_they_were(tmp_path):
    image = np.arange(4, dtype=np.int16).reshape(2, 2, 1)
    made = Made([Example("a", image, 1, "g", "test", {"row": 3, "slice": "s"})])
    made.skipped = [("file-1", "broken")]
    made.notes.add("masks", "are cut at half.", 2)
    store.save(tmp_path / "x.npz", made)
    again = store.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(again[0].image, image)
    assert (again[0].id, again[0].label, again[0].group) == ("a", 1, "g")
    assert (again[0].split, again[0].details) == ("test", {"row": 3, "slice": "s"})
    assert again.skipped == made.skipped and again.notes == made.notes
    store.save(tmp_path / "none.npz", Made())
    assert store.load(tmp_path / "none.npz") == []


def test_kept_result_of_other_settings_is_not_read(tmp_path):
    def recipe(key, value):
        image = np.full((2, 2, 1), value, np.int16)
        return Recipe(
            "x", "ct", ("a",), key, [0], lambda task: [Example("a", image, 0)]
        )

    first = store.kept(recipe("k1", 1), tmp_path)
    other = store.kept(recipe("k2", 2), tmp_path)
    assert [first.make(t)[0].image.max() for t in first.tasks] == [1]
    assert [other.make(t)[0].image.max() for t in other.tasks] == [2]
    again = store.kept(recipe("k1", 3), tmp_path)
    assert [again.make(t)[0].image.max() for t in again.tasks] == [1]


def test_real_slices_with_regions_from_thresholds(real_data, tmp_path):
    for path in sorted((real_data / "ct_dicom").rglob("*.dcm"))[:6]:
        image = pydicom.dcmread(path)
        hu = image.pixel_array * float(image.RescaleSlope)
        hu += float(image.RescaleIntercept)
        mask = np.where((hu > -950) & (hu < -750), 1, 0).astype(np.uint8)
        mask[(hu > -50) & (hu < 100)] = 2
        Image.fromarray(mask).save(tmp_path / f"{image.SOPInstanceUID}.png")
    recipe = ct_patches.recipe(
        path=str(real_data / "ct_dicom"),
        rois=str(tmp_path),
        classes="lung,tissue",
        coverage=0.6,
        spacing=1.0,
        per_class=20,
    )
    data = prepare(recipe, tmp_path / "out", workers=1)
    means = [data.images[data.labels == k].mean() for k in (0, 1)]
    assert -950 < means[0] < -600
    assert -200 < means[1] < 150
    assert os.path.isdir(tmp_path / "out" / "prepared")
