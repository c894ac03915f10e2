"""The command `explain` from its flags to its files, on a small finished study."""

import contextlib
import io
import json
import signal

import numpy as np
import pytest
from explained import Narrow, write_results, write_stage
from PIL import Image

from twostage_jax import models
from twostage_jax.explain import saliency
from twostage_jax.explain.__main__ import main

CHAINS = {
    "scratch": ["target-s"],
    "natural": ["natural-0", "target-n"],
    "texture": ["target-t"],
}
# A source stage may see smaller images than the target.
SIZES = {"natural-0": 14}


def write_images(folder, classes, count):
    """Writes noise, brighter from class to class."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(count):
            image = rng.integers(60 * i, 60 * i + 100, (18, 18)).astype(np.uint8)
            Image.fromarray(image).save(folder / name / f"{j}.png")
    return folder


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The output folder of the command, and its printed output."""
    workdir = tmp_path_factory.mktemp("run")
    for name in (name for chain in CHAINS.values() for name in chain):
        size, home = SIZES.get(name, 18), workdir / "stages" / name
        write_stage(home, 0, image_size=size, head="orderless", average=True)
    write_results(workdir, CHAINS, [(arm, 0, chain) for arm, chain in CHAINS.items()])
    shown = write_images(workdir / "shown", "abc", 2)
    textures = write_images(workdir / "wood", ("oak", "pine"), 4)
    printed, before = io.StringIO(), signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "caffenet_small", Narrow)
        # Compiling all methods takes most of a minute.
        few = {"gradient_x_input": saliency.gradient_x_input}
        patch.setattr(saliency, "SALIENCY", few)
        main(
            [
                "explain", f"--run={workdir}", "--arms=natural,scratch",
                "--layers=conv1", f"--images={shown}", f"--textures={textures}",
                "--channels=2", f"--data_dir={workdir / 'data'}",
            ]
        )  # fmt: skip
    signal.signal(signal.SIGTERM, before)
    return workdir / "explain", printed.getvalue()


def test_the_command_writes_only_the_arms_and_layers_asked_for(explained):
    out, _ = explained
    found = json.loads((out / "explain.json").read_text())
    assert found["layers"] == ["conv1"] == found["measures"]["layers"]
    assert found["arms"] == {
        "natural": {"seeds": [0], "chain": ["natural", "target"]},
        "scratch": {"seeds": [0], "chain": ["target"]},
    }
    assert set(found["measures"]["chains"]) == {"natural", "scratch"}
    assert set(found["measures"]["values"]["edge_selectivity"]["natural"]) == {
        "conv1", "all layers",
    }  # fmt: skip
    for by_arm in (found["dead_channels"], found["saliency"]["deletion"]):
        assert set(by_arm) == {"natural", "scratch"}
    assert list(found["figures"]) == [
        "strongest_conv1", "first_layer", "saliency", "deletion_insertion",
        "randomisation", "responses", "similarity", "reliance",
    ]  # fmt: skip


def test_the_command_shows_and_measures_with_the_folders_given(explained):
    out, _ = explained
    found = json.loads((out / "explain.json").read_text())
    assert found["images"]["source"] == "folder shown"
    assert found["images"]["count"] == found["measures"]["counts"]["examples"] == 6
    assert found["measures"]["textures"]["folder"] == "wood"
    assert found["measures"]["counts"]["texture_families"] == 2


def test_stages_of_smaller_images_are_shown_those_of_the_target_and_named(explained):
    out, printed = explained
    found = json.loads((out / "explain.json").read_text())
    measured = found["measures"]
    assert measured["size"] == 18
    assert measured["chains"]["natural"] == ["random", "after natural", "natural"]
    for by_layer in measured["values"]["cka"].values():
        assert all(entry["mean"] is not None for entry in by_layer.values())
    [line] = [text for text in found["chosen"] if "natural" in text]
    assert "14" in line and "18" in line and line in printed


def test_views_that_are_not_averaged_are_named(explained):
    out, printed = explained
    line = "accuracies, probabilities and maps here are those of its centre alone"
    assert line in (out / "explain.md").read_text() and line in printed


def test_the_figures_are_there_and_the_page_says_what_is_printed(explained):
    out, printed = explained
    found = json.loads((out / "explain.json").read_text())
    page = (out / "explain.md").read_text()
    for path in found["figures"].values():
        assert f"({path}.png)" in page
        for suffix in (".png", ".pdf"):
            assert (out / (path + suffix)).stat().st_size > 1000
    for text in found["words"]:
        assert text in page and text in printed
    assert "texture" not in found["arms"] and "| texture |" not in page
    assert printed.endswith(f"Written to {out}.\n")
