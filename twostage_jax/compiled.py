"""The one place where `pmap` wraps the steps of training and evaluation.

Inside, a step sees the arrays of one stage run (see `training`). Outside, the program
sees host trees, one a run: `Placement.put` going in, `Placement.take` coming out.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax import training
from twostage_jax.placement import AXIS, Placement
from twostage_jax.training import StepSettings, TrainState


class Programs(NamedTuple):
    """The compiled functions of a stage.

    Attributes:
      train: `(states, data, items, keys, constants) -> (states, metrics)`: one step for
        each of the S items; `read_metrics` reads the metrics. States are donated.
      evaluate: `(variables, data, items, constants) -> probabilities`
        `[D, L, b, K]`; `Placement.joined` puts them together.

    All but data have the leading axes of `placement`, `[D, L]`; data is replicated,
    `[D, ...]`. Items are `[D, L, S, b]` (training) and `[D, L, b]` (evaluation):
    indices into data, or, where data is empty, the batches themselves. Keys are raw
    key data.
    """

    train: Callable
    evaluate: Callable


@functools.lru_cache(maxsize=32)
def programs(settings: StepSettings, axis_name: str | None) -> Programs:
    """Returns the pmapped programs; stage runs that are alike share them."""
    model = training.build_model(settings.model, settings.num_classes, axis_name)
    step = functools.partial(
        training.train_step,
        settings=settings,
        model=model,
        optimiser=training.optimiser_of(settings),
        axis_name=axis_name,
    )
    evaluation = functools.partial(training.eval_step, settings=settings, model=model)

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

    def evaluate(variables: Any, data: Any, items: Any, constants: Any) -> Any:
        return evaluation(variables, _fetch(data, items), constants)

    # XLA's CPU convolutions are an order of magnitude slower inside a loop, and a call
    # costs next to nothing there: the host loops instead.
    on_cpu = training.on_cpu()
    over_runs = jax.vmap(train_one if on_cpu else train_all, in_axes=(0, None, 0, 0, 0))
    train = jax.pmap(over_runs, axis_name=AXIS, donate_argnums=0)
    return Programs(
        train=_host_loop(train, axis_name) if on_cpu else train,
        evaluate=jax.pmap(jax.vmap(evaluate, in_axes=(0, None, 0, 0)), axis_name=AXIS),
    )


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
        devices, _, steps = jax.tree.leaves(items)[0].shape[:3]
        meet = axis_name is not None and devices * jax.process_count() > 1
        for i in range(steps):
            item = jax.tree.map(lambda array, i=i: array[:, :, i], items)
            state, step_metrics = one_step(state, data, item, key, constants)
            if meet:
                # Of two programs under way whose parts wait for each other, as this
                # step and the next or a look at the stop flag, each can hold the
                # processor's threads that the other waits for.
                jax.block_until_ready(state)
            metrics.append(step_metrics)
        return state, metrics

    return train


def _fetch(data: Any, item: Any) -> dict[str, jax.Array]:
    return jax.tree.map(lambda array: array[item], data) if data else item
