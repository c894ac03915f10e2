"""Positive control: a target on which transfer must help, few images of KTH-TIPS.

    python -m twostage_jax.main --config=experiments/positive_control.py:DATA

trains natural images (Tiny ImageNet) > textures (Brodatz and UIUC in one stage) > materials
of KTH-TIPS, with as few as three images of each material. A comparison that finds nothing
here finds nothing because it is weak, not because transfer is.

DATA holds `tiny_imagenet/`, `kth_tips_gray/` and `textures/`, each a folder of class
folders. Those of `textures/` are the classes of both texture sets; links will do:
`ln -s ../brodatz/D1 textures/brodatz_D1`.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

two_stage = config_file(Path(__file__).parent.parent / "configs" / "two_stage.py")


def get_config(data: str) -> ConfigDict:
    """Returns the settings for the folders below `data`."""
    config = two_stage.get_config()
    config.name = "positive_control"

    natural, texture = two_stage.add_image_folders(config)
    two_stage.lengthen_sources(config)
    natural.path = f"{data}/tiny_imagenet"
    texture.path = f"{data}/textures"

    target = config.stages.target.data = two_stage.data("folder")
    target.path = f"{data}/kth_tips_gray"
    target.name = "kth_tips"
    target.kind = "texture"
    target.crop = 64  # Resized to 32 pixels, as in the texture stage.
    target.stride = 64
    # One sample per material: train and test do not share views (scale, pose, light).
    target.group_regex = r"scale_(\d+_im_\d+)"
    target.test = 0.5
    config.stages.target.train.steps = 300

    config.study.seeds = (0, 1, 2, 3, 4)
    config.study.fractions = (1.0, 0.25, 0.1)
    config.study.baselines = ("majority", "descriptors")
    return config
