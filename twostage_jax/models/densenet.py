"""DenseNet-121: every layer reads the maps of all layers before it in its block.

Huang et al. 2017 (arXiv 1608.06993), table 1, with 32 new channels per layer and half the
channels after each transition, as in torchvision. It is also the network of RadImageNet,
whose weights read RGB images with a mean and a standard deviation of 0.5, and of
torchxrayvision, whose weights read one channel in [-1024, 1024]: images in [0, 1] with a
mean of 0.5 and a standard deviation of 1 / 2048.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from twostage_jax.models import layers
from twostage_jax.models.network import Network, in_timm

# Layers of each block, and channels that a layer adds.
BLOCKS = (6, 12, 24, 16)
GROWTH = 32


class Layer(nn.Module):
    """A dense layer: its input and `GROWTH` new channels.

    Layers: norm1, conv1 (1x1, to four times the growth), norm2, conv2 (3x3).

    Attributes:
      norm: Constructor from `layers.make_norm`.
      dtype: Data type of the computation.
    """

    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for k, (features, size) in enumerate(((4 * GROWTH, 1), (GROWTH, 3)), start=1):
            y = layers.relu(self.norm(name=f"norm{k}")(y))
            y = layers.Conv(
                features, size, pad=size // 2, use_bias=False, dtype=self.dtype,
                name=f"conv{k}",
            )(y)  # fmt: skip
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(Network):
    """A stem, four dense blocks with transitions between them, global mean or moments,
    a classifier.

    Layers: stem_conv, stem_norm, block1_layer1 ... (see `Layer`), transition1_norm,
    transition1_conv ..., last_norm, head.

    Attributes:
      head: 'mean', as in the original, or 'orderless' (see `Network`).
      dropout: Rate of the dropout before the head; unused by the orderless head.
    """

    head: str = "mean"
    norm: str = "batch"

    NORMS: ClassVar = ("batch",)
    HEADS: ClassVar = ("mean", "orderless")
    FIRST_LAYER: ClassVar = "stem_conv"
    MAPS: ClassVar = (
        "stem_relu", "transition1_relu", "transition2_relu", "transition3_relu",
        "last_relu",
    )  # fmt: skip
    RECTIFIED: ClassVar = MAPS
    # Norms come between them and the ReLUs.
    SIGNED: ClassVar = (
        "stem_conv", "block1", "transition1_conv", "transition1_pool", "block2",
        "transition2_conv", "transition2_pool", "block3", "transition3_conv",
        "transition3_pool", "block4",
    )  # fmt: skip
    CHAIN: ClassVar = False
    PYTORCH: ClassVar = in_timm("densenet121")
    PUBLIC_ALIASES: ClassVar = (
        # RadImageNet numbers the children of the network.
        (r"^backbone\.0\.", "features."),
        # torchvision's files have dots that its network does not.
        (r"\.(norm|conv)\.([12])\.", r".\1\2."),
    )

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps stem_conv, stem_norm, stem_relu, stem_pool; block1,
          transition1_norm, transition1_relu, transition1_conv, transition1_pool, and so
          on to block4; last_norm, last_relu [N, h, w, c]; mean [N, 1024] or
          moments [N, 4096]; head, the
          logits.

        Raises:
          UserError: The images are smaller than 29 pixels, where the last map would be
            empty.
        """
        layers.check_size(images, 29)
        norm = layers.make_norm(self, train=train)
        taps, tap = layers.recorder()

        def conv(name: str, x: jax.Array, features: int, size=1, strides=1, pad=0):
            layer = layers.Conv(
                features, size, strides, pad, use_bias=False, dtype=self.dtype,
                name=f"{name}_conv",
            )  # fmt: skip
            return tap(f"{name}_conv", layer(x))

        def norm_relu(name: str, x: jax.Array) -> jax.Array:
            x = tap(f"{name}_norm", norm(name=f"{name}_norm")(x))
            return tap(f"{name}_relu", layers.relu(x))

        x = norm_relu("stem", conv("stem", images, 64, 7, 2, 3))
        x = tap("stem_pool", layers.max_pool(x, pad=1, ceil=False))
        for block, count in enumerate(BLOCKS, start=1):
            for k in range(1, count + 1):
                x = Layer(norm, self.dtype, name=f"block{block}_layer{k}")(x)
            x = tap(f"block{block}", x)
            if block < len(BLOCKS):
                name = f"transition{block}"
                x = conv(name, norm_relu(name, x), x.shape[-1] // 2)
                x = tap(f"{name}_pool", layers.mean_pool(x))
        x = layers.pooled(self, norm_relu("last", x), taps, tap, train=train)
        return tap(layers.HEAD, layers.head(self.num_classes)(x)), taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns torchvision's name of a layer, which is timm's, too."""
        if layer == layers.HEAD:
            return "classifier"
        for pattern, name in (
            (r"stem_(conv|norm)", r"\g<1>0"),
            (r"last_norm", "norm5"),
            (r"transition(\d)_(conv|norm)", r"transition\1.\2"),
            (r"block(\d)_layer(\d+)/(\w+)", r"denseblock\1.denselayer\2.\3"),
        ):
            if match := re.fullmatch(pattern, layer):
                return f"features.{match.expand(name)}"
        raise KeyError(layer)
