"""The steps of training and evaluation: pure functions of the arrays of one stage run.

If its batch is spread over an axis, collectives use this axis; `parallel` wraps the steps
in `pmap`.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from twostage_jax import models
from twostage_jax.config import AugmentConfig, ModelConfig, OptimConfig
from twostage_jax.train import augment, optim

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """Values that a training step updates and a saved state contains."""

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """Variables as used by the model, the transfer and exports."""
        return {"params": self.params, "batch_stats": self.batch_stats}


class Constants(NamedTuple):
    """Arrays of a stage that are constant over steps.

    Attributes:
      offsets: Added to the logits in the loss, `[K]`; see `TrainConfig.balance`.
      mean, deviation: Mean and standard deviation of images in [0, 1], `[C]`.
    """

    offsets: jax.Array
    mean: jax.Array
    deviation: jax.Array


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Everything that a compiled step depends on, besides the shapes of its arrays."""

    model: ModelConfig
    optim: OptimConfig
    augment: AugmentConfig
    steps: int
    num_classes: int
    normalise: Literal["fixed", "dataset", "patch", "weights"]
    window: tuple[float, ...]
    label_smoothing: float
    transferred: frozenset[str]


def create_state(settings: StepSettings, variables: PyTree) -> TrainState:
    """Returns the host state before the first step, from host or device variables."""
    params = jax.tree.map(jnp.asarray, variables["params"])
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimiser_of(settings).init(params),
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
      key: PRNG key of the stage; the number of the step is folded in here, so that a
        resumed run replays the same randomness.
      constants: Constant arrays; see `Constants`.
      settings, model, optimiser: Settings, module and optimiser of the stage.
      axis_name: Axis over which the batch is spread; None if it is whole.

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
    count = total(len(labels), axis_name)

    def loss_of(params: PyTree) -> tuple[jax.Array, Any]:
        with optim.held_norms(settings.optim, state.step):
            (logits, _), changed = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
        losses = optax.softmax_cross_entropy(logits + constants.offsets, targets)
        return losses.sum() / count, (logits, changed)

    gradient = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (logits, changed)), gradients = gradient(state.params)
    # Each device holds a part of the mean, so their sum is the mean.
    gradients = total(gradients, axis_name)
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
        "loss": total(loss, axis_name),
        "accuracy": total(right, axis_name) / count,
        "gradient_norm": optax.tree.norm(gradients),
    }
    return new_state, metrics


def eval_step(
    variables: PyTree,
    batch: dict[str, jax.Array],
    constants: Constants,
    view: jax.Array,
    *,
    settings: StepSettings,
    model: Any,
) -> jax.Array:
    """Returns the class probabilities `[b, K]` of this device's part of a batch.

    The network sees one view of the images, see `augment.seen`.

    Nothing is gathered from other devices here: independent programs that do so can
    deadlock on several CPU devices.
    """
    return forward(
        variables,
        batch["images"],
        constants.mean,
        constants.deviation,
        view,
        model=model,
        network=settings.model,
        normalise=settings.normalise,
        window=settings.window,
    )[0]


def forward(
    variables: PyTree,
    images: jax.Array,
    mean: jax.Array,
    deviation: jax.Array,
    view: jax.Array | None = None,
    *,
    model: Any,
    network: ModelConfig,
    normalise: Literal["fixed", "dataset", "patch", "weights"],
    window: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    """Returns class probabilities `[b, K]` and features `[b, D]` of stored images.

    Args:
      variables: Parameters, and running statistics if there are any.
      images: `[b, H, W, C]` as stored.
      mean, deviation: `[C]`, see `augment.normalise`.
      view: What the network sees of the images, `[3]`, see `augment.seen`; None = all of
        images that have its size.
      model: Linen module.
      network: Settings of the network.
      normalise, window: Scaling of the images, see `train.augment`.
    """
    if view is not None:
        images = augment.seen(images, view, network.image_size)
    images = augment.to_unit(images, window, network.channels)
    images = augment.normalise(images, normalise, mean, deviation)
    logits, taps = model.apply(variables, images, train=False)
    return jax.nn.softmax(logits), models.descriptor(taps)


def total(tree: PyTree, axis_name: str | None) -> PyTree:
    """Returns the sums of leaves over the devices that share a batch."""
    if axis_name is None:
        return tree
    if not on_cpu():
        return jax.lax.psum(tree, axis_name)
    # Processors add parts in order of arrival, and training amplifies the last digit.
    # Adding in the order of the devices makes the result independent of processes.
    return jax.tree.map(
        lambda leaf: functools.reduce(jnp.add, jax.lax.all_gather(leaf, axis_name)),
        tree,
    )


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


def on_cpu() -> bool:
    """Returns whether the steps run on CPU devices."""
    return jax.default_backend() == "cpu"


def build_model(model: ModelConfig, num_classes: int, axis_name: str | None) -> Any:
    """Returns the Linen module of these settings."""
    return models.build(
        model.name,
        num_classes=num_classes,
        dropout=model.dropout,
        norm=model.norm or None,
        head=model.head or None,
        dtype=jnp.dtype(model.dtype),
        axis_name=axis_name,
    )


def optimiser_of(settings: StepSettings) -> optax.GradientTransformation:
    """Returns the optimiser of these settings."""
    return optim.optimiser(
        settings.optim, settings.steps, transferred=settings.transferred
    )
