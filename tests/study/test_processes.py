"""Two processes of two devices each, against one process of one device."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from basics import REPOSITORY
from tiny_study import ONE, Killed, assert_close, events, restored_at, tiny_studies

__all__ = ["events"]  # A fixture.

SCRIPT = """
import signal
import sys
from pathlib import Path

sys.path.insert(0, "tests/helpers")
import jax
import pytest
from tiny_study import ONE, tiny_studies

from twostage_jax import cli
from twostage_jax.train import loop


def main():
    assert jax.process_count() == 2 and jax.device_count() == 4
    patch = pytest.MonkeyPatch()
    run = tiny_studies(patch)
    run(Path({resumed!r}), **ONE)
    train = loop.fit

    def signalled(*arguments):
        if jax.process_index() == 1:
            signal.raise_signal(signal.SIGTERM)
        return train(*arguments)

    patch.setattr(loop, "fit", signalled)
    run(Path({stopped!r}), **ONE)


cli.run(main)
"""


def test_two_processes_give_the_results_of_one(events, monkeypatch, tmp_path):
    """Two processes finish the run of one, and vice versa; a SIGTERM to one stops both."""
    run = tiny_studies(monkeypatch)
    whole, resumed, stopped = (tmp_path / n for n in ("whole", "resumed", "stopped"))
    run(whole, **ONE)
    events.count, events.kill_at = 0, 6  # The workdir's mark, the run's, a save.
    with pytest.raises(Killed):
        run(resumed, **ONE)
    events.kill_at = None
    [kept] = resumed.glob("stages/*/states/*")
    assert kept.name == "6"

    script = SCRIPT.format(resumed=str(resumed), stopped=str(stopped))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": "2",
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=900)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, errors, strict=True):
        assert process.returncode == 128 + signal.SIGTERM, text
        assert "Run the same command again" in text
    assert_close(whole, resumed)

    assert restored_at(monkeypatch, lambda: run(stopped, **ONE))[0] == 6
    assert_close(whole, stopped)
