"""Small networks with random parameters and known stripes, for tests of `explain`."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from network_by_hand import random_params

from twostage_jax import models
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.train import checkpoint

CLASSES = ("across", "along", "plain")
# Of the stage runs of `write_stage`.
MODEL = {
    "name": "caffenet_small", "channels": 1, "image_size": 18, "norm": "", "head": "dense",
    "dropout": 0.0, "dtype": "float32",
}  # fmt: skip


class Narrow(models.CaffeNet):
    """A CaffeNet of a few channels; conv1 has kernels of 5, stride 2."""

    widths: tuple = (6, 6, 4, 4, 4)
    hidden: tuple = (5, 5)
    stem: tuple = (5, 2, 2)


class Signs(models.Network):
    """conv1: the image times each weight; head: their means, times weights."""

    num_classes: int = 2

    @nn.compact
    def __call__(self, images, *, train):
        conv1 = nn.Conv(3, (1, 1), use_bias=False, name="conv1")(images)
        logits = nn.Dense(self.num_classes, name="head")(conv1.reshape(len(images), -1))
        return logits, {"conv1": conv1, "head": logits}


def network(module, params, size, channels=1, arm="scratch", seed=0, parent=None):
    return Network(
        arm=arm, seed=seed, stage="target", module=module,
        variables={"params": params, "batch_stats": {}}, class_names=CLASSES,
        size=size, channels=channels, normalise="fixed",
        mean=np.full(channels, 0.5, np.float32),
        deviation=np.full(channels, 0.25, np.float32),
        parent=parent,
    )  # fmt: skip


def signs(weights=(1.0, -1.0, 0.0), size=4):
    """Returns a `Signs` network; the third channel is dead where its weight is 0."""
    params = {
        "conv1": {"kernel": np.array(weights, np.float32).reshape(1, 1, 1, 3)},
        "head": {
            "kernel": np.random.default_rng(0)
            .normal(size=(size * size * 3, 2))
            .astype(np.float32),
            "bias": np.zeros(2, np.float32),
        },
    }
    return network(Signs(), params, size)._replace(class_names=CLASSES[:2])


def caffenet(arm="scratch", seed=0, size=18, channels=1):
    """Returns a `Narrow` network with random parameters."""
    module = Narrow(num_classes=3)
    params = random_params(module, size, channels, seed=4 + seed)
    return network(module, params, size, channels, arm, seed)


def examples(count=12, size=18, channels=1, labels=True):
    """Returns stripes across, stripes along, and noise, in turn, all with noise."""
    rng = np.random.default_rng(0)
    images = rng.random((count, size, size, channels)).astype(np.float32)
    stripes = np.where(np.arange(size) % 4 < 2, 0.8, 0.2)
    images[0::3] = 0.2 * images[0::3] + 0.8 * stripes[None, :, None, None]
    images[1::3] = 0.2 * images[1::3] + 0.8 * stripes[None, None, :, None]
    return Examples(
        images, (np.arange(count) % 3).astype(np.int32) if labels else None, None,
        np.array([f"image{i:02d}" for i in range(count)]), CLASSES,
    )  # fmt: skip


def forward(network, inputs):
    """Returns logits and taps, compiled."""
    call = jax.jit(lambda v, x: network.module.apply(v, x, train=False))
    return call(network.variables, jnp.asarray(inputs))


def write_results(workdir, arms, rows):
    """Writes `results.json` of a study.

    Args:
      workdir: Folder of the study.
      arms: Arm -> names of its stages.
      rows: (arm, seed, names of its stage runs), and changes of the other fields.
    """
    place = {"fraction": 1.0, "fold": 0}
    rows = [
        {"arm": arm, "seed": seed, "stage_runs": runs, **place, **dict(*changes)}
        for arm, seed, runs, *changes in rows
    ]
    results = {"config": {"arms": arms}, "rows": rows}
    (workdir / "results.json").write_text(json.dumps(results))


def write_stage(
    home,
    seed,
    tested=range(8, 16),
    *,
    image_size=18,
    head="dense",
    redrawn=("fc7", "head"),
    average=False,
):
    """Writes a finished stage run of a CaffeNet of a few channels, tested on such ids.

    Its transfer re-initialised the layers `redrawn`; its predictions are means over views
    with `average`.

    Returns:
      Its variables.
    """
    stage = home.name.split("-")[0]
    lineage = {
        "stage": stage,
        "chain": [home.name],
        "hash": "ab" * 32,
        "seed": seed,
        "fraction": 1.0,
        "fold": 0,
        "settings": {
            "data": {
                "source": "dicom", "validation": 0.2, "test": 0.25,
                "normalise": "patch", "window": [-600.0, 1500.0],
                "options": {"path": "anywhere"},
            },
            "augment": {"flip": "dihedral", "average": average},
        },
        "model": {**MODEL, "image_size": image_size, "head": head},
        "data": {
            "name": "made", "class_names": ["a", "b", "c"], "fingerprint": "f",
            "examples": {"train": 8}, "mean": [0.4], "deviation": [0.2],
        },
    }  # fmt: skip
    home.mkdir(parents=True)
    seed += len(home.name)
    variables = caffenet(seed=seed, size=image_size).variables
    if head == "orderless":  # Its normalisation has statistics as well.
        module = caffenet().module.clone(head=head)
        variables = models.init(module, jax.random.key(seed), image_size, 1)
    checkpoint.export_variables(home / "variables", variables)
    rows = [
        {"path": f"params/{layer}/{name}", "action": action}
        for layer, arrays in variables["params"].items()
        for name in arrays
        for action in ["init" if layer in redrawn else "copy"]
    ]
    (home / "transfer.json").write_text(json.dumps({"rows": rows}))
    (home / "lineage.json").write_text(json.dumps(lineage))
    np.savez(home / "predictions.npz", ids=[f"id{i:02d}" for i in tested])
    return variables
