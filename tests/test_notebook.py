"""The notebook, executed from its first cell to its last."""

import configparser
import importlib.metadata
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import nbclient
import nbformat
import pytest
from basics import REPOSITORY

from twostage_jax.config import parse

PATH = REPOSITORY / "experiments" / "two_stage_colab.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


def cell(notebook, tag):
    (found,) = (c for c in notebook.cells if tag in c.metadata.get("tags", ()))
    return found


def printed(cell):
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


def test_notebook_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    for one in notebook.cells:
        assert not one.get("outputs") and one.get("execution_count") is None


def test_install_pins_the_jax_that_is_there(notebook, tmp_path, monkeypatch):
    known = {"jax": "0.9.1", "jaxlib": "0.9.1", "libtpu": "0.0.30", "numpy": "2.1.0"}
    commands = []

    def version(name):
        if name not in known:
            raise importlib.metadata.PackageNotFoundError(name)
        return known[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", lambda args, **_: commands.append(args))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(PATH.parent)
    exec(compile(cell(notebook, "install").source, "install", "exec"), {})
    ((*pip, flag, constraints, editable, place),) = commands
    assert pip[1:4] == ["-m", "pip", "install"]
    assert (flag, editable, place) == ("-c", "-e", ".")
    pins = constraints.read_text().split()
    assert pins == [f"{name}=={number}" for name, number in known.items()]
    assert Path.cwd() == REPOSITORY


def test_jax_older_than_the_package_needs_is_refused(notebook, monkeypatch):
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    needs = setup["options"]["install_requires"]
    (needed,) = re.findall(r"^jax>=([\d.]+)$", needs, flags=re.M)
    older = [int(part) for part in needed.split(".")]
    older[-1] -= 1
    monkeypatch.setattr(jax, "__version_info__", tuple(older))
    monkeypatch.setattr(jax, "__version__", ".".join(map(str, older)))
    with pytest.raises(RuntimeError, match=f"too old: install {needed} or newer"):
        exec(compile(cell(notebook, "devices").source, "devices", "exec"), {})


def test_notebook_never_names_tensorflow(notebook):
    assert not any("tensorflow" in c.source.lower() for c in notebook.cells)


def test_notebook_runs_from_end_to_end(notebook, tmp_path, monkeypatch, user_cache):
    monkeypatch.setenv("XDG_CACHE_HOME", str(user_cache))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # As in test_main.py, with the same programs.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    # Whatever the user keeps elsewhere stays out of the test.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    smoke = {
        "VARIANT": '"smoke"',
        "ARMS": '("scratch", "two_stage")',
        "SEEDS": "(0,)",
        "FRACTIONS": "(1.0,)",
        "WORKDIR": f"Path({str(tmp_path / 'run')!r})",
    }
    parameters = cell(notebook, "parameters")
    for name, value in smoke.items():
        parameters.source, count = re.subn(
            rf"^{name} = [^#\n]*", f"{name} = {value}  ", parameters.source, flags=re.M
        )
        assert count == 1, name
    client = nbclient.NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": str(PATH.parent)}}
    )
    client.execute()
    assert "1 x cpu (cpu)" in printed(cell(notebook, "devices"))
    assert "stage runs" in printed(cell(notebook, "study"))
    shown = cell(notebook, "show").outputs
    words = " ".join(out.data.get("text/markdown", "") for out in shown)
    assert "Two-stage scored" in words and "two-stage" in words and "| scratch" in words
    pictures = [out for out in shown if "image/png" in out.data]
    assert len(pictures) >= 5
    assert printed(cell(notebook, "download")).strip().endswith("report.zip")
    assert (tmp_path / "run" / "report.zip").stat().st_size > 10_000
    assert "Fill in the three paths" in printed(cell(notebook, "own"))


def test_own_folders_become_the_settings_of_a_study(notebook, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    ran, shown = [], []
    folders = {"natural": "images", "texture": "textures", "target": "slices"}
    names = {
        "FOLDERS": folders,
        "OWN_WORKDIR": Path("own"),
        "runpy": runpy,
        "run": lambda config, workdir: ran.append((parse(config), workdir)),
        "show": shown.append,
    }
    exec(compile(cell(notebook, "own").source, "own", "exec"), names)
    ((config, workdir),) = ran
    assert shown == [workdir] == [Path("own")]
    paths = {name: one.data.options["path"] for name, one in config.stages.items()}
    # The control of equal steps reads what the natural stage reads.
    assert paths == {**folders, "natural_long": folders["natural"]}
