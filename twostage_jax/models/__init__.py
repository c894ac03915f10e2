"""The networks, by name.

    module = build('caffenet_small', num_classes=5)
    variables = init(module, jax.random.key(0), image_size=32, channels=1)
    logits, taps = module.apply(variables, images, train=False)
    (logits, taps), changed = module.apply(
        variables, images, train=True, rngs={'dropout': key}, mutable=['batch_stats'])

Images are float [N, H, W, C]. Taps are the named intermediate activations, listed with
each network; a jitted function that does not return them does not keep them, and one
that does returns them sorted by name.
`variables` is a plain dict with 'params' and, for networks with batch normalisation,
'batch_stats'.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.models.caffenet import CaffeNet
from twostage_jax.models.resnet import ResNet

# The name of the last classifier layer and of its tap, in every network.
HEAD = "head"

# caffenet: 227 pixels in the original. caffenet_small: for patches of 32 to 64 pixels,
# half the strides of the stem and a quarter to a half of the widths.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "caffenet": CaffeNet,
    "caffenet_small": functools.partial(
        CaffeNet, widths=(48, 96, 128, 128, 96), hidden=(256, 256), stem=(5, 2, 2)
    ),
    "resnet18": ResNet,
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
}

# The normalisations of each network; the first is its own choice.
NORMS: dict[str, tuple[str, ...]] = {
    "caffenet": ("local",),
    "caffenet_small": ("local",),
    "resnet18": ("batch", "group"),
    "resnet50": ("batch", "group"),
}

# The heads of networks that have a choice (see `CaffeNet`); the first is their own.
HEADS: dict[str, tuple[str, ...]] = {
    "caffenet": ("dense", "orderless"),
    "caffenet_small": ("orderless", "dense"),
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
) -> nn.Module:
    """Returns the network of that name, without parameters.

    Args:
      name: one of `MODELS`.
      num_classes: size of the output.
      dropout: rate in [0, 1), or None for the network's own (0.5 in the Caffe
        networks, 0 in the residual ones).
      norm: one of `NORMS[name]`, or None for the first of them.
      head: one of `HEADS[name]`, or None for the network's own.
      dtype: of the computation, float32 or bfloat16; parameters and logits are
        float32.
      axis_name: inside `jax.pmap`, the name of the axis that a batch is spread over:
        batch statistics are then those of the global batch, and dropout counts the
        examples of the global batch. None elsewhere.

    Raises:
      UserError: a name or a value is not one of these.
    """
    if name not in MODELS:
        raise UserError(f"model.name: no model '{name}'.{did_you_mean(name, MODELS)}")
    norm = NORMS[name][0] if norm is None else norm
    if norm not in NORMS[name]:
        raise UserError(
            f"model.norm: {name} has no norm '{norm}'.{did_you_mean(norm, NORMS[name])}"
        )
    heads = HEADS.get(name, ())
    if head is not None and head not in heads:
        known = did_you_mean(head, heads) if heads else " Leave it empty."
        raise UserError(
            f"model.head: {name} does not have the head '{head}'.{known}",
            where="model.head",
        )
    if dropout is not None and not 0 <= dropout < 1:
        raise UserError(f"model.dropout: {dropout} is not a rate; give 0 to below 1.")
    try:
        dtype = jnp.dtype(dtype)
    except TypeError:
        pass
    if str(dtype) not in DTYPES:
        raise UserError(
            f"model.dtype: cannot compute in '{dtype}'."
            f"{did_you_mean(str(dtype), DTYPES)}"
        )
    if num_classes < 1:
        raise UserError(f"a model needs at least one class, not {num_classes}.")
    options: dict[str, Any] = {} if dropout is None else {"dropout": dropout}
    if heads:
        options["head"] = head or heads[0]
    return MODELS[name](
        num_classes=num_classes, norm=norm, dtype=dtype, axis_name=axis_name, **options
    )


def descriptor(taps: dict[str, jax.Array]) -> jax.Array:
    """Returns what a network sees first and last of each image, `[N, D]` float32.

    The means over all positions of the first pooled convolution, and the features that
    the head sees, before dropout. Not of the convolution itself: XLA would no longer
    fuse it with what follows, which makes the network a third slower on a CPU.

    Args:
      taps: In the order in which the network computes them.
    """
    before = [name for name in taps if name != HEAD] or [HEAD]
    first = next((name for name in before if "pool" in name), before[-1])
    features = [taps[name].astype(jnp.float32) for name in {first: 0, before[-1]: 0}]
    return jnp.concatenate([f.mean((1, 2)) if f.ndim == 4 else f for f in features], 1)


def init(
    module: nn.Module, key: jax.Array, image_size: int, channels: int
) -> dict[str, Any]:
    """Returns random variables for square images, a plain dict of float32 arrays.

    Convolutions and hidden dense layers: He normal, bias 0. Head: normal with a
    deviation of 0.001, bias 0. Norms: scale 1 (0 in the last of a residual block),
    bias 0.

    Args:
      module: from `build`.
      key: a jax random key; the same key gives the same variables.
      image_size: side of the images, pixels.
      channels: channels of the images.

    Raises:
      UserError: the images are too small for the network.
    """
    images = jnp.zeros((1, image_size, image_size, channels))
    return jax.jit(functools.partial(module.init, train=False))(key, images)
