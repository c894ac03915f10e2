"""Where stage runs lie on the devices: one spread over all, or several side by side.

The one place that knows the leading axes `[D, L]` of what `pmap` takes and gives: D
local devices, L stage runs on each. A run that is spread over the devices has a copy of
its state on each (L = 1) and a part of each batch; runs side by side have nothing in
common but the program and the data.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any
AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Placement:
    """How many stage runs are trained at once, and where.

    Attributes:
      runs: 1 = one run, spread over the devices of all processes. More = side by side;
        a multiple of the local devices, in one process.
    """

    runs: int = 1

    @property
    def spread(self) -> bool:
        return self.runs == 1

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step combines its parts of the batch."""
        return AXIS if self.spread else None

    @property
    def runs_per_device(self) -> int:
        return 1 if self.spread else self.runs // jax.local_device_count()

    def put(self, trees: Sequence[PyTree]) -> PyTree:
        """Puts host trees on the devices, one a run; the last fills places left free.

        Returns:
          A tree with leaves `[D, L, ...]`.
        """
        trees = [*trees, *[trees[-1]] * (self.runs - len(trees))]
        devices = jax.local_devices()

        def place(*leaves: Any) -> jax.Array:
            stacked = np.stack([np.asarray(leaf) for leaf in leaves])
            if self.spread:
                stacked = np.broadcast_to(stacked, (len(devices), *stacked.shape))
            else:
                shape = len(devices), self.runs_per_device, *stacked.shape[1:]
                stacked = stacked.reshape(shape)
            return jax.device_put(stacked, _over(devices))

        return jax.tree.map(place, *trees)

    def take(self, tree: PyTree, run: int) -> PyTree:
        """Returns one run's part of a tree with leaves `[D, L, ...]`, on the host."""
        device, place = divmod(run, self.runs_per_device)
        return jax.tree.map(
            lambda leaf: np.asarray(leaf.addressable_data(device))[0, place], tree
        )

    def host(self, tree: PyTree) -> PyTree:
        """Returns leaves `[D, L, ...]` as host arrays `[runs, ...]`."""
        if self.spread:
            return jax.tree.map(
                lambda leaf: np.asarray(leaf.addressable_data(0))[0], tree
            )
        return jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(self.runs, *leaf.shape[2:]), tree
        )

    def arrange(self, batches: np.ndarray) -> np.ndarray:
        """Lays out batches: `[runs, ..., B]` -> `[D, L, ..., b]` of this process.

        A run that is spread gives each device of all processes B / devices examples.
        Rows are repeated where there are fewer than `runs`.
        """
        if not self.spread:
            rows = np.minimum(np.arange(self.runs), len(batches) - 1)
            devices = jax.local_device_count()
            return batches[rows].reshape(
                devices, self.runs_per_device, *batches.shape[1:]
            )
        split = batches.reshape(*batches.shape[:-1], jax.device_count(), -1)
        first = jax.process_index() * jax.local_device_count()
        return np.moveaxis(split, -2, 0)[first : first + jax.local_device_count()]

    def joined(self, results: PyTree) -> PyTree:
        """Returns results `[D, L, b, ...]` of batches as host arrays `[runs, B, ...]`.

        The reverse of `arrange`; all processes call it, and all get the whole.
        """

        def join(leaf: Any) -> np.ndarray:
            devices = range(jax.local_device_count())
            parts = [np.asarray(leaf.addressable_data(d)) for d in devices]
            local = np.concatenate(parts)
            if not self.spread:
                return local.reshape(self.runs, *local.shape[2:])
            every = local
            if jax.process_count() > 1:
                every = multihost_utils.process_allgather(local)
            return np.asarray(every).reshape(1, -1, *local.shape[3:])

        return jax.tree.map(join, results)

    def whole(self, batch_size: int) -> int:
        """Returns the next batch size that the devices can share."""
        devices = jax.device_count() if self.spread else 1
        return -(-batch_size // devices) * devices


def replicate(tree: PyTree) -> PyTree:
    """Puts a copy of every leaf on each local device: `[D, ...]`."""
    devices = jax.local_devices()
    return jax.tree.map(
        lambda leaf: jax.device_put(
            np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), _over(devices)
        ),
        tree,
    )


def _over(devices: Sequence[jax.Device]) -> jax.sharding.NamedSharding:
    mesh = jax.sharding.Mesh(np.array(devices), ("device",))
    return jax.sharding.NamedSharding(mesh, jax.P("device"))
