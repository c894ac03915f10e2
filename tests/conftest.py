"""Fixtures and settings shared by all tests."""

import os
from pathlib import Path

import chest
import jax
import pytest
import study_files
from basics import Tiny

from twostage_jax import models
from twostage_jax.maps.classify import Classifier
from twostage_jax.report.write import write_report
from twostage_jax.study import artifacts


def pytest_configure(config):
    """Compiles fast, and caches the programs for all tests, processes and later runs.

    Compilation takes most of the time of the tests; running the programs takes little.
    Without optimisations they compute the same to rounding, in a third of the time.
    """
    if jax.__version_info__[:2] == (0, 10):  # Newer ones lack the option.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
    for name, value in {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def tiny(monkeypatch):
    """Registers the model 'tiny'."""
    monkeypatch.setitem(models.MODELS, "tiny", Tiny)
    return "tiny"


@pytest.fixture
def devices():
    """Number of devices; skips the test if there is only one."""
    count = jax.local_device_count()
    if count == 1:
        pytest.skip("needs several devices")
    return count


@pytest.fixture
def brightness(monkeypatch):
    """Registers the model 'brightness' of a stage run that `chest.write_run` writes."""
    monkeypatch.setitem(models.MODELS, "brightness", chest.Brightness)


@pytest.fixture
def classifier(brightness, tmp_path):
    """That stage run, with its window, applied to windows of slices."""
    run = artifacts.find(chest.write_run(tmp_path / "study"))
    return Classifier(run, run.window)


@pytest.fixture
def real_data():
    """The folder of real images named by the variable TWOSTAGE_DATA."""
    folder = os.environ.get("TWOSTAGE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TWOSTAGE_DATA names no folder of real images")
    return Path(folder)


@pytest.fixture(scope="session")
def study_run(tmp_path_factory):
    """The run folder of a study of four arms, two seeds, two sizes, hostile labels."""
    chances = {"scratch": 0.75, "natural": 0.8, "texture": 0.78, "two_stage": 0.9}
    return study_files.write_study(
        tmp_path_factory.mktemp("run"), chances, seeds=(0, 1), fractions=(1.0, 0.5),
        patients=18, classes=study_files.HOSTILE, rich=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def study_report(study_run, tmp_path_factory):
    """The folder of the report of `study_run`."""
    out = tmp_path_factory.mktemp("report") / "new"
    assert write_report([study_run], out) == out / "report.html"
    return out


@pytest.fixture(scope="session")
def user_cache(tmp_path_factory):
    """A user's cache, empty at first: prepared data and compiled programs, shared."""
    return tmp_path_factory.mktemp("cache")
