"""The config files that start from public weights, fully planned."""

import caffe_files
import jax
import numpy as np
from basics import make_dataset
from safetensors.numpy import save_file
from small_study import config_file

from twostage_jax import config as configs
from twostage_jax import models
from twostage_jax.models import pretrained
from twostage_jax.study import imported, plan


def planned(raw, size):
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
    config, stages = planned(raw, 64)
    assert {config.network(stage).image_size for stage in stages} == {64}
    assert stages == {"natural", "texture", "target"}
    assert {config.stages[s].data.normalise for s in stages} == {"weights"}


def test_reference_network_of_caffe(tmp_path):
    raw = config_file("paper.py")
    # A quarter of the time of 227 pixels.
    raw.model.image_size = 99
    path = caffe_files.caffenet(tmp_path / "reference.caffemodel", side=2)
    raw.stages.natural.weights = str(path)
    config, stages = planned(raw, raw.model.image_size)
    assert stages == {"natural", "texture", "target"}
    assert {config.stages[s].data.normalise for s in stages} == {"weights"}
