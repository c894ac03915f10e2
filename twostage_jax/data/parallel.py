"""Running a recipe's tasks on all cores."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TextIO

from tqdm import tqdm

from twostage_jax.data.dataset import Example, Recipe
from twostage_jax.errors import UserError

# Tasks in flight for each worker; it bounds the memory that results take.
AHEAD = 3
# Seconds between lines on the progress, where no bar can be shown.
LINE_EVERY = 30.0


def run(
    recipe: Recipe,
    *,
    workers: int | None = None,
    progress: bool = True,
    verb: str = "preparing",
) -> Iterator[Any]:
    """Returns the examples of each task, in the order of the tasks.

    Args:
      recipe: What to make.
      workers: Processes to use; None for one per core, 1 for none but this one.
      progress: Show a progress bar on standard error or, where that is not a terminal,
        print a line at the start and every `LINE_EVERY` seconds.
      verb: The work, in the words of the bar.

    Raises:
      UserError: What a task raised as such, or a worker that was killed.
      RuntimeError: Any other exception of a task; it names the task.
    """
    workers = min(workers or _cores(), len(recipe.tasks))
    results = _here(recipe) if workers <= 1 else _in_workers(recipe, workers)
    # The caller may redirect standard output while the results are drawn.
    return _shown(recipe, results, sys.stdout, verb) if progress else results


def _shown(
    recipe: Recipe, results: Generator[Any], out: TextIO, verb: str
) -> Iterator[Any]:
    total, name = len(recipe.tasks), recipe.name
    terminal = sys.stderr.isatty()
    bar = tqdm(desc=f"{verb} {name}", total=total, unit="task", disable=not terminal)
    what = f"{verb.capitalize()} data set '{name}'"
    if not terminal:
        print(f"{what}: {total} tasks.", file=out, flush=True)
    told = time.monotonic()
    with bar, contextlib.closing(results):
        for done, examples in enumerate(results, start=1):
            yield examples
            bar.update()
            if not terminal and time.monotonic() - told > LINE_EVERY:
                told = time.monotonic()
                print(f"{what}: {done} of {total} tasks done.", file=out, flush=True)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _here(recipe: Recipe) -> Generator[list[Example]]:
    for task in recipe.tasks:
        with _named(recipe, task):
            examples = recipe.make(task)
        yield examples


def _in_workers(recipe: Recipe, workers: int) -> Generator[list[Example]]:
    # Not 'fork': it may deadlock with the threads that jax has running.
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
            with _uninterrupted(), _light_main(recipe):
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
            f"a process preparing data set '{recipe.name}' was killed, most often for "
            "lack of memory: free some and run again."
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
    # The parent ends the workers on Ctrl-C, which a terminal sends to all.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # A pool's worker outlives a parent that is killed, unless it looks after itself.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts signals off to the end of the block, which may start workers.

    One cut off while it starts, by its parent's end or by Ctrl-C, complains at length.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    # What is started inherits it, until it knows what to do.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def _light_main(recipe: Recipe) -> Iterator[None]:
    """Keeps workers that start meanwhile from importing the program's main module.

    It would bring jax into every worker: seconds each, and an accelerator shared.
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
