"""Where stage runs lie: the layout of batches, and host trees there and back."""

import jax
import numpy as np
import pytest

from twostage_jax.placement import Placement


@pytest.fixture
def devices(monkeypatch):
    """Returns a function that pretends so many devices, in one of several processes."""

    def pretend(local, processes=1, process=0):
        monkeypatch.setattr(jax, "local_device_count", lambda: local)
        monkeypatch.setattr(jax, "device_count", lambda: local * processes)
        monkeypatch.setattr(jax, "process_index", lambda: process)

    return pretend


def test_a_run_that_is_spread_cuts_each_batch(devices):
    devices(local=2)
    batches = np.arange(12).reshape(1, 3, 4)  # One run, three steps of four examples.
    laid = Placement().arrange(batches)
    assert laid.shape == (2, 1, 3, 2)
    np.testing.assert_array_equal(laid[0, 0], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(laid[1, 0], [[2, 3], [6, 7], [10, 11]])


def test_each_process_gets_the_part_of_its_own_devices(devices):
    batches = np.arange(8).reshape(1, 1, 8)
    parts = []
    for process in (0, 1):
        devices(local=2, processes=2, process=process)
        parts.append(Placement().arrange(batches))
    assert parts[0].shape == (2, 1, 1, 2)
    np.testing.assert_array_equal(np.concatenate(parts).ravel(), np.arange(8))


def test_runs_side_by_side_have_whole_batches_and_free_places_repeat_the_last(devices):
    devices(local=2)
    batches = np.arange(3 * 2 * 5).reshape(3, 2, 5)
    laid = Placement(4).arrange(batches)
    assert laid.shape == (2, 2, 2, 5)
    np.testing.assert_array_equal(laid[0], batches[:2])
    np.testing.assert_array_equal(laid[1], batches[[2, 2]])


@pytest.mark.parametrize(
    ("runs", "size", "whole"), [(1, 256, 256), (1, 257, 258), (2, 257, 257)]
)
def test_batches_of_evaluation_are_rounded_up_to_what_devices_share(
    devices, runs, size, whole
):
    devices(local=2)
    assert Placement(runs).whole(size) == whole


@pytest.mark.parametrize("width", [1, 3])
def test_host_trees_come_back_as_they_went(width):
    trees = [
        {"a": np.full((2, 3), i, np.float32), "b": np.int32(i)}
        for i in range(min(width, 2))  # A third place, if any, stays free.
    ]
    placement = Placement(width)
    placed = placement.put(trees)
    assert placed["a"].shape == (1, width, 2, 3)
    for i, tree in enumerate(trees):
        back = placement.take(placed, i)
        assert back["b"] == i and back["b"].dtype == np.int32
        np.testing.assert_array_equal(back["a"], tree["a"])
    assert placement.host(placed)["a"].shape == (width, 2, 3)
