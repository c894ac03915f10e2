"""Writes a chest with known disease, and a stage run with known predictions."""

import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from ct_files import write_ct

from twostage_jax.maps.classify import How
from twostage_jax.models import Network
from twostage_jax.train import checkpoint, novelty

PIXEL_MM, SIZE = 3.0, 96
STUDY = {
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.2",
    "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.3",
    "PatientName": "Smith^Jane",
}
HEALTHY_HU, DISEASED_HU, THRESHOLD_HU = -850, -650, -752
# Side of the fake network's input, pixels.
WINDOW = 6


class Brightness(Network):
    """Two classes: the second if the window's mean HU is above `THRESHOLD_HU`."""

    @nn.compact
    def __call__(self, images, *, train):
        # The parameter represents all parameters that are loaded: it must be 1000.
        steepness = self.param("steepness", nn.initializers.zeros, ())
        unit = images.mean((1, 2, 3)) * 0.25 + 0.5
        hu = unit * 1500 - 1350
        above = steepness * (hu - THRESHOLD_HU)
        logits = jnp.stack([jnp.zeros_like(above), above], axis=-1)
        return logits, {"head": logits}


class Channels(Network):
    """One class per channel; predicts that of the brightest channel."""

    @nn.compact
    def __call__(self, images, *, train):
        steepness = self.param("steepness", nn.initializers.zeros, ())
        logits = steepness * images.mean((1, 2))
        return logits, {"head": logits}


def how(**changes):
    """Returns the settings of maps of that stage run, with a stride of two pixels."""
    return How(**{"stride": 2, "window": (-600.0, 1500.0), "spacing": None, **changes})


def chest(slices=3):
    """Returns HU `[Z, H, W]` int16 and the masks of lungs and of disease.

    Disease fills the back of the lung at the left of the image.
    """
    y, x = (np.indices((SIZE, SIZE)) - (SIZE - 1) / 2) * PIXEL_MM
    body = (x / 130) ** 2 + (y / 95) ** 2 <= 1
    lungs = ((np.abs(x) - 60) / 42) ** 2 + (y / 65) ** 2 <= 1
    disease = lungs & (x < 0) & (y > 0)
    hu = np.where(body, 40, -1000)
    hu[lungs] = HEALTHY_HU
    hu[disease] = DISEASED_HU
    stack = [np.broadcast_to(a, (slices, SIZE, SIZE)) for a in (hu, lungs, disease)]
    return stack[0].astype(np.int16), stack[1], stack[2]


def write_chest(folder, slices=3, *, series=1, gap=10.0, names="IM-{:04d}.dcm", **tags):
    """Writes the chest from head to feet; returns its HU from feet to head."""
    folder.mkdir(parents=True, exist_ok=True)
    hu, _, _ = chest(slices)
    uid = f"1.2.826.0.1.3680043.8.498.{10 + series}"
    for i in range(slices):
        write_ct(
            folder / names.format(i + 1),
            hu[i] + np.int16(1024),
            uid=f"{series}.{i + 1}",
            **{
                **STUDY,
                "SeriesInstanceUID": uid,
                "PixelSpacing": [PIXEL_MM, PIXEL_MM],
                "SliceThickness": 1,
                "InstanceNumber": i + 1,
                "ImagePositionPatient": [-144, -144, -gap * i],
                **tags,
            },
        )
    return hu


def write_run(
    workdir,
    *,
    class_names=("normal", "ground_glass"),
    synthetic=False,
    units="hu",
    known=None,
    seed=0,
    steepness=1000,
    **changes,
):
    """Writes a stage run of `Brightness`, and the row of its study; returns its folder.

    `known` names the classes of which it has training images to compare windows with:
    0 is healthy lung, 1 diseased; None: the run lacks a reference.
    """
    folder = workdir / "stages" / f"target-{seed}123456789ab"
    folder.mkdir(parents=True)
    parameters = {"steepness": np.asarray(steepness, np.float32)}
    checkpoint.export_variables(folder / "variables", {"params": parameters})
    data = {"source": "dicom", "normalise": "fixed", "window": [-600, 1500]}
    lineage = {
        "stage": "target",
        "chain": ["natural-00", "texture-11", folder.name],
        "hash": f"{seed}123456789ab" + "cd" * 26,
        "seed": seed,
        "fraction": 1.0,
        "fold": 0,
        "model": {"name": "brightness", "image_size": WINDOW, "dropout": 0.0},
        "settings": {"data": {**data, "options": {}, **changes}},
        "data": {
            "name": "dicom",
            "fingerprint": "feed" * 16,
            "class_names": list(class_names),
            "examples": {"train": 80, "validation": 20, "test": 40},
            **({} if synthetic is None else {"synthetic": synthetic}),
            **({} if units is None else {"units": units}),
            "mean": [0.5],
            "deviation": [0.25],
        },
    }
    (folder / "lineage.json").write_text(json.dumps(lineage))
    if known is not None:
        # Its only features are the logits [0, x]; x is about -100,000 for healthy
        # lung, and larger for diseased lung and for windows on the chest wall.
        line = [x for label in known for x in ((1, 3, 5, 7) if label else (-1,))]
        points = np.array([[0, x] for x in line], np.float16)
        scale = np.array([1, 1e5], np.float32)
        made = novelty.Reference(points, np.zeros(2, np.float32), scale, 1.001, 3)
        novelty.save(folder, made, lineage["hash"])
    row = {"arm": "two_stage", "seed": seed, "fraction": 1.0, "fold": 0}
    row["stage_runs"] = lineage["chain"]
    (workdir / "rows").mkdir(exist_ok=True)
    (workdir / "rows" / f"two_stage{seed or ''}.json").write_text(json.dumps(row))
    return folder
