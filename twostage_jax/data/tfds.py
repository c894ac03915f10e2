"""Reads image data sets prepared by TFDS, without TensorFlow."""

import functools
import io
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from twostage_jax import folders
from twostage_jax.data import image_files
from twostage_jax.data.dataset import Example, Kind, Made, Recipe, digest, largest
from twostage_jax.errors import UserError

# Bump when the same files and settings give different examples.
VERSION = 2
EXAMPLES_A_TASK = 256
# (TFDS split, index of the first example, index after the last example)
Task = tuple[str, int, int]
# Names of measures of float images (see `Recipe.measure`); smallest maximum of those that
# range from 0 to 255.
HIGHEST, LOWEST_NEGATED = "highest", "-lowest"
LEAST_HIGHEST = 128
SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}


def recipe(
    *,
    name: str,
    size: int = 32,
    channels: int = 1,
    tfds_dir: str = "",
    kind: Kind = "natural",
) -> Recipe:
    """Returns the recipe of a TFDS image classification set with its own splits.

    The set must have been prepared with `--file_format=array_record`, which for most sets
    requires TensorFlow; reading does not. The largest centred square of an image is
    resized to `size`. Images are converted to 8 bits: uint16 as in `image_files.read`,
    float32 by the range of the whole set, 0 to 1 or 0 to 255. Skips examples with a
    negative label (the test split of some sets), and splits other than train, validation
    and test.

    Args:
      name: Name in TFDS, such as 'cifar10', 'dtd' or 'colorectal_histology', optionally
        with configuration and version, 'name/config:1.0.0'.
      size: Height and width of the stored images, pixels.
      channels: 1 (grey) or 3 (RGB).
      tfds_dir: Data folder of TFDS; if empty, the environment variable TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      kind: Content of the images: 'natural', 'texture' or 'ct'; does not change them.

    Raises:
      UserError: The set is missing, in another file format, or without labelled images;
        the message gives the commands to prepare it.
    """
    image_files.check(size, channels, kind)
    home = tfds_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = _folder(name, Path(home).expanduser())
    builder = tfds.builder_from_directory(folder)
    classes = _class_names(name, builder)
    dtype = np.dtype(builder.info.features["image"].np_dtype).name
    tasks = []
    for split, info in builder.info.splits.items():
        if split in SPLITS:
            for start in range(0, info.num_examples, EXAMPLES_A_TASK):
                stop = min(start + EXAMPLES_A_TASK, info.num_examples)
                tasks.append((str(split), start, stop))
    if not any(split == "train" for split, _, _ in tasks):
        raise UserError(
            f"TFDS set '{name}' in {folder} lacks a train split; it has "
            f"{', '.join(builder.info.splits)}.",
            where=folder,
        )
    stamps = folders.stamps(folder, folder.iterdir())
    base = name.partition(":")[0].replace("/", "_").replace("-", "_").replace(".", "_")
    return Recipe(
        name=base,
        kind=kind,
        class_names=classes,
        key=digest("tfds", VERSION, name, size, channels, kind, classes, stamps),
        tasks=tasks,
        make=functools.partial(make, str(folder), dtype, size, channels),
        measure=None
        if dtype == "uint8"
        else functools.partial(measure, str(folder), dtype),
    )


def measure(folder: str, dtype: str, task: Task) -> dict[str, float]:
    """Returns the range of the float images of a task, or the bits used by others."""
    records = _labelled(folder, task)
    if dtype != "float32":
        return largest(image_files.measure(data) for _, data, _ in records)
    return largest(_range(_floats(folder, name, data)) for name, data, _ in records)


def make(
    folder: str,
    dtype: str,
    size: int,
    channels: int,
    task: Task,
    found: Mapping[str, float] = MappingProxyType({}),
) -> Made:
    """Returns the labelled examples of a task; `found` has the measures of the set.

    Raises:
      UserError: An image cannot be decoded, or float images range neither from 0 to 1
        nor from 0 to 255.
    """
    split, _, _ = task
    examples = Made()
    for name, data, label in _labelled(folder, task):
        if dtype == "float32":
            factor = _factor(folder, found)
            grey = np.rint(_floats(folder, name, data) * factor).astype(np.uint8)
            image = Image.fromarray(grey).convert("L" if channels == 1 else "RGB")
        else:
            image = image_files.read(
                data, channels, name, found=found, notes=examples.notes
            )
        pixels = image_files.whole(image, size)
        examples.append(Example(name, pixels, label, split=SPLITS[split]))
    return examples


def _labelled(folder: str, task: Task) -> Iterator[tuple[str, bytes, int]]:
    """Yields (id, encoded image, label) of the labelled examples."""
    split, start, stop = task
    records = _source(folder, split).__getitems__(list(range(start, stop)))
    for index, record in zip(range(start, stop), records, strict=True):
        if record["label"] >= 0:
            yield f"{split}/{index:08d}", record["image"], int(record["label"])


def _floats(folder: str, name: str, data: bytes) -> np.ndarray:
    """Returns an image `[H, W]` float32 from a PNG with four bytes per number.

    TFDS stores float images in this way (`tfds.features.Image` with dtype float32).
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            image.load()
    # Broken images raise nearly everything in the decoders.
    except Exception as error:
        raise UserError.at(
            folder, f"image {name} cannot be decoded: {error}"
        ) from error
    if image.mode != "RGBA":
        raise UserError.at(
            folder,
            f"image {name} has pixels of mode {image.mode}, but float32 is stored as "
            "four bytes per pixel: prepare the set again.",
        )
    return np.ascontiguousarray(image).view("<f4")[..., 0]


def _range(values: np.ndarray) -> dict[str, float]:
    if not np.isfinite(values).all():
        return {HIGHEST: math.inf, LOWEST_NEGATED: math.inf}
    return {HIGHEST: float(values.max()), LOWEST_NEGATED: -float(values.min())}


def _factor(folder: str, found: Mapping[str, float]) -> float:
    """Returns the factor that maps the white of a set of float images to 255."""
    low, high = -found[LOWEST_NEGATED], found[HIGHEST]
    if low >= 0 and high <= 1:
        return 255
    if low >= 0 and LEAST_HIGHEST <= high <= 255:
        return 1
    raise UserError.at(
        folder,
        f"its images are float32 from {low:g} to {high:g}, so the values of black and "
        "white are unknown: prepare the set with values from 0 to 1, or as uint8.",
    )


@functools.lru_cache(maxsize=8)
def _source(folder: str, split: str) -> Any:
    return tfds.builder_from_directory(folder).as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )


def _folder(name: str, home: Path) -> Path:
    """Returns the folder of the newest prepared version."""
    base, _, version = name.partition(":")
    found = [
        path.parent
        for pattern in ("*", "*/*")
        for path in (home / base).glob(f"{pattern}/dataset_info.json")
        if not path.parent.name.startswith("incomplete.")
        and version in ("", path.parent.name)
    ]
    parents = sorted({str(path.parent.relative_to(home)) for path in found})
    if len(parents) > 1:
        raise UserError(
            f"TFDS set '{name}' has several configurations in {home}: choose one of "
            f"{', '.join(parents)}.",
            where=name,
        )
    command = f"tfds build {name} --file_format=array_record --data_dir={home}"
    if not found:
        raise UserError(
            f"TFDS set '{name}' is not in {home}. Prepare it once: pip install "
            f"tensorflow tensorflow-datasets; {command}",
            where=name,
        )
    readable = [path for path in found if any(path.glob("*.array_record*"))]
    if not readable:
        raise UserError(
            f"TFDS set '{name}' in {found[0]} is not in the array_record format. "
            "Prepare it again: pip install tensorflow tensorflow-datasets; "
            f"{command} --overwrite",
            where=found[0],
        )
    return max(readable, key=_version)


def _version(path: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in path.name.split(".") if part.isdigit())


def _class_names(name: str, builder: tfds.core.DatasetBuilder) -> tuple[str, ...]:
    features = builder.info.features
    image, label = (dict(features).get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        listed = ", ".join(f"{k} ({type(v).__name__})" for k, v in features.items())
        raise UserError(
            f"TFDS set '{name}' is not an image classification set: it needs the "
            "features image (tfds.features.Image) and label (tfds.features.ClassLabel), "
            f"but has {listed}.",
            where=name,
        )
    return tuple(label.names)
