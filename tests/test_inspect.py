"""The plan of a study, shown without training."""

import jax
import numpy as np
import public_networks
import pytest
from basics import refused_at
from flax import serialization
from safetensors.numpy import save_file
from small_study import parsed

from twostage_jax import models
from twostage_jax.errors import UserError
from twostage_jax.study import plan
from twostage_jax.train import checkpoint

GREY = ("params/conv1/kernel", "rgb_to_grey")


def exported(folder, **changes):
    """Exports variables of the natural stage's shapes; returns the run's folder."""
    config = parsed(**changes)
    classes = plan.num_classes(config, "natural")
    checkpoint.export_variables(
        folder / "variables", plan.fresh_variables(config, "natural", classes)
    )
    return folder


@pytest.fixture
def shapes_alone(monkeypatch):
    """No random numbers are drawn: the network's shapes decide."""

    def zeros(module, key, size, channels):
        shapes = models.shapes(module, size, channels)
        return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)

    monkeypatch.setattr(models, "init", zeros)


def test_tree_shows_every_arm_and_each_hand_over_once(tiny):
    config = parsed(**{"model.name": tiny})
    arms, *hand_overs = plan.tree(config).split("\n\n")
    assert arms.splitlines() == [
        "scratch: target",
        "natural: natural > target",
        "texture: texture > target",
        "two_stage: natural > texture > target",
    ]
    titles = [text.splitlines()[0] for text in hand_overs]
    assert sorted(titles) == [
        "natural > target",
        "natural > texture",
        "texture > target",
    ]
    for text in hand_overs:
        rows = [line.split() for line in text.splitlines()[2:]]
        actions = {
            row[0]: row[1] for row in rows if row[0].startswith(("params", "bat"))
        }
        assert actions.pop("params/head/kernel") == "init"
        assert actions.pop("params/head/bias") == "init"
        assert "batch_stats/norm1/mean" in actions and set(actions.values()) == {"copy"}
        # 12 kinds of natural image, 16 materials, 7 tissues.
        heads = {"natural": "(8, 12)", "texture": "(8, 16)", "target": "(8, 7)"}
        before, after = text.splitlines()[0].split(" > ")
        [head] = [line for line in text.splitlines() if "params/head/kernel" in line]
        assert head.index(heads[before]) < head.index(heads[after])


def test_colour_source_needs_the_rule_that_makes_it_grey(shapes_alone, tmp_path):
    folder = exported(tmp_path, **{"model.channels": 3})
    with refused_at("config.stages.target.transfer") as refused:
        plan.transfer_from(parsed(), folder, "target")
    assert "conv1/kernel" in str(refused.value) and "rgb_to_grey" in str(refused.value)
    config = parsed(**{"stages.target.transfer.rules": (GREY,)})
    table = plan.transfer_from(config, folder, "target")
    assert "changed 1 (conv1: rgb_to_grey)" in table
    # The folder of the variables themselves does as well.
    assert plan.transfer_from(config, folder / "variables", "target") == table


def test_source_of_another_program_is_planned_and_its_place_is_named(
    shapes_alone, tmp_path
):
    config = parsed()
    variables = plan.fresh_variables(config, "natural", 5)
    saved = {"state": variables, "step": 3}
    (tmp_path / "saved").write_bytes(serialization.to_bytes(saved))
    place, table = plan.transfer_from(config, tmp_path / "saved", "target").split(
        "\n", 1
    )
    assert "state" in place
    own = exported(tmp_path / "own", **{"model.channels": 1})
    rows = plan.transfer_from(config, own, "target").splitlines()
    copied = {row.split()[0] for row in rows if " copy " in row}
    assert copied == {row.split()[0] for row in table.splitlines() if " copy " in row}


def test_source_of_another_image_size_needs_a_rule_for_its_grid(shapes_alone, tmp_path):
    dense = {"model.head": "dense"}
    folder = exported(tmp_path, **dense, **{"model.image_size": 48})
    with refused_at("config.stages.target.transfer") as refused:
        plan.transfer_from(parsed(**dense), folder, "target")
    assert "fc6/kernel" in str(refused.value) and "resize_dense" in str(refused.value)
    rules = (("params/fc6/kernel", "resize_dense:96"),)
    config = parsed(**dense, **{"stages.target.transfer.rules": rules})
    table = plan.transfer_from(config, folder, "target")
    assert "changed 1 (fc6: resize_dense:96)" in table


def test_unknown_stage_is_asked_back(tmp_path):
    with refused_at("--stage") as refused:
        plan.transfer_from(parsed(), tmp_path, "targt")
    assert "'target'" in str(refused.value)


def test_folder_without_variables_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError) as refused:
        plan.transfer_from(parsed(), tmp_path / "nothing", "target")
    assert refused.value.where == str(tmp_path / "nothing")
    assert "\n" not in str(refused.value)


def test_public_weights_are_planned_into_a_stage(shapes_alone, tmp_path):
    path = tmp_path / "resnet18.safetensors"
    save_file(public_networks.arrays("resnet18"), path)
    model = {"model.name": "resnet18", "model.channels": 3, "model.head": ""}
    table = plan.transfer_from(parsed(**model), path, "texture")
    assert "stage4_block2/conv2/kernel" in table
    table = plan.transfer_from(
        parsed(**{**model, "model.channels": 1}), path, "texture"
    )
    [stem] = [line for line in table.splitlines() if "stem_conv" in line]
    assert stem.count("(7, 7, 1, 64)") == 2
