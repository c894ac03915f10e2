"""Stages imported from files of public weights, and the configs that start from them."""

import json

import caffe_files
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from basics import Tiny, make_dataset, refused_at
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_study import config_file, datasets, parsed
from tiny_study import TINY, tiny_studies, tiny_study

from twostage_jax import config as configs
from twostage_jax import export, models, predict
from twostage_jax.errors import UserError
from twostage_jax.explain.networks import load_arms
from twostage_jax.models import Network, convolution, layers, pretrained
from twostage_jax.study import artifacts, imported, plan
from twostage_jax.train import augment, checkpoint

__all__ = ["tiny_study"]  # A fixture.


class Public(Network):
    """A tiny network with public weights, whose first layer has a bias."""

    head: str = "dense"
    HEADS = ("dense", "orderless")

    @nn.compact
    def __call__(self, images, *, train):
        x = layers.relu(layers.Conv(4, 3, 2, 1, name="conv1")(images))
        x = layers.moments(x) if self.head == "orderless" else x.mean((1, 2))
        if self.head == "dense":
            x = nn.Dense(6, name="fc6")(x)
        logits = layers.head(self.num_classes)(x)
        return logits, {"head": logits}

    @classmethod
    def public_name(cls, layer):
        return {"conv1": "features.0", "fc6": "classifier.0", "head": "classifier.1"}[
            layer
        ]


class Normed(Network):
    """The same without a bias, but with a norm behind the first layer."""

    FIRST_LAYER = "stem_conv"

    @nn.compact
    def __call__(self, images, *, train):
        x = layers.Conv(4, 3, 2, 1, use_bias=False, name="stem_conv")(images)
        x = layers.relu(nn.BatchNorm(not train, name="stem_norm")(x))
        logits = layers.head(self.num_classes)(x.mean((1, 2)))
        return logits, {"head": logits}

    @classmethod
    def public_name(cls, layer):
        return {"stem_conv": "conv1", "stem_norm": "bn1", "head": "fc"}[layer]


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    monkeypatch.setitem(models.MODELS, "public", Public)
    monkeypatch.setitem(models.MODELS, "normed", Normed)


def settings(weights, name="public", **changes):
    """Returns the settings of a study whose natural stage is imported."""
    changes = {"stages.natural.weights": str(weights), "model.channels": 3, **changes}
    return parsed(**{**TINY, "model.name": name, "study.arms": (), **changes})


def made(path, name="public", skip=()):
    """Writes public weights, five classes; returns the path."""
    module = models.build(name, num_classes=5)
    variables = models.init(module, jax.random.key(0), 8, 3)
    arrays = pretrained.arrays(jax.tree.map(np.asarray, variables), type(module))
    save_file({k: v for k, v in arrays.items() if not k.startswith(skip)}, path)
    return path


def planned(config):
    """Returns the natural stage runs of a study, after its early checks."""
    of_stages = datasets(natural=imported.load(config, "natural"))
    rows = plan.rows(config, of_stages)
    plan.check_data(config, of_stages, rows)
    return {run.hash for run in plan.stage_runs(rows) if run.stage == "natural"}


def test_layers_that_the_file_lacks_must_be_reinitialised_by_the_next_transfer(
    tmp_path,
):
    weights = made(tmp_path / "conv.safetensors", skip="classifier")
    with pytest.raises(UserError) as error:
        planned(settings(weights))
    assert "params/fc6/kernel" in str(error.value)
    assert "params/fc6/bias" in str(error.value)
    again = {
        f"stages.{n}.transfer.reinitialise": "dense" for n in ("texture", "target")
    }
    assert planned(settings(weights, **again))
    assert planned(settings(weights, **{"model.head": "orderless"}))


def test_dense_layers_are_unused_by_an_orderless_head(tmp_path):
    weights = made(tmp_path / "whole.safetensors")
    config = settings(weights, **{"model.head": "orderless"})
    loaded = imported.load(config, "natural")
    assert set(loaded.variables["params"]) == {"conv1"}
    assert set(loaded.placed.unused) == {
        f"classifier.{k}.{leaf}" for k in (0, 1) for leaf in ("weight", "bias")
    }
    assert set(loaded.placed.missing) == {"params/head/bias", "params/head/kernel"}


def test_every_array_that_does_not_fit_is_named(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, **{"features.0.weight": np.zeros((7, 3, 3, 3)), "extra": np.ones(3)})
    with refused_at(path) as error:
        imported.load(settings(path), "natural")
    assert "features.0.weight" in str(error.value) and "extra" in str(error.value)


def test_network_without_public_weights_is_refused(tmp_path):
    weights = made(tmp_path / "whole.safetensors")
    with refused_at(weights):
        imported.load(settings(weights, "caffenet"), "natural")


def test_imported_stage_is_known_by_its_file_and_scale(tmp_path):
    first, moved, other = (tmp_path / f"{name}.safetensors" for name in "abc")
    made(first)
    moved.write_bytes(first.read_bytes())
    made(other, skip="classifier.1")
    (run,) = planned(settings(first, **{"study.seeds": (0, 1)}))
    assert planned(settings(moved)) == {run}
    assert planned(settings(first, **{"stages.natural.train.steps": 7})) == {run}
    assert planned(settings(first, **{"stages.natural.weights_mean": (0.5,)})) != {run}
    assert planned(settings(other)) != {run}


@pytest.mark.parametrize("stage", ["texture", "target"])
def test_only_the_first_stage_of_a_chain_is_imported(stage, tmp_path):
    with refused_at(f"config.stages.{stage}.weights"):
        parsed(**{f"stages.{stage}.weights": "file.npz"})


def first_response(name, found, grey):
    """Returns what follows the first layer of a network, before its ReLU."""
    images = augment.normalise(
        jnp.repeat(jnp.asarray(grey), found.mean.size, -1),
        "weights",
        found.mean,
        found.deviation,
    )
    params, statistics = (found.variables.get(k) for k in ("params", "batch_stats"))
    first = params[models.MODELS[name].FIRST_LAYER]
    response = convolution.convolve(images, first["kernel"], strides=2, pad=1)
    if name == "public":
        return response + first["bias"]
    mean, var = statistics["stem_norm"]["mean"], statistics["stem_norm"]["var"]
    return (response - mean) / np.sqrt(var)


@pytest.mark.parametrize("name", ["public", "normed"])
def test_folded_first_layer_responds_to_grey_images_as_three_channels_do(
    name, tmp_path
):
    weights = made(tmp_path / "whole.safetensors", name)
    grey = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    colour, folded = (
        first_response(
            name,
            imported.load(
                settings(weights, name, **{"model.channels": channels}), "natural"
            ),
            grey,
        )
        for channels in (3, 1)
    )
    # The first row and column of windows reach past the border.
    np.testing.assert_allclose(colour[:, 1:, 1:], folded[:, 1:, 1:], atol=1e-5)
    assert np.abs(colour - folded).max() > 1e-3


def test_first_layer_without_anything_to_take_the_constant_is_not_folded(tmp_path):
    weights = made(tmp_path / "no_norm.safetensors", "normed", skip="bn1")
    with refused_at(weights):
        imported.read(
            weights, settings(weights, "normed", **{"model.channels": 1}).model
        )


def test_scale_of_public_weights_is_printed_and_must_be_that_of_unit_images(tmp_path):
    weights = made(tmp_path / "whole.safetensors")
    model = settings(weights).model
    (assumed,) = imported.read(weights, model).notes
    assert "0.485, 0.456, 0.406" in assumed and "assumed" in assumed
    (given,) = imported.read(weights, model, (0.5,), (0.25,)).notes
    assert "0.5, 0.5, 0.5" in given and "assumed" not in given
    for mean, deviation in (((123.7,), (0.2,)), ((0.5,), (58.4,))):
        with refused_at(weights):
            imported.read(weights, model, mean, deviation)


def test_plan_shows_the_import_and_a_change_of_the_scale(tmp_path):
    weights = made(tmp_path / "whole.safetensors")
    changes = {"model.head": "orderless", "model.image_size": 32}
    changes["study.arms"] = ("two_stage",)
    text = plan.tree(settings(weights, **changes))
    assert "natural: unused: classifier.0.bias, classifier.0.weight" in text
    assert "0.485, 0.456, 0.406" in text
    assert "normalisation: 'natural' used 'weights'" in text
    same = {f"stages.{s}.data.normalise": "weights" for s in ("texture", "target")}
    assert "normalisation:" not in plan.tree(settings(weights, **changes, **same))


def targets(workdir):
    """Returns the lineages of the target stages."""
    return sorted(workdir.glob("stages/target-*/lineage.json"))


def test_arms_without_the_import_see_images_at_its_scale(tmp_path):
    """Else, they would differ from the others in more than their training."""
    weights = made(tmp_path / "conv.safetensors", skip="classifier.1")
    changes = {f"stages.{s}.data.normalise": "weights" for s in ("texture", "target")}
    imagenet, half = (0.485, 0.456, 0.406), (0.5, 0.5, 0.5)
    hashes = {}
    for given, expected in (((), imagenet), (imagenet, imagenet), ((0.5,), half)):
        config = settings(weights, **changes, **{"stages.natural.weights_mean": given})
        every = datasets(natural=imported.load(config, "natural"))
        runs = {row.arm: row.candidates[0] for row in plan.rows(config, every)}
        for run in runs.values():
            mean, _ = plan.scale(config, every, run)
            np.testing.assert_allclose(mean, expected, rtol=1e-6)
        hashes[given] = {arm: run.hash for arm, run in runs.items()}
    assert hashes[()] == hashes[imagenet]
    assert all(hashes[()][arm] != hashes[0.5,][arm] for arm in hashes[()])


def test_study_with_an_imported_stage(tiny_study, tmp_path):
    weights = made(tmp_path / "conv.safetensors", skip="classifier.1")
    changes = {
        "model.name": "public",
        "model.channels": 3,
        "stages.natural.weights": str(weights),
        "stages.natural.weights_mean": (0.1, 0.2, 0.3),
        "stages.texture.data.normalise": "weights",
        "study.arms": ("two_stage",),
        "study.seeds": (1,),
        "study.side_by_side": 1,
        "study.baselines": ("frozen",),
    }
    tiny_study(tmp_path / "run", **changes)
    (natural,) = (tmp_path / "run" / "stages").glob("natural-*")
    lineage = json.loads((natural / "lineage.json").read_text())
    assert lineage["imported"]["licence"] is None
    # A licence that is stated later changes no result, but the record.
    changes["stages.natural.weights_licence"] = "bsd-3-clause"
    trained = {p: p.stat().st_mtime_ns for p in targets(tmp_path / "run")}
    found = tiny_study(tmp_path / "run", **changes)
    assert trained == {p: p.stat().st_mtime_ns for p in targets(tmp_path / "run")}
    assert {row["arm"] for row in found["baselines"]} == {"frozen_natural_texture"}
    lineage = json.loads((natural / "lineage.json").read_text())
    assert lineage["imported"]["licence"] == "bsd-3-clause"
    assert lineage["data"]["class_names"] == []
    assert lineage["imported"]["names"]["params/conv1/kernel"] == "features.0.weight"
    exported = checkpoint.load_variables(natural / "variables")
    assert set(exported["params"]) == {"conv1", "fc6", "head"}
    for texture in (tmp_path / "run" / "stages").glob("texture-*"):
        report = json.loads((texture / "transfer.json").read_text())
        lineage = json.loads((texture / "lineage.json").read_text())
        assert report["notes"] == []
        np.testing.assert_allclose(lineage["data"]["mean"], [0.1, 0.2, 0.3], rtol=1e-6)
    with refused_at(natural):
        export.export(run=str(natural), to=str(tmp_path / "a.npz"))
    with refused_at(natural):
        predict.predict(run=str(natural), dicom=str(tmp_path), out=str(tmp_path))
    (network,) = load_arms(tmp_path / "run")["two_stage"]
    # Those of explain belong to a seed, which an imported stage has not.
    assert network.seed == network.parent.seed == network.parent.parent.seed == 1
    for target in (tmp_path / "run" / "stages").glob("target-*"):
        assert json.loads((target / "transfer.json").read_text())["notes"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports of a target stage, scaled by its own data, and the stage run."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        changes = {"study.seeds": (0,), "stages.target.data.normalise": "dataset"}
        tiny_studies(patch)(folder / "run", **changes)
        paths = [folder / "model.safetensors", folder / "model.npz"]
        for path in paths:
            export.export(run=str(folder / "run"), to=str(path), licence="cc-by-4.0")
    return paths, artifacts.find(folder / "run")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)


def of_export(path, **changes):
    return settings(path, "tiny", **{"model.channels": 1, **changes})


@pytest.mark.parametrize("number", [0, 1])
def test_own_export_brings_its_scale_its_classes_and_its_licence(
    exported, tiny, number
):
    paths, run = exported
    loaded = imported.load(of_export(paths[number]), "natural")
    assert run.mean != (0.5,)
    np.testing.assert_array_equal(loaded.mean, np.float32(run.mean))
    np.testing.assert_array_equal(loaded.deviation, np.float32(run.deviation))
    assert loaded.class_names == run.class_names
    assert loaded.stated.licence == "cc-by-4.0"
    trained = checkpoint.load_variables(run.folder / "variables")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, trained)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("weights_mean", (0.485,)),
        ("weights_deviation", (0.229,)),
        ("weights_licence", "mit"),
    ],
)
def test_settings_that_an_export_contradicts_are_refused(
    exported, tiny, setting, value
):
    setting = f"stages.natural.{setting}"
    with refused_at(f"config.{setting}"):
        imported.load(of_export(exported[0][0], **{setting: value}), "natural")


def test_settings_that_an_export_states_are_accepted(exported, tiny):
    paths, run = exported
    given = {
        "stages.natural.weights_mean": run.mean,
        "stages.natural.weights_deviation": run.deviation,
        "stages.natural.weights_licence": "cc-by-4.0",
    }
    imported.load(of_export(paths[0], **given), "natural")


def rewritten(path, to, **changes):
    """Writes a copy of an export with other facts in its header."""
    header = {**pretrained.header(path), **changes}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    save_file(load_file(path), to, texts)
    return to


def test_export_names_the_weights_it_was_trained_from(exported, tiny, tmp_path):
    before = {"file": "radimagenet.pth", "sha256": "e" * 64, "licence": "cc-by-nc-4.0"}
    path = rewritten(
        exported[0][0], tmp_path / "own.safetensors", started_from=[before]
    )
    loaded = imported.load(of_export(path), "natural")
    assert any("radimagenet.pth" in n and "cc-by-nc-4.0" in n for n in loaded.notes)
    assert imported.lineage(loaded)["imported"]["started_from"] == [before]


@pytest.mark.parametrize("given", ["mean", "deviation"])
def test_half_a_scale_is_completed_and_the_assumed_half_is_named(tmp_path, given):
    weights = made(tmp_path / "a.safetensors")
    change = {f"stages.natural.weights_{given}": (0.4,)}
    (note,) = imported.load(settings(weights, **change), "natural").notes
    assumed = {"mean": "deviation", "deviation": "mean"}[given]
    assert f"weights_{assumed}" in note and f"weights_{given}" not in note


def test_export_of_another_network_with_the_same_arrays_is_refused(
    exported, tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(models.MODELS, "twin", Tiny)
    path = exported[0][0]
    other = {**pretrained.header(path)["model"], "name": "twin"}
    path = rewritten(path, tmp_path / "twin.safetensors", model=other)
    with refused_at(path):
        imported.load(of_export(path), "natural")


def test_header_that_cannot_be_read_is_refused(exported, tiny, tmp_path):
    path = rewritten(exported[0][0], tmp_path / "a.safetensors", mean="half")
    with refused_at(path):
        imported.load(of_export(path), "natural")


def with_header(path, copy, **changes):
    """Writes a copy of an export whose header has other values; returns its path."""
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in changes.items()}
    save_file(load_file(path), copy, {**header, **texts})
    return copy


@pytest.mark.parametrize(
    "changes",
    [
        {"deviation": [0.0]}, {"deviation": [-1.0]}, {"mean": [float("nan")]},
        {"window_hu": [1]}, {"model": {"name": "nope"}}, {"model": []}, {"classes": 3},
    ],
)  # fmt: skip
def test_header_with_impossible_values_is_refused(changes, exported, tiny, tmp_path):
    path = with_header(exported[0][0], tmp_path / "a.safetensors", **changes)
    with refused_at(path):
        imported.load(of_export(path), "natural")


def test_header_of_a_later_version_is_read(exported, tiny, tmp_path):
    with safe_open(exported[0][0], "numpy") as file:
        model = json.loads(file.metadata()["model"])
    path = with_header(
        exported[0][0], tmp_path / "a.safetensors", model={**model, "new_field": 1}
    )
    assert imported.load(of_export(path), "natural").class_names


def test_weights_of_several_windows_keep_their_channels(exported, tiny, tmp_path):
    path = with_header(
        exported[0][0], tmp_path / "a.safetensors", window_hu=[-600, 1500, 40, 400]
    )
    with refused_at(path):
        imported.load(of_export(path, **{"model.channels": 3}), "natural")
    path = with_header(
        exported[0][0], tmp_path / "b.safetensors", window_hu=[-600, 1500]
    )
    assert imported.load(of_export(path, **{"model.channels": 3}), "natural")


def test_weights_of_standardised_images_are_not_scaled_by_a_mean(
    exported, tiny, tmp_path
):
    path = rewritten(exported[0][0], tmp_path / "a.safetensors", normalise="patch")
    assert imported.load(of_export(path), "natural").normalise == "patch"
    for setting, value in (
        ("stages.texture.data.normalise", "weights"),
        ("stages.natural.weights_mean", (0.5,)),
    ):
        with refused_at(f"config.{setting}"):
            imported.load(of_export(path, **{setting: value}), "natural")


def test_licence_of_a_public_file_is_the_setting_or_its_header(tmp_path):
    path = made(tmp_path / "a.safetensors")
    assert imported.load(settings(path), "natural").stated.licence is None
    given = settings(path, **{"stages.natural.weights_licence": "mit"})
    assert imported.load(given, "natural").stated.licence == "mit"
    assert planned(given) == planned(settings(path))
    save_file(load_file(path), path, {"license": "bsd-3-clause"})
    assert imported.load(settings(path), "natural").stated.licence == "bsd-3-clause"
    with refused_at("config.stages.natural.weights_licence"):
        imported.load(given, "natural")


def fully_planned(raw, size):
    """Returns the settings and the stages that they train or import."""
    raw.study.folds = 0
    for stage in (raw.stages.texture, raw.stages.target):
        stage.data.path = "not read"
    config = configs.parse(raw)
    plan.check(config)
    groups = np.array([f"patient{i // 3}" for i in range(60)])
    datasets = {
        "natural": imported.load(config, "natural"),
        "texture": make_dataset(size=size),
        "target": make_dataset(size=size, groups=groups),
    }
    rows = plan.rows(config, datasets)
    plan.check_data(config, datasets, rows)
    return config, {run.stage for run in plan.stage_runs(rows)}


def test_resnet18_of_torchvision(tmp_path):
    raw = config_file("pretrained.py")
    network = models.MODELS[raw.model.name]
    shapes = models.shapes(network(num_classes=1000), 64, 3)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    path = tmp_path / "resnet18.safetensors"
    save_file(pretrained.arrays(zeros, network), path)
    raw.stages.natural.weights = str(path)
    config, stages = fully_planned(raw, 64)
    assert {config.network(stage).image_size for stage in stages} == {64}
    assert stages == {"natural", "texture", "target"}
    assert {config.stages[s].data.normalise for s in stages} == {"weights"}


def test_reference_network_of_caffe(tmp_path):
    raw = config_file("paper.py")
    # A quarter of the time of 227 pixels.
    raw.model.image_size = 99
    path = caffe_files.caffenet(tmp_path / "reference.caffemodel", side=2)
    raw.stages.natural.weights = str(path)
    config, stages = fully_planned(raw, raw.model.image_size)
    assert stages == {"natural", "texture", "target"}
    assert {config.stages[s].data.normalise for s in stages} == {"weights"}
