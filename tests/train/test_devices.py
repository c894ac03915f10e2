"""Training is the same on one device and on all."""

import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from basics import REPOSITORY, make_dataset
from small_training import fresh, side_by_side, step_settings, train

from twostage_jax.config import AugmentConfig, ModelConfig, OptimConfig
from twostage_jax.train import parallel, steps
from twostage_jax.train.parallel import Placement


def test_tests_of_several_devices_pass_in_a_process_of_eight():
    """They skip in a process of one device, as here."""
    rooms = ("models", "train")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-o", "addopts="),
            *("-k", "on_one_device_and_on_all", *(f"tests/{room}" for room in rooms)),
        ],
        env={
            **os.environ,
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "7 passed" in done.stdout and "skipped" not in done.stdout, done.stdout


def assert_close(one, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, other
    )


def all_sources_of_chance(**optim):
    """Settings with batch statistics, dropout and augmentation."""
    return step_settings(
        model=ModelConfig(name="tiny", image_size=8, dropout=0.5),
        augment=AugmentConfig(flip="dihedral", shift=1, brightness=0.1, contrast=0.1),
        optim=OptimConfig(learning_rate=0.1, **optim),
    )


@pytest.mark.parametrize("on_cpu", [True, False])
def test_steps_are_the_same_on_one_device_and_on_all(
    tiny, devices, monkeypatch, on_cpu
):
    """As processors do it, and as accelerators: all steps in one call, sums by psum."""
    monkeypatch.setattr(steps, "on_cpu", lambda: on_cpu)
    parallel.programs.cache_clear()
    settings = all_sources_of_chance(clip_norm=1.0)
    order = np.arange(48, dtype=np.int32).reshape(3, 16)
    one, many = (
        train(settings, fresh(settings), make_dataset(), order, placement=placement)
        for placement in (Placement(1, 1), Placement(1, devices))
    )
    parallel.programs.cache_clear()
    assert_close(one, many)


@pytest.mark.parametrize(
    ("runs", "count"),
    # Two on each device with a place left free; one on each device.
    [([2, 0, 1], 2), ([0, 3], 2)],
)
def test_run_side_by_side_is_the_same_on_one_device_and_on_all(
    tiny, devices, runs, count
):
    """It does not depend on the other runs."""
    settings, random = all_sources_of_chance(), np.random.default_rng(0)
    start = fresh(settings)
    given = [
        (
            jax.tree.map(lambda x, i=i: np.asarray(x) * (1 + i / 10), start),
            random.permutation(60)[:48].reshape(3, 16).astype(np.int32),
            i,
        )
        for i in range(4)
    ]
    [alone] = side_by_side(settings, given[:1], make_dataset(), Placement(1, 1))
    together = side_by_side(
        settings, [given[i] for i in runs], make_dataset(), Placement(len(runs), count)
    )
    assert_close(alone, together[runs.index(0)])


def test_parts_are_added_in_the_order_of_the_devices():
    """The last digit does not depend on which devices share a process."""
    random = np.random.default_rng(0)
    parts = random.normal(size=(8, 1000)).astype(np.float32)
    parts *= 10.0 ** random.integers(-4, 4, (8, 1)).astype(np.float32)
    total = jax.vmap(lambda part: steps.total(part, "batch"), axis_name="batch")
    in_order, reversed_order = (
        functools.reduce(np.add, p) for p in (parts, parts[::-1])
    )
    for device in np.asarray(jax.jit(total)(parts)):
        np.testing.assert_array_equal(device, in_order)
    assert not np.array_equal(in_order, reversed_order)
