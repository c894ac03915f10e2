"""Networks of a study on an external set: predictions, and refused sets."""

import json

import chest
import numpy as np
import pytest
from basics import refused_at
from ct_files import SERIES, write_ct
from PIL import Image

from twostage_jax import prepare as prepare_command
from twostage_jax.study import artifacts, external

CLASSES = ("ground_glass", "normal")
PREDICTIONS = "predictions/scratch-seed0-fraction1-fold0.npz"


@pytest.fixture
def workdir(brightness, tmp_path):
    """A study of one network, whose data was a folder of patches in HU."""
    workdir = tmp_path / "study"
    folder = chest.write_run(
        workdir, source="folder", class_names=("normal", "ground_glass"),
        options={"path": "/gone", "group_regex": r"/(p\d+)", "kind": "ct", "units": "hu"},
    )  # fmt: skip
    row = {
        "arm": "scratch", "seed": 0, "fraction": 1.0, "fold": 0,
        "predictions": PREDICTIONS, "stage_runs": [folder.name],
    }  # fmt: skip
    stage = {
        "data": {"normalise": "fixed", "window": [-600, 1500]},
        "augment": {"average": False},
    }
    results = {"rows": [row], "config": {"stages": {"target": stage}}}
    (workdir / "results.json").write_text(json.dumps(results))
    (workdir / "predictions").mkdir()
    np.savez(workdir / PREDICTIONS, groups=np.array(["p0", "p9"]))
    return workdir


def write_set(folder, classes=CLASSES):
    """Three patients with a patch of each class."""
    shape = (chest.WINDOW, chest.WINDOW)
    for name in classes:
        (folder / name).mkdir(parents=True)
        hu = chest.HEALTHY_HU if name == "normal" else chest.DISEASED_HU
        for patient in range(3):
            patch = np.full(shape, hu + patient, np.int16)
            np.save(folder / name / f"p{patient}.npy", patch)
    return folder


def test_every_example_is_predicted_with_the_labels_of_the_study(workdir, tmp_path):
    out = external.score(workdir, write_set(tmp_path / "hospital"), tmp_path / "data")
    with np.load(out / PREDICTIONS.rpartition("/")[2]) as saved:
        # The study names 'normal' first, the folders come in alphabetical order.
        assert saved["class_names"].tolist() == ["normal", "ground_glass"]
        np.testing.assert_array_equal(saved["probabilities"].argmax(1), saved["labels"])
        assert sorted(saved["labels"]) == [0, 0, 0, 1, 1, 1]
        assert set(saved["groups"]) == {"p0", "p1", "p2"}
    described = json.loads((out / "set.json").read_text())
    assert described["name"] == "hospital"
    assert described["shared_patients"] == 1
    assert described["cohort"]["classes"]["test"]["examples"] == [3, 3]


def test_grey_of_16_bits_is_scaled_as_in_training(workdir, tmp_path, monkeypatch):
    """One value of 13 bits would else halve all others."""
    (path,) = workdir.glob("stages/*/lineage.json")
    lineage = json.loads(path.read_text())
    lineage["settings"]["data"]["options"] = {"path": "/gone"}
    lineage["data"].update(units="grey", measures={"bits": 12})
    path.write_text(json.dumps(lineage))
    for name, values in (("normal", (0, 2000)), ("ground_glass", (4095, 4200))):
        for value in values:
            pixels = np.full((chest.WINDOW, chest.WINDOW), value, np.uint16)
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{value}.png")
    seen = []
    monkeypatch.setattr(
        external.evaluate,
        "applied",
        lambda *given: (seen.append(given[5]) or np.full((4, 2), 0.5), None),
    )
    external.score(workdir, tmp_path / "set", tmp_path / "data")
    # 255 / 4095 of the values: 0, 124.5 and 255; beyond, white.
    found = sorted(seen[0][:, 0, 0, 0].tolist())
    assert found[0] == 0 and found[1] in (124, 125) and found[2:] == [255, 255]


def test_baselines_predict_every_example_by_the_classifier_that_they_kept(
    workdir, tmp_path
):
    """Healthy lung is darker than the mean of both."""
    name = "baseline-mean_grey-seed0-fraction1-fold0.npz"
    row = {"arm": "mean_grey", "seed": 0, "fraction": 1.0, "fold": 0, "key": "k"}
    results = json.loads((workdir / "results.json").read_text())
    results["baselines"] = [
        {**row, "predictions": f"predictions/{name}"},
        {**row, "predictions": "predictions/lost.npz", "arm": "descriptors"},
    ]
    (workdir / "results.json").write_text(json.dumps(results))
    middle = ((chest.HEALTHY_HU + chest.DISEASED_HU) / 2 + 600 + 750) / 1500
    (workdir / "baselines").mkdir()
    np.savez(
        workdir / "baselines" / name, layer="mean", weights=[[0.0, 100.0]],
        bias=[0, -100 * middle], classes=[0, 1], source="", mean=[], deviation=[],
    )  # fmt: skip
    out = external.score(workdir, write_set(tmp_path / "hospital"), tmp_path / "data")
    with np.load(out / name) as saved:
        np.testing.assert_array_equal(saved["probabilities"].argmax(1), saved["labels"])
    # An earlier version did not keep the classifier of the other one.
    assert json.loads((out / "set.json").read_text())["baselines"] == {name: "k"}


def test_patients_that_the_networks_were_trained_on_are_shared(workdir, tmp_path):
    folder, data = write_set(tmp_path / "hospital"), tmp_path / "data"
    out = external.score(workdir, folder, data)
    assert json.loads((out / "set.json").read_text())["training_known"] is False
    (lineage,) = workdir.glob("stages/*/lineage.json")
    np.savez(lineage.with_name(artifacts.TRAINED), groups=np.array(["p1", "p2", "q"]))
    described = json.loads(
        (external.score(workdir, folder, data) / "set.json").read_text()
    )
    assert described["training_known"] is True and described["shared_patients"] == 3


def test_classes_that_the_study_lacks_are_refused(workdir, tmp_path):
    folder = write_set(tmp_path / "other", ("normal", "tumour"))
    with refused_at("--external"):
        external.score(workdir, folder, tmp_path / "data")


def test_the_set_of_the_training_is_refused(workdir, tmp_path):
    folder = write_set(tmp_path / "again")
    out = external.score(workdir, folder, tmp_path / "data")
    described = json.loads((out / "set.json").read_text())
    (path,) = workdir.glob("stages/*/lineage.json")
    lineage = json.loads(path.read_text())
    lineage["data"]["fingerprint"] = described["fingerprint"]
    path.write_text(json.dumps(lineage))
    with refused_at("--external"):
        external.score(workdir, folder, tmp_path / "data")


def test_a_workdir_without_results_is_refused(tmp_path):
    with refused_at("--run"):
        external.score(tmp_path, tmp_path, tmp_path)


def test_pixels_of_another_size_than_those_of_the_target_are_refused(workdir, tmp_path):
    sets = {}
    for patient, spacing in (("p1", 0.5), ("p2", 0.5), ("p3", 1.0)):
        source = tmp_path / patient
        (source / "rois").mkdir(parents=True)
        write_ct(
            source / "a", np.zeros((64, 64), np.int16), PatientID=patient,
            SeriesInstanceUID=f"{SERIES}.{patient[1]}",
        )  # fmt: skip
        labels = np.repeat(np.uint8([1, 2]), 32)[:, None].repeat(64, 1)
        np.save(source / "rois" / "a.npy", labels)
        sets[patient] = out = tmp_path / "sets" / patient
        prepare_command.prepare(
            source=str(source), out=str(out), classes="normal,ground_glass",
            patch=chest.WINDOW, spacing=spacing, lungs="off", workers=1,
        )  # fmt: skip
    # Nothing is known of the pixels of a folder of images.
    assert external.score(workdir, sets["p3"], tmp_path / "data").is_dir()
    (path,) = workdir.glob("stages/*/lineage.json")
    lineage = json.loads(path.read_text())
    lineage["settings"]["data"].update(
        source="prepared", options={"path": str(sets["p1"])}
    )
    trained_on = json.loads((sets["p1"] / "dataset.json").read_text())
    lineage["data"]["fingerprint"] = trained_on["fingerprint"]
    path.write_text(json.dumps(lineage))
    assert external.score(workdir, sets["p2"], tmp_path / "data").is_dir()
    with refused_at("--external"):
        external.score(workdir, sets["p3"], tmp_path / "data")
