"""Placement of stage runs: the layout of batches, and host trees in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostage_jax.train import parallel
from twostage_jax.train.parallel import Placement, alone, side_by_side


@pytest.fixture
def process(monkeypatch):
    """Returns a function that pretends to be one of several processes."""

    def pretend(index, count):
        monkeypatch.setattr(jax, "process_count", lambda: count)
        monkeypatch.setattr(jax, "process_index", lambda: index)

    return pretend


def test_a_run_that_is_spread_cuts_each_batch():
    batches = np.arange(12).reshape(1, 3, 4)  # One run, three steps of four examples.
    laid = Placement(1, 2).arrange(batches)
    assert laid.shape == (2, 1, 3, 2)
    np.testing.assert_array_equal(laid[0, 0], [[0, 1], [4, 5], [8, 9]])
    np.testing.assert_array_equal(laid[1, 0], [[2, 3], [6, 7], [10, 11]])


def test_each_process_gets_the_part_of_its_own_devices(process):
    batches = np.arange(8).reshape(1, 1, 8)
    parts = []
    for index in (0, 1):
        process(index, count=2)
        parts.append(Placement(1, 2).arrange(batches))
    assert parts[0].shape == (2, 1, 1, 2)
    np.testing.assert_array_equal(np.concatenate(parts).ravel(), np.arange(8))


def test_runs_side_by_side_have_whole_batches_and_free_places_repeat_the_last():
    batches = np.arange(3 * 2 * 5).reshape(3, 2, 5)
    laid = Placement(3, 2).arrange(batches)
    assert laid.shape == (2, 2, 2, 5)
    np.testing.assert_array_equal(laid[0], batches[:2])
    np.testing.assert_array_equal(laid[1], batches[[2, 2]])


@pytest.mark.parametrize(
    ("runs", "size", "whole"), [(1, 256, 256), (1, 257, 258), (2, 257, 257)]
)
def test_batches_of_evaluation_are_rounded_up_to_what_devices_share(runs, size, whole):
    assert Placement(runs, 2).whole(size) == whole


def test_batches_are_rounded_up_to_what_the_devices_of_all_processes_share(process):
    process(1, count=3)
    assert Placement(1, 2).whole(256) == 258


def test_only_a_batch_in_several_parts_has_an_axis_to_combine_them(process):
    assert Placement(1, 1).axis_name is None and Placement(3, 2).axis_name is None
    assert Placement(1, 2).axis_name == parallel.AXIS
    process(1, count=2)
    assert Placement(1, 1).axis_name == parallel.AXIS


@pytest.mark.parametrize(
    ("backend", "cores", "devices"),
    [("cpu", True, 1), ("cpu", False, 8), ("gpu", True, 8)],
)
def test_a_run_alone_is_spread_over_devices_but_not_over_one_processors_cores(
    monkeypatch, backend, cores, devices
):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "local_device_count", lambda: 8)
    monkeypatch.setattr(parallel, "made_of_cores", lambda: cores)
    assert alone() == Placement(1, devices)
    assert side_by_side(3) == Placement(3, 3)
    assert side_by_side(20).runs_per_device == 3


@pytest.mark.parametrize("runs", [1, 3])
def test_host_trees_come_back_as_they_went(runs):
    trees = [
        {"a": np.full((2, 3), i, np.float32), "b": np.int32(i)} for i in range(runs)
    ]
    layout = Placement(runs, 1)
    placed = layout.put(trees)
    assert placed["a"].shape == (1, runs, 2, 3)
    for i, tree in enumerate(trees):
        back = layout.take(placed, i)
        assert back["b"] == i and back["b"].dtype == np.int32
        np.testing.assert_array_equal(back["a"], tree["a"])
    np.testing.assert_array_equal(layout.host(placed)["b"], range(runs))
    probabilities = layout.put([np.eye(4) + i for i in range(runs)])
    joined = layout.joined(probabilities)
    np.testing.assert_array_equal(joined, [np.eye(4) + i for i in range(runs)])


def test_states_come_back_placed_as_put_places_them_or_the_second_step_compiles_again():
    placed = Placement(1, 1).put([np.zeros(3)])
    returned = jax.pmap(jnp.negative, axis_name=parallel.AXIS)(placed)
    assert returned.sharding == placed.sharding
