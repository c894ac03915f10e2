"""What the commands share: flags, errors in one line, the set-up of jax."""

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from twostage_jax.config import parse
from twostage_jax.errors import UserError
from twostage_jax.settings import Config

DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder of prepared data sets; default: the user's cache."
)

# Cores made into devices, at most: each has a copy of the data.
MOST_CORES = 8
# The file system says no, to this user or to this place.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_dir() -> Path:
    """Returns the program's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "twostage_jax"


def data_dir() -> Path:
    """Returns the folder of prepared data sets."""
    return Path(DATA_DIR.value) if DATA_DIR.value else cache_dir() / "data"


def parsed_config(holder: flags.FlagHolder) -> Config:
    """Returns the checked settings of a config flag."""
    if holder.value is None:
        raise UserError("--config is missing: give --config=configs/two_stage.py.")
    try:
        return parse(holder.value)
    except (AttributeError, TypeError) as error:
        raise UserError(f"--config: {error}") from error


def run(main: Callable[[], None]) -> None:
    """Parses the flags, runs `main`, and turns expected failures into one line.

    Exit status: 2 after a `UserError`, 128 + the signal after an interruption.
    """
    # Names of files need not be UTF-8.
    sys.stdout.reconfigure(errors="backslashreplace")
    try:
        flags.FLAGS(sys.argv)
    except flags.Error as error:
        _fail(str(error).split("\n")[0])
    except (AttributeError, KeyError) as error:
        _fail(_unknown_setting(error))
    except (FileNotFoundError, ImportError, SyntaxError) as error:
        _fail(f"--config: {error}")
    from twostage_jax import runtime

    signal.signal(signal.SIGTERM, _terminated)
    try:
        set_up_jax()
        main()
    except UserError as error:
        _fail(str(error))
    except runtime.Interrupted as error:
        _fail(
            "stopped; the state is saved. Run the same command again to go on.",
            128 + error.args[0],
        )
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        _fail("interrupted. Run the same command again to go on.", 128 + number)
    except Exception as error:
        if _disk_full(error):
            _fail("the disk is full. Earlier saves are intact: free space, run again.")
        if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
            _fail(
                f"{error.filename}: {error.strerror}. Give folders that you may read and "
                "write, or change who may."
            )
        if _distributed():
            traceback.print_exc()
            os._exit(1)
        raise


def _terminated(number: int, frame: Any) -> None:
    """Ends like Ctrl-C, so that what is half-written is put away (see `StopFlag`)."""
    del frame
    raise KeyboardInterrupt(number)


def set_up_jax() -> None:
    """Turns on the compilation cache and, where there are several, joins the processes.

    Several processes are those of a SLURM job step or a TPU pod, found by jax itself,
    or those that `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` name.
    """
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if all(given):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
    elif any(given):
        raise UserError(f"set all of {', '.join(names)}, or none.")
    elif (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):  # fmt: skip
        jax.distributed.initialize()


def use_cores() -> None:
    """Makes a device of each core, where jax would see the processor as a single one.

    A small network uses one core better than it shares two, so stage runs go side by
    side. On accelerators nothing changes.
    """
    import jax

    flags = os.environ.get("XLA_FLAGS", "")
    given = "host_platform_device_count" in flags or jax.config.jax_num_cpu_devices > 0
    if given or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    jax.config.update("jax_num_cpu_devices", min(cores, MOST_CORES))


def _unknown_setting(error: Exception) -> str:
    """Returns one line for the override that the config does not have."""
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if suggestion:
        known, given = suggestion.groups()
        wanted = next((a for a in sys.argv if re.search(rf"\b{given}\b", a)), given)
        return f"{wanted.split('=')[0]}: unknown setting. Did you mean '{known}'?"
    name = text.strip("\"' ")
    wanted = next(
        (a for a in sys.argv if re.search(rf"\b{re.escape(name)}\b", a)), name
    )
    return f"{wanted.split('=')[0]}: unknown setting."


def _disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC:
            return True
        if "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: Any, status: int = 2) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status) if _distributed() else sys.exit(status)


def _distributed() -> bool:
    """Whether other processes wait for this one: exiting normally would wait for them."""
    jax = sys.modules.get("jax")
    return (
        jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
    )
