"""Command line shared by all commands: flags, help, one-line errors, set-up of jax.

A command is a function with plain arguments. Its flags come from its signature and
their explanations from the `Args` of its docstring, so a new flag is a new parameter:

    str, int, float, Literal   --name=value or --name value
    bool                       --name or --noname
    Sequence[str]              --name=a,b
    *name: str                 --name=a b, or --name=a --name=b
    ConfigDict                 --name=FILE[:VARIANT] --name.setting=value

A parameter without a default is a required flag. The docstring of the command's module
describes the command and gives examples.
"""

import contextlib
import errno
import inspect
import io
import os
import re
import signal
import sys
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from twostage_jax import __version__
from twostage_jax.errors import UserError, did_you_mean, disk_full

if typing.TYPE_CHECKING:
    from twostage_jax.config import Config

# Commands of `twostage`: name -> module, whose `main` takes the arguments.
COMMANDS = {
    "train": "twostage_jax.main",
    "inspect": "twostage_jax.inspect",
    "prepare": "twostage_jax.prepare",
    "predict": "twostage_jax.predict",
    "export": "twostage_jax.export",
    "explain": "twostage_jax.explain",
    "report": "twostage_jax.report",
}
HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")
INDENT = " " * 6  # before the explanation of a flag
# Largest number of cores used as devices: each has a copy of the data.
MOST_CORES = 8
# Errors for paths that cannot be read or written.
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_dir() -> Path:
    """Returns the program's folder in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "twostage_jax"


def data_dir(given: str = "") -> Path:
    """Returns the folder of prepared data sets: the given one, or one in the cache."""
    return Path(given) if given else cache_dir() / "data"


def parsed_config(config: ConfigDict) -> "Config":
    """Returns the checked settings of a config file's `ConfigDict`.

    Raises:
      UserError: A setting is unknown, of the wrong type, or impossible.
    """
    # Imports NumPy, which `--help` should not wait for.
    from twostage_jax.config import parse

    try:
        return parse(config)
    except (AttributeError, TypeError) as error:
        raise UserError(f"--config: {error}", where="--config") from error


def run(
    command: Callable[..., Any],
    argv: Sequence[str] | None = None,
    *,
    jax: bool = True,
) -> None:
    """Calls a command with its flags, reporting expected failures in one line.

    Exit status: 2 for a mistake on the command line or a `UserError`, 128 + the signal
    after an interruption, 0 for `--help` and `--version`.

    Args:
      command: Function with plain arguments, as the module describes.
      argv: Name of the program, then its arguments; default: those of the process.
      jax: Whether to set up jax for the command; see `set_up_jax`.
    """
    program, *arguments = argv or [_program(command), *sys.argv[1:]]
    if any(argument in HELP for argument in arguments):
        return show(_help(command, program))
    if "--version" in arguments:
        return show(f"twostage_jax {__version__}")
    given, values = _parsed(command, program, arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names need not be UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if jax:
            set_up_jax()
        command(*given, **values)
    except UserError as error:
        _fail(str(error))
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        _fail("interrupted. Run the same command again to resume.", 128 + number)
    except Exception as error:
        runtime = sys.modules.get("twostage_jax.runtime")
        if runtime is not None and isinstance(error, runtime.Interrupted):
            _fail(
                "stopped; the state is saved. Run the same command again to resume.",
                128 + error.args[0],
            )
        if disk_full(error):
            _fail(
                "the disk is full. Saved states are intact: free some space and run the "
                "same command again."
            )
        if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
            _fail(
                f"{error.filename}: {error.strerror}. Give a folder that you can read and "
                "write, or change its permissions."
            )
        if _distributed():
            traceback.print_exc()
            os._exit(1)
        raise


def show(text: str) -> None:
    """Prints a text, tolerating a pipe that closes early."""
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    print(text, flush=True)
    signal.signal(signal.SIGPIPE, before)


def _parsed(
    command: Callable[..., Any], program: str, arguments: list[str]
) -> tuple[list[str], dict[str, Any]]:
    """Returns the positional and keyword arguments of a command line."""
    parameters = inspect.signature(command).parameters
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for parameter in parameters.values():
        _define(values, parameter, _kind(command, parameter), [program, *arguments])
    if not arguments and any(p.default is p.empty for p in parameters.values()):
        print(_usage(command, program), file=sys.stderr)
        _fail("flags are missing; --help explains them.")
    try:
        _, *rest = values([program, *arguments])
    except flags.UnrecognizedFlagError as error:
        block = error.flagname.partition(".")[0]
        if block != error.flagname and block in parameters:
            _fail(f"--{block} is missing: give --{block}=FILE before its settings.")
        known = (*parameters, "help", "version")
        name = error.flagname
        _fail(f"--{name}: unknown flag.{did_you_mean(name, known)}")
    except flags.IllegalFlagValueError as error:
        _fail(_impossible_value(error, command))
    except flags.Error as error:
        _fail(_first_line(error))
    except (AttributeError, KeyError) as error:
        if "no attribute 'get_config'" in str(error):
            _fail("--config: the file does not define get_config.")
        _fail(_unknown_setting(error, arguments))
    except (FileNotFoundError, ImportError, SyntaxError) as error:
        _fail(f"--config: {error}")
    positional: list[str] = []
    keywords = {}
    for name, parameter in parameters.items():
        value = values[name].value
        if _kind(command, parameter) is ConfigDict and value is not None:
            _check_loaded(name, value, values[name])
        if parameter.kind is parameter.VAR_POSITIONAL:
            positional, rest = [*(value or ()), *rest], []
            value = positional
        else:
            keywords[name] = value
        if parameter.default is parameter.empty and not value:
            _fail(f"--{name} is missing; --help explains all flags.")
    if rest:
        _fail(
            f"'{rest[0]}': unexpected argument. Flags are written --name=value; --help "
            "explains them."
        )
    return positional, keywords


def _check_loaded(name: str, config: Any, flag: flags.Flag) -> None:
    """Ends the program if a config file cannot be read or does not return settings."""
    if isinstance(config, ConfigDict):
        return
    path = config_flags.get_config_filename(flag).partition(":")[0]
    if Path(path).is_file():
        _fail(f"--{name}={path}: get_config does not return a ConfigDict.")
    _fail(f"--{name}={path}: the file does not exist.")


def _kind(command: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Returns the type of a parameter, without None if it is optional."""
    kind = typing.get_type_hints(command)[parameter.name]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
    return kind


def _define(
    values: flags.FlagValues, parameter: inspect.Parameter, kind: Any, argv: list[str]
) -> None:
    name = parameter.name
    default = None if parameter.default is parameter.empty else parameter.default
    common: dict[str, Any] = {"help": "", "flag_values": values}
    if kind is ConfigDict:
        # Otherwise settings of an earlier command's config file would stay defined.
        sys.modules.pop(f"{name}_config", None)
        config_flags.DEFINE_config_file(
            name, default, sys_argv=argv, flag_values=values
        )
    elif typing.get_origin(kind) is typing.Literal:
        flags.DEFINE_enum(name, default, typing.get_args(kind), **common)
    elif parameter.kind is parameter.VAR_POSITIONAL:
        flags.DEFINE_multi_string(name, default, **common)
    elif typing.get_origin(kind) is Sequence:
        flags.DEFINE_list(name, default, **common)
    else:
        define = {
            str: flags.DEFINE_string,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            bool: flags.DEFINE_boolean,
        }[kind]
        define(name, default, **common)


def _usage(command: Callable[..., Any], program: str) -> str:
    """Returns the command in one line, with its required flags."""
    parts = [f"usage: {program}"]
    for name, parameter in inspect.signature(command).parameters.items():
        if parameter.kind is parameter.VAR_POSITIONAL:
            parts.append(f"--{name}={name.upper()} [{name.upper()} ...]")
        elif _kind(command, parameter) is ConfigDict:
            parts.append(f"--{name}=FILE[:VARIANT] [--{name}.SETTING=VALUE ...]")
        elif parameter.default is parameter.empty:
            parts.append(f"--{name}={name.upper()}")
    return " ".join([*parts, "[FLAGS]"])


def _help(command: Callable[..., Any], program: str) -> str:
    """Returns the text of `--help`: description, examples and flags."""
    text = inspect.cleandoc(command.__globals__["__doc__"] or "")
    if not program.startswith("python"):
        for name, module in COMMANDS.items():
            text = re.sub(rf"python -m {re.escape(module)}\b", f"twostage {name}", text)
    lines = [_usage(command, program), "", text, "", "Flags:"]
    explained = _explained(command)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, default = _kind(command, parameter), parameter.default
        words = " ".join(explained.get(name, "").split())
        if default is parameter.empty:
            words += " Required."
        elif kind is bool:
            words += f" Default: {str(default).lower()}."
        elif default is not None and default != "" and default != ():
            words += f" Default: {default}."
        lines.append(f"  --{name}{_form(kind, name)}")
        lines += textwrap.wrap(
            words, 84, initial_indent=INDENT, subsequent_indent=INDENT,
            break_on_hyphens=False,
        )  # fmt: skip
    lines += ["  --help, -h", "      Print this text."]
    lines += ["  --version", "      Print the version."]
    return "\n".join(lines)


def _form(kind: Any, name: str) -> str:
    """Returns the notation for the value of a flag, such as '=NUMBER'."""
    if kind is bool:
        return f", --no{name}"
    if kind is ConfigDict:
        return "=FILE[:VARIANT]"
    if typing.get_origin(kind) is typing.Literal:
        return "=" + "|".join(typing.get_args(kind))
    if typing.get_origin(kind) is Sequence:
        return "=NAME,NAME,..."
    return "=NUMBER" if kind in (int, float) else "=TEXT"


def _explained(command: Callable[..., Any]) -> dict[str, str]:
    """Returns the entries of a docstring's `Args`."""
    text = inspect.cleandoc(command.__doc__ or "").partition("Args:\n")[2]
    entries = re.findall(r"^  \*?(\w+): (.*(?:\n    .*)*)", text.split("\n\n")[0], re.M)
    return dict(entries)


def _program(command: Callable[..., Any]) -> str:
    """Returns the command line that starts the module of a command."""
    spec = command.__globals__.get("__spec__")
    return f"python -m {spec.name}" if spec else f"python {sys.argv[0]}"


def _impossible_value(
    error: flags.IllegalFlagValueError, command: Callable[..., Any]
) -> str:
    """Returns the error, in one line, for an invalid value of a flag."""
    text = _first_line(error).removeprefix("flag ")
    for name, parameter in inspect.signature(command).parameters.items():
        kind = _kind(command, parameter)
        if not text.startswith(f"--{name}="):
            continue
        if kind in (int, float):
            number = "a whole number" if kind is int else "a number"
            value = text.removeprefix(f"--{name}=").split(": ")[0]
            return f"--{name}={value}: expected {number}."
        if kind is ConfigDict and "Traceback" in str(error):
            *calls, reason = str(error).strip().split("\n")
            place = re.findall(r'File "(.*)", line (\d+)', "\n".join(calls))[-1]
            return f"--{name}: {reason} ({place[0]}, line {place[1]})"
    return text


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _terminated(number: int, frame: Any) -> None:
    """Exits as on Ctrl-C, so that half-written files are removed (see `StopFlag`)."""
    del frame
    raise KeyboardInterrupt(number)


def set_up_jax() -> None:
    """Turns on the compilation cache and joins the processes of a run, if any.

    These are the processes of a SLURM job step or a TPU pod, found by jax itself, or
    those of `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if all(given):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(given[0], int(given[1]), int(given[2]))
    elif any(given):
        missing = ", ".join(n for n, v in zip(names, given, strict=True) if not v)
        raise UserError(
            f"the environment variables {', '.join(names)} belong together, but {missing} "
            "is not set: set all or none of them.",
            where=missing,
        )
    elif (
        int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    ):  # fmt: skip
        jax.distributed.initialize()


def use_cores() -> None:
    """Makes each core a device; by default the whole processor is a single one.

    A small network uses one core better than it shares two, so stage runs train side by
    side. On accelerators this has no effect.
    """
    import jax

    options = os.environ.get("XLA_FLAGS", "")
    given = "host_platform_device_count" in options
    if given or jax.config.jax_num_cpu_devices > 0 or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    # If jax was used before in this process, its devices stay as they are.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", min(cores, MOST_CORES))


def _unknown_setting(error: Exception, arguments: list[str]) -> str:
    """Returns the error, in one line, for an override of an unknown setting."""
    text = " ".join(str(error).replace("\\n", " ").replace("\\'", "'").split())
    suggestion = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    known, name = suggestion.groups() if suggestion else ("", text.strip("\"' "))
    pattern = rf"\b{re.escape(name)}\b"
    wanted = next((a for a in arguments if re.search(pattern, a)), name)
    hint = f" Did you mean '{known}'?" if known else ""
    return f"{wanted.split('=')[0]}: unknown setting.{hint}"


def _fail(message: Any, status: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status) if _distributed() else sys.exit(status)


def _distributed() -> bool:
    """Whether the run has other processes; a normal exit would wait for them."""
    jax = sys.modules.get("jax")
    return (
        jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1
    )
