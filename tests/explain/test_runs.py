"""The networks of a study's folder, and the images to explain."""

import numpy as np
import pytest
from basics import refused_at
from explained import Narrow, caffenet, write_results, write_stage
from PIL import Image

from twostage_jax import models
from twostage_jax.data.dataset import Dataset
from twostage_jax.explain import images, networks
from twostage_jax.train import checkpoint

ARMS = {"scratch": ["target"], "natural": ["natural", "target"], "texture": ["target"]}
# (arm, seed) -> its stage runs; 'texture' was not trained.
CHAINS = {
    ("scratch", 1): ["target-s1"],
    ("scratch", 0): ["target-s0"],
    ("natural", 0): ["natural-0", "target-n0"],
}


def target_data(fingerprint="f"):
    """16 HU images of 20 pixels, whose number is their value; the last is constant."""
    stored = np.zeros((16, 20, 20, 1), np.int16)
    stored += np.arange(16, dtype=np.int16).reshape(-1, 1, 1, 1) * 50 - 1300
    stored[:15, 5] += 100
    return Dataset(
        name="made", kind="ct", class_names=("a", "b", "c"), images=stored,
        labels=(np.arange(16) % 3).astype(np.int32),
        groups=np.array([f"patient{i // 4}" for i in range(16)]),
        ids=np.array([f"id{i:02d}" for i in range(16)]),
        splits=np.array(["train"] * 16), fingerprint=fingerprint,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir of a study, and the variables of its stage runs."""
    workdir, written, rows = tmp_path_factory.mktemp("run"), {}, []
    for (arm, seed), chain in CHAINS.items():
        for name in chain:
            written[name] = write_stage(workdir / "stages" / name, seed)
        rows += [
            (arm, seed, chain),
            (arm, seed, ["not-there"], {"fraction": 0.5}),
            (arm, seed, ["not-there"], {"fold": 1}),
        ]
    write_results(workdir, ARMS, rows)
    return workdir, written


def test_networks_come_by_arm_and_seed_with_what_they_came_from(made):
    workdir, written = made
    arms = networks.load_arms(workdir)
    assert {arm: [n.seed for n in of_arm] for arm, of_arm in arms.items()} == {
        "scratch": [0, 1],
        "natural": [0],
    }
    assert arms["scratch"][1].parent is None
    last = arms["natural"][0]
    assert (last.stage, last.parent.stage, last.parent.arm) == (
        "target", "natural", "natural",
    )  # fmt: skip
    for network, name in ((last, "target-n0"), (last.parent, "natural-0")):
        for layer, arrays in written[name]["params"].items():
            for kind, array in arrays.items():
                found = network.variables["params"][layer][kind]
                np.testing.assert_array_equal(found, array)
    assert last.redrawn == {"fc7", "head"} and not last.parent.redrawn
    assert last.normalise == "patch"
    np.testing.assert_allclose((last.mean, last.deviation), [[0.4], [0.2]])
    assert list(networks.load_arms(workdir, ["natural"])) == ["natural"]


def test_fold_and_fraction_that_were_taken_are_said(made, tmp_path):
    workdir, _ = made
    lines = networks.chosen_runs(workdir)
    assert lines == [
        "The networks were trained on 100 % of the training data, the largest of 2 "
        "fractions, in fold 0 (available: 0, 1).",
        "Arm 'natural' lacks such a run for seed 1.",
    ]
    assert len(networks.chosen_runs(workdir, ["scratch"])) == 1
    write_results(tmp_path, ARMS, [("scratch", 0, ["target-s0"], {"fraction": 0.5})])
    assert networks.chosen_runs(tmp_path) == [
        "The networks were trained on 50 % of the training data."
    ]


def test_test_images_are_those_of_the_fold_of_the_networks(made, monkeypatch, tmp_path):
    """Fold 1 comes first in the rows and has other test images."""
    for name, tested in (("target-0", [0, 1]), ("target-1", [2, 3])):
        write_stage(tmp_path / "stages" / name, 0, tested)
    rows = [("scratch", 0, [f"target-{f}"], {"fold": f}) for f in (1, 0)]
    write_results(tmp_path, ARMS, rows)
    monkeypatch.setattr(images.sources, "load", lambda *_: target_data())
    found, _ = images.test_examples(tmp_path, tmp_path)
    assert list(found) == [0] and list(found[0].ids) == ["id00", "id01"]
    (network,) = networks.load_arms(tmp_path)["scratch"]
    assert (network.source, network.path) == ("dicom", "anywhere")


def test_each_seed_is_shown_the_images_that_it_was_tested_on(monkeypatch, tmp_path):
    rows, loaded = [], []
    for seed, tested in ((2, [0, 1, 2]), (1, [3, 4, 15]), (0, [2, 1, 0])):
        for arm in ("natural", "scratch"):
            name = f"target-{arm[0]}{seed}"
            write_stage(tmp_path / "stages" / name, seed, tested)
            rows.append((arm, seed, [name]))
    write_results(tmp_path, ARMS, rows)
    monkeypatch.setattr(
        images.sources, "load", lambda *_: loaded.append("once") or target_data()
    )
    found, lines = images.test_examples(tmp_path, tmp_path)
    assert {seed: list(of_seed.ids) for seed, of_seed in found.items()} == {
        0: ["id00", "id01", "id02"],
        1: ["id03", "id04"],
        2: ["id00", "id01", "id02"],
    }
    assert list(found) == [0, 1, 2]
    assert found[0] is found[2] and loaded == ["once"]
    np.testing.assert_array_equal(found[1].labels, [0, 1])
    assert lines == ["Seed 1: Skipped constant images (1): id15."]


def test_arms_of_a_seed_tested_on_different_images_are_refused(tmp_path):
    for name, tested in (("target-s", [0, 1]), ("target-n", [0, 2])):
        write_stage(tmp_path / "stages" / name, 4, tested)
    rows = [("scratch", 4, ["target-s"]), ("natural", 4, ["target-n"])]
    write_results(tmp_path, ARMS, rows)
    with refused_at(tmp_path):
        images.test_examples(tmp_path, tmp_path)


def test_views_that_the_study_averages_and_explain_does_not_are_said(tmp_path):
    for average in (False, True):
        workdir = tmp_path / str(average)
        for name in ("natural-0", "target-n0"):
            mean = average and name == "target-n0"
            write_stage(workdir / "stages" / name, 0, average=mean)
        write_results(workdir, ARMS, [("natural", 0, ["natural-0", "target-n0"])])
        lines = networks.views_not_averaged(networks.load_arms(workdir))
        assert len(lines) == average
    assert "means over several views" in lines[0] and "centre alone" in lines[0]


def test_arms_that_are_not_there_are_named(made, tmp_path):
    workdir, _ = made
    with refused_at("--arms"):
        networks.load_arms(workdir, ["naturel"])
    with refused_at("--arms"):
        networks.load_arms(workdir, ["texture"])
    with refused_at(tmp_path):
        networks.load_arms(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    with refused_at(tmp_path / "results.json"):
        networks.load_arms(tmp_path)


def test_dense_layers_of_another_image_size_are_refused(tmp_path, monkeypatch):
    """They cannot be shown the target's images; layers of any size can."""
    monkeypatch.setitem(models.MODELS, "caffenet_small", Narrow)
    for head, where in (("dense", "--arms"), ("orderless", None)):
        workdir = tmp_path / head
        for name, size in (("natural-0", 40), ("target-n0", 18)):
            write_stage(workdir / "stages" / name, 0, image_size=size, head=head)
        write_results(workdir, ARMS, [("natural", 0, ["natural-0", "target-n0"])])
        if where:
            with refused_at(where):
                networks.load_arms(workdir)
        else:
            (network,) = networks.load_arms(workdir)["natural"]
            assert network.size == network.parent.size == 18


def test_stage_run_without_the_report_of_its_transfer_is_named(tmp_path):
    """Only that of a stage with a previous one has to be there."""
    for name in ("natural-0", "target-n0"):
        home = tmp_path / "stages" / name
        write_stage(home, 0)
        (home / "transfer.json").unlink()
    write_results(tmp_path, ARMS, [("natural", 0, ["natural-0", "target-n0"])])
    with refused_at(home / "transfer.json"):
        networks.load_arms(tmp_path)
    (home / "transfer.json").write_text('{"rows": [{}]}')
    with refused_at(home / "transfer.json"):
        networks.load_arms(tmp_path)


def test_parameters_that_are_not_finite_are_named(made, tmp_path):
    variables = caffenet().variables
    variables["params"]["conv2"]["bias"][1] = np.nan
    home = tmp_path / "stages" / "target-x"
    write_stage(home, 0)
    checkpoint.export_variables(home / "variables", variables)
    write_results(tmp_path, ARMS, [("scratch", 0, ["target-x"])])
    with refused_at(home / "variables"):
        networks.load_arms(tmp_path)


def test_test_images_are_windowed_cropped_and_not_constant(made, monkeypatch):
    workdir, _ = made
    asked = []

    def load(data, model, data_dir):
        asked.append((data.source, data.options, data_dir))
        return target_data()

    monkeypatch.setattr(images.sources, "load", load)
    found, lines = images.test_examples(workdir, workdir, ["natural"])
    assert list(found) == [0]
    examples = found[0]
    assert asked == [("dicom", {"path": "anywhere"}, workdir)]
    assert list(examples.ids) == [f"id{i:02d}" for i in range(8, 15)]
    assert examples.images.shape == (7, 18, 18, 1)
    # -1350 HU is 0 and 150 HU is 1; row 5 is row 4 of the centre.
    hu = (np.arange(8, 15) * 50 - 1300 + 1350) / 1500
    np.testing.assert_allclose(examples.images[:, 0, 0, 0], hu, rtol=1e-5)
    bright = examples.images[:, 4, 0, 0]
    np.testing.assert_allclose(bright, hu + 100 / 1500, rtol=1e-5)
    np.testing.assert_array_equal(examples.labels, np.arange(8, 15) % 3)
    assert examples.groups[0] == "patient2"
    assert lines == ["Skipped constant images (1): id15."]


def test_data_that_have_changed_are_refused(made, monkeypatch):
    monkeypatch.setattr(images.sources, "load", lambda *_: target_data("other"))
    with refused_at("dicom"):
        images.test_examples(made[0], made[0])


def write_png(path, value, size=(30, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full(size, value, np.uint8)
    image[::2] += 40
    Image.fromarray(image).save(path)


def test_a_folder_of_images_has_labels_if_its_folders_are_classes(tmp_path):
    network = caffenet()
    write_png(tmp_path / "along" / "one.png", 100)
    write_png(tmp_path / "deep" / "plain" / "two.png", 50)
    write_png(tmp_path / ".hidden" / "three.png", 50)
    (tmp_path / "notes.txt").write_text("no image")
    examples, lines = images.folder_examples(tmp_path, network)
    assert examples.images.shape == (2, 18, 18, 1) and not lines
    assert list(examples.ids) == ["along/one.png", "deep/plain/two.png"]
    np.testing.assert_array_equal(examples.labels, [1, 2])
    write_png(tmp_path / "unheard of" / "four.png", 50)
    assert images.folder_examples(tmp_path, network)[0].labels is None


def test_folders_without_images_or_without_anything_to_see_are_named(tmp_path):
    network = caffenet()
    with refused_at("--images"):
        images.folder_examples(tmp_path / "none", network)
    with refused_at("--images"):
        images.folder_examples(tmp_path, network)
    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(tmp_path / "flat.png")
    with refused_at("images"):
        images.folder_examples(tmp_path, network)
    (tmp_path / "broken.png").write_text("no image")
    with refused_at(tmp_path / "broken.png"):
        images.folder_examples(tmp_path, network)


def test_pixels_that_are_not_finite_are_named():
    examples = images.Examples(
        np.array([[[[1.0]], [[0.0]]], [[[np.nan]], [[0.0]]]]), None, None,
        np.array(["good", "bad"]), ("a",),
    )  # fmt: skip
    with refused_at("bad"):
        images.usable(examples)
