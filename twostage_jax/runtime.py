"""Process environment of a run: signals, other processes, versions of libraries."""

import contextlib
import ctypes
import gc
import importlib.metadata
import platform
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

import twostage_jax

# Libraries that a result depends on.
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Interrupted(Exception):
    """Raised in a run that was asked to stop, after its state is saved.

    The argument is the number of the signal.
    """


class StopFlag:
    """Turns SIGINT and SIGTERM into a flag that is read between steps.

    In the middle of a step, the buffers of the state may already be donated. A second
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
    """Whether this process writes files and prints messages."""
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


def forget_programs() -> None:
    """Frees compiled programs, about 50 MB each; used again, they are compiled again."""
    jax.clear_caches()
    gc.collect()
    return_memory()


def return_memory() -> None:
    """Returns free memory of this process to the system, if glibc supports it.

    Each compilation leaves about 300 MB of free memory.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def versions() -> dict[str, str]:
    """Returns the versions of the program, Python, the libraries, and the devices."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = jax.devices()
    return {
        "twostage_jax": twostage_jax.__version__,
        "python": platform.python_version(),
        **found,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
