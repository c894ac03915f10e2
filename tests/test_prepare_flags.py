"""The flags of `python -m twostage_jax.prepare`, and its output; counts by hand."""

import collections
import csv

import numpy as np
import pytest
from basics import REPOSITORY
from ct_files import SERIES, write_ct, write_enhanced
from PIL import Image
from prepare_runs import rows_of, run

from twostage_jax import prepare as command
from twostage_jax.config import DataConfig, ModelConfig
from twostage_jax.ct import privacy
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.data import prepared_folder, sources
from twostage_jax.data.store import prepare


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """(slices, masks) of two patients, 48 x 48 pixels of 0.5 mm; one with lungs.

    Class a is the upper half of each slice, b the lower one. The lung mask of p1 leaves
    out the last third of the columns.
    """
    root = tmp_path_factory.mktemp("halves")
    labels = np.repeat(np.uint8([1, 2]), 24)[:, None].repeat(48, 1)
    for number, patient in enumerate(("p1", "p2")):
        slices, rois = root / "slices" / patient, root / "rois" / patient
        slices.mkdir(parents=True)
        rois.mkdir(parents=True)
        write_ct(
            slices / "a",
            np.zeros((48, 48), np.int16),
            uid=number,
            PatientID=patient,
            SeriesInstanceUID=f"{SERIES}.7{number}",
        )
        Image.fromarray(labels).save(rois / "1.png")
    lungs = np.zeros((48, 48), np.uint8)
    lungs[:, :32] = 1
    (root / "slices" / "p1" / "lungs").mkdir()
    name = f"{SERIES}.0.png"
    Image.fromarray(lungs).save(root / "slices" / "p1" / "lungs" / name)
    return root / "slices", root / "rois"


# 24 x 24 pixels of 1 mm, patches of 4 every 2. A half has 12 rows: patches begin at 0, 2
# to 8 in it: 5. Of 24 columns: 0, 2 to 20: 11. Of the 16 in the lung: 0 to 12: 7, or
# with half of the patch enough, 0 to 14: 8; a patch across both halves is a tie.
# Without overlap: 3 rows, and 6 or, in the lung, 4 columns.
@pytest.mark.parametrize(
    ("flags", "first", "second"),
    [
        (["--coverage=1"], (35, 35), (55, 55)),
        (["--coverage=0.5", "--per_roi=39"], (39, 39), (39, 39)),
        (["--coverage=0.5", "--per_class=41"], (40, 40), (41, 41)),
        (["--coverage=1", "--overlap=0", "--per_class=13"], (12, 12), (13, 13)),
        (["--coverage=1", "--lungs=off", "--per_patient=100"], 100, 100),
        (["--coverage=1", "--lungs=found"], (35, 35), (0, 0)),
    ],
)
def test_flags_choose_the_patches(halves, tmp_path, flags, first, second):
    slices, rois = halves
    flags = ["--per_class=0", *flags]
    arguments = [f"--source={slices}", f"--rois={rois}", f"--out={tmp_path}"]
    arguments += ["--classes=a,b", "--patch=4", "--stride=2", "--spacing=1"]
    run(*arguments, *flags, "--workers=1")
    rows = rows_of(tmp_path / "patches.csv")
    counts = collections.Counter((row["patient"], row["label"]) for row in rows)
    for patient, expected in (("p1", first), ("p2", second)):
        found = [counts[patient_hash(patient), label] for label in "ab"]
        assert (
            sum(found) == expected
            if isinstance(expected, int)
            else (tuple(found) == expected)
        )
    assert {(row["row_mm"], row["column_mm"]) for row in rows} == {("1.0", "1.0")}


def test_frames_of_an_enhanced_ct_become_patches(tmp_path):
    slices, out = tmp_path / "slices", tmp_path / "out"
    (slices / "rois").mkdir(parents=True)
    stored = np.arange(3 * 64, dtype=np.int16).reshape(3, 8, 8)
    write_enhanced(slices / "one", stored, [4, 2, 0])
    # In the order of the frames: z = 0, the last, is of class a, z = 4 of class b.
    masks = np.zeros((3, 8, 8), np.uint8)
    masks[2], masks[0] = 1, 2
    np.save(slices / "rois" / "one.npy", masks)
    run(f"--source={slices}", f"--out={out}", "--classes=a,b", "--patch=8")
    rows = rows_of(out / "patches.csv")
    assert {(row["label"], row["slice_number"]) for row in rows} == {
        ("a", "3"),
        ("b", "1"),
    }
    data = prepare(prepared_folder.recipe(path=str(out)), out)
    for label, frame in ((0, 2), (1, 0)):
        (patch,) = data.images[data.labels == label]
        np.testing.assert_array_equal(patch[..., 0], stored[frame] - 1024)


def test_command_of_the_readme(tmp_path):
    lines = (REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if "    twostage prepare" in line]
    arguments = line.split("twostage prepare")[1]
    for name in ("DICOM", "ROIS", "PATCHES"):
        arguments = arguments.replace(name, str(tmp_path / name.lower()))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "rois").mkdir()
    write_ct(tmp_path / "dicom" / "a", np.zeros((64, 64), np.int16), uid=1)
    with (tmp_path / "rois" / "regions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "series", "slice", "label", "points"])
        for label, left, right in (("ggo", -0.5, 31.5), ("normal", 31.5, 63.5)):
            corners = f"{left} -0.5; {right} -0.5; {right} 63.5; {left} 63.5"
            writer.writerow(["", SERIES, f"{SERIES}.1", label, corners])
    result = run(*arguments.split())
    # Patches of 32 every 16: at rows 0, 16 and 32, and columns 0 and 32.
    assert "6 patches of 1 patients" in result.stdout
    assert "ggo: 3 of 1" in result.stdout and "normal: 3 of 1" in result.stdout


@pytest.fixture
def odd_archive(tmp_path):
    """A patient with a slice missing, two kernels, and masks named after slices."""
    folder = tmp_path / "slices" / "Smith Anna"
    (folder / "rois").mkdir(parents=True)
    for z in (0, 1, 3, 4):
        write_ct(
            folder / f"Anna {z}",
            np.zeros((8, 8), np.int16),
            uid=z + 1,
            ImagePositionPatient=[0, 0, z],
            ConvolutionKernel="B70f" if z else "B30f",
        )
    mask = Image.fromarray(np.ones((8, 8), np.uint8))
    mask.save(folder / "rois" / f"{SERIES}.1.png")
    return tmp_path / "slices"


@pytest.mark.parametrize("show", [False, True])
def test_odd_series_are_told_and_listed(odd_archive, tmp_path, show):
    arguments = [f"--source={odd_archive}", f"--out={tmp_path / 'out'}", "--classes=a"]
    result = run(*arguments, "--patch=8", *["--show_paths"] * show)
    (row,) = rows_of(tmp_path / "out" / "series.csv")
    (patch,) = rows_of(tmp_path / "out" / "patches.csv")
    assert (row["series"], row["patient"]) == (patch["series"], patch["patient"])
    assert (row["slices"], row["step_mm"]) == ("4", "1.000")
    names = " (Anna 1 and Anna 3)" if show else ""
    missing = "1 missing between slices 2 and 3"
    assert row["notes"] == f"{missing}{names}"
    assert row["remarks"] == "mixed kernels: 'B30f', 'B70f'"
    assert f"  odd, {row['series']}: {missing}; {row['remarks']}\n" in result.stdout


def test_odd_series_are_told_when_a_stage_prepares_them(odd_archive, tmp_path, capsys):
    options = {"path": str(odd_archive), "classes": "a", "stride": 8}
    data, model = DataConfig("dicom", options=options), ModelConfig(image_size=8)
    sources.load(data, model, tmp_path / "prepared")
    told = capsys.readouterr().out
    assert "1 missing between slices 2 and 3; mixed kernels: 'B30f', 'B70f'" in told
    assert "Data set 'dicom': odd, series-" in told
    assert "Anna" not in told and SERIES not in told
    sources.load(data, model, tmp_path / "prepared")
    again = capsys.readouterr().out
    # The line about the work is not repeated; what is odd is.
    assert again and told.endswith(again) and "odd, series-" in again


def test_refused_file_is_named_by_its_hash_or_on_request_by_its_path(
    odd_archive, tmp_path
):
    wrong = odd_archive / "Smith Anna" / "rois" / "Mask 4.png"
    Image.fromarray(np.ones((8, 8), np.uint8)).save(wrong)
    arguments = [f"--source={odd_archive}", f"--out={tmp_path / 'out'}", "--classes=a"]
    arguments += ["--patch=8", "--salt=s"]
    result = run(*arguments, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {privacy.file_hash(wrong, 's')}: ")
    assert "--show_paths" in result.stderr
    assert not any(name in result.stderr for name in ("Anna", "Mask", SERIES))
    result = run(*arguments, "--show_paths", check=False)
    assert result.stderr.startswith(f"error: {wrong}: ")


def test_python_program_prepares_with_plain_arguments(halves, tmp_path, capsys):
    slices, rois = halves
    command.prepare(
        source=str(slices), rois=str(rois), out=str(tmp_path), classes="a,b",
        patch=4, stride=2, spacing=1.0, per_class=41, lungs="off", workers=1,
    )  # fmt: skip
    assert len(rows_of(tmp_path / "patches.csv")) == 4 * 41
    assert "164 patches of 2 patients" in capsys.readouterr().out
