"""Calling a network for its taps: batched, compiled, checked."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from twostage_jax.errors import UserError, did_you_mean

PyTree = Any
BATCH = 64


def tap_shapes(module: Any, variables: PyTree, images: Any) -> dict[str, tuple]:
    """Returns the shape of each tap for one image, `[h, w, C]` or `[C]`, in order.

    The order is that in which the network computes them.
    """
    found = {}

    def call(variables: PyTree, images: Any) -> Any:
        taps = module.apply(variables, images, train=False)[1]
        found.update({name: tap.shape[1:] for name, tap in taps.items()})
        return taps

    one = jax.ShapeDtypeStruct((1, *np.shape(images)[1:]), jnp.float32)
    jax.eval_shape(call, variables, one)
    return found


def check_tap(shapes: dict[str, tuple], tap: str) -> None:
    """Raises a UserError if there is no such tap."""
    if tap not in shapes:
        raise UserError(f"the network has no tap '{tap}'.{did_you_mean(tap, shapes)}")


def in_batches(function: Callable, *arrays: Any, size: int = BATCH) -> Any:
    """Returns `function(*arrays)`, called on `size` examples at a time.

    The last batch is filled up by repeating its last example, so that a compiled
    function is compiled once.

    Args:
      function: From arrays `[size, ...]` to an array, or a tree of arrays, of the same
        first axis.
      *arrays: `[N, ...]`, N at least 1.
      size: Examples at a time; fewer examples are one batch.

    Returns:
      Host arrays `[N, ...]`.
    """
    count = len(arrays[0])
    if not count:
        raise ValueError("no examples")
    size = min(size, count)
    parts = []
    for first in range(0, count, size):
        take = np.minimum(np.arange(first, first + size), count - 1)
        part = function(*(np.asarray(array)[take] for array in arrays))
        parts.append(jax.tree.map(np.asarray, part))
    return jax.tree.map(lambda *p: np.concatenate(p)[:count], *parts)


@functools.partial(jax.jit, static_argnames=("module",))
def _logits(module: Any, variables: PyTree, images: jax.Array) -> jax.Array:
    return module.apply(variables, images, train=False)[0]


def logits(module: Any, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Returns the logits `[N, K]` of images `[N, H, W, C]`."""
    return in_batches(functools.partial(_logits, module, variables), images)


def probabilities(module: Any, variables: PyTree, images: np.ndarray) -> np.ndarray:
    """Returns the class probabilities `[N, K]` of images `[N, H, W, C]`."""
    return np.asarray(jax.nn.softmax(logits(module, variables, images)))


def activations(
    module: Any,
    variables: PyTree,
    images: np.ndarray,
    taps: tuple[str, ...],
    summary: Callable[[jax.Array], jax.Array] = lambda tap: tap,
) -> dict[str, np.ndarray]:
    """Returns taps, or what `summary` makes of each, as host arrays.

    Args:
      module, variables: The network.
      images: `[N, H, W, C]`, as the network takes them.
      taps: Names; see `tap_shapes`.
      summary: From a tap `[n, ...]` to `[n, ...]`, compiled with the network. Give a
        function of a module: a new one each time is compiled each time.

    Raises:
      UserError: A tap does not exist.
    """
    shapes = tap_shapes(module, variables, images)
    for tap in taps:
        check_tap(shapes, tap)
    program = functools.partial(_activations, module, tuple(taps), summary, variables)
    return in_batches(program, images)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _activations(module, taps, summary, variables, images):
    found = module.apply(variables, images, train=False)[1]
    return {tap: summary(found[tap].astype(jnp.float32)) for tap in taps}


def with_offset(module: Any, tap: str) -> Callable:
    """Returns `(variables, images, offset) -> (logits, tap)`, `offset` added to the tap.

    Its derivative by the offset is that of the logits by the tap, which no call of the
    module alone gives. The network is traced, and its steps carried out one by one.
    """

    def call(variables: PyTree, images: jax.Array, offset: jax.Array) -> Any:
        def forward(variables: PyTree, images: jax.Array) -> Any:
            logits, taps = module.apply(variables, images, train=False)
            return taps[tap], logits

        traced = jax.make_jaxpr(forward)(variables, images)
        jaxpr = traced.jaxpr
        target = jaxpr.outvars[0]
        values = dict(zip(jaxpr.constvars, traced.consts, strict=True))
        leaves = jax.tree.leaves((variables, images))
        values.update(zip(jaxpr.invars, leaves, strict=True))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, jex.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            functions, params = eqn.primitive.get_bind_params(eqn.params)
            out = eqn.primitive.bind(*functions, *map(read, eqn.invars), **params)
            out = out if eqn.primitive.multiple_results else [out]
            for variable, value in zip(eqn.outvars, out, strict=True):
                values[variable] = value + offset if variable is target else value
        return read(jaxpr.outvars[1]), read(target)

    return call
