"""Standard data sets that TFDS has prepared, read without TensorFlow."""

import functools
import os
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from twostage_jax.data import image_files
from twostage_jax.data.dataset import Example, Kind, Recipe, digest
from twostage_jax.errors import UserError

# Raised when the same files and settings give other examples.
VERSION = 1
EXAMPLES_A_TASK = 256
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
    """Returns the recipe of a TFDS image classification set, its own splits kept.

    The set must have been prepared with `--file_format=array_record`; preparing most of
    them needs TensorFlow, reading them does not. The largest centred square of an image
    is resized to `size`. Examples whose label is negative (the test split of some sets)
    are left out, and so are splits other than train, validation and test.

    Args:
      name: As TFDS knows it: 'cifar10', 'dtd', 'colorectal_histology', 'imagenet2012',
        or with a configuration and version: 'name/config:1.0.0'.
      size: Height and width of the stored images, pixels.
      channels: 1 (grey) or 3 (RGB).
      tfds_dir: Where TFDS keeps its data; if empty, the environment variable
        TFDS_DATA_DIR or ~/tensorflow_datasets.
      kind: 'natural', 'texture' or 'ct': what the images show; changes no image.

    Raises:
      UserError: The set is not there, or in another file format, or has no images
        with labels; it says which commands prepare it.
    """
    image_files.check(size, channels, kind)
    home = tfds_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    folder = _folder(name, Path(home).expanduser())
    builder = tfds.builder_from_directory(folder)
    classes = _class_names(name, builder)
    tasks = []
    for split, info in builder.info.splits.items():
        if split in SPLITS:
            for start in range(0, info.num_examples, EXAMPLES_A_TASK):
                stop = min(start + EXAMPLES_A_TASK, info.num_examples)
                tasks.append((str(split), start, stop))
    if not any(split == "train" for split, _, _ in tasks):
        raise UserError(
            f"TFDS set '{name}' in {folder} has no train split, but "
            f"{', '.join(builder.info.splits)}."
        )
    stamps = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
    ]
    base = name.partition(":")[0].replace("/", "_").replace("-", "_").replace(".", "_")
    return Recipe(
        name=base,
        kind=kind,
        class_names=classes,
        key=digest("tfds", VERSION, name, size, channels, kind, classes, stamps),
        tasks=tasks,
        make=functools.partial(make, str(folder), size, channels),
    )


def make(
    folder: str, size: int, channels: int, task: tuple[str, int, int]
) -> list[Example]:
    """Returns the labelled examples of (TFDS split, start, stop)."""
    split, start, stop = task
    source = _source(folder, split)
    records = source.__getitems__(list(range(start, stop)))
    return [
        Example(
            id=f"{split}/{index:08d}",
            image=image_files.whole(
                image_files.read(record["image"], channels, f"{split}/{index}"), size
            ),
            label=int(record["label"]),
            split=SPLITS[split],
        )
        for index, record in zip(range(start, stop), records, strict=True)
        if record["label"] >= 0
    ]


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
            f"TFDS set '{name}' has several configurations in {home}: name one of "
            f"{', '.join(parents)}."
        )
    command = f"tfds build {name} --file_format=array_record --data_dir={home}"
    if not found:
        raise UserError(
            f"TFDS set '{name}' is not in {home}. Prepare it once: pip install "
            f"tensorflow tensorflow-datasets; {command}"
        )
    readable = [path for path in found if any(path.glob("*.array_record*"))]
    if not readable:
        raise UserError(
            f"TFDS set '{name}' in {found[0]} is not in the array_record format. "
            "Prepare it anew: pip install tensorflow tensorflow-datasets; "
            f"{command} --overwrite"
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
        raise UserError(
            f"TFDS set '{name}' is no image classification set: it has the features "
            f"{', '.join(features)}, and needs image and label."
        )
    return tuple(label.names)
