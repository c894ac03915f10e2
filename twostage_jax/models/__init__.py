"""The networks, by name.

    module = build('caffenet_small', num_classes=5)
    variables = init(module, jax.random.key(0), image_size=32, channels=1)
    logits, taps = module.apply(variables, images, train=False)
    (logits, taps), changed = module.apply(
        variables, images, train=True, rngs={'dropout': key}, mutable=['batch_stats'])

Images are float [N, H, W, C]. Taps are the named intermediate activations, listed with
each network; a jitted function keeps only those that it returns, and returns them sorted
by name.
`variables` is a plain dict with 'params' and, for networks with batch normalisation,
'batch_stats'. The facts about a network are class variables, see `Network`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.models import layers
from twostage_jax.models.alexnet import AlexNet
from twostage_jax.models.caffenet import CaffeNet, CaffeNetSmall
from twostage_jax.models.convnext import ConvNeXt
from twostage_jax.models.densenet import DenseNet
from twostage_jax.models.efficientnet import EfficientNetLite0
from twostage_jax.models.layers import HEAD
from twostage_jax.models.network import Network
from twostage_jax.models.resnet import ResNet, ResNet34, ResNet50

MODELS: dict[str, type[Network]] = {
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "caffenet_small": CaffeNetSmall,
    "convnext_tiny": ConvNeXt,
    "densenet121": DenseNet,
    "efficientnet_lite0": EfficientNetLite0,
    "resnet18": ResNet,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
}

DTYPES = ("float32", "bfloat16")


def build(
    name: str,
    *,
    num_classes: int,
    dropout: float | None = None,
    norm: str | None = None,
    head: str | None = None,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
) -> Network:
    """Returns the network of that name, without parameters.

    Args:
      name: One of `MODELS`.
      num_classes: Number of outputs.
      dropout: Rate in [0, 1), or None for the network's own.
      norm: One of the network's `NORMS`, or None for its own.
      head: One of the network's `HEADS`, or None for its own.
      dtype: Data type of the computation, float32 or bfloat16; parameters and logits are
        float32.
      axis_name: Inside `jax.pmap`, the name of the axis that a batch is spread over:
        batch statistics are then those of the global batch, and dropout counts the
        examples of the global batch. None elsewhere.

    Raises:
      UserError: A name or a value is unknown.
    """
    if name not in MODELS:
        raise UserError(
            f"model.name: unknown model '{name}'.{did_you_mean(name, MODELS)}",
            where="model.name",
        )
    network = MODELS[name]
    options: dict[str, Any] = {}
    for option, value, known in (
        ("norm", norm, network.NORMS),
        ("head", head, network.HEADS),
    ):
        if value is None:
            continue
        if value not in known:
            hint = did_you_mean(value, known) if known else " Leave it empty."
            raise UserError(
                f"model.{option}: {name} does not have the {option} '{value}'.{hint}",
                where=f"model.{option}",
            )
        options[option] = value
    if dropout is not None:
        if not 0 <= dropout < 1:
            raise UserError(
                f"model.dropout is {dropout}: it must be at least 0 and below 1.",
                where="model.dropout",
            )
        options["dropout"] = dropout
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        pass
    if str(dtype) not in DTYPES:
        raise UserError(
            f"model.dtype: cannot compute in '{dtype}'."
            f"{did_you_mean(str(dtype), DTYPES)}",
            where="model.dtype",
        )
    if num_classes < 1:
        raise UserError(
            f"a model needs at least one class, but has {num_classes}.", where="classes"
        )
    return network(num_classes=num_classes, dtype=dtype, axis_name=axis_name, **options)


def descriptor(taps: dict[str, jax.Array]) -> jax.Array:
    """Returns early and late features of each image, `[N, D]` float32.

    The means over all positions of the first pooled convolution (the first tap with
    'pool' in its name), and the input of the head, before dropout. The convolution
    itself would cost more: XLA could no longer fuse it with what follows, which makes
    the network a third slower on a CPU.

    Args:
      taps: Taps in the order in which the network computes them.
    """
    before = [name for name in taps if name != HEAD] or [HEAD]
    first = next((name for name in before if "pool" in name), before[-1])
    names = {first: 0, before[-1]: 0}
    return jnp.concatenate([layers.means(taps[name]) for name in names], axis=1)


def init(
    module: Network, key: jax.Array, image_size: int, channels: int
) -> dict[str, Any]:
    """Returns random variables for square images, a plain dict of float32 arrays.

    Convolutions and hidden dense layers: He normal, bias 0. Head: normal with a
    standard deviation of 0.001, bias 0. Norms: scale 1 (0 in the last of a residual block),
    bias 0.

    Args:
      module: Network from `build`.
      key: PRNG key; the same key gives the same variables.
      image_size: Side of the images, pixels.
      channels: Channels of the images.

    Raises:
      UserError: The images are too small for the network.
    """
    images = jnp.zeros((1, image_size, image_size, channels))
    return _initialiser(module)(key, images)


def shapes(module: Network, image_size: int, channels: int) -> dict[str, Any]:
    """Returns the variables of a network as shapes and dtypes, without computing them.

    The images are square, `image_size` pixels high and wide.
    """
    images = jax.ShapeDtypeStruct((1, image_size, image_size, channels), jnp.float32)
    init = functools.partial(module.init, train=False)
    return dict(jax.eval_shape(init, jax.random.key(0), images))


@functools.lru_cache(maxsize=8)
def _initialiser(module: Network) -> Callable[..., dict[str, Any]]:
    # Optimised fully, a program that runs once takes three times as long to compile.
    return jax.jit(
        functools.partial(module.init, train=False),
        compiler_options={"xla_backend_optimization_level": 1},
    )
