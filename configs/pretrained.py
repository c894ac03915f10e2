r"""Two-stage feature transfer from public weights: a file > textures > CT patches.

    twostage train --config=configs/pretrained.py \
        --config.stages.natural.weights=resnet18.safetensors \
        --config.stages.texture.data.path=TEXTURES \
        --config.stages.target.data.path=PATCHES \
        --config.stages.target.data.group_regex='(patient\d+)'

The settings are those of `patches.py`, but the natural stage takes the file instead of
training: torchvision's ResNet-18 here, or another network with its weights
(`--config.model.name=alexnet`), without dense layers. Every stage scales images as the
weights expect. A rate that suits random parameters may destroy imported ones, so every
arm chooses between two.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

patches = config_file(Path(__file__).with_name("patches.py"))


def get_config() -> ConfigDict:
    """Returns the settings of `patches.py` with a weights file as the natural stage."""
    config = patches.get_config()
    config.name = "pretrained"

    config.model.name = "resnet18"
    # Early convolutions tell textures apart; the last ones, which the network's own head
    # reads, tell objects: experiments/imagenet.md.
    config.model.head = "orderless"
    config.model.channels = 3  # of the weights; grey images are repeated
    config.model.image_size = 64

    config.stages.target.data.size = 64  # pixels to resize patches to
    config.stages.texture.data.image_size = 0  # as for the weights
    for stage in (config.stages.texture, config.stages.target):
        stage.data.normalise = "weights"
        # Far fewer than in `patches.py`, whose network starts from random parameters; a
        # ResNet also takes much longer per step.
        stage.train.steps = 600
    config.study.grid = (("optim.learning_rate", (0.0002, 0.002)),)
    return config
