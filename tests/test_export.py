"""The command `export`: weights of a chosen run, their header, and the card."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
import yaml
from basics import refused_at
from safetensors import safe_open
from study_files import HOSTILE, write_study

from twostage_jax import export, models
from twostage_jax.models import pretrained
from twostage_jax.report import analysis, card, study_table
from twostage_jax.train import checkpoint

CHANCES = {"scratch": 0.75, "two_stage": 0.9}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study's workdir, and the variables of its two-stage run of seed 1."""
    workdir = write_study(
        tmp_path_factory.mktemp("run"), CHANCES, seeds=(0, 1), classes=HOSTILE, rich=True,
        patients=8, patches=12, baselines={"mean_grey": 0.5, "descriptors": 0.8},
    )  # fmt: skip
    module = models.build("caffenet_small", num_classes=3)
    variables = models.init(module, jax.random.key(0), 32, 1)
    row = json.loads(next(workdir.glob("rows/two_stage-seed1-*")).read_text())
    home = workdir / "stages" / row["stage_runs"][-1]
    checkpoint.export_variables(home / "variables", variables)
    return workdir, module, variables, home


def assert_same(one, other):
    flat = [
        {place: np.asarray(a) for place, a in pretrained.flat(tree).items()}
        for tree in (one, other)
    ]
    assert flat[0].keys() == flat[1].keys()
    assert all(np.array_equal(flat[0][place], flat[1][place]) for place in flat[0])


@pytest.mark.parametrize("suffix", pretrained.WRITERS)
def test_weights_of_the_chosen_run_are_read_back_bit_by_bit(study, tmp_path, suffix):
    workdir, module, variables, _ = study
    path = tmp_path / f"model{suffix}"
    export.export(run=str(workdir), arm="two_stage", seed=1, to=str(path))
    loaded = pretrained.load(path, module, image_size=32, channels=1)
    assert_same(loaded, variables)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.md"]


def test_header_says_how_to_use_the_weights(study, tmp_path):
    workdir, _, _, home = study
    path = tmp_path / "model.safetensors"
    export.export(run=str(home), to=str(path))
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    assert header["format"] == "pt" and header["normalise"] == "fixed"
    assert json.loads(header["classes"]) == list(HOSTILE)
    assert json.loads(header["window_hu"]) == [-600, 1500]
    assert json.loads(header["model"])["name"] == "caffenet_small"
    assert (header["channels"], header["image_size"]) == ("1", "32")
    assert header["run"].startswith(home.name.rsplit("-", 1)[1])
    export.export(run=str(home), to=str(tmp_path / "model.npz"))
    with np.load(tmp_path / "model.npz") as file:
        assert json.loads(str(file["metadata"]))["classes"] == list(HOSTILE)


def test_card_has_the_scores_of_the_report_and_escapes_names(study, tmp_path):
    workdir, *_, home = study
    export.export(run=str(workdir), seed=1, to=str(tmp_path / "model.npz"))
    text = (tmp_path / "model.npz.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    (index,) = yaml.safe_load(front)["model-index"]
    values = {m["type"]: m["value"] for m in index["results"][0]["metrics"]}
    full = analysis.analyse(study_table.load([workdir]), resamples=200).full
    score = full.scores.intervals["balanced_accuracy"]["two_stage"].estimate
    # The header is about these weights, the table about the networks of all seeds.
    own = json.loads((home / "lineage.json").read_text())["scores"]
    assert values["balanced_accuracy"] == round(own["balanced_accuracy"], 4)
    assert "| two-stage" in body and f"{100 * score:.1f} (" in body
    assert "best of 2 baselines: descriptors" in body and "mean-grey" not in body
    assert (
        "low -1350 and width 1500" in body and "Subtract 0.5 and divide by 0.25" in body
    )
    assert "\\<img src=x" in body and "\\\\input{y}" in body
    assert "<img" not in body.replace("\\<img", "")


@pytest.mark.parametrize(
    ("spacing", "told"), [(0.7, "resampled to 0.7 mm"), (None, "without resampling")]
)
def test_header_and_card_state_the_spacing_of_ct_slices(study, tmp_path, spacing, told):
    *_, home = study
    path, saved = home / "lineage.json", (home / "lineage.json").read_text()
    lineage = json.loads(saved)
    lineage["settings"]["data"] |= {"source": "dicom"}
    lineage["settings"]["data"]["options"] = {"spacing": spacing} if spacing else {}
    path.write_text(json.dumps(lineage))
    try:
        export.export(run=str(home), to=str(tmp_path / "model.npz"))
    finally:
        path.write_text(saved)
    assert told in (tmp_path / "model.npz.md").read_text(encoding="utf-8")
    header = pretrained.header(tmp_path / "model.npz")
    assert header["spacing_mm"] == (spacing or 0)


def test_card_says_that_its_scores_are_of_averaged_predictions(study, tmp_path):
    *_, home = study
    path, saved = home / "lineage.json", (home / "lineage.json").read_text()
    lineage = json.loads(saved)
    lineage["settings"]["augment"] = {"flip": "dihedral", "average": True}
    texts = []
    try:
        for text in (saved, json.dumps(lineage)):
            path.write_text(text)
            export.export(run=str(home), to=str(tmp_path / "model.npz"))
            texts.append((tmp_path / "model.npz.md").read_text(encoding="utf-8"))
    finally:
        path.write_text(saved)
    assert ["8 orientations of each image" in text for text in texts] == [False, True]


def test_card_of_an_onnx_file_says_how_to_get_the_logits(study, tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    workdir, module, variables, _ = study
    monkeypatch.chdir(tmp_path)
    export.export(run=str(workdir), seed=1, to="model.onnx")
    card = (tmp_path / "model.onnx.md").read_text(encoding="utf-8")
    images = np.random.default_rng(0).normal(size=(5, 32, 32, 1)).astype(np.float32)
    names = {"images": images}
    (block,) = card.split("```python\n")[1:]
    exec(block.split("```")[0], names)
    expected, _ = module.apply(variables, images, train=False)
    np.testing.assert_allclose(names["logits"], expected, rtol=1e-4, atol=1e-4)


def test_onnx_without_its_libraries_is_refused(study, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refused_at(tmp_path / "model.onnx"):
        export.export(run=str(study[0]), seed=1, to=str(tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())


def test_imported_weights_are_named_with_their_origin(study, tmp_path):
    workdir, _, _, home = study
    first = (
        workdir / "stages" / json.loads((home / "lineage.json").read_text())["chain"][0]
    )
    path, saved = first / "lineage.json", (first / "lineage.json").read_text()
    imported = {"file": "resnet18 [a].pth", "sha256": "f" * 64, "licence": "bsd [x]"}
    before = {"file": "rgb.npz", "sha256": "e" * 64, "licence": None}
    told = {**imported, "started_from": [before]}
    path.write_text(json.dumps({**json.loads(saved), "imported": told}))
    try:
        export.export(run=str(home), to=str(tmp_path / "model.npz"))
    finally:
        path.write_text(saved)
    text = (tmp_path / "model.npz.md").read_text(encoding="utf-8")
    assert f"resnet18 \\[a].pth (SHA-256 {'f' * 64})" in text
    assert "bsd \\[x]" in text and "random parameters" not in text
    assert f"They were trained from the file rgb.npz (SHA-256 {'e' * 64})" in text
    header = pretrained.header(tmp_path / "model.npz")
    assert header["started_from"] == [imported, before]
    (row,) = [line for line in text.splitlines() if line.startswith("| natural ")]
    # Its settings of training have no effect.
    assert [cell.strip() for cell in row.split("|")][6] == "–"


def test_a_run_without_its_earlier_stages_claims_nothing_about_them(study, tmp_path):
    *_, home = study
    alone = tmp_path / "elsewhere" / home.name
    shutil.copytree(home, alone)
    chain = json.loads((home / "lineage.json").read_text())["chain"]
    texts = []
    for run in (home, alone):
        export.export(run=str(run), to=str(tmp_path / "model.npz"))
        texts.append((tmp_path / "model.npz.md").read_text(encoding="utf-8"))
    assert ["without third-party weights" in text for text in texts] == [True, False]
    assert ["third-party weights is not known" in text for text in texts] == [
        False,
        True,
    ]
    assert all(name in texts[1].replace("\\", "") for name in chain[:-1])


def test_source_stage_does_not_take_the_scores_of_an_arm_of_its_name(
    tmp_path_factory, tmp_path
):
    workdir = write_study(
        tmp_path_factory.mktemp("run"),
        {"scratch": 0.75, "natural": 0.9},
        seeds=(0, 1),
        patients=8,
        patches=12,
        rich=True,
    )
    (home, *_) = workdir.glob("stages/natural-*")
    page = card.page(home, "natural", "model.npz", "")
    front = yaml.safe_load(page.split("---\n", 2)[1])
    assert "model-index" not in front
    end = json.loads(next(workdir.glob("rows/natural-*")).read_text())["stage_runs"][-1]
    page = card.page(workdir / "stages" / end, "natural", "model.npz", "")
    assert "model-index" in yaml.safe_load(page.split("---\n", 2)[1])


def test_licence_is_stated_where_it_is_known(study, tmp_path):
    workdir, *_ = study
    for licence, stated in (("", "unknown"), ("cc-by-4.0: yes", "cc-by-4.0: yes")):
        path = tmp_path / "model.safetensors"
        export.export(run=str(workdir), seed=1, to=str(path), licence=licence)
        front = (
            path.with_name(f"{path.name}.md")
            .read_text(encoding="utf-8")
            .split("---\n", 2)[1]
        )
        assert yaml.safe_load(front)["license"] == stated
        assert pretrained.header(path).get("license", "") == licence


def test_stage_run_outside_of_a_study_has_a_card_without_intervals(study, tmp_path):
    *_, home = study
    moved = tmp_path / "alone" / home.name
    moved.parent.mkdir()
    moved.symlink_to(home)
    export.export(run=str(moved), to=str(tmp_path / "model.npz"))
    assert "intervals are unavailable" in (tmp_path / "model.npz.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("flags", "where"),
    [
        ({"to": "model.pth"}, "--to"),
        ({"to": "model.npz", "seed": 7}, "--seed"),
        ({"to": "model.npz", "arm": "natural"}, "--arm"),
        ({"to": "model.npz", "fold": 1}, "--fold"),
    ],
)
def test_what_cannot_be_exported_is_refused_by_its_flag(study, tmp_path, flags, where):
    flags["to"] = str(tmp_path / flags["to"])
    with refused_at(where):
        export.export(run=str(study[0]), **flags)
    assert not list(tmp_path.iterdir())
