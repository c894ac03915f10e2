"""Contents of the map files: identity, notice, skipped files."""

import gzip
import re

import numpy as np
import pydicom
import pytest
from chest import how, write_chest
from ct_files import errors_of
from PIL import Image
from prepare_runs import rows_of

from twostage_jax import io
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.errors import UserError
from twostage_jax.maps import draw
from twostage_jax.maps import write as files
from twostage_jax.maps.run import map_folder

pytest.importorskip("highdicom", reason="highdicom is not installed")
pytest.importorskip("nibabel", reason="nibabel is not installed")
NOTICE = "Research use only, not for diagnosis"
IDENTITY = {
    "PatientName": "Smith^Jane",
    "PatientID": "MRN0815",
    "PatientBirthDate": "19471102",
    "StudyDate": "20190304",
    "AccessionNumber": "ACC778",
    "InstitutionName": "St. Mary",
}
SECRETS = (
    *(b"smith", b"jane", b"mrn0815", b"19471102", b"20190304", b"acc778"),
    *(b"st. mary", b"1.2.826.0.1.3680043"),
)
# DICOM SEG belongs to patient and study; the institution is not among what it copies.
IN_SEGMENTATION = set(SECRETS) - {b"st. mary"}


def unpacked(path):
    """All bytes of a file in which text could be found, uncompressed, lower case."""
    parts = [path.read_bytes()]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as saved:
            for name, array in saved.items():
                texts = map(str, array.ravel()) if array.dtype.kind == "U" else ()
                parts += [name.encode(), array.tobytes(), " ".join(texts).encode()]
    elif path.suffix == ".gz":
        parts.append(gzip.decompress(parts[0]))
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            parts += [repr(image.info).encode(), image.tobytes()]
    return b"\0".join(parts).lower()


@pytest.fixture
def mapped(classifier, tmp_path, capfd, caplog):
    """The folder of a mapped series, and the printed output."""
    write_chest(tmp_path / "dicom", 3, gap=5.0, names="SMITH_{:04d}", **IDENTITY)
    (tmp_path / "dicom" / "JANE.txt").write_text("Smith")
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    (folder,) = (tmp_path / "maps").glob("patient-*")
    return folder, "".join(capfd.readouterr()) + caplog.text


def test_identity_is_in_the_dicom_output_alone(mapped, tmp_path):
    folder, said = mapped
    for path in sorted((tmp_path / "maps").rglob("*")):
        text = str(path.relative_to(tmp_path)).lower().encode()
        text += unpacked(path) if path.is_file() else b""
        held = {word for word in SECRETS if word in text}
        in_dicom = path.name == "segmentation.dcm"
        assert held == (IN_SEGMENTATION if in_dicom else set()), path
    assert not any(word.decode() in said.lower() for word in SECRETS)
    assert "skipped: 1 file: not a DICOM file" in said


@pytest.mark.parametrize("name", ["probabilities.npz", "classes.nii.gz", "0001.png"])
def test_a_name_inside_a_compressed_file_would_be_seen(tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".npz":
        io.write_arrays(path, arm=np.array("Smith" * 9))
    elif path.suffix == ".gz":
        volume = np.zeros((2, 2, 2), np.uint8)
        files.write_nifti(path, volume, np.eye(4), "Smith" * 9)
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("Comment", "Smith" * 9, zip=True)
        Image.new("L", (2, 2)).save(path, pnginfo=info)
    assert b"smithsmith" not in path.read_bytes().lower()
    assert b"smithsmith" in unpacked(path)


def test_segmentation_of_a_whole_run_conforms(mapped):
    assert errors_of(mapped[0] / "segmentation.dcm") == []


def test_every_picture_says_what_made_it_and_what_it_is_not_for(
    classifier, tmp_path, monkeypatch
):
    written, pictures, save = [], {}, Image.Image.save
    write = draw.write

    def noted(pen, place, text, *rest, **more):
        written.append((pen.im, text))
        write(pen, place, text, *rest, **more)

    def saved(image, path, *rest, **more):
        texts = [text for target, text in written if target is image.im]
        pictures[path.name] = texts, np.asarray(image)
        save(image, path, *rest, **more)

    monkeypatch.setattr(draw, "write", noted)
    monkeypatch.setattr(Image.Image, "save", saved)
    write_chest(tmp_path / "dicom", 2)
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert set(pictures) == {"0001.png", "0002.png", "contact_sheet.png"}
    for texts, pixels in pictures.values():
        assert NOTICE in texts
        assert any(classifier.run.hash[:12] in text for text in texts)
        assert (pixels == draw.WARNING).all(-1).sum() > 100  # the notice is to be seen


def test_slices_left_out_are_listed_and_counted(classifier, tmp_path, capsys):
    root = tmp_path / "dicom"
    write_chest(root, 5, names="SMITH{}", gap=5.0)
    # Without the last slice nothing is missing between the others.
    broken = root / "SMITH5"
    image = pydicom.dcmread(broken)
    del image.RescaleSlope
    image.save_as(broken)
    (root / "JANE.txt").write_text("Smith")
    write_chest(tmp_path / "dicom" / "other", 2, series=2, names="OTHER{}")
    map_folder(root, tmp_path / "maps", classifier, how(), salt="pepper")
    said = capsys.readouterr().out
    assert "1 files with its UID" in said and "skipped.csv" in said
    rows = rows_of(tmp_path / "maps" / "skipped.csv")
    assert all(re.fullmatch("file-[0-9a-f]{10}", row["file"]) for row in rows)
    broken_one, other = sorted((row["reason"] for row in rows), key=len, reverse=True)
    assert "RescaleSlope" in broken_one and other == "not a DICOM file"
    assert not any(word in str(rows).lower() for word in ("smith", "jane"))
    report = files.read_report(tmp_path / "maps" / "report.csv")
    counts = {row["slices"]: row["files_left_out"] for row in report}
    assert counts == {"4": "1", "2": "0"}
    map_folder(root, tmp_path / "maps", classifier, how(), show_paths=True)
    rows = rows_of(tmp_path / "maps" / "skipped.csv")
    assert {row["file"] for row in rows} == {str(broken), str(root / "JANE.txt")}


def test_refused_series_are_listed_by_their_hashes(classifier, tmp_path):
    root = tmp_path / "dicom"
    write_chest(root / "sound", 1)
    write_chest(root / "SMITH", 1, series=2, names="JANE{}", PixelSpacing=None)
    map_folder(root, tmp_path / "maps", classifier, how())
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert re.fullmatch("patient-[0-9a-f]{10}_series-[0-9a-f]{10}", row["file"])
    assert row["reason"] == "refused: PixelSpacing is missing, so sizes are unknown."


def test_what_was_left_out_is_listed_where_no_series_is_found(classifier, tmp_path):
    write_chest(tmp_path / "dicom", 1, Modality="MR")
    with pytest.raises(UserError) as error:
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert error.value.where == str(tmp_path / "dicom")
    assert "modality MR" in str(error.value)
    (row,) = rows_of(tmp_path / "maps" / "skipped.csv")
    assert row["reason"] == "modality MR, not CT."


def test_report_counts_the_series_of_each_patient(classifier, tmp_path):
    root = tmp_path / "dicom"
    for series, patient in enumerate(["A", "A", "B", "", ""]):
        write_chest(root / str(series), 1, series=series, PatientID=patient)
    map_folder(root, tmp_path / "maps", classifier, how())
    rows = files.read_report(tmp_path / "maps" / "report.csv")
    assert len({row["series"] for row in rows}) == 5
    counts = {row["patient"]: row["series_of_patient"] for row in rows}
    hashes = {patient_hash("A"): "2", patient_hash("B"): "1"}
    assert counts == {**hashes, files.UNKNOWN_PATIENT: ""}
    for path in (tmp_path / "maps").glob("patient-*/report.csv"):
        assert "series_of_patient" not in files.read_report(path)[0]
