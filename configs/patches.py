r"""Two-stage feature transfer to your own patches: images > textures > CT patches.

    python -m twostage_jax.main --config=configs/patches.py \
        --config.stages.natural.data.path=IMAGES \
        --config.stages.texture.data.path=TEXTURES \
        --config.stages.target.data.path=PATCHES \
        --config.stages.target.data.group_regex='(patient\d+)'

Each folder holds a sub-folder for each class. PATCHES are small square images, in HU
(signed TIFF, .npy, NIfTI) or grey (8- or 16-bit PNG, TIFF). They are not resized: the
network sees patches of up to 64 pixels whole, and 64 x 64 pixels of larger ones: at random
places while it trains, and in tests at as many places as cover the patch, with the mean of
the predictions. `--config.model.image_size=32` trains four times faster than 64 pixels. The
source stages always see 32. The regular expression finds the patient in 'class/file'; a
table can give the patients instead (`group_csv`, columns path and group).
`--config=configs/patches.py:smoke` is the smallest size that still runs every part.
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

two_stage = config_file(Path(__file__).with_name("two_stage.py"))


def get_config(variant: str = "") -> ConfigDict:
    """Returns the settings of `two_stage.py` with the data of folders.

    Args:
      variant: '' or 'smoke'.
    """
    if variant not in ("", "smoke"):
        raise ValueError(
            f"configs/patches.py has no variant '{variant}', only 'smoke'."
        )
    config = two_stage.get_config(variant)
    config.name = f"patches_{variant}" if variant else "patches"

    config.model.image_size = 0  # that of the patches, up to 64
    for source in two_stage.add_image_folders(config):
        # A quarter of the time of 64 pixels: experiments/heads.md.
        source.image_size = 32

    target = config.stages.target.data = two_stage.data("folder")
    target.path = ""  # folder of class sub-folders of patches
    target.name = "patches"
    target.kind = "ct"
    target.size = 0  # 0 = keep the size of the patches; else resize to this, pixels
    target.group_regex = ""  # its first group, in 'class/file', is the patient
    target.group_csv = ""  # or a table with the columns path and group
    target.units = ""  # hu, grey, or '' to detect them
    target.offset = 0.0  # added to the stored values to get HU, such as -1024
    if not variant:
        two_stage.lengthen_sources(config)
        # Fewer steps leave the network behind texture descriptors: experiments/heads.md.
        config.stages.target.train.steps = 3000
        config.stages.target.train.epochs = 100  # small sets take fewer steps
        config.study.seeds = (0, 1, 2)
        config.study.baselines += ("frozen",)
    return config
