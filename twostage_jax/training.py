"""Train and evaluation steps, and the one place where `pmap` wraps them.

Inside, a step is a pure function of the arrays of one stage run, with collectives over
the axis that its batch is spread over, if it is. Outside, the program sees host trees,
one a run: `Placement.put` going in, `Placement.take` coming out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from twostage_jax import models, optim
from twostage_jax.data import augment
from twostage_jax.placement import AXIS, Placement
from twostage_jax.settings import AugmentConfig, ModelConfig, OptimConfig

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """What a training step changes, and what a saved state holds."""

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """The tree that the model, the transfer and the exports use."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Constants(NamedTuple):
    """Arrays of a stage that no step changes.

    Attributes:
      class_weights: `[K]`.
      mean, deviation: `[C]`, of images in [0, 1].
    """

    class_weights: jax.Array
    mean: jax.Array
    deviation: jax.Array


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """All that a compiled step depends on, besides the shapes of its arrays."""

    model: ModelConfig
    optim: OptimConfig
    augment: AugmentConfig
    steps: int
    num_classes: int
    normalise: Literal["fixed", "dataset", "patch"]
    window: tuple[float, ...]
    label_smoothing: float
    transferred: frozenset[str]


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


def create_state(settings: StepSettings, variables: PyTree) -> TrainState:
    """Returns the host state before the first step, from host or device variables."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=_optimiser(settings).init(params),
    )
    return jax.tree.map(np.asarray, state)


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    constants: Constants,
    *,
    settings: StepSettings,
    model: Any,
    optimiser: optax.GradientTransformation,
    axis_name: str | None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Takes one step on this device's part of a batch.

    Args:
      state: The state, equal on all devices.
      batch: 'images' `[b, H, W, C]` as stored, 'labels' `[b]`.
      key: The stage's key; the step's own is folded in here, so that a resumed run
        replays the same randomness.
      constants: See `Constants`.
      settings, model, optimiser: What the step is made of.
      axis_name: The axis that the batch is spread over; None = it is whole.

    Returns:
      The new state, equal on all devices, and scalars over the whole batch.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = _augmented(batch["images"], augment_key, settings, axis_name)
    images = augment.normalise(
        images, settings.normalise, constants.mean, constants.deviation
    )
    labels = batch["labels"]
    targets = optax.smooth_labels(
        jax.nn.one_hot(labels, settings.num_classes), settings.label_smoothing
    )
    weights = constants.class_weights[labels]
    total = _total(weights.sum(), axis_name)

    def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
        (logits, _), changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy(logits, targets)
        return (weights * losses).sum() / total, (logits, changed)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (logits, changed)), gradients = gradient(state.params)
    # Each device holds its share of the weighted mean: the sum is the whole.
    gradients = _total(gradients, axis_name)
    updates, opt_state = optimiser.update(gradients, state.opt_state, state.params)
    batch_stats = changed.get("batch_stats", state.batch_stats)
    new_state = TrainState(
        step=state.step + 1,
        params=optim.apply_updates(state.params, updates, settings.optim.freeze),
        batch_stats=optim.keep_statistics(
            state.batch_stats, batch_stats, settings.optim, state.step
        ),
        opt_state=opt_state,
    )
    right = (logits.argmax(-1) == labels).sum()
    metrics = {
        "loss": _total(loss, axis_name),
        "accuracy": _total(right, axis_name) / _total(len(labels), axis_name),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return new_state, metrics


def eval_step(
    variables: PyTree,
    batch: dict[str, jax.Array],
    constants: Constants,
    *,
    settings: StepSettings,
    model: Any,
) -> jax.Array:
    """Returns the class probabilities `[b, K]` of this device's part of a batch.

    Nothing is gathered from other devices here: programs that do, and do not depend on
    one another, can wait for each other for ever on several CPU devices.
    """
    images = augment.to_unit(batch["images"], settings.window, settings.model.channels)
    images = augment.normalise(
        augment.centre_crop(images, settings.model.image_size),
        settings.normalise,
        constants.mean,
        constants.deviation,
    )
    logits, _ = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits)


@functools.lru_cache(maxsize=32)
def compiled(settings: StepSettings, axis_name: str | None) -> Programs:
    """Returns the pmapped programs; stage runs that are alike share them."""
    model = build_model(settings.model, settings.num_classes, axis_name)
    step = functools.partial(
        train_step,
        settings=settings,
        model=model,
        optimiser=_optimiser(settings),
        axis_name=axis_name,
    )
    evaluation = functools.partial(eval_step, settings=settings, model=model)

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

    def evaluate(variables: PyTree, data: Any, items: Any, constants: Any) -> Any:
        return evaluation(variables, _fetch(data, items), constants)

    # XLA's CPU convolutions are an order of magnitude slower inside a loop, and a call
    # costs next to nothing there: the host loops instead.
    on_cpu = _on_cpu()
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


def _total(tree: PyTree, axis_name: str | None) -> PyTree:
    if axis_name is None:
        return tree
    if not _on_cpu():
        return jax.lax.psum(tree, axis_name)
    # Processors add in the order in which parts arrive, and training makes the last
    # digit matter: in the order of the devices, their processes make no difference.
    return jax.tree.map(
        lambda leaf: functools.reduce(jnp.add, jax.lax.all_gather(leaf, axis_name)),
        tree,
    )


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _fetch(data: Any, item: Any) -> dict[str, jax.Array]:
    return jax.tree.map(lambda array: array[item], data) if data else item


def _augmented(
    images: jax.Array, key: jax.Array, settings: StepSettings, axis_name: str | None
) -> jax.Array:
    position = jnp.arange(len(images))
    if axis_name is not None:
        position = position + jax.lax.axis_index(axis_name) * len(images)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(position)
    one = functools.partial(
        augment.augment,
        settings=settings.augment,
        window=settings.window,
        channels=settings.model.channels,
        size=settings.model.image_size,
    )
    return jax.vmap(one)(keys, images)


def build_model(model: ModelConfig, num_classes: int, axis_name: str | None) -> Any:
    """Returns the Linen module of these settings."""
    return models.build(
        model.name,
        num_classes=num_classes,
        dropout=model.dropout,
        norm=model.norm or None,
        dtype=jnp.dtype(model.dtype),
        axis_name=axis_name,
    )


def _optimiser(settings: StepSettings) -> optax.GradientTransformation:
    return optim.optimiser(
        settings.optim, settings.steps, transferred=settings.transferred
    )
