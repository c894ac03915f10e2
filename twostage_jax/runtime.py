"""The process and its neighbours: signals, several hosts, files written whole."""

import contextlib
import fcntl
import json
import os
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from twostage_jax.errors import UserError


class Interrupted(Exception):
    """The run was asked to stop, and its state is saved; holds the signal's number."""


class StopFlag:
    """Turns SIGINT and SIGTERM into a flag that is looked at between steps.

    A signal in the middle of a step would find the state's buffers donated. A second
    Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Whether any process of the run was asked to stop; all get the same answer."""
        asked = self.signal is not None
        if jax.process_count() == 1:
            return asked
        return bool(np.any(multihost_utils.process_allgather(np.array(asked))))

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handles the signals while the context lasts."""

        def handle(number: int, frame: Any) -> None:
            del frame
            if self.signal == number == signal.SIGINT:
                raise KeyboardInterrupt
            self.signal = number

        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield self
        except Interrupted:
            # The first process has the state to save: the others wait for it.
            barrier("stopped")
            raise Interrupted(self.signal or signal.SIGTERM) from None
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes of the run."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(text: str) -> bool:
    """Whether all processes of the run give the same text; they wait for one another."""
    if jax.process_count() == 1:
        return True
    codes = multihost_utils.process_allgather(np.array(zlib.crc32(text.encode())))
    return bool((codes == codes[0]).all())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: readers see the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that takes the place of `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds a lock file, so that no second process works on `what`.

    The operating system drops the lock when the process ends, however it ends.

    Raises:
      UserError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{what} is in use by another process (number {holder}): wait for it to "
                "end, or give this run another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
