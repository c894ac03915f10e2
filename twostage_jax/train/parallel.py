"""Placement of stage runs on devices: one spread over all, or several side by side.

This is the only module that knows the leading axes `[D, L]` of the inputs and outputs of
`pmap`: D devices of this process, L stage runs on each. A run that is spread over the
devices has a copy of its state on each (L = 1) and a part of each batch; runs side by side
share only the program and the data.

`pmap` wraps the steps of training and evaluation only here. Inside, a step sees the arrays
of one stage run (see `steps`). Outside, the program sees host trees, one per run:
`Placement.put` converts inputs, `Placement.take` outputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from twostage_jax.train import steps
from twostage_jax.train.steps import StepSettings, TrainState

PyTree = Any
AXIS = "batch"


@dataclasses.dataclass(frozen=True)
class Placement:
    """Number of stage runs that are trained at once, and their devices.

    Attributes:
      runs: Number of runs; 1 = one run, spread over the devices; more = side by side.
      devices: Number D of devices, the first of this process.
    """

    runs: int
    devices: int

    @property
    def spread(self) -> bool:
        return self.runs == 1

    @property
    def parts(self) -> int:
        """Number of parts of a run's batch, over the devices of all processes."""
        return self.devices * jax.process_count() if self.spread else 1

    @property
    def axis_name(self) -> str | None:
        """The axis over which a step combines the parts of a batch; None for one part.

        Collectives over one device would compute the same, but double the time that a
        step takes to compile.
        """
        return AXIS if self.parts > 1 else None

    @property
    def runs_per_device(self) -> int:
        """Number L of runs per device; the last positions may be free."""
        return 1 if self.spread else -(-self.runs // self.devices)

    def put(self, trees: Sequence[PyTree]) -> PyTree:
        """Puts host trees on the devices, one per run; the last fills free positions.

        Returns:
          A tree with leaves `[D, L, ...]`.
        """
        shape = self.devices, self.runs_per_device

        def place(*leaves: Any) -> jax.Array:
            stacked = self._filled(np.stack([np.asarray(leaf) for leaf in leaves]))
            whole = *shape, *stacked.shape[1:]
            if self.spread:
                stacked = np.broadcast_to(stacked, whole)
            return jax.device_put(stacked.reshape(whole), _over(self.devices, whole))

        return jax.tree.map(place, *trees)

    def take(self, tree: PyTree, run: int) -> PyTree:
        """Returns one run's part of a tree with leaves `[D, L, ...]`, on the host."""
        device, place = divmod(run, self.runs_per_device)
        return jax.tree.map(
            lambda leaf: np.asarray(leaf.addressable_data(device))[0, place], tree
        )

    def host(self, tree: PyTree) -> PyTree:
        """Returns leaves `[D, L, ...]` as host arrays `[runs, ...]`."""
        return jax.tree.map(
            lambda *leaves: np.stack(leaves),
            *[self.take(tree, run) for run in range(self.runs)],
        )

    def arrange(self, batches: np.ndarray) -> np.ndarray:
        """Lays out batches: `[runs, ..., B]` -> `[D, L, ..., b]` of this process.

        A spread run gives each device of all processes B / devices examples.
        """
        if not self.spread:
            filled = self._filled(batches)
            return filled.reshape(
                self.devices, self.runs_per_device, *batches.shape[1:]
            )
        split = batches.reshape(*batches.shape[:-1], self.parts, -1)
        first = jax.process_index() * self.devices
        return np.moveaxis(split, -2, 0)[first : first + self.devices]

    def joined(self, results: PyTree) -> PyTree:
        """Returns results `[D, L, b, ...]` of batches as host arrays `[runs, B, ...]`.

        This inverts `arrange`; all processes must call it, and all get the whole batch.
        """

        def join(leaf: Any) -> np.ndarray:
            parts = [np.asarray(leaf.addressable_data(d)) for d in range(self.devices)]
            local = np.concatenate(parts)
            if not self.spread:
                return local.reshape(-1, *local.shape[2:])[: self.runs]
            every = local
            if jax.process_count() > 1:
                every = multihost_utils.process_allgather(local)
            return np.asarray(every).reshape(1, -1, *local.shape[3:])

        return jax.tree.map(join, results)

    def whole(self, batch_size: int) -> int:
        """Returns the next batch size that the devices can share."""
        return -(-batch_size // self.parts) * self.parts

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        free = self.devices * self.runs_per_device - len(rows)
        if self.spread or not free:
            return rows
        return np.concatenate([rows, np.repeat(rows[-1:], free, axis=0)])


def alone() -> Placement:
    """Returns the placement of one run: on all devices of all processes.

    On the cores of a processor it uses a single device, whose programs use all cores:
    programs that wait for one another, as for the parts of a batch, can deadlock if they
    share the processor's threads.
    """
    if jax.default_backend() == "cpu" and made_of_cores():
        return Placement(1, 1)
    return Placement(1, jax.local_device_count())


def side_by_side(runs: int) -> Placement:
    """Returns the placement of several runs on the devices of this process."""
    return Placement(runs, min(runs, jax.local_device_count()))


def made_of_cores() -> bool:
    """Whether the processor's cores are devices (see `cli.use_cores`)."""
    return jax.config.jax_num_cpu_devices > 1 and jax.process_count() == 1


def replicate(tree: PyTree, devices: int) -> PyTree:
    """Puts a copy of every leaf on each of the first devices: `[D, ...]`."""

    def copied(leaf: Any) -> jax.Array:
        copies = np.broadcast_to(leaf, (devices, *np.shape(leaf)))
        return jax.device_put(copies, _over(devices, copies.shape))

    return jax.tree.map(copied, tree)


def _over(devices: int, shape: tuple[int, ...]) -> jax.sharding.Sharding:
    """Returns the sharding over the leading axis that `pmap` itself uses.

    With another axis name, the second call of a program would compile it again. Before
    version 0.8, jax has a separate type for it: arrays with other shardings would be
    copied, and in 0.7.2 the gradient of a convolution over them cannot be vectorised.
    """
    local = jax.local_devices()[:devices]
    if jax.__version_info__ < (0, 8):
        return jax.sharding.PmapSharding.default(shape, 0, local)
    mesh = jax.sharding.Mesh(np.array(local), (AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))


class Programs(NamedTuple):
    """The compiled functions of a stage.

    Attributes:
      train: Function `(states, data, items, keys, constants) -> (states, metrics)`, with
        one step for each of the S items; `read_metrics` reads the metrics. States are
        donated.
      evaluate: Function `(variables, data, items, constants, view) -> probabilities`
        `[D, L, b, K]`; `Placement.joined` joins them.

    All but data and view have the leading axes of `placement`, `[D, L]`; data is
    replicated, `[D, ...]`, and a view is that of `augment.seen`. Items are
    `[D, L, S, b]` (training) and `[D, L, b]` (evaluation): indices into data, or, where
    data is empty, the batches themselves. Keys are raw key data.
    """

    train: Callable
    evaluate: Callable


@functools.lru_cache(maxsize=32)
def programs(settings: StepSettings, axis_name: str | None) -> Programs:
    """Returns the pmapped programs, shared by stage runs with equal settings."""
    model = steps.build_model(settings.model, settings.num_classes, axis_name)
    step = functools.partial(
        steps.train_step,
        settings=settings,
        model=model,
        optimiser=steps.optimiser_of(settings),
        axis_name=axis_name,
    )
    evaluation = functools.partial(steps.eval_step, settings=settings, model=model)

    def train_one(
        state: TrainState, data: Any, item: Any, key: Any, constants: Any
    ) -> Any:
        key = jax.random.wrap_key_data(key)
        return step(state, _fetch(data, item), key, constants)

    def train_all(
        state: TrainState, data: Any, items: Any, key: Any, constants: Any
    ) -> Any:
        def body(state: TrainState, item: Any) -> Any:
            return train_one(state, data, item, key, constants)

        return jax.lax.scan(body, state, items)

    def evaluate(
        variables: Any, data: Any, items: Any, constants: Any, view: Any
    ) -> Any:
        return evaluation(variables, _fetch(data, items), constants, view)

    # On CPU, XLA's convolutions are an order of magnitude slower inside a loop, and calls
    # cost almost nothing: the host loops instead.
    on_cpu = steps.on_cpu()
    over_runs = _over_runs(train_one if on_cpu else train_all, (0, None, 0, 0, 0))
    train = jax.pmap(over_runs, axis_name=AXIS, donate_argnums=0)
    return Programs(
        train=_host_loop(train, axis_name) if on_cpu else train,
        evaluate=jax.pmap(
            _over_runs(evaluate, (0, None, 0, 0, None)),
            axis_name=AXIS,
            in_axes=(0, 0, 0, 0, None),
        ),
    )


def _over_runs(function: Callable, axes: tuple[int | None, ...]) -> Callable:
    """Returns `jax.vmap(function, axes)`, but calls the function itself for one run.

    With a batch axis of one, XLA transposes the kernels of matrix products in memory: a
    fifth of the step of resnet18 at 32 pixels on a CPU.
    """

    def call(*args: Any) -> Any:
        mapped = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
        if len(jax.tree.leaves(mapped)[0]) > 1:
            return jax.vmap(function, axes)(*args)
        alone = [
            arg if axis is None else jax.tree.map(lambda leaf: leaf[0], arg)
            for arg, axis in zip(args, axes, strict=True)
        ]
        return jax.tree.map(lambda leaf: leaf[None], function(*alone))

    return call


def read_metrics(metrics: Any, placement: Placement) -> dict[str, np.ndarray]:
    """Returns the metrics of one call of `Programs.train`, `[runs, S]` host arrays."""
    if isinstance(metrics, list):
        steps = [placement.host(step) for step in metrics]
        return {name: np.stack([s[name] for s in steps], 1) for name in steps[0]}
    return placement.host(metrics)


def _host_loop(one_step: Callable, axis_name: str | None) -> Callable:
    def train(
        state: TrainState, data: Any, items: Any, key: Any, constants: Any
    ) -> Any:
        metrics = []
        for i in range(jax.tree.leaves(items)[0].shape[2]):
            item = jax.tree.map(lambda array, i=i: array[:, :, i], items)
            state, step_metrics = one_step(state, data, item, key, constants)
            if axis_name is not None:
                # Two running programs whose parts wait for each other, such as this step
                # and the next or a check of the stop flag, can deadlock: each may hold
                # the processor's threads that the other needs.
                jax.block_until_ready(state)
            metrics.append(step_metrics)
        return state, metrics

    return train


def _fetch(data: Any, item: Any) -> dict[str, jax.Array]:
    return jax.tree.map(lambda array: array[item], data) if data else item
