"""Recipes of tiny data sets with functions that worker processes can import."""

import functools
import os
import time

import numpy as np

from twostage_jax.data.dataset import Example, Made, Recipe


def pixels(number, shape=(4, 5, 1), dtype="uint8"):
    values = np.random.default_rng(number).normal(90, 40, shape)
    return np.clip(values, 0, 255).astype(dtype)


def make_plain(dtype, task):
    return [
        Example(f"t{task}_{i}", pixels(10 * task + i, dtype=dtype), i % 2, f"p{task}")
        for i in range(3)
    ]


def make_given(examples, task):
    return examples[task]


def make_slowly(task):
    time.sleep(0.05)
    return make_plain("uint8", task)


def make_counted(folder, task):
    (folder / f"{task}_{os.getpid()}_{time.monotonic_ns()}").touch()
    return make_slowly(task)


def make_noted(task):
    made = Made(make_plain("uint8", task))
    made.notes.add("images", count=3)
    made.notes.add("images", "are upside\x1b down.", task)
    made.skipped.append((f"file-{task}", "broken"))
    return made


def remarks(skipped, facts):
    yield f"{len(skipped)} files are broken."


def make_error(error, task):
    raise error


def recipe(make, tasks=4, key="k" * 64, classes=("a", "b"), name="toy"):
    return Recipe(name, "natural", classes, key, range(tasks), make)


def given(*tasks, **kwargs):
    return recipe(functools.partial(make_given, tasks), len(tasks), **kwargs)


plain = functools.partial(make_plain, "uint8")
