"""ImageNet > textures > CT: tests whether a texture stage improves on ImageNet weights.

    python experiments/imagenet_weights.py WEIGHTS
    python -m twostage_jax.main --config=experiments/imagenet.py:DATA \
        --config.stages.natural.weights=WEIGHTS/alexnet.safetensors

DATA holds `kth_tips_gray/` and `covid_ct/`, as for `covid.py`. Patches have 64 pixels, the
smallest that AlexNet takes; their three channels are equal. `imagenet.py:DATA,128` enlarges
the same patches, and the textures, to 128 pixels; write them with
`python experiments/covid_patches.py DATA` first.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

CONFIGS = Path(__file__).parent.parent / "configs"
folders, patches = (config_file(CONFIGS / f"{n}.py") for n in ("folders", "patches"))


def get_config(variant: str) -> ConfigDict:
    """Returns the settings for a folder of data, and for the side of patches after ','."""
    data, _, side = variant.partition(",")
    config = folders.get_config()
    config.name = "imagenet"
    config.model.name = "alexnet"
    config.model.head = "orderless"
    config.model.image_size = 64
    config.model.channels = 3

    texture, target = config.stages.texture, config.stages.target
    texture.data.path = f"{data}/kth_tips_gray"
    texture.data.group_regex = r"scale_(\d+_im_\d+)"
    if side:
        config.model.image_size = int(side)
        target.data = patches.get_config().stages.target.data
        target.data.path = f"{data}/covid_patches_64"
        target.data.group_csv = f"{target.data.path}/groups.csv"
        target.data.size = int(side)
    else:
        target.data.path = f"{data}/covid_ct"
        target.data.stride = 16
        target.data.per_class = 100
    for stage in (texture, target):
        stage.data.normalise = "weights"
        # A tenth of the rate for random parameters, at which the weights would be lost.
        stage.optim.learning_rate = 0.0002
        # The head starts from random parameters in every stage.
        stage.optim.lr_factors = (("head.*", 10.0),)
        stage.train.batch_size = 32
        stage.train.steps = 400

    del config.arms.natural_long, config.stages.natural_long
    config.study.arms = ("natural", "two_stage")
    config.study.primary = ("two_stage", "natural", "balanced_accuracy")
    config.study.seeds = (0, 1, 2, 3, 4)
    config.study.folds = 2
    config.study.baselines = ("mean_grey", "descriptors", "frozen")
    return config
