"""Feeding devices: the order of examples, and data that sits on the device or streams."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import jax_utils

from twostage_jax.data.dataset import Dataset
from twostage_jax.errors import UserError

# Sets up to this size are copied whole to every device; larger ones stream.
MAX_DEVICE_BYTES = 4 * 2**30
# Chunks that a stream reads ahead of the device.
PREFETCH = 4


class Feed(NamedTuple):
    """How steps get their batches.

    Attributes:
      data: Replicated 'images' and 'labels', or None for a stream.
      items: `items(count, chunk)` yields, for each number i below `count`, what the
        compiled programs take for the global indices `chunk(i)`, `[..., B]`: local
        indices, or the examples themselves, both with the device axis in front.
    """

    data: Any
    items: Callable[[int, Callable[[int], np.ndarray]], Iterator[Any]]


def feed(dataset: Dataset, max_device_bytes: int = MAX_DEVICE_BYTES) -> Feed:
    """Returns the feed of a data set: from device memory where it fits."""
    images = dataset.images
    if isinstance(images, np.ndarray) and images.nbytes <= max_device_bytes:
        data = jax_utils.replicate({"images": images, "labels": dataset.labels})
        return Feed(data, lambda count, chunk: (shard(chunk(i)) for i in range(count)))
    return Feed(None, functools.partial(_stream, dataset))


def order(
    size: int, batch_size: int, seed: tuple[int, ...], first: int, steps: int
) -> np.ndarray:
    """Returns the examples of steps `first` to `first + steps`, `[steps, batch_size]`.

    Every epoch is a permutation of `range(size)` that depends on (seed, epoch) alone.
    A batch may span two epochs, so no example is ever dropped.
    """
    start, stop = first * batch_size, (first + steps) * batch_size
    epochs = range(start // size, (stop - 1) // size + 1)
    stream = np.concatenate([_permutation(size, (*seed, epoch)) for epoch in epochs])
    begin = start - epochs[0] * size
    return stream[begin : begin + stop - start].reshape(steps, batch_size)


def eval_batches(indices: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns `indices` as `[batches, batch_size]`, the last batch padded with index 0.

    The caller drops the padding: the first `len(indices)` results are the real ones.
    """
    batches = -(-len(indices) // batch_size)
    padded = np.zeros(batches * batch_size, np.int32)
    padded[: len(indices)] = indices
    return padded.reshape(batches, batch_size)


def shard(indices: np.ndarray) -> np.ndarray:
    """Splits the last axis over all devices: `[..., B]` -> local `[D, ..., B / D]`."""
    devices = jax.device_count()
    split = indices.reshape(*indices.shape[:-1], devices, -1)
    first = jax.process_index() * jax.local_device_count()
    return np.moveaxis(split, -2, 0)[first : first + jax.local_device_count()]


def _stream(
    dataset: Dataset, count: int, chunk: Callable[[int], np.ndarray]
) -> Iterator[Any]:
    try:
        import grain
    except ImportError:
        raise UserError(
            f"data set '{dataset.name}' is too large for the device's memory and needs "
            "streaming: pip install 'twostage_jax[stream]'."
        ) from None

    def load(i: int) -> dict[str, np.ndarray]:
        local = shard(chunk(i))
        return {"images": dataset.images[local], "labels": dataset.labels[local]}

    options = grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)
    return iter(grain.MapDataset.range(count).map(load).to_iter_dataset(options))


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size).astype(np.int32)


def divides(batch_size: int) -> bool:
    """Whether a batch divides over all devices."""
    return batch_size % jax.device_count() == 0
