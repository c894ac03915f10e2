"""Prepares a data set once, as TFDS records on disk, and reads it into memory.

`prepare` runs the tasks of a recipe on all cores (`run`), keeps the results of finished
tasks so that an interrupted preparation resumes (`kept`), and writes their examples as
records (see `records`).
"""

import contextlib
import dataclasses
import functools
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from tqdm import tqdm

from twostage_jax.data.dataset import (
    Dataset,
    Example,
    Made,
    Recipe,
    as_made,
    digest,
    largest,
)
from twostage_jax.data.records import VERSION, Collector, Prepared, RecordImages
from twostage_jax.errors import Notes, UserError, disk_full
from twostage_jax.io import locked, replacing

# Sets up to this size are read into memory; images of larger sets stay on disk.
MAX_MEMORY_BYTES = 8 * 2**30
# Target size of a part (see `Prepared`), which TFDS holds in memory.
PART_BYTES = 128 * 2**20
# Tasks in flight per worker, which bounds the memory for results.
AHEAD = 3
# Seconds between progress lines if standard error is not a terminal.
LINE_EVERY = 30.0


def prepare(
    recipe: Recipe,
    data_dir: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> Dataset:
    """Returns the data set of a recipe, and prepares it if it is not in `data_dir`.

    The set is stored in `<data_dir>/prepared/<name>-<first 16 letters of the key>/`. A
    folder appears there only when it is complete. Sets with other keys are kept, so
    that returning to earlier settings costs nothing; delete them by hand. If the recipe
    is `resumable`, the results of finished tasks survive an interruption.

    Args:
      recipe: Recipe of the data set.
      data_dir: Folder of prepared data; created if missing.
      workers: Number of processes; None for one per core, 1 for this process only.
      progress: Show a progress bar, if standard error is a terminal.

    Returns:
      The data set, with its examples sorted by id.

    Raises:
      UserError: A task of the recipe raised it; an example contradicts the others; a
        class lacks examples; the disk is full; or `data_dir` is not writable.
    """
    if not re.fullmatch(r"\w+", recipe.name, re.ASCII):
        raise UserError(
            f"data set name {recipe.name!r}: use letters, digits and underscores.",
            where="name",
        )
    home = Path(recipe.prepared_in or data_dir).expanduser().absolute()
    folder = folder_of(recipe, home)
    if not folder.exists() and recipe.prepared_in:
        raise UserError.at(
            folder, "the prepared data set does not exist: prepare it again."
        )
    if not folder.exists():
        lock = locked(folder.parent / ".lock", str(folder.parent), wait=True)
        with _explained(recipe.name, folder), lock:
            # The previous holder of the lock may have prepared it.
            if not folder.exists():
                # Half-written folders of killed processes.
                for path in folder.parent.glob("incomplete.*"):
                    shutil.rmtree(path)
                parts = tasks_of(recipe, home)
                made = _measured(recipe, workers, progress)
                made = kept(made, parts) if recipe.resumable else made
                _write(made, folder.parent.name, home, workers, progress)
                if parts.exists():
                    shutil.rmtree(parts)
    return _read(recipe, folder)


def folder_of(recipe: Recipe, data_dir: Path) -> Path:
    """Returns the folder in which `prepare` keeps a recipe's data set."""
    config = f"{recipe.name}-{recipe.key[:16]}"
    return data_dir / "prepared" / config / VERSION


def tasks_of(recipe: Recipe, data_dir: Path) -> Path:
    """Returns the folder in which finished tasks are kept until the set is complete."""
    return folder_of(recipe, data_dir).parent / "tasks"


def metadata_of(folder: Path) -> dict[str, Any]:
    """Returns the metadata of a prepared set; see `records.Collector`."""
    return dict(tfds.builder_from_directory(folder).info.metadata)


def _measured(recipe: Recipe, workers: int | None, progress: bool) -> Recipe:
    """Returns the recipe after measuring: `make` gets the largest measures of all tasks."""
    if recipe.measure is None:
        return recipe
    measuring = dataclasses.replace(recipe, make=recipe.measure)
    results = run(measuring, workers=workers, progress=progress, verb="measuring")
    with contextlib.closing(results):
        found = largest(results)
    make = functools.partial(recipe.make, found=found)
    return dataclasses.replace(recipe, make=make, measure=None, found=found)


def _write(
    recipe: Recipe, config: str, home: Path, workers: int | None, progress: bool
) -> None:
    results = run(recipe, workers=workers, progress=progress)
    # Closing stops the workers if writing fails.
    with contextlib.closing(results), tempfile.TemporaryDirectory() as downloads:
        collector = Collector(recipe, results, PART_BYTES)
        with _quiet():
            builder = Prepared(
                collector,
                config=tfds.core.BuilderConfig(name=config, version=VERSION),
                data_dir=home,
            )
            builder.download_and_prepare(
                file_format="array_record",
                download_dir=downloads,
                # Otherwise TFDS would search its cloud storage for the set.
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )


def _read(recipe: Recipe, folder: Path) -> Dataset:
    try:
        builder = tfds.builder_from_directory(folder)
        metadata = dict(builder.info.metadata)
        if metadata["key"] != recipe.key:
            raise ValueError("its key differs")
        # Parts without examples contain a filler; see `records`.
        ids = np.array(metadata["ids"])
        order = np.argsort(ids)
        order = order[ids[order] != ""]
        images: Any = RecordImages(builder, order)
        if images.nbytes <= MAX_MEMORY_BYTES:
            images = images.read()
    except Exception as error:
        raise UserError(
            f"prepared data in {folder} cannot be read ({error}): delete the folder and "
            "run the command again.",
            where=folder,
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
        # Sets prepared by earlier versions lack the entry.
        synthetic=bool(metadata.get("synthetic", recipe.synthetic)),
        facts=metadata.get("facts", {}),
        measures=metadata.get("measures", {}),
    )


@contextlib.contextmanager
def _explained(name: str, folder: Path) -> Iterator[None]:
    """Turns disk errors into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if disk_full(error):
            raise UserError(
                f"the disk of {folder.parent} is too full to prepare data set '{name}': "
                "free some space, or give another data folder.",
                where=folder.parent,
            ) from error
        if isinstance(error, OSError):
            raise UserError(
                f"cannot write to {folder.parent}: {error}", where=folder.parent
            ) from error
        raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences TFDS's messages and bars, because `run` shows a progress bar."""
    verbosity = absl_logging.get_verbosity()
    absl_logging.set_verbosity(absl_logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logging.set_verbosity(verbosity)


def kept(recipe: Recipe, folder: Path) -> Recipe:
    """Returns the recipe with the result of each task stored in `folder` once computed.

    The tasks keep their order. Delete the folder when the set is complete.
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
    """Writes the result of a task atomically, without pickle."""
    rest = [
        [e.id, int(e.label), e.group, e.split, dict(e.details), e.synthetic]
        for e in examples
    ]
    made = as_made(examples)
    record = {
        "examples": rest,
        "skipped": made.skipped,
        "notes": made.notes.to_json(),
        "facts": made.facts,
    }
    text = json.dumps(record).encode()
    images = {f"image_{i}": e.image for i, e in enumerate(examples)}
    if len({(e.image.shape, e.image.dtype) for e in examples}) == 1:
        images = {"images": np.stack([e.image for e in examples])}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, text=np.frombuffer(text, np.uint8), **images)


def load(path: Path) -> Made:
    """Returns the result of a task that `save` wrote."""
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


def run(
    recipe: Recipe,
    *,
    workers: int | None = None,
    progress: bool = True,
    verb: str = "preparing",
) -> Iterator[Any]:
    """Returns the result of each task, in the order of the tasks.

    Args:
      recipe: Recipe whose tasks are run.
      workers: Number of processes; None for one per core, 1 for this process only.
      progress: Show a progress bar on standard error or, if that is not a terminal,
        print a line at the start and every `LINE_EVERY` seconds.
      verb: Verb in the progress bar, such as 'preparing'.

    Raises:
      UserError: A task raised it, or a worker was killed.
      RuntimeError: A task raised any other exception; the message names the task.
    """
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    workers = min(workers or cores, len(recipe.tasks))
    results = _here(recipe) if workers <= 1 else _in_workers(recipe, workers)
    # The caller may redirect standard output while it iterates.
    return _shown(recipe, results, sys.stdout, verb) if progress else results


def _shown(
    recipe: Recipe, results: Generator[Any], out: TextIO, verb: str
) -> Iterator[Any]:
    total, name = len(recipe.tasks), recipe.name
    terminal = sys.stderr.isatty()
    bar = tqdm(desc=f"{verb} {name}", total=total, unit="task", disable=not terminal)
    title = f"{verb.capitalize()} data set '{name}'"
    if not terminal:
        print(f"{title}: {total} tasks.", file=out, flush=True)
    printed = time.monotonic()
    with bar, contextlib.closing(results):
        for done, examples in enumerate(results, start=1):
            yield examples
            bar.update()
            if not terminal and time.monotonic() - printed > LINE_EVERY:
                printed = time.monotonic()
                print(f"{title}: {done} of {total} tasks done.", file=out, flush=True)


def _here(recipe: Recipe) -> Generator[list[Example]]:
    for task in recipe.tasks:
        with _named(recipe, task):
            examples = recipe.make(task)
        yield examples


def _in_workers(recipe: Recipe, workers: int) -> Generator[list[Example]]:
    # Not 'fork': it may deadlock with jax's threads.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    pending: deque = deque()

    def result() -> list[Example]:
        task, future = pending.popleft()
        with _named(recipe, task):
            return future.result()

    try:
        for task in recipe.tasks:
            with uninterrupted(), _light_main(recipe):
                pending.append((task, pool.submit(recipe.make, task)))
            if len(pending) >= AHEAD * workers:
                yield result()
        while pending:
            yield result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _named(recipe: Recipe, task: Any) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            f"a process preparing data set '{recipe.name}' was killed, probably for "
            "lack of memory: free memory and run the command again.",
            where=recipe.name,
        ) from error
    except UserError:
        raise
    except Exception as error:
        text = repr(task)
        text = text if len(text) <= 300 else f"{text[:300]}..."
        raise RuntimeError(
            f"data set '{recipe.name}', task {text}: {type(error).__name__}: {error}"
        ) from error


def _start_worker() -> None:
    # On Ctrl-C, which a terminal sends to all processes, the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # A worker of a pool would outlive a killed parent.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Defers signals to the end of the block, which may start workers.

    A worker interrupted during start-up prints a long traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # New workers inherit the blocked signal until `_start_worker` sets a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number in received:
            signal.raise_signal(number)


@contextlib.contextmanager
def _light_main(recipe: Recipe) -> Iterator[None]:
    """Keeps workers that start in the block from importing the program's main module.

    Every worker would import jax, which takes seconds, and share an accelerator.
    """
    make = recipe.make
    while hasattr(make, "func"):
        make = make.func
    main = sys.modules["__main__"]
    if getattr(make, "__module__", "__main__") == "__main__":
        yield
        return
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
