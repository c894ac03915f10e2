"""Order of examples and their way to the devices."""

import jax
import numpy as np
import pytest
from basics import make_dataset

from twostage_jax.train import feed


def test_every_epoch_shows_every_example_once():
    order = feed.order(10, 4, (0,), 0, 5)
    stream = order.ravel()
    assert sorted(stream[:10]) == sorted(stream[10:20]) == list(range(10))
    assert list(stream[:10]) != list(stream[10:20])


def test_order_does_not_depend_on_where_a_run_resumes():
    whole = feed.order(7, 3, (1, 2), 0, 20)
    np.testing.assert_array_equal(feed.order(7, 3, (1, 2), 11, 5), whole[11:16])


def test_batch_may_be_larger_than_the_set():
    assert sorted(feed.order(2, 6, (0,), 0, 1)[0]) == [0, 0, 0, 1, 1, 1]


def test_order_depends_on_the_seed():
    assert (feed.order(50, 50, (0,), 0, 1) != feed.order(50, 50, (1,), 0, 1)).any()


def test_evaluation_pads_and_drops_nothing():
    batches = feed.eval_batches([np.array([5, 6, 7]), np.array([8])], 2)
    np.testing.assert_array_equal(batches, [[[5, 6], [7, 0]], [[8, 0], [0, 0]]])


def test_stream_gives_what_device_memory_gives():
    pytest.importorskip("grain")
    dataset = make_dataset()
    chunks = feed.order(60, 8, (0,), 0, 6).reshape(3, 2, 8)
    memory = feed.feed(dataset, 1)
    stream = feed.feed(dataset, 1, max_device_bytes=0)
    assert stream.data is None
    pairs = zip(
        memory.items(3, chunks.__getitem__),
        stream.items(3, chunks.__getitem__),
        strict=True,
    )
    data = jax.tree.map(np.asarray, memory.data)
    for indices, batch in pairs:
        for name in ("images", "labels"):
            np.testing.assert_array_equal(data[name][0][indices], batch[name])
