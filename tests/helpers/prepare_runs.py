"""Runs `python -m twostage_jax.prepare` as a user does, and reads its tables."""

import csv
import subprocess
import sys


def run(*arguments, check=True):
    result = subprocess.run(
        [sys.executable, "-m", "twostage_jax.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
