"""Keeping the results of a recipe's tasks, so that a preparation cut off goes on."""

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax.data.dataset import Example, Made, Recipe, digest
from twostage_jax.notes import Notes


def kept(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with tasks that are made once and then read from `folder`.

    Their order stays. Delete the folder when the set is complete.
    """
    make = functools.partial(_made, make=recipe.make, key=recipe.key, folder=folder)
    tasks = list(enumerate(recipe.tasks))
    return dataclasses.replace(recipe, tasks=tasks, make=make)


def _made(task: tuple[int, Any], *, make: Any, key: str, folder: Path) -> Made:
    index, inner = task
    path = folder / f"task-{index}-{digest(key, index)[:16]}.npz"
    if path.exists():
        return load(path)
    result = make(inner)
    save(path, result)
    return result


def save(path: Path, examples: list[Example]) -> None:
    """Writes examples, and what was left out, without pickle; all or nothing."""
    rest = [
        [e.id, int(e.label), e.group, e.split, dict(e.details), e.synthetic]
        for e in examples
    ]
    skipped = [list(entry) for entry in getattr(examples, "skipped", ())]
    notes = getattr(examples, "notes", Notes()).to_json()
    facts = getattr(examples, "facts", {})
    told = {"examples": rest, "skipped": skipped, "notes": notes, "facts": facts}
    text = json.dumps(told).encode()
    images = {f"image_{i}": e.image for i, e in enumerate(examples)}
    if len({(e.image.shape, e.image.dtype) for e in examples}) == 1:
        images = {"images": np.stack([e.image for e in examples])}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, text=np.frombuffer(text, np.uint8), **images)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Made:
    """Returns what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        text = json.loads(arrays["text"].tobytes())
        images = arrays["images"] if "images" in arrays else None
        made = Made()
        for index, (name, *rest) in enumerate(text["examples"]):
            image = arrays[f"image_{index}"] if images is None else images[index]
            made.append(Example(name, image, *rest))
    made.skipped = [(name, why) for name, why in text["skipped"]]
    made.notes = Notes.from_json(text["notes"])
    made.facts = text["facts"]
    return made
