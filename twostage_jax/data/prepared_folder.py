"""A data set that `python -m twostage_jax.prepare` made, as the data of a stage."""

import json
from pathlib import Path

from twostage_jax.data import files
from twostage_jax.data.dataset import Made, Recipe
from twostage_jax.errors import UserError

# In the folder that `prepare` writes.
DESCRIPTION = "dataset.json"


def recipe(*, path: str, size: int = 0, channels: int = 1) -> Recipe:
    """Returns the recipe of a prepared set; nothing is made or copied.

    Args:
      path: The folder that was given to `prepare` as --out.
      size: Height and width that are needed, pixels; larger images are cropped later.
      channels: Ignored: the images have their own.

    Raises:
      UserError: The folder holds no prepared set, or its images are too small.
    """
    root = files.below(Path(path), "path")
    try:
        made = json.loads((root / DESCRIPTION).read_text(encoding="utf-8"))
        name, kind, key = (str(made[field]) for field in ("name", "kind", "key"))
        class_names = tuple(str(label) for label in made["class_names"])
        patch = int(made["patch"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{root}: holds no prepared set: {DESCRIPTION} cannot be read ({error}). "
            "Make it with python -m twostage_jax.prepare."
        ) from error
    if patch < size:
        raise UserError(
            f"{root}: its patches have {patch} pixels, {size} are needed: prepare it "
            f"anew with --patch={size} or more."
        )
    return Recipe(
        name=name,
        kind=kind,
        class_names=class_names,
        key=key,
        tasks=(),
        make=_nothing,
        prepared_in=root,
    )


def _nothing(task: None) -> Made:
    raise AssertionError(f"a prepared set has no task {task}")
