"""Feeds devices: the order of examples, and data in device memory or streamed."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax.data.dataset import Dataset
from twostage_jax.errors import UserError
from twostage_jax.train.parallel import replicate

# Sets up to this size are copied whole to every device; larger ones stream.
MAX_DEVICE_BYTES = 4 * 2**30
# Chunks that a stream reads ahead of the device.
PREFETCH = 4


class Feed(NamedTuple):
    """Source of the batches of training steps.

    Attributes:
      data: Replicated 'images' and 'labels', or None for a stream.
      items: Function `items(count, chunk)` that yields, for each number i below `count`,
        the input of the compiled programs for the indices `chunk(i)`, laid out by
        `Placement.arrange`: these indices, or the examples themselves.
    """

    data: Any
    items: Callable[[int, Callable[[int], np.ndarray]], Iterator[Any]]


def feed(
    dataset: Dataset, devices: int, max_device_bytes: int = MAX_DEVICE_BYTES
) -> Feed:
    """Returns the feed of a data set to the first devices: from their memory if it fits."""
    images = dataset.images
    shared = devices if jax.default_backend() == "cpu" else 1
    if isinstance(images, np.ndarray) and images.nbytes * shared <= max_device_bytes:
        data = replicate({"images": images, "labels": dataset.labels}, devices)
        return Feed(data, lambda count, chunk: map(chunk, range(count)))
    return Feed(None, functools.partial(_stream, dataset))


def order(
    size: int, batch_size: int, seed: tuple[int, ...], first: int, steps: int
) -> np.ndarray:
    """Returns the examples of steps `first` to `first + steps`, `[steps, batch_size]`.

    Every epoch is a permutation of `range(size)` that depends only on (seed, epoch). A
    batch may span two epochs, so that examples are never dropped.
    """
    start, stop = first * batch_size, (first + steps) * batch_size
    epochs = range(start // size, (stop - 1) // size + 1)
    stream = np.concatenate([_permutation(size, (*seed, epoch)) for epoch in epochs])
    begin = start - epochs[0] * size
    return stream[begin : begin + stop - start].reshape(steps, batch_size)


def eval_batches(indices: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
    """Returns the indices of each run as `[runs, batches, batch_size]`.

    Batches are padded with index 0. The caller must drop the padding: only the first
    `len(indices[r])` results of run r are valid.
    """
    batches = -(-max(map(len, indices)) // batch_size)
    padded = np.zeros((len(indices), batches * batch_size), np.int32)
    for row, own in zip(padded, indices, strict=True):
        row[: len(own)] = own
    return padded.reshape(len(indices), batches, batch_size)


def _stream(
    dataset: Dataset, count: int, chunk: Callable[[int], np.ndarray]
) -> Iterator[Any]:
    try:
        import grain
    except ImportError:
        raise UserError(
            f"data set '{dataset.name}' exceeds the memory of the device, and streaming "
            "is not installed: pip install 'twostage_jax[stream]'."
        ) from None

    def load(i: int) -> dict[str, np.ndarray]:
        local = chunk(i)
        return {"images": dataset.images[local], "labels": dataset.labels[local]}

    options = grain.ReadOptions(num_threads=PREFETCH, prefetch_buffer_size=PREFETCH)
    return iter(grain.MapDataset.range(count).map(load).to_iter_dataset(options))


@functools.lru_cache(maxsize=4)
def _permutation(size: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).permutation(size).astype(np.int32)
