"""Maps of a chest with known disease, by a network with known predictions."""

import json

import numpy as np
import pytest
from basics import refused_at
from chest import (
    PIXEL_MM,
    SIZE,
    THRESHOLD_HU,
    WINDOW,
    chest,
    how,
    write_chest,
    write_run,
)

from twostage_jax import io
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.series import find_series
from twostage_jax.maps import run as series_maps
from twostage_jax.maps import write
from twostage_jax.maps.classify import Classifier, classify
from twostage_jax.maps.run import map_folder, without_names
from twostage_jax.study import artifacts

pytest.importorskip("highdicom", reason="highdicom is not installed")
pytest.importorskip("nibabel", reason="nibabel is not installed")
NOTICE = "Research use only, not for diagnosis"
PIXELS = (PIXEL_MM, PIXEL_MM)


def deep(mask, pixels):
    """Pixels with nothing but `mask` within so many rows and columns of them."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(pixels, pixels)] * 2),
        (1 + 2 * pixels,) * 2,
        axis=(-2, -1),
    )
    return windows.all((-2, -1))


def by_loop(hu, lungs, stride):
    """Mean probability of the second class, and where a window reaches, pixel by pixel."""
    first = list(range(0, SIZE - WINDOW + 1, stride))
    first += [] if first[-1] == SIZE - WINDOW else [SIZE - WINDOW]
    tent = 1 - np.abs(np.arange(WINDOW) + 0.5 - WINDOW / 2) / (WINDOW / 2)
    sums, total = np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE))
    windows = 0
    for r in first:
        for c in first:
            here = np.s_[r : r + WINDOW, c : c + WINDOW]
            if lungs[here].mean() >= 0.5:
                windows += 1
                shown = np.clip(hu[here], -1350, 150)
                sums[here] += np.outer(tent, tent) * (shown.mean() > THRESHOLD_HU)
                total[here] += np.outer(tent, tent)
    reached = (total > 0) & lungs
    return (
        np.divide(sums, total, where=total > 0, out=np.zeros_like(sums)),
        reached,
        windows,
    )


def test_ensemble_has_the_mean_probabilities_of_its_seeds(tmp_path, brightness):
    write_run(tmp_path, known=(0, 1))
    write_run(tmp_path, seed=1, steepness=0)  # 0.5 for either class
    run, single = artifacts.find_ensemble(tmp_path), artifacts.find(tmp_path)
    assert run.members[0] == single and run.hash != single.hash
    assert [one.seed for one in run.members] == [0, 1]
    hu, lungs, _ = chest(2)
    both, one = (
        classify(hu, lungs, PIXELS, Classifier(found, run.window), how())
        for found in (run, single)
    )
    inside = one.labels > 0
    assert inside.any()
    np.testing.assert_allclose(
        both.probabilities[:, inside] / 255,
        (one.probabilities[:, inside] / 255 + 0.5) / 2,
        atol=1 / 255,
    )
    np.testing.assert_array_equal(both.unlike, one.unlike)


def test_one_seed_is_no_ensemble(tmp_path, brightness):
    write_run(tmp_path)
    with refused_at("--ensemble"):
        artifacts.find_ensemble(tmp_path)


@pytest.mark.parametrize("stride", [2, 5])
def test_map_is_that_of_a_loop_over_windows(classifier, stride):
    hu, lungs, disease = chest(3)
    hu = hu.copy()
    hu[1] = np.where(lungs[1], -850, hu[1])  # no disease in the second slice
    found = classify(hu, lungs, PIXELS, classifier, how(stride=stride))
    windows = 0
    for z in range(3):
        mean, reached, count = by_loop(hu[z], lungs[z], stride)
        windows += count
        np.testing.assert_array_equal(found.labels[z] > 0, reached)
        np.testing.assert_allclose(
            found.probabilities[1, z][reached], 255 * mean[reached], atol=0.6
        )
        clear = reached & (np.abs(mean - 0.5) > 1e-3)
        np.testing.assert_array_equal(found.labels[z][clear] == 2, (mean > 0.5)[clear])
        assert not found.probabilities[:, z][:, ~reached].any()
    assert found.windows == windows
    assert (found.labels[0][deep(disease[0], WINDOW - 1)] == 2).all()
    assert deep(disease[0], WINDOW - 1).sum() > 20
    assert (found.labels[1][deep(lungs[1], WINDOW - 1)] == 1).all()


def test_map_of_resampled_slices_lies_in_the_same_place(classifier):
    hu, lungs, disease = chest(1)
    # A window of 6 pixels of 2 mm reaches 12 mm: 4 of the slice's own pixels.
    found = classify(hu, lungs, PIXELS, classifier, how(spacing=2.0))
    assert (found.labels[deep(disease, 4)] == 2).all()
    assert (found.labels[deep(lungs & ~disease, 4)] == 1).all()
    assert deep(disease, 4).sum() > 50 and deep(lungs & ~disease, 4).sum() > 50


def test_more_slices_than_fit_on_the_device_at_once_are_all_mapped(
    classifier, monkeypatch
):
    hu, lungs, _ = chest(5)
    whole = classify(hu, lungs, PIXELS, classifier, how())
    monkeypatch.setattr("twostage_jax.maps.classify.SLAB", 2)
    monkeypatch.setattr("twostage_jax.maps.classify.BATCH", 7)
    monkeypatch.setattr("twostage_jax.maps.classify.LEAST_BATCH", 1)
    parts = classify(hu, lungs, PIXELS, classifier, how())
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_array_equal(whole.probabilities, parts.probabilities)
    assert whole.windows == parts.windows


def test_slice_smaller_than_a_window_is_padded_with_air(classifier):
    hu = np.full((1, 4, 5), -600, np.int16)
    lungs = np.ones(hu.shape, bool)
    # 20 of 36 pixels at -600, the rest at -1000: the mean is -778, below -752.
    found = classify(hu, lungs, PIXELS, classifier, how())
    assert found.windows == 1
    assert (found.labels == 1).all()
    assert (classify(hu + 100, lungs, PIXELS, classifier, how()).labels == 2).all()


@pytest.fixture
def mapped(classifier, tmp_path, capfd, caplog):
    """A mapped series in `tmp_path / 'maps'`, its folder, and the printed output."""
    write_chest(tmp_path / "dicom", 6, gap=5.0, names="SMITH_JANE_{:04d}")
    (tmp_path / "dicom" / "JANE.txt").write_text("Smith")
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    (folder,) = (tmp_path / "maps").glob("patient-*")
    return folder, "".join(capfd.readouterr()) + caplog.text


def test_report_has_the_volumes_of_the_known_chest(mapped):
    folder, _ = mapped
    rows = write.read_report(folder.parent / "report.csv")
    inner = write.read_report(folder / "report.csv")
    assert rows == [{**row, "series_of_patient": "1"} for row in inner]
    found = {(row["region"], row["class"]): row for row in rows}
    row = found["lungs", "ground_glass"]
    hu, lungs, _ = chest(6)
    mask = lung_mask(hu, (5.0, *PIXELS))
    pixel_ml = PIXEL_MM**2 * 5 / 1000
    assert float(row["region_volume_ml"]) == pytest.approx(
        mask.sum() * pixel_ml, abs=0.01
    )
    assert mask.sum() == pytest.approx(lungs.sum(), rel=0.1)
    mean, reached, _ = by_loop(hu[0], mask[0], 2)
    ill = 6 * (mean[reached] > 0.5).sum()
    assert float(row["volume_ml"]) == pytest.approx(ill * pixel_ml, rel=0.005)
    assert float(row["fraction_of_region"]) == pytest.approx(
        ill / mask.sum(), rel=0.005
    )
    bare = 6 * (mask[0] & ~reached).sum()
    unknown = float(found["lungs", "not classified"]["volume_ml"])
    assert unknown == pytest.approx(bare * pixel_ml, abs=0.01)
    for region in ("upper", "middle", "lower"):
        third = float(found[region, "ground_glass"]["fraction_of_region"])
        assert third == pytest.approx(float(row["fraction_of_region"]), abs=1e-5)
    assert {row["class"] for row in rows} == {
        "normal",
        "ground_glass",
        "not classified",
    }


def test_report_says_what_made_it_and_what_it_is_not_for(mapped, classifier):
    folder, said = mapped
    for row in write.read_report(folder / "report.csv"):
        assert row["model"] == classifier.run.hash
        assert row["arm"] == "two_stage"
        assert row["trained_on"] == "dicom"
        assert row["data_fingerprint"] == "feed" * 16
        assert row["notice"] == NOTICE
        assert (
            "-600, 1500" in row["settings"] and "stride in pixels: 2" in row["settings"]
        )
    about = json.loads((folder / "series.json").read_text())
    assert about["model"] == classifier.run.hash and about["notice"] == NOTICE
    assert about["note"] == ""


def test_all_files_agree_with_each_other(mapped):
    import highdicom
    import nibabel

    folder, _ = mapped
    with np.load(folder / "probabilities.npz", allow_pickle=False) as saved:
        labels, probabilities = saved["labels"], saved["probabilities_255"]
        assert saved["class_names"].tolist() == ["normal", "ground_glass"]
    likeliest = np.asarray(nibabel.load(folder / "classes.nii.gz").dataobj).T
    np.testing.assert_array_equal(likeliest, labels)
    shares = nibabel.load(folder / "probabilities.nii.gz").get_fdata().T
    np.testing.assert_allclose(shares, probabilities / 255)
    sums = shares.sum(0)
    assert np.abs(sums[labels > 0] - 1).max() < 0.01 and not sums[labels == 0].any()
    found = highdicom.seg.segread(folder / "segmentation.dcm")
    frames = found.PerFrameFunctionalGroupsSequence
    assert len(frames) == 6 * 2
    assert found.pixel_array.sum() == (labels > 0).sum()
    # Both say where in the patient a voxel lies; NIfTI's x and y point the other way.
    volume = found.get_volume(combine_segments=True)
    at = np.argwhere(volume.array > 0)
    places = np.c_[at, np.ones(len(at))] @ volume.affine.T * [-1, -1, 1, 1]
    image = nibabel.load(folder / "classes.nii.gz")
    voxels = np.rint(places @ np.linalg.inv(image.affine).T).astype(int)[:, :3]
    np.testing.assert_array_equal(
        np.asarray(image.dataobj)[tuple(voxels.T)], volume.array[tuple(at.T)]
    )
    names = sorted(path.name for path in (folder / "overlays").iterdir())
    assert names == [f"{i:04d}.png" for i in range(1, 7)]
    assert (folder / "contact_sheet.png").stat().st_size > 1000


def test_series_that_is_there_is_not_made_again(mapped, classifier, tmp_path, capfd):
    folder, _ = mapped
    before = (folder / "segmentation.dcm").stat().st_ino
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert "exists already" in capfd.readouterr().out
    assert (folder / "segmentation.dcm").stat().st_ino == before
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(stride=4))
    assert (folder / "segmentation.dcm").stat().st_ino != before
    assert "stride in pixels: 4" in (folder / "report.csv").read_text()


@pytest.mark.parametrize(
    "corrected",
    [{"PixelSpacing": [2.5, 2.5]}, {"gap": 4.0}, {"RescaleSlope": 0.9}],
    ids=["spacing", "position", "rescale"],
)
def test_series_with_the_same_uids_but_a_corrected_header_is_made_again(
    mapped, classifier, tmp_path, corrected
):
    folder, _ = mapped
    before = write.read_report(folder / "report.csv")
    tags = {"gap": 5.0, **corrected}
    write_chest(tmp_path / "dicom", 6, names="SMITH_JANE_{:04d}", **tags)
    for out in (folder.parent, tmp_path / "fresh"):
        map_folder(tmp_path / "dicom", out, classifier, how())
    after = write.read_report(folder / "report.csv")
    assert after == write.read_report(tmp_path / "fresh" / folder.name / "report.csv")
    assert after != before


def test_run_that_is_cut_off_leaves_what_was_there(
    mapped, classifier, tmp_path, monkeypatch
):
    folder, _ = mapped
    before = sorted(path.name for path in folder.parent.iterdir())
    report = (folder / "report.csv").read_text()
    # As a killed process leaves it.
    (folder.parent / f".new-{folder.name}").mkdir()

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("twostage_jax.maps.draw.draw_sheet", cut_off)
        with pytest.raises(KeyboardInterrupt):
            map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(stride=4))
    assert sorted(path.name for path in folder.parent.iterdir()) == before
    assert (folder / "report.csv").read_text() == report
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(stride=4))
    assert (folder / "report.csv").read_text() != report


def test_series_of_other_runs_stay_in_the_report(mapped, classifier, tmp_path):
    write_chest(tmp_path / "second", 2, series=2, PatientID="../../x")
    map_folder(tmp_path / "second", tmp_path / "maps", classifier, how(), salt="s")
    rows = write.read_report(tmp_path / "maps" / "report.csv")
    assert len({row["series"] for row in rows}) == 2
    assert len({row["patient"] for row in rows}) == 2
    assert not (tmp_path.parent / "x").exists()


def test_report_has_the_series_of_one_model_and_its_settings(
    mapped, classifier, tmp_path, capfd
):
    folder, _ = mapped
    root, out = tmp_path / "second", folder.parent
    write_chest(root, 1, series=2)
    other = artifacts.find(write_run(tmp_path / "other", seed=1))
    for model, settings in (
        (Classifier(other, other.window), how()),
        (classifier, how(stride=4)),
    ):
        capfd.readouterr()
        map_folder(root, out, model, settings)
        assert "Not in the report: 1 series" in capfd.readouterr().out
        rows = write.read_report(out / "report.csv")
        assert {row["model"] for row in rows} == {model.run.hash}
        assert {row["settings"] for row in rows} == {str(settings)}
    assert (folder / "report.csv").exists()


def test_what_is_odd_about_a_series_is_said_and_written(classifier, tmp_path, capsys):
    write_chest(tmp_path / "dicom", 2, LossyImageCompression="01")
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    assert "compressed with loss: 2 of 2 slices" in capsys.readouterr().out
    rows = write.read_report(tmp_path / "maps" / "report.csv")
    assert rows[0]["remarks"] == "compressed with loss: 2 of 2 slices"


def test_patient_of_the_training_images_is_remarked_on(brightness, tmp_path):
    for seed, patients in enumerate(("A", "AB", "B")):
        folder = write_run(tmp_path / "study", seed=seed)
        groups = np.array([patient_hash(name) for name in patients])
        io.write_arrays(folder / artifacts.TRAINED, groups=groups)
    write_run(tmp_path / "study", seed=3)  # of an earlier version
    run = artifacts.find_ensemble(tmp_path / "study")
    for series, patient in enumerate("ABC"):
        write_chest(tmp_path / "dicom" / patient, 1, series=series, PatientID=patient)
    classifier = Classifier(run, run.window)
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how(stride=6))
    rows = write.read_report(tmp_path / "maps" / "report.csv")
    remarks = {row["patient"]: row["remarks"] for row in rows}
    for patient in "AB":
        assert "2 of 4 networks were trained" in remarks[patient_hash(patient)]
    assert remarks[patient_hash("C")] == ""


def test_series_whose_headers_make_no_segmentation_is_mapped_all_the_same(
    classifier, tmp_path, capsys, caplog
):
    root = tmp_path / "dicom"
    write_chest(root / "odd", 2, PatientBirthDate="1947-11-02", PatientSex="unknown")
    write_chest(root / "single", 1, series=2, SliceThickness=None)
    write_chest(root / "sound", 2, series=3)
    map_folder(root, tmp_path / "maps", classifier, how())
    said = capsys.readouterr()
    assert "3 of 3 series mapped" in said.out
    assert said.out.count("DICOM SEG not written: SliceThickness is missing") == 1
    assert not any(
        word in said.out + said.err + caplog.text for word in ("1947", "IM-0001")
    )
    for name, count in (("segmentation.dcm", 2), ("report.csv", 3)):
        assert len(list((tmp_path / "maps").glob(f"patient-*/{name}"))) == count


def test_identity_of_300_letters_is_carried_into_the_segmentation(
    classifier, tmp_path, capsys, caplog
):
    import pydicom

    name, number = "漢ß" * 150, "ü1" * 150
    tags = {"PatientName": name, "PatientID": number}
    write_chest(tmp_path / "dicom", 1, SpecificCharacterSet="ISO_IR 192", **tags)
    map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    said = capsys.readouterr()
    assert (
        "1 of 1 series mapped" in said.out and "DICOM SEG not written" not in said.out
    )
    assert not any(word in said.out + said.err + caplog.text for word in ("漢", "ü1"))
    (path,) = (tmp_path / "maps").glob("patient-*/segmentation.dcm")
    with pydicom.config.disable_value_validation():
        found = pydicom.dcmread(path)
        assert (str(found.PatientName), found.PatientID) == (name, number)
    for path in (tmp_path / "maps").rglob("*.csv"):
        assert "漢" not in path.read_text(encoding="utf-8")


def test_refused_series_do_not_stop_the_others(classifier, tmp_path, capsys):
    root = tmp_path / "dicom"
    write_chest(root / "sound", 1)
    write_chest(root / "SMITH", 5, series=2, names="JANE{}")
    (root / "SMITH" / "JANE2").unlink()
    flat = [0, 1, 0, 0, 0, -1]
    write_chest(root / "sagittal", 1, series=3, ImageOrientationPatient=flat)
    write_chest(root / "unknown", 1, series=4, PixelSpacing=None)
    map_folder(root, tmp_path / "maps", classifier, how())
    said = capsys.readouterr().out
    assert "not axial" in said and "PixelSpacing is missing" in said
    assert "1 missing between slices 3 and 4." in said
    assert "1 of 4 series mapped" in said
    assert "jane" not in said.lower() and "smith" not in said.lower()
    with refused_at(root / "sagittal"):
        map_folder(root / "sagittal", tmp_path / "none", classifier, how())


def test_numbers_in_reasons_are_not_taken_for_names_of_files(
    classifier, tmp_path, capsys
):
    write_chest(tmp_path / "dicom", 5, gap=10.0, names="{}")
    write_chest(tmp_path / "dicom", 1, names="1", ImagePositionPatient=[-144, -144, 4])
    with refused_at(tmp_path / "dicom"):
        map_folder(tmp_path / "dicom", tmp_path / "maps", classifier, how())
    # The slices lie at -40, -30, -20, -10 and 4 mm.
    expected = "uneven: 14.00 mm instead of 10.00 mm between slices 4 and 5."
    assert expected in capsys.readouterr().out


def test_series_with_too_little_lung_for_a_window_is_refused(
    classifier, tmp_path, capsys
):
    root, out = tmp_path / "dicom", tmp_path / "maps"
    write_chest(root, 2)
    # The lungs are 84 mm wide, and a window of 6 pixels 10 mm apart is 60 mm wide.
    map_folder(root, out, classifier, how(spacing=10.0))
    write_chest(root, 2, PixelSpacing=[1.0, 1.0])  # 28 mm
    with refused_at(root):
        map_folder(root, out, classifier, how(spacing=10.0))
    assert "a window of 6 x 6 pixels" in capsys.readouterr().out


def test_slices_numbered_from_the_head_are_turned(classifier, tmp_path):
    # Columns run to the front: the slice normal points to the feet.
    root = tmp_path / "dicom"
    write_chest(root, 3, ImageOrientationPatient=[1, 0, 0, 0, -1, 0])
    ((series,), _) = find_series(root)
    heights = [header.position[2] for header in series_maps.from_feet(series).headers]
    assert heights == sorted(heights)
    assert [header.position[2] for header in series.headers] == heights[::-1]


def test_report_does_not_depend_on_how_the_image_is_turned(classifier, tmp_path):
    import pydicom

    root, reports = tmp_path / "dicom", []
    write_chest(root, 6, gap=5.0)
    for out in ("upright", "turned"):
        map_folder(root, tmp_path / out, classifier, how())
        rows = write.read_report(tmp_path / out / "report.csv")
        reports.append([float(row["fraction_of_region"]) for row in rows])
        for path in root.glob("*.dcm"):  # rows become columns
            image = pydicom.dcmread(path)
            image.PixelData = np.ascontiguousarray(image.pixel_array.T).tobytes()
            image.ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
            image.save_as(path)
    # The edges of the lungs that are found differ by single pixels.
    assert reports[0] == pytest.approx(reports[1], abs=0.005)


def test_paths_are_taken_out_of_messages(tmp_path):
    path = tmp_path / "SMITH" / "IM 1"
    for text, expected in [
        (f"{path}: is cut off.", "is cut off."),
        ("mixed with 1.2.826.0.1.3680043.8.498.1", "mixed with UID"),
        (f"{path.parent}: doubled: slices 1 and 2.", "doubled: slices 1 and 2."),
        (f"doubled: the same as {path}", "doubled: the same as ..."),
    ]:
        assert without_names(text, tmp_path, [path]) == expected
