"""If a folder is refused, the message gives the first reason."""

import gzip
import re
import tarfile
import zipfile

import numpy as np
import pydicom
import pytest
from basics import refused_at
from chest import how, write_chest
from ct_files import SERIES, write_ct
from PIL import Image
from prepare_runs import run
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from twostage_jax.ct import decode
from twostage_jax.ct.dicom import read_slice
from twostage_jax.ct.series import find_series, read_volume, scan
from twostage_jax.data import ct_patches
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import split
from twostage_jax.data.store import prepare
from twostage_jax.errors import UserError
from twostage_jax.maps.run import map_folder

RAMP = (10 * np.arange(8)[:, None] + np.arange(8) + 200).astype(np.int16)


def strip(path, *, keep_meta=False):
    """Removes the 128 bytes, 'DICM' and the meta information from a file."""
    raw = path.read_bytes()
    start = 132
    if not keep_meta:
        length = int.from_bytes(raw[140:144], "little")
        start += 12 + length
    path.write_bytes(raw[start:])
    return path


@pytest.mark.parametrize("keep_meta", [False, True])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_slice_without_its_header_is_read(tmp_path, syntax, keep_meta):
    path = write_ct(tmp_path / "IM1", RAMP, SliceThickness=5)
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(
        path,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=True,
        enforce_file_format=True,
        overwrite=True,
    )
    whole = read_slice(path)
    bare = read_slice(strip(path, keep_meta=keep_meta))
    assert bare[0] == whole[0]
    np.testing.assert_array_equal(bare[1], RAMP - 1024)
    ((series,), skipped) = find_series(tmp_path)
    np.testing.assert_array_equal(read_volume(series)[0], RAMP - 1024)
    assert skipped == []


@pytest.mark.parametrize("cut", [1, 60])
def test_a_slice_without_its_header_that_is_cut_off_is_refused(tmp_path, cut):
    path = strip(write_ct(tmp_path / "IM1", RAMP))
    path.write_bytes(path.read_bytes()[:-cut])
    with refused_at(path):
        read_slice(path)


def test_random_bytes_are_not_dicom(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "IM1"
    for start in (b"", b"\x02\x00\x00\x00", b"\x08\x00\x08\x00", b"\x00\x08\x00\x05CS"):
        for _ in range(25):
            path.write_bytes(start + rng.bytes(700))
            assert decode.why_not_dicom(path) != ""


def test_dicom_without_header_and_class_is_recognised(tmp_path):
    path = strip(write_ct(tmp_path / "IM1", RAMP, SOPClassUID=None))
    assert "header" in decode.why_not_dicom(path)


def test_other_modality_without_a_header_is_skipped(tmp_path):
    mr = "1.2.840.10008.5.1.4.1.1.4"
    strip(write_ct(tmp_path / "IM1", RAMP, SOPClassUID=mr, Modality="MR"))
    found = scan(tmp_path)
    assert found.headers == [] and found.lost == []
    assert "MR" in found.others[0][1]


def archive(path, kind):
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a", "x")
    elif kind == "tar":
        with tarfile.open(path, "w") as file:
            file.add(__file__, "a")
    elif kind == "gzip":
        path.write_bytes(gzip.compress(b"x" * 1000))
    else:
        path.write_bytes(b"7z\xbc\xaf\x27\x1c" + b"x" * 100)


@pytest.mark.parametrize(
    ("kind", "word"),
    [("zip", "ZIP"), ("tar", "tar"), ("gzip", "gzip"), ("7z", "7-Zip")],
)
def test_archives_are_named(tmp_path, classifier, kind, word):
    root = tmp_path / "dicom"
    root.mkdir()
    for number in range(3):
        archive(root / f"patient{number}", kind)
    with refused_at(root) as error:
        ct_patches.recipe(path=str(root))
    assert word in str(error.value) and "3" in str(error.value)
    with pytest.raises(UserError) as error:
        map_folder(root, tmp_path / "maps", classifier, how())
    assert word in str(error.value)
    assert "patient1" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("a.nii.gz", gzip.compress(b"\0" * 400, mtime=0), "NIfTI"),
        ("a.nii", b"\x5c\x01\0\0" + b"\1" * 340 + b"n+1\0", "NIfTI"),
        ("a.nrrd", b"NRRD0005\ntype: short\n", "NRRD"),
        ("a.xlsx", b"PK\x03\x04" + b"x" * 100, "not a DICOM file"),
        ("IM1", b"", "empty"),
        ("IM1", b"\0" * 4096, "zeros"),
    ],
    ids=["gzip", "nifti", "nrrd", "workbook", "empty", "zeros"],
)
def test_other_files_are_named(tmp_path, name, content, word):
    (tmp_path / name).write_bytes(content)
    with refused_at(tmp_path) as error:
        ct_patches.recipe(path=str(tmp_path))
    assert word in str(error.value)


def write_two(folder, **tags):
    for z in range(2):
        place = {"ImagePositionPatient": [0, 0, z]}
        write_ct(folder / f"IM{z}", RAMP, uid=z + 1, **{**place, **tags})


def test_refused_slices_are_counted_if_all_are_refused(tmp_path):
    write_two(tmp_path, RescaleSlope=None)
    with refused_at(tmp_path) as error:
        ct_patches.recipe(path=str(tmp_path), go_on=True)
    assert "2 files" in str(error.value) and "RescaleSlope" in str(error.value)


def test_refused_regions_are_named_if_all_are_refused(tmp_path):
    write_two(tmp_path)
    (tmp_path / "rois").mkdir()
    table = "patient,series,slice,label,points\nx,1.2.3.4.5.6,1,a,1 1; 5 1; 5 5\n"
    (tmp_path / "rois" / "rois.csv").write_text(table)
    with refused_at(tmp_path) as error:
        ct_patches.recipe(path=str(tmp_path), go_on=True)
    assert "rois.csv" in str(error.value) and "1 file" in str(error.value)


def test_command_hides_names_in_reasons(tmp_path):
    root = tmp_path / "Smith Anna"
    root.mkdir()
    archive(root / "Smith.zip", "zip")
    result = run(f"--source={root}", f"--out={tmp_path / 'out'}", check=False)
    assert result.returncode == 2
    assert "ZIP" in result.stderr and "smith" not in result.stderr.lower()
    assert re.search(r"file-[0-9a-f]{10}", result.stderr)


def test_file_in_place_of_a_folder_is_refused(tmp_path, classifier):
    path = write_ct(tmp_path / "a.dcm", RAMP)
    for call in (
        lambda: ct_patches.recipe(path=str(path)),
        lambda: map_folder(path, tmp_path / "maps", classifier, how()),
    ):
        with pytest.raises(UserError) as error:
            call()
        assert "file" in str(error.value) and str(path) in error.value.where


def test_stray_scout_is_refused(tmp_path):
    write_two(tmp_path)
    scout = tmp_path / "A"  # Comes first.
    write_ct(scout, RAMP, uid=9, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    with refused_at(scout):
        find_series(tmp_path)


def test_other_files_of_a_cd_are_skipped_and_listed(tmp_path):
    write_two(tmp_path)
    head = b"\0" * 128 + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x12\x00\x00\x00"
    (tmp_path / "DICOMDIR").write_bytes(head)
    write_ct(tmp_path / "IM8", RAMP, uid=8, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    dose = pydicom.dcmread(tmp_path / "IM8")
    dose.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    dose.save_as(tmp_path / "IM9", enforce_file_format=True)
    whole = (tmp_path / "IM9").read_bytes()
    (tmp_path / "IM9").write_bytes(whole[:600])  # A truncated report.
    (tmp_path / "VIEWER.EXE").write_bytes(b"MZ")
    found = scan(tmp_path)
    assert len(found.headers) == 2
    names = {path.name for path, _ in found.others}
    assert names == {"DICOMDIR", "IM8", "IM9", "VIEWER.EXE"}
    assert found.lost == []


def write_studies(root, patients, *, studies=1, folder="{}", study=None):
    """Writes patients with one marked slice per study; returns the recipe.

    `folder` is the name of a study's folder, given its number; `study` the UID of all.
    """
    rois = root / "rois"
    rois.mkdir(parents=True)
    for index, patient in enumerate(patients):
        for number in range(studies):
            uid = 10 * index + number + 1
            home = root / folder.format(uid)
            home.mkdir(parents=True)
            write_ct(
                home / "IM",
                RAMP,
                uid=uid,
                PatientID=patient,
                SeriesInstanceUID=f"{SERIES}.5.{uid}",
                StudyInstanceUID=study or f"{SERIES}.6.{uid}",
                FrameOfReferenceUID=f"{SERIES}.7.{uid}",
            )
            mask = np.ones((8, 8), np.uint8)
            mask[:4] = 2
            Image.fromarray(mask).save(rois / f"{SERIES}.{uid}.png")
    return ct_patches.recipe(path=str(root), classes="a,b", size=4, stride=4)


@pytest.mark.parametrize("patient", ["ANON", "X-77"])
def test_many_studies_of_one_patient_are_noted(tmp_path, patient):
    recipe = write_studies(tmp_path / "ct", [patient], studies=6)
    made = prepare(recipe, tmp_path / "out", workers=1, progress=False)
    (note,) = [note for note in made.notes if "studies" in note]
    assert "6 studies in 6 frames of reference" in note


def test_outermost_folders_replace_missing_patient_ids(tmp_path):
    recipe = write_studies(tmp_path / "ct", [""], studies=6)
    assert len(recipe.tasks) == 6 and recipe.tasks.warnings() == []


def test_constant_patient_id_is_noted_among_other_patients(tmp_path):
    recipe = write_studies(tmp_path / "ct", ["A-1", "anonymous"], studies=2)
    (note,) = recipe.tasks.warnings()
    assert recipe.tasks[1].name in note or recipe.tasks[0].name in note


def test_a_folder_of_several_studies_without_patient_ids_is_noted(tmp_path):
    recipe = write_studies(tmp_path / "ct", ["", "A-1"], studies=2, folder="site/p{}")
    (note,) = recipe.tasks.warnings()
    assert len(recipe.tasks) == 2
    assert any(f": {patient.name}." in note for patient in recipe.tasks)


@pytest.mark.parametrize("ids", [("P01", "p01"), ("P01", ""), ("", "")])
def test_patients_of_one_study_are_noted(tmp_path, ids):
    recipe = write_studies(tmp_path / "ct", ids, study=f"{SERIES}.6")
    (note,) = recipe.tasks.warnings()
    assert all(patient.name in note for patient in recipe.tasks)


def test_patients_with_several_studies_are_not_noted(tmp_path):
    recipe = write_studies(tmp_path / "ct", ["A-1", "A-2"], studies=2)
    assert recipe.tasks.warnings() == []


def test_single_patient_is_not_split_and_the_cause_is_named():
    dataset = Dataset(
        name="dicom",
        kind="ct",
        class_names=("a", "b"),
        images=np.zeros((4, 2, 2, 1), np.int16),
        labels=np.array([0, 1, 0, 1]),
        groups=np.array(["patient-1"] * 4),
        ids=np.array(list("abcd")),
        splits=np.array(["train"] * 4),
        fingerprint="",
    )
    for settings in ({}, {"folds": 2}):
        with refused_at("dicom") as error:
            split(dataset, seed=0, **settings)
        assert "PatientID" in str(error.value) and "patient-1" in str(error.value)


def test_single_slices_of_one_scan_are_noted_but_not_joined(tmp_path, classifier):
    for number in range(3):
        write_chest(
            tmp_path / "dicom",
            1,
            series=number + 1,
            names=f"IM{number}",
            ImagePositionPatient=[-144, -144, 5 * number],
        )
    found, _ = find_series(tmp_path / "dicom")
    assert [len(series.headers) for series in found] == [1, 1, 1]
    assert all("one of 3" in series.remarks[0] for series in found)
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert "one of 3" in (tmp_path / "maps" / "report.csv").read_text()


@pytest.mark.parametrize("other", [{"StudyInstanceUID": "1.2.3"}, {"same place": 1}])
def test_single_slices_of_several_scans_are_not_noted(tmp_path, other):
    for number in range(2):
        place = {"ImagePositionPatient": [-144, -144, 5 * number]}
        if "same place" in other:
            place["ImagePositionPatient"] = [0, 0, 0]
        elif number:
            place |= other
        write_chest(tmp_path, 1, series=number + 1, names=f"IM{number}", **place)
    found, _ = find_series(tmp_path)
    assert [series.remarks for series in found] == [(), ()]
