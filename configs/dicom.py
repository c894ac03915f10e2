"""Two-stage feature transfer to your own CT: embedded images and textures > DICOM patches.

    python -m twostage_jax.prepare --source=DICOM --rois=ROIS --out=PATCHES --salt=SECRET
    python -m twostage_jax.main --config=configs/dicom.py \\
        --config.stages.target.data.path=PATCHES

The settings of `two_stage.py` with the patches that the first command cut, 32 pixels or
more. For three windows as three channels (lung, wide, mediastinal):

    --config.model.channels=3 \\
    --config.stages.target.data.window='(-600.,1500.,-300.,2000.,40.,400.)'
"""

from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax.config import config_file

two_stage = config_file(Path(__file__).with_name("two_stage.py"))


def get_config() -> ConfigDict:
    """Returns the settings of `two_stage.py` with a prepared target."""
    config = two_stage.get_config()
    config.name = "dicom"

    target = config.stages.target.data = two_stage.data("prepared")
    target.path = ""  # the folder that prepare was given as --out

    config.study.seeds = (0, 1, 2)
    return config
