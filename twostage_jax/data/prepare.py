"""Preparing a data set once, as TFDS records on disk, and reading it into memory."""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging

from twostage_jax.data import parallel, resume
from twostage_jax.data.collect import Collector
from twostage_jax.data.dataset import Dataset, Recipe, largest
from twostage_jax.data.prepared import prepared_dataset_builder as prepared
from twostage_jax.errors import UserError

# Sets up to this size are read into memory; images of larger ones stay on disk.
MAX_MEMORY_BYTES = 8 * 2**30
# A part (see `prepared.Builder`) aims at this size; TFDS holds one in memory.
PART_BYTES = 128 * 2**20
# Records read at a time.
READ_CHUNK = 4096


def prepare(
    recipe: Recipe,
    data_dir: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Returns a recipe's data set, made now if `data_dir` does not hold it.

    It is kept under `<data_dir>/prepared/<name>-<first 16 letters of the key>/`. A
    folder appears there only when it is complete. Sets made with other keys stay, so
    that going back to earlier settings costs nothing; delete them by hand.

    A recipe whose tasks take long keeps the results of finished ones, so that a run
    cut off goes on where it was.

    Args:
      recipe: What to make.
      data_dir: Folder of prepared data; made if missing.
      workers: Processes to use; None for one a core, 1 for none but this one.
      progress: Show a progress bar, if standard error is a terminal.

    Returns:
      The data set, examples sorted by id.

    Raises:
      UserError: What the recipe raised; or an example that contradicts the others; or
        a class without examples; or no room or no permission in `data_dir`.
    """
    if not re.fullmatch(r"\w+", recipe.name, re.ASCII):
        raise UserError(
            f"data set name {recipe.name!r}: use letters, digits and underscores."
        )
    config = f"{recipe.name}-{recipe.key[:16]}"
    home = Path(recipe.prepared_in or data_dir).expanduser().absolute()
    folder = folder_of(recipe, home)
    if not folder.exists() and recipe.prepared_in:
        raise UserError(f"{folder}: there is no prepared data set: prepare it anew.")
    if not folder.exists():
        with _explained(recipe.name, folder), _lock(folder.parent):
            # Whoever held the lock before may have made it.
            if not folder.exists():
                _remove_leftovers(folder.parent)
                parts = tasks_of(recipe, home)
                made = _measured(recipe, workers, progress)
                made = resume.kept(made, parts) if recipe.resumable else made
                _write(made, config, home, workers, progress)
                if parts.exists():
                    shutil.rmtree(parts)
    return _read(recipe, folder)


def folder_of(recipe: Recipe, data_dir: Path) -> Path:
    """Returns the folder in which `prepare` keeps a recipe's data set."""
    config = f"{recipe.name}-{recipe.key[:16]}"
    return data_dir / "prepared" / config / prepared.VERSION


def tasks_of(recipe: Recipe, data_dir: Path) -> Path:
    """Returns the folder in which finished tasks are kept until the set is complete."""
    return folder_of(recipe, data_dir).parent / "tasks"


def metadata_of(folder: Path) -> dict[str, Any]:
    """Returns what a prepared set holds beside its images; see `Collector.metadata`."""
    return dict(tfds.builder_from_directory(folder).info.metadata)


def _measured(recipe: Recipe, workers: int | None, progress: bool) -> Recipe:
    """Returns the recipe with the measures of all tasks known to `make`."""
    if recipe.measure is None:
        return recipe
    measuring = dataclasses.replace(recipe, make=recipe.measure)
    results = parallel.run(
        measuring, workers=workers, progress=progress, verb="measuring"
    )
    with contextlib.closing(results):
        make = functools.partial(recipe.make, found=largest(results))
    return dataclasses.replace(recipe, make=make, measure=None)


def _write(
    recipe: Recipe, config: str, home: Path, workers: int | None, progress: bool
) -> None:
    results = parallel.run(recipe, workers=workers, progress=progress)
    # Closing stops the workers when the writing fails.
    with contextlib.closing(results), tempfile.TemporaryDirectory() as downloads:
        collector = Collector(recipe, results, PART_BYTES)
        with _quiet():
            builder = prepared.Builder(
                parts=collector.parts,
                image_shape=collector.shape,
                image_dtype=collector.dtype,
                class_names=recipe.class_names,
                metadata=collector.metadata,
                config=tfds.core.BuilderConfig(name=config, version=prepared.VERSION),
                data_dir=home,
            )
            builder.download_and_prepare(
                file_format="array_record",
                download_dir=downloads,
                # Otherwise TFDS looks for the set in its own cloud storage.
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )


def _read(recipe: Recipe, folder: Path) -> Dataset:
    try:
        builder = tfds.builder_from_directory(folder)
        metadata = dict(builder.info.metadata)
        if metadata["key"] != recipe.key:
            raise ValueError("it was made with another key")
        # Parts without examples hold a filler; see `Collector`.
        ids = np.array(metadata["ids"])
        order = np.argsort(ids)
        order = order[ids[order] != ""]
        images: Any = RecordImages(builder, order)
        if images.nbytes <= MAX_MEMORY_BYTES:
            images = images.read()
    except Exception as error:
        raise UserError(
            f"prepared data in {folder} cannot be read ({error}): delete the folder "
            "and run again."
        ) from error
    groups = np.array(metadata["groups"])[order]
    return Dataset(
        name=recipe.name,
        kind=recipe.kind,
        class_names=recipe.class_names,
        images=images,
        labels=np.array(metadata["labels"], np.int32)[order],
        groups=groups if (groups != "").any() else None,
        ids=ids[order],
        splits=np.array(metadata["splits"])[order],
        fingerprint=metadata["fingerprint"],
        notes=tuple(metadata.get("notes", ())),
        # Sets prepared by earlier versions do not say.
        synthetic=bool(metadata.get("synthetic", recipe.synthetic)),
    )


class RecordImages:
    """Random access to images on disk.

    Attributes:
      shape: `(N, H, W, C)`.
      dtype: Of the images.
      nbytes: What they would take in memory.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, order: np.ndarray):
        """Image i is record `order[i]` of the builder's parts taken together."""
        image = builder.info.features["image"]
        self.shape = (len(order), *image.shape)
        self.dtype = np.dtype(image.np_dtype)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._order = order
        self._records = builder.as_data_source(
            split="all", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        # The rest of a record is in the metadata; not to parse it saves half the time.
        self._features = tfds.features.FeaturesDict({"image": image})

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Returns images `[..., H, W, C]` for indices `[...]`."""
        records = self._order[indices]
        images = np.empty((records.size, *self.shape[1:]), self.dtype)
        self._fill(images, np.arange(records.size), records.ravel())
        return images.reshape(*records.shape, *self.shape[1:])

    def read(self) -> np.ndarray:
        """Returns all images; they are read in the order in which they lie on disk."""
        images = np.empty(self.shape, self.dtype)
        rows = np.argsort(self._order)
        for start in range(0, len(rows), READ_CHUNK):
            chunk = rows[start : start + READ_CHUNK]
            self._fill(images, chunk, self._order[chunk])
        return images

    def _fill(self, images: np.ndarray, rows: np.ndarray, records: np.ndarray) -> None:
        examples = self._records.__getitems__(records.tolist())
        for row, example in zip(rows, examples, strict=True):
            images[row] = self._features.deserialize_example_np(example)["image"]


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from preparing the same set; freed when this one dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left half-written; call it under the lock."""
    for path in folder.glob("incomplete.*"):
        shutil.rmtree(path)


@contextlib.contextmanager
def _explained(name: str, folder: Path) -> Iterator[None]:
    """Turns a full disk and the like into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: BaseException | None = error
        while chain is not None:
            # Some writers report the system's error as text only.
            no_space = os.strerror(errno.ENOSPC)
            full = getattr(chain, "errno", None) == errno.ENOSPC
            if full or no_space.lower() in str(chain).lower():
                raise UserError(
                    f"no space left on the disk of {folder.parent} to prepare data set "
                    f"'{name}': free some, or name another data folder."
                ) from error
            chain = chain.__cause__ or chain.__context__
        if isinstance(error, OSError):
            raise UserError(f"cannot write to {folder.parent}: {error}") from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's own messages and bars: there is one progress bar already."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)
