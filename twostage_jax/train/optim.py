"""Schedule, freezing, per-layer rates and L2-SP, as one optax transformation."""

import contextlib
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from twostage_jax.config import OptimConfig
from twostage_jax.errors import UserError
from twostage_jax.models.layers import HEAD, HEAD_NORM

PyTree = Any


def schedule(optim: OptimConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    if optim.schedule == "cosine":
        after = optax.cosine_decay_schedule(
            optim.learning_rate, steps - optim.warmup_steps
        )
    else:
        after = optax.constant_schedule(optim.learning_rate)
    if not optim.warmup_steps:
        return after
    # The first step must move, too: a rate of exactly zero would waste it.
    rise = optax.linear_schedule(
        optim.learning_rate / (optim.warmup_steps + 1),
        optim.learning_rate,
        optim.warmup_steps,
    )
    return optax.join_schedules([rise, after], [optim.warmup_steps])


def optimiser(
    optim: OptimConfig, steps: int, *, transferred: Collection[str] = ()
) -> optax.GradientTransformation:
    """Returns the optimiser of one stage; initialise and update it with `params`.

    Args:
      optim: Settings of the optimiser.
      steps: Length of the stage, for the schedule.
      transferred: Paths of transferred parameters, such as 'conv1/kernel', which L2-SP
        penalises. Unused if `optim.l2_sp` is zero.

    Updates of frozen parameters are exactly zero, but adding zero may still change the
    sign bit of a zero: use `apply_updates`.
    """
    pulled = frozenset(transferred) if optim.l2_sp else frozenset()

    def decays(path: str, leaf: jax.Array) -> bool:
        return is_kernel(path) and path not in pulled

    def pulls(path: str, leaf: jax.Array) -> bool:
        return is_kernel(path) and path in pulled

    pull = pull_to_start(optim.l2_sp, lambda p: _map(pulls, p))
    decay = optax.add_decayed_weights(optim.weight_decay, lambda p: _map(decays, p))
    hold = hold_still(optim)
    adam = [_adam(optim.head_steps)] if optim.name == "adamw" else []
    momentum = [optax.trace(decay=optim.momentum)] if optim.name == "sgd" else []
    clip = [optax.clip_by_global_norm(optim.clip_norm)] if optim.clip_norm else []
    return optax.chain(
        # Parameters that do not move must not affect the gradient's norm or Adam's
        # moments nor, once decay and L2-SP are added, the momentum.
        hold,
        *clip,
        *adam,
        decay,
        pull,
        hold,
        *momentum,
        optax.scale_by_learning_rate(schedule(optim, steps)),
        scale_by_layer(optim.lr_factors),
    )


def _adam(head_steps: int) -> optax.GradientTransformation:
    """Adam whose moments start after `head_steps` for all parameters but the head.

    Moments of zeros, with a bias correction that no longer applies, would make the first
    steps of the transferred layers several times too large.
    """
    if not head_steps:
        return optax.scale_by_adam()
    late = optax.conditionally_transform(
        optax.scale_by_adam(), lambda step: step >= head_steps
    )
    return optax.chain(
        optax.masked(
            optax.scale_by_adam(), lambda p: _map(lambda path, _: is_head(path), p)
        ),
        optax.masked(late, lambda p: _map(lambda path, _: not is_head(path), p)),
    )


class PullState(NamedTuple):
    """Initial parameters, the reference of L2-SP."""

    start: PyTree


def pull_to_start(strength: float, mask: Any) -> optax.GradientTransformation:
    """Adds `strength * (param - start)` to the masked updates (L2-SP, Li et al. 2018).

    The initial parameters are part of the optimiser's state, so that they are saved and
    restored with it.
    """

    def init(params: PyTree) -> PullState:
        if not strength:
            return PullState(())
        keep = mask(params)
        # Fresh buffers: the training step donates parameters and state alike.
        copy = jax.tree.map(
            lambda k, p: jnp.array(p, copy=True) if k else jnp.zeros((), p.dtype),
            keep,
            params,
        )
        return PullState(copy)

    def update(updates: PyTree, state: PullState, params: PyTree = None) -> Any:
        if not strength:
            return updates, state
        updates = jax.tree.map(
            lambda k, u, p, s: u + strength * (p - s) if k else u,
            mask(params),
            updates,
            params,
            state.start,
        )
        return updates, state

    return optax.GradientTransformation(init, update)


class HoldState(NamedTuple):
    """Number of steps so far."""

    count: jax.Array


def hold_still(optim: OptimConfig) -> optax.GradientTransformation:
    """Zeroes updates of frozen parameters and, at first, of all but the head."""

    def init(params: PyTree) -> HoldState:
        del params
        return HoldState(jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: HoldState, params: PyTree = None) -> Any:
        del params
        everything = state.count >= optim.head_steps

        def held(path: str, leaf: jax.Array) -> jax.Array:
            if is_frozen(path, optim.freeze):
                return jnp.zeros_like(leaf)
            if not optim.head_steps or is_head(path):
                return leaf
            return jnp.where(everything, leaf, jnp.zeros_like(leaf))

        return _map(held, updates), HoldState(state.count + 1)

    return optax.GradientTransformation(init, update)


def scale_by_layer(
    factors: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
    """Multiplies each update by the factor of the first pattern that matches its path."""

    def factor(path: str) -> float:
        matches = (f for pattern, f in factors if re.fullmatch(pattern, path))
        return next(matches, 1.0)

    return optax.stateless(
        lambda updates, _: _map(lambda path, u: u * factor(path), updates)
    )


def apply_updates(params: PyTree, updates: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """Returns `params + updates`; frozen leaves are passed through untouched."""
    return keep_frozen(params, optax.apply_updates(params, updates), freeze)


def keep_frozen(before: PyTree, after: PyTree, freeze: tuple[str, ...]) -> PyTree:
    """Returns `after`, with the leaves of `before` where a `freeze` pattern matches."""
    old = _leaves(before)
    return _map(lambda path, new: old[path] if is_frozen(path, freeze) else new, after)


def keep_statistics(
    before: PyTree, after: PyTree, optim: OptimConfig, step: jax.Array
) -> PyTree:
    """Returns BatchNorm's statistics after a step, unchanged where they are held."""
    kept = keep_frozen(before, after, optim.freeze)
    if not optim.head_steps:
        return kept
    moving, old = step >= optim.head_steps, _leaves(before)
    return _map(
        lambda path, new: new if is_head(path) else jnp.where(moving, new, old[path]),
        kept,
    )


def held_norms(optim: OptimConfig, step: Any) -> contextlib.AbstractContextManager:
    """Makes BatchNorm use running statistics that do not move, in training as well.

    These are the frozen ones and, during `head_steps`, all but those of the head. With
    batch statistics in training and others in evaluation, the two networks would differ.
    It applies to modules called inside the context.

    Args:
      optim: Settings of the optimiser.
      step: Number of steps so far.
    """

    def call(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        norm = context.module
        if not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__":
            return next_call(*args, **kwargs)
        places = {name: "/".join((*norm.path, name)) for name in ("mean", "var")}
        frozen = all(is_frozen(place, optim.freeze) for place in places.values())
        waits = optim.head_steps and not is_head(places["mean"])
        if not frozen and not waits:
            return next_call(*args, **kwargs)
        mean, var = (norm.get_variable("batch_stats", name) for name in places)
        scale, bias = (norm.get_variable("params", name) for name in ("scale", "bias"))
        (x,) = args
        y = (x - mean) * (jax.lax.rsqrt(var + norm.epsilon) * scale) + bias
        y = y.astype(norm.dtype or x.dtype)
        if frozen:
            return y
        return jnp.where(step < optim.head_steps, y, next_call(*args, **kwargs))

    holds = optim.freeze or optim.head_steps
    return nn.intercept_methods(call) if holds else contextlib.nullcontext()


def is_kernel(path: str) -> bool:
    """Whether the path names the weights of a layer, not a bias or a scale."""
    return path.split("/")[-1] == "kernel"


def is_frozen(path: str, freeze: tuple[str, ...]) -> bool:
    """Whether one of the patterns matches the whole path."""
    return any(re.fullmatch(pattern, path) for pattern in freeze)


def is_head(path: str) -> bool:
    """Whether the path belongs to the last layer or to the standardisation before it."""
    return path.split("/")[0] in (HEAD, HEAD_NORM)


def check_patterns(optim: OptimConfig, variables: PyTree, path: str) -> None:
    """Raises a UserError for a freezing or rate pattern without matches.

    Args:
      optim: Settings of the optimiser.
      variables: `{'params': ..., 'batch_stats': ...}` of the stage.
      path: Name of the settings, such as 'config.stages.target.optim'.
    """
    params = _leaves(variables["params"])
    everything = {**params, **_leaves(variables.get("batch_stats", {}))}
    cases = [("freeze", p, everything) for p in optim.freeze]
    cases += [("lr_factors", p, params) for p, _ in optim.lr_factors]
    for setting, pattern, paths in cases:
        if not any(re.fullmatch(pattern, name) for name in paths):
            raise UserError(
                f"{path}.{setting}: {pattern!r} does not match any parameter. "
                f"Parameters: {', '.join(sorted(paths))}.",
                where=f"{path}.{setting}",
            )
    if all(is_frozen(name, optim.freeze) for name in params):
        raise UserError(
            f"{path}.freeze freezes every parameter: leave at least one to train.",
            where=f"{path}.freeze",
        )


def _path(key_path: Any) -> str:
    return "/".join(str(key.key) for key in key_path)


def _map(function: Any, tree: PyTree) -> PyTree:
    """Maps `function(path, leaf)` over a tree of nested dicts."""
    return jax.tree_util.tree_map_with_path(lambda kp, x: function(_path(kp), x), tree)


def _leaves(tree: PyTree) -> dict[str, jax.Array]:
    return {_path(kp): x for kp, x in jax.tree_util.tree_leaves_with_path(tree)}
