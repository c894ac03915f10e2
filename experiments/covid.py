"""The real chain: natural images > textures > CT of COVID-19, healthy or infected.

    python -m twostage_jax.main --config=experiments/covid.py:DATA
    python -m twostage_jax.main --config=experiments/covid.py:DATA,texture_only
    python -m twostage_jax.main --config=experiments/covid.py:DATA,long,texture_only
    python -m twostage_jax.main --config=experiments/covid.py:DATA,long \
        --workdir=runs/positive_control --config.name=positive_control

DATA contains `cifar10/`, `kth_tips_gray/` and `covid_ct/`; see experiments/README.md for
their content, the time needed, and the results. With `texture_only`, every patch has mean 0
and standard deviation 1. `long` uses the larger source sets and longer source stages of
`positive_control.py`, with its folders in DATA; in its workdir, finished stages are reused.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

folders = config_file(Path(__file__).parent.parent / "configs" / "folders.py")


def get_config(variant: str) -> ConfigDict:
    """Returns the settings of `configs/folders.py`.

    Args:
      variant: folder of the data, then '' or ',long' or ',texture_only' or both.
    """
    data, *kinds = variant.split(",")
    config = folders.get_config("texture_only" if "texture_only" in kinds else "")
    config.name = "_".join(["covid", *kinds])

    natural, texture = config.stages.natural, config.stages.texture
    config.stages.target.data.path = f"{data}/covid_ct"
    if "long" in kinds:
        natural.data.path = f"{data}/tiny_imagenet"
        texture.data.path = f"{data}/textures"
    else:
        natural.data.path = f"{data}/cifar10"
        texture.data.path = f"{data}/kth_tips_gray"
        # One sample per material: train and test do not share views (scale, pose, light).
        texture.data.group_regex = r"scale_(\d+_im_\d+)"
        natural.train.steps = 3000
        texture.train.steps = 800
        # 0.002 is as good on the validation images, but causes more dead channels.
        natural.optim.learning_rate = 0.001

    config.study.arms = ("scratch", "natural", "texture", "two_stage")
    config.study.seeds = (0, 1, 2, 3, 4)
    config.study.fractions = (1.0, 0.25)
    config.study.folds = 2
    return config
