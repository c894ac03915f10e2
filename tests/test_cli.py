"""What the commands share: joining processes, and failures in one line."""

import errno
import os
import subprocess
import sys

import jax
import pytest
from absl import flags
from conftest import REPOSITORY
from ml_collections import config_flags

from twostage_jax import cli
from twostage_jax.config import parse
from twostage_jax.errors import UserError

VARIABLES = (
    "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID",
    "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES",
)  # fmt: skip
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


def test_half_of_the_names_of_the_processes_is_refused(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node1:1234")
    with pytest.raises(UserError, match="set all of JAX_COORDINATOR_ADDRESS, JAX_NUM"):
        cli.set_up_jax()
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
    assert line.startswith("error: the disk is full. Earlier saves are intact")


def test_an_error_of_the_program_is_not_called_a_full_disk(joined, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main"])

    def main():
        raise ValueError("shapes differ")

    with pytest.raises(ValueError, match="shapes differ"):
        cli.run(main)


@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")
def test_a_task_of_the_slurm_array_runs_one_seed(tmp_path, monkeypatch):
    """The script, with a `python` that only says what it was given."""
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
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=parsed)
    flags.DEFINE_string("workdir", None, "", flag_values=parsed)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["main", *given])  # Read for the overrides.
    assert parsed(["main", *given]) == ["main"]
    assert parsed.workdir == "runs/a b"
    config = parse(parsed.config)
    assert config.name == "two_stage_study" and config.study.seeds == (3,)


WORKDIR = """
from twostage_jax import cli, main, study

study.run = lambda config, workdir, data_dir: print(workdir)
cli.set_up_jax = cli.use_cores = lambda: None
cli.run(main.main)
"""


def test_workdir_is_named_by_the_config_if_none_is_given():
    told = subprocess.run(
        [sys.executable, "-c", WORKDIR, "--config=configs/two_stage.py:smoke"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert told.stdout == f"{os.path.join('runs', 'two_stage_smoke')}\n"
