"""ConvNeXt-T: a convolutional network in the shape of a vision transformer.

Liu et al. 2022 (arXiv 2201.03545), the smallest size, as in torchvision and timm. It has
layer norms instead of batch norms, and GELU instead of ReLU.
"""

import re
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from twostage_jax.models import layers
from twostage_jax.models.network import Network

# Of each stage: blocks and channels.
STAGES = ((3, 96), (3, 192), (9, 384), (3, 768))
ENDS = tuple(f"stage{k}_block{count}" for k, (count, _) in enumerate(STAGES, start=1))
BLOCKS = tuple(
    f"stage{k}_block{b}"
    for k, (count, _) in enumerate(STAGES, start=1)
    for b in range(1, count + 1)
)


def layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    """Returns the layer norm: over the channels of each position."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Block(nn.Module):
    """x + layer_scale * (two dense layers at every position, after a depthwise 7x7).

    Layers: depthwise_conv, norm, expand (to four times the channels), project; the
    parameter layer_scale is [1, 1, C], and starts at 1e-6.

    Attributes:
      dtype: Data type of the computation.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, tap: Any) -> jax.Array:
        """Returns the output; taps it, and before it the wide map after its GELU."""
        count = x.shape[-1]

        def dense(name: str, y: jax.Array, features: int) -> jax.Array:
            layer = nn.Dense(
                features, dtype=self.dtype, kernel_init=layers.he_normal, name=name
            )
            # A product of two matrices, see `convolution`.
            return layer(y.reshape(-1, y.shape[-1])).reshape(*y.shape[:-1], -1)

        y = layers.Conv(
            count, 7, pad=3, groups=count, dtype=self.dtype, name="depthwise_conv"
        )(x)
        y = dense("expand", layer_norm(self.dtype, "norm")(y), 4 * count)
        y = tap(f"{self.name}_gelu", nn.gelu(y, approximate=False))
        scale = nn.initializers.constant(1e-6)
        scale = self.param("layer_scale", scale, (1, 1, count)).astype(self.dtype)
        return tap(self.name, x + scale * dense("project", y, count))


class ConvNeXt(Network):
    """A stem, four stages of blocks with downsampling between them, a classifier.

    Layers: stem_conv, stem_norm, stage1_block1 ... (see `Block`), downsample2_norm,
    downsample2_conv ... (before stages 2 to 4), last_norm, head.

    The orderless head (see `Network`) replaces last_norm.

    Attributes:
      head: 'mean', as in the original, or 'orderless'.
      dropout: Rate of the dropout before the head; unused by the orderless head.
    """

    head: str = "mean"

    HEADS: ClassVar = ("mean", "orderless")
    FIRST_LAYER: ClassVar = "stem_conv"
    MAPS: ClassVar = ("stem_norm", *ENDS)
    # The first block reads the stem's map.
    RECTIFIED: ClassVar = ("stage1_block1_gelu", *(f"{name}_gelu" for name in ENDS))
    SIGNED: ClassVar = (
        "stem_conv", "stem_norm", *BLOCKS,
        *(f"downsample{k}_{part}" for k in (2, 3, 4) for part in ("norm", "conv")),
        "mean", "last_norm",
    )  # fmt: skip
    RELU: ClassVar = False
    CHAIN: ClassVar = False
    PYTORCH: ClassVar = "torchvision.models.convnext_tiny(num_classes={classes})"
    # timm's.
    PUBLIC_ALIASES: ClassVar = (
        (r"^stem\.", "features.0."),
        *((rf"^stages\.{k}\.downsample\.", f"features.{2 * k}.") for k in (1, 2, 3)),
        *((rf"^stages\.{k}\.blocks\.", f"features.{2 * k + 1}.") for k in range(4)),
        (r"\.conv_dw\.", ".block.0."),
        (r"^(features\.\d\.\d)\.norm\.", r"\1.block.2."),
        (r"\.mlp\.fc1\.", ".block.3."),
        (r"\.mlp\.fc2\.", ".block.5."),
        (r"\.gamma$", ".layer_scale"),
        (r"^head\.norm\.", "classifier.0."),
        (r"^head\.fc\.", "classifier.2."),
    )

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps stem_conv, stem_norm, stage1_block1_gelu (the wide map
          of a block), stage1_block1 (its output) ..., downsample2_norm,
          downsample2_conv, and so on to stage4_block3 [N, h, w, c]; mean, last_norm
          [N, 768], or moments; head, the logits.

        Raises:
          UserError: The images are smaller than 32 pixels, where the last map would be
            empty.
        """
        layers.check_size(images, 32)
        taps, tap = layers.recorder()

        def conv(name: str, x: jax.Array, features: int, size: int) -> jax.Array:
            layer = layers.Conv(features, size, size, dtype=self.dtype, name=name)
            return tap(name, layer(x))

        def norm(name: str, x: jax.Array) -> jax.Array:
            return tap(name, layer_norm(self.dtype, name)(x))

        x = norm("stem_norm", conv("stem_conv", images, STAGES[0][1], 4))
        for stage, (count, features) in enumerate(STAGES, start=1):
            if stage > 1:
                x = norm(f"downsample{stage}_norm", x)
                x = conv(f"downsample{stage}_conv", x, features, 2)
            for k in range(1, count + 1):
                x = Block(self.dtype, name=f"stage{stage}_block{k}")(x, tap)
        if self.head == "orderless":
            x = tap("moments", layers.orderless(self, taps, train=train))
        else:
            x = norm("last_norm", tap("mean", layers.means(x))).astype(jnp.float32)
            x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
        return tap(layers.HEAD, layers.head(self.num_classes)(x)), taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns torchvision's name of a layer: its place in sequences."""
        block, _, part = layer.rpartition("/")
        if match := re.fullmatch(r"stage(\d)_block(\d)", block or layer):
            stage, index = map(int, match.groups())
            parts = {"depthwise_conv": 0, "norm": 2, "expand": 3, "project": 5}
            name = f"features.{2 * stage - 1}.{index - 1}"
            return f"{name}.block.{parts[part]}" if block else name
        if match := re.fullmatch(r"downsample(\d)_(norm|conv)", layer):
            place = ("norm", "conv").index(match[2])
            return f"features.{2 * int(match[1]) - 2}.{place}"
        return {
            "stem_conv": "features.0.0", "stem_norm": "features.0.1",
            "last_norm": "classifier.0", layers.HEAD: "classifier.2",
        }[layer]  # fmt: skip
