"""Code shared by the commands: joining processes, and one-line errors."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
import pytest
from basics import REPOSITORY

from twostage_jax import __main__ as twostage
from twostage_jax import (
    __version__,
    cli,
    explain,
    inspect,
    main,
    predict,
    prepare,
    report,
)
from twostage_jax.config import config_file
from twostage_jax.errors import UserError
from twostage_jax.study import run

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
    "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES",
)  # fmt: skip
# Config files are loaded in a way that Python will lose.
LOADING = pytest.mark.filterwarnings(
    r"ignore:the load_module\(\) method:DeprecationWarning"
)
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "node1:1234"}


@pytest.fixture
def joined(monkeypatch):
    """The arguments of each call of `jax.distributed.initialize`; jax is left alone."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *given: calls.append(given)
    )
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("variables", "calls"),
    [
        ({}, []),
        ({"SLURM_STEP_NUM_TASKS": "1"}, []),
        ({"SLURM_STEP_NUM_TASKS": "4"}, [()]),  # jax finds the others itself.
        ({"TPU_WORKER_HOSTNAMES": "host0"}, []),
        ({"TPU_WORKER_HOSTNAMES": "host0,host1"}, [()]),
        # A task of a job array has tasks beside it, but is no step of several.
        ({"SLURM_NTASKS": "4", "SLURM_ARRAY_TASK_ID": "0"}, []),
        (
            {**ADDRESS, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            [("node1:1234", 2, 0)],
        ),
        # What the user says comes before what SLURM says.
        (
            {
                **ADDRESS,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "1",
                "SLURM_STEP_NUM_TASKS": "4",
            },
            [("node1:1234", 2, 1)],
        ),
    ],
)
def test_processes_are_joined_where_there_are_several(
    joined, monkeypatch, variables, calls
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cli.set_up_jax()
    assert joined == calls


def test_cache_of_compiled_programs_that_the_user_set_is_kept(joined):
    given = jax.config.jax_compilation_cache_dir
    cli.set_up_jax()
    assert given and jax.config.jax_compilation_cache_dir == given


def test_half_of_the_names_of_the_processes_is_refused(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node1:1234")
    with pytest.raises(UserError) as refused:
        cli.set_up_jax()
    assert refused.value.where == "JAX_NUM_PROCESSES, JAX_PROCESS_ID"
    assert joined == []


def full_disk():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "states/6")


def full_disk_as_orbax_says_it():
    raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [28]")


def full_disk_behind_another_error():
    try:
        full_disk()
    except OSError as error:
        raise RuntimeError("the save failed") from error


@pytest.mark.parametrize(
    "main", [full_disk, full_disk_as_orbax_says_it, full_disk_behind_another_error]
)
def test_full_disk_is_one_line(joined, monkeypatch, capsys, main):
    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the disk is full. Saved states are intact")


def test_an_error_of_the_program_is_not_called_a_full_disk(joined, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main"])

    def main():
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        cli.run(main)


def asked(monkeypatch, program, argv):
    """Returns ((workdir, settings), data folder) that a command line trains."""
    calls = []
    monkeypatch.setattr(cli, "set_up_jax", lambda: None)
    monkeypatch.setattr(cli, "use_cores", lambda: None)
    monkeypatch.setattr(run, "run", lambda *given: calls.append(given))
    program(argv)
    ((config, workdir, data_dir),) = calls
    return (workdir, config), data_dir


@LOADING
def test_a_task_of_the_slurm_array_runs_one_seed(tmp_path, monkeypatch):
    """The script, with a `python` that only prints its arguments."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)
    told = subprocess.run(
        ["bash", "experiments/slurm_array.sh", "configs/two_stage.py:study", "runs/a b"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "3"},
    )  # fmt: skip
    module, program, *given = told.stdout.splitlines()
    assert (module, program) == ("-m", "twostage_jax.main")
    monkeypatch.chdir(REPOSITORY)
    (workdir, config), _ = asked(monkeypatch, main.main, ["train", *given])
    assert workdir == Path("runs/a b")
    assert config.name == "two_stage_study" and config.study.seeds == (3,)


@LOADING
def test_workdir_and_data_folder_have_defaults(monkeypatch, tmp_path):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    argv = [
        "train",
        "--config",
        "configs/two_stage.py:smoke",
        "--config.study.seeds=4,5",
    ]
    (workdir, config), data_dir = asked(monkeypatch, main.main, argv)
    assert workdir == Path("runs/two_stage_smoke")
    assert data_dir == tmp_path / "twostage_jax" / "data"
    assert config.study.seeds == (4, 5)


def command(
    *folder: str,
    name: str,
    count: int = 3,
    ratio: float | None = None,
    kind: Literal["a", "b"] = "a",
    parts: Sequence[str] = (),
    go_on: bool = False,
) -> None:
    """Stands for a command.

    Args:
      *folder: Folder to read.
      name: Name of
        two lines.
      count: How many.
      ratio: Ratio; default: 1 / count.
      kind: Which of two.
      parts: Their names.
      go_on: Continue.
    """
    CALLS.append((folder, name, count, ratio, kind, parts, go_on))


CALLS = []


@pytest.fixture
def calls():
    CALLS.clear()
    return CALLS


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["--folder=x", "--name=n"], (("x",), "n", 3, None, "a", [], False)),
        (
            ["--folder", "x", "y", "--name", "-1,5", "--go_on", "--count=2", "z"],
            (("x", "y", "z"), "-1,5", 2, None, "a", [], True),
        ),
        (
            "--name=n --folder=x --folder=y --ratio 0.5 --kind b --parts=p,q".split(),
            (("x", "y"), "n", 3, 0.5, "b", ["p", "q"], False),
        ),
        (["x", "--name=n", "--go_on", "--nogo_on"], (("x",), "n", 3, None, "a", [], 0)),
    ],
)
def test_flags_become_arguments(calls, arguments, call):
    cli.run(command, ["program", *arguments], jax=False)
    assert calls == [call]


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["x", "--name=n", "--cont=2"], ["--cont", "'count'"]),
        (["x", "--name=n", "--nogoon"], ["--nogoon"]),
        (["x", "--name=n", "--count=2.5"], ["--count=2.5", "whole number"]),
        (["x", "--name=n", "--ratio=much"], ["--ratio=much", "a number"]),
        (["x", "--name=n", "--kind=c"], ["--kind=c", "a|b"]),
        (["x", "--name=n", "--go_on=perhaps"], ["--go_on=perhaps"]),
        (["x", "--name"], ["name"]),
        (["x", "--name="], ["--name", "missing"]),
        (["--name=n"], ["--folder", "missing"]),
    ],
)
def test_mistake_on_the_command_line_is_one_line(calls, capsys, arguments, facts):
    with pytest.raises(SystemExit) as ended:
        cli.run(command, ["program", *arguments], jax=False)
    assert ended.value.code == 2 and not calls
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(fact in line for fact in facts)


def test_argument_that_is_no_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        predict.main(["predict", "runs/x", "--run=a", "--dicom=b", "--out=c"])
    assert ended.value.code == 2
    assert "'runs/x'" in capsys.readouterr().err


@LOADING
@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--config.study.seeds=1"], ["--config is missing"]),
        (["--workdir=x"], ["--config is missing"]),
        (["--config=configs/none.py"], ["configs/none.py"]),
        (["--config=configs"], ["configs"]),
        (["--config=configs/two_stage.py:big"], ["'big'", "line"]),
        (
            ["--config=configs/two_stage.py", "--config.study.sedes=1"],
            ["--config.study.sedes", "'seeds'"],
        ),
        (["--config=configs/two_stage.py", "--wrkdir=x"], ["--wrkdir", "'workdir'"]),
    ],
)
def test_mistake_in_a_config_is_one_line(monkeypatch, capsys, arguments, facts):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as ended:
        main.main(["train", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(fact in line for fact in facts)


@LOADING
def test_config_file_without_its_function_is_one_line(monkeypatch, tmp_path, capsys):
    """Also after another config file in the same process."""
    monkeypatch.chdir(REPOSITORY)
    asked(monkeypatch, main.main, ["train", "--config=configs/two_stage.py"])
    (tmp_path / "mine.py").write_text("def get_conf(): pass\n")
    (tmp_path / "none.py").write_text("def get_config(): return {}\n")
    for name in ("mine.py", "none.py"):
        with pytest.raises(SystemExit) as ended:
            main.main(["train", f"--config={tmp_path / name}"])
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "get_config" in line


def test_help_shows_flags_defaults_and_examples(capsys):
    cli.run(command, ["program", "x", "--helpfull"], jax=False)
    text = capsys.readouterr().out
    assert text.startswith("usage: program --folder=FOLDER [FOLDER ...] --name=NAME")
    lines = [line.strip() for line in text.splitlines()]
    meanings = dict(zip(lines, lines[1:], strict=False))
    assert meanings["--name=TEXT"] == "Name of two lines. Required."
    assert meanings["--count=NUMBER"] == "How many. Default: 3."
    assert meanings["--ratio=NUMBER"] == "Ratio; default: 1 / count."
    assert meanings["--kind=a|b"] == "Which of two. Default: a."
    assert meanings["--parts=NAME,NAME,..."] == "Their names."
    assert meanings["--go_on, --nogo_on"] == "Continue. Default: false."


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help", "--helpfull"])
def test_every_command_explains_itself(capsys, monkeypatch, name, flag):
    monkeypatch.setattr(sys, "argv", ["twostage", name, flag])
    twostage.main()
    text, errors = capsys.readouterr()
    assert not errors and text.startswith(f"usage: twostage {name} --")
    examples = [line for line in text.splitlines() if line.startswith("    twostage ")]
    assert len([line for line in examples if f"twostage {name} --" in line]) >= 2
    # Every flag is explained.
    lines = text.partition("Flags:\n")[2].splitlines()
    assert len(lines) >= 8
    for title, meaning in zip(lines, lines[1:], strict=False):
        assert not title.startswith("  --") or meaning.startswith("      ")
        assert len(meaning) <= 100


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_command_without_flags_prints_its_usage(capsys, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", ["twostage", name])
    with pytest.raises(SystemExit) as ended:
        twostage.main()
    text, errors = capsys.readouterr()
    assert ended.value.code == 2 and not text
    assert errors.startswith(f"usage: twostage {name} --")


@pytest.mark.parametrize("arguments", [["--version"], ["prepare", "--version"]])
def test_version(capsys, monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["twostage", *arguments])
    twostage.main()
    assert capsys.readouterr().out == f"twostage_jax {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "status", "facts"),
    [
        ([], 2, ["usage: twostage", *cli.COMMANDS]),
        (["--help"], 0, ["usage: twostage", *cli.COMMANDS]),
        (["trian"], 2, ["'trian'", "'train'"]),
    ],
)
def test_program_names_its_commands(capsys, monkeypatch, arguments, status, facts):
    monkeypatch.setattr(sys, "argv", ["twostage", *arguments])
    if status:
        with pytest.raises(SystemExit) as ended:
            twostage.main()
        assert ended.value.code == status
    else:
        twostage.main()
    told = capsys.readouterr()
    text = told.err if status else told.out
    assert all(fact in text for fact in facts)


HELPING = """
import sys
from twostage_jax import __main__ as twostage
for name in ("train", "inspect", "prepare", "predict", "export", "explain", "report"):
    sys.argv = ["twostage", name, "--help"]
    twostage.main()
heavy = {"jax", "matplotlib", "numpy", "tensorflow_datasets"}
print("heavy:", *sorted(heavy & set(sys.modules)))
"""


def test_help_waits_for_no_heavy_import():
    told = subprocess.run(
        [sys.executable, "-c", HELPING], cwd=REPOSITORY, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout.endswith("\nheavy:\n")


def test_commands_are_functions_with_plain_arguments(tmp_path):
    """Python users call them; errors are exceptions instead of exits."""
    for call, where in (
        (lambda: prepare.prepare(source="x", out="y", workers=0), "--workers"),
        (lambda: predict.predict(run="x", dicom="y", out="z", stride=0), "--stride"),
        (lambda: explain.explain(run="x", channels=-1), "--channels"),
        (lambda: explain.explain(run="x", texture_groups="(a)"), "--texture_groups"),
        (lambda: inspect.inspect(two_stage(), stage="targt", source="x"), "--stage"),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert refused.value.where == where
    with pytest.raises(UserError):
        report.report(str(tmp_path), out=str(tmp_path / "out"))


def two_stage():
    return config_file(REPOSITORY / "configs" / "two_stage.py").get_config("smoke")
