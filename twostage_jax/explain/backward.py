"""Other backward rules for the layers of the same networks.

A gradient, a DeconvNet and a DeSaliNet are one walk from an activation back to the
pixels; they differ in what a ReLU, a max-pooling and a normalisation let through
(Mahendran & Vedaldi 2016, "Salient deconvolutional networks", section 2). `rules` puts
those layers' rules in place of `models.layers`' own while a network is called; the
forward pass gives the same values.

method     ReLU lets through             max-pooling       normalisation (LRN)
salinet    where it was active           switches          its derivative
deconvnet  what is positive              switches          as it is
desalinet  both                          switches          as it is
guided     both                          switches          its derivative

SaliNet is the gradient (Simonyan et al. 2014, arXiv 1312.6034), DeconvNet is Zeiler &
Fergus 2014 (arXiv 1311.2901), guided backpropagation Springenberg et al. 2015
(arXiv 1412.6806). Switches send everything back to where a window's maximum was, the
first in reading order where there are several. Convolutions and dense layers go back by
their transposes, without biases, in all of them.
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
# What needs a chain of layers, each with one input: a shortcut adds two signals, and
# neither the switches nor the sign of one path say what the other contributed.
CHAIN_ONLY = ("desalinet", "deconvnet")

_relu, _max_pool = layers.relu, layers.max_pool
# The rules replace attributes of a module, which threads share.
_lock = threading.RLock()


def methods_for(module: Any) -> list[str]:
    """Returns the methods of `METHODS` that this network has."""
    missing = () if module.CHAIN else CHAIN_ONLY
    # SaliNet, the gradient, is the one that leaves ReLUs as they are.
    return [m for m in METHODS if m not in missing and (module.RELU or m == "salinet")]


def check_method(method: str, module: Any) -> None:
    """Raises a UserError if the method does not exist, or not for this network."""
    if method not in METHODS:
        raise UserError(
            f"no method '{method}'.{did_you_mean(method, METHODS)}", where="method"
        )
    if method != "salinet" and not module.RELU:
        raise UserError(
            f"'{method}' changes the way back through ReLUs, which this network does not "
            "have: use 'salinet'.",
            where="method",
        )
    if method not in methods_for(module):
        raise UserError(
            f"'{method}' goes back through a chain of layers, and a residual network "
            "has shortcuts beside the chain: use 'guided' or 'salinet', which carry "
            "over.",
            where="method",
        )


@contextlib.contextmanager
def rules(method: str) -> Iterator[None]:
    """Networks called inside the block have the backward rules of `method`.

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
    """Networks called inside the block call these functions in place of those of
    `models.layers` of the same names.

    A network must be called (traced) inside. Compiled functions that were traced
    elsewhere keep their own.
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
    """Returns what each of the nine places of a window sees, `shape` each."""
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
