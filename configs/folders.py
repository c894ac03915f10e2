"""Two-stage feature transfer on your own folders: images > textures > CT slices.

    python -m twostage_jax.main --config=configs/folders.py \
        --config.stages.natural.data.path=IMAGES \
        --config.stages.texture.data.path=TEXTURES \
        --config.stages.target.data.path=SLICES

Grey 32-pixel patches. IMAGES and TEXTURES hold a sub-folder for each class; SLICES holds
`ct/`, `lungs/`, `infection/` and `slices.csv` (see `data/slices.py`).
`--config=configs/folders.py:texture_only` standardises every image, so that brightness
and contrast carry no information.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

two_stage = config_file(Path(__file__).with_name("two_stage.py"))


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of `two_stage.py` with the data of folders.

    Args:
      variant: '', or 'texture_only': every image of every stage is brought to mean 0 and
        standard deviation 1, so that only structure is left.
    """
    if variant not in ("", "texture_only"):
        raise ValueError(
            f"configs/folders.py has no variant '{variant}', only 'texture_only'."
        )
    config = two_stage.get_config()
    config.name = f"folders_{variant}" if variant else "folders"

    natural, texture = two_stage.add_image_folders(config)
    two_stage.lengthen_sources(config)

    target = config.stages.target.data = two_stage.data("slices")
    target.path = ""  # folder of ct/, lungs/, infection/ and slices.csv
    target.classes = "healthy,infected"  # names of label values 0, 1, ...
    target.stride = 8  # distance between patches, pixels
    target.per_class = 200  # most patches per class and patient
    # Fewer steps leave the network behind texture descriptors: experiments/heads.md.
    config.stages.target.train.steps = 600

    two_stage.add_long_natural(config)
    config.study.seeds = (0, 1, 2)
    config.study.baselines += ("frozen",)

    if variant == "texture_only":
        for stage in (natural, texture, target):
            stage.normalise = "patch"
    return config
