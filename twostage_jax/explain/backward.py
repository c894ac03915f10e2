"""Alternative backward rules for the layers of a network.

A gradient, a DeconvNet and a DeSaliNet all propagate an activation back to the pixels;
they differ in what a ReLU, a max-pooling and a normalisation let through (Mahendran &
Vedaldi 2016, "Salient deconvolutional networks", section 2). `rules` replaces the rules
of `models.layers` while a network is called; the forward pass gives the same values.

method     ReLU passes gradients that    max-pooling       normalisation (LRN)
salinet    meet an active input          switches          derivative
deconvnet  are positive                  switches          identity
desalinet  do both                       switches          identity
guided     do both                       switches          derivative

SaliNet is the gradient (Simonyan et al. 2014, arXiv 1312.6034), DeconvNet is Zeiler &
Fergus 2014 (arXiv 1311.2901), guided backpropagation Springenberg et al. 2015
(arXiv 1412.6806). Switches send everything back to the maximum of a window, the first in
reading order if there are several. Convolutions and dense layers go back by their
transposes, without biases, in all methods.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.models import layers

METHODS = ("desalinet", "deconvnet", "salinet", "guided")
# These methods need a chain of layers, each with one input: a shortcut adds two signals,
# and neither the switches nor the sign of one path say what the other contributed.
CHAIN_ONLY = ("desalinet", "deconvnet")

_relu, _max_pool = layers.relu, layers.max_pool
# The rules replace attributes of a module, which threads share.
_lock = threading.RLock()


def methods_for(module: Any) -> list[str]:
    """Returns the methods of `METHODS` that this network supports."""
    missing = () if module.CHAIN else CHAIN_ONLY
    # SaliNet, the gradient, is the only method that does not change ReLUs.
    return [m for m in METHODS if m not in missing and (module.RELU or m == "salinet")]


def check_method(method: str, module: Any) -> None:
    """Raises a UserError if the method is unknown or unsupported by this network."""
    if method not in METHODS:
        raise UserError(
            f"unknown method '{method}'.{did_you_mean(method, METHODS)}", where="method"
        )
    if method != "salinet" and not module.RELU:
        raise UserError(
            f"'{method}' changes the backward rule of ReLUs, which this network does not "
            "have: use 'salinet'.",
            where="method",
        )
    if method not in methods_for(module):
        raise UserError(
            f"'{method}' needs a chain of layers, and this network has shortcuts: use "
            "'guided' or 'salinet'.",
            where="method",
        )


@contextlib.contextmanager
def rules(method: str) -> Iterator[None]:
    """Applies the backward rules of `method` to networks called inside the block.

    Differentiation may come later; for the rest see `replaced`.

    Args:
      method: One of `METHODS`.
    """
    functions = {"max_pool": pool_with_switches, "relu": _RELUS[method]}
    if method in CHAIN_ONLY:
        functions["local_response_norm"] = _passed_through(layers.local_response_norm)
    with replaced(**functions):
        yield


@contextlib.contextmanager
def replaced(**functions: Callable) -> Iterator[None]:
    """Replaces functions of `models.layers`, by name, inside the block.

    A network must be called (traced) inside. Functions that were traced and compiled
    elsewhere are not affected.
    """
    with _lock:
        before = {name: getattr(layers, name) for name in functions}
        try:
            for name, function in functions.items():
                setattr(layers, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(layers, name, function)


def _relu_rule(let_through: Callable) -> Callable[[jax.Array], jax.Array]:
    """Returns a ReLU that sends back `let_through(input, gradient)`."""

    @jax.custom_vjp
    def relu(x: jax.Array) -> jax.Array:
        return _relu(x)

    relu.defvjp(lambda x: (_relu(x), x), lambda x, g: (let_through(x, g),))
    return relu


_RELUS = {
    "salinet": _relu,
    "deconvnet": _relu_rule(lambda x, g: jnp.maximum(g, 0)),
    "desalinet": _relu_rule(lambda x, g: jnp.where(x > 0, jnp.maximum(g, 0), 0)),
}
_RELUS["guided"] = _RELUS["desalinet"]


def _passed_through(function: Callable[[jax.Array], jax.Array]) -> Callable:
    """Returns `function` with the derivative of the identity."""

    @jax.custom_vjp
    def passed(x: jax.Array) -> jax.Array:
        return function(x)

    passed.defvjp(lambda x: (function(x), None), lambda _, g: (g,))
    return passed


def pool_with_switches(x: jax.Array, *, pad: int = 0, ceil: bool = True) -> jax.Array:
    """Returns `layers.max_pool`, whose gradient goes to the first of equal maxima."""
    return _switched(x, pad, ceil)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _switched(x: jax.Array, pad: int, ceil: bool) -> jax.Array:
    return _max_pool(x, pad=pad, ceil=ceil)


def _switched_forward(x: jax.Array, pad: int, ceil: bool) -> tuple[jax.Array, Any]:
    y = _max_pool(x, pad=pad, ceil=ceil)
    return y, (x, y)


def _switched_backward(pad: int, ceil: bool, saved: Any, g: jax.Array) -> tuple:
    x, y = saved
    views, transpose = jax.vjp(functools.partial(_views, shape=y.shape, pad=pad), x)
    free, parts = jnp.ones(y.shape, bool), []
    for view in views:
        here = free & (view == y)
        parts.append(jnp.where(here, g, 0))
        free = free & ~here
    return transpose(parts)


_switched.defvjp(_switched_forward, _switched_backward)


def _views(x: jax.Array, shape: tuple[int, ...], pad: int) -> list[jax.Array]:
    """Returns the inputs at each of the nine positions of a window, `shape` each."""
    rows, columns = shape[1:3]
    widths = [(0, 0, 0)] * 4
    for axis, out in ((1, rows), (2, columns)):
        widths[axis] = (pad, 2 * out + 1 - pad - x.shape[axis], 0)
    x = lax.pad(x, jnp.array(-jnp.inf, x.dtype), widths)
    return [
        x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2]
        for i in range(3)
        for j in range(3)
    ]
