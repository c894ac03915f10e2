"""Names the data sources, and loads the data of a stage."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twostage_jax import runtime
from twostage_jax.config import MODEL_SIZE, TARGET, Config, DataConfig, ModelConfig
from twostage_jax.data import ct_patches, image_folder, prepared_folder, slices, tfds
from twostage_jax.data.dataset import Dataset, Recipe
from twostage_jax.data.store import prepare
from twostage_jax.data.synthetic import natural, phantoms, textures
from twostage_jax.errors import UserError, did_you_mean

SOURCES: dict[str, Callable[..., Recipe]] = {
    "natural_surrogate": natural.recipe,
    "textures": textures.recipe,
    "phantoms": phantoms.recipe,
    "folder": image_folder.recipe,
    "slices": slices.recipe,
    "dicom": ct_patches.recipe,
    "prepared": prepared_folder.recipe,
    "tfds": tfds.recipe,
}

# Largest default side of the network's input, pixels: training on images of 64 pixels
# takes four times as long as on images of 32.
LARGEST = 64


def check(data: DataConfig, path: str) -> None:
    """Raises a UserError for an unknown source, or for a wrong or missing option.

    The options of a source are the keyword arguments of its `recipe`.

    Args:
      data: Settings of a stage's data.
      path: Path of these settings in the config, for the error.
    """
    if data.source not in SOURCES:
        raise UserError(
            f"{path}.source: unknown data source '{data.source}'."
            f"{did_you_mean(data.source, SOURCES)}",
            where=f"{path}.source",
        )
    known = inspect.signature(SOURCES[data.source]).parameters
    for option, value in data.options.items():
        if option not in known or option == "channels":
            raise UserError(
                f"{path}.{option}: unknown setting of data source '{data.source}'."
                f"{did_you_mean(option, set(known) - {'channels'})}",
                where=f"{path}.{option}",
            )
        default = known[option].default
        typed = default is not None and default is not inspect.Parameter.empty
        if typed and _is_number(default) != _is_number(value):
            raise UserError(
                f"{path}.{option} is {value!r}: expected a value like {default!r}.",
                where=f"{path}.{option}",
            )
    for option, parameter in known.items():
        required = parameter.default is inspect.Parameter.empty
        given = option in ("size", "channels") or data.options.get(option, "") != ""
        if required and not given:
            raise UserError(
                f"{path}.{option} is required by data source '{data.source}'. "
                f"Give --{path}.{option}=...{_or_weights(path)}",
                where=f"{path}.{option}",
            )


def _or_weights(path: str) -> str:
    """Returns the alternative to the data of a source stage."""
    stage = path.removesuffix(".data")
    if stage.endswith(f".{TARGET}"):
        return ""
    return f", or --{stage}.weights=FILE to import public weights instead of training."


def recipe(data: DataConfig, model: ModelConfig) -> Recipe:
    """Returns the recipe of a stage's data.

    Images are stored at `model.image_size` unless the block sets a larger `size`; then
    training uses random crops, and evaluation the centre or, with `augment.average`, all.
    """
    options = dict(data.options)
    if model.image_size:
        options = {"size": model.image_size, **options}
    return SOURCES[data.source](channels=model.channels, **options)


def sized(config: Config) -> Config:
    """Returns the settings with `image_size` 0 replaced by the side of the target's images.

    Raises:
      UserError: The source of the target does not define a size of images.
    """
    if config.model.image_size:
        return config
    data = config.stages[TARGET].data
    side = recipe(data, config.model).side
    if not side:
        raise UserError(
            f"{MODEL_SIZE} is 0, but the source '{data.source}' does not "
            "define a size of images: give the number of pixels.",
            where=MODEL_SIZE,
        )
    model = dataclasses.replace(config.model, image_size=min(side, LARGEST))
    return dataclasses.replace(config, model=model)


def load(
    data: DataConfig, model: ModelConfig, data_dir: Path, setting: str = MODEL_SIZE
) -> Dataset:
    """Returns the data set of a stage, prepared if necessary, and prints its notes.

    Args:
      data: Settings of the stage's data.
      model: Settings of its network, with the size of images that it sees.
      data_dir: Folder of prepared sets.
      setting: Path of the setting that gave this size, for the error.

    Raises:
      UserError: The images are smaller than the input of the network; or see `prepare`.
    """
    made = prepare(recipe(data, model), data_dir)
    side = min(made.images.shape[1:3])
    if side < model.image_size:
        raise UserError(
            f"the images of data set '{made.name}' are {side} pixels high and wide, less "
            f"than {setting} = {model.image_size}: set --{setting}={side}, or a larger "
            "size for the data.",
            where=setting,
        )
    if runtime.is_main():
        if made.kind == "ct" and side > model.image_size:
            seen = f"{model.image_size} x {model.image_size}"
            print(
                f"Data set '{made.name}': the network sees crops of {seen} of {side} "
                "pixels, random ones in training. Tests use the centre or, with "
                "augment.average, as many as cover the image.",
                flush=True,
            )
        for note in made.notes:
            print(f"Data set '{made.name}': {note}", flush=True)
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
