"""EfficientNet-Lite0: small, with inverted residual blocks.

The network of Tan & Le 2019 (arXiv 1905.11946) at its smallest, for mobile devices:
without squeeze-and-excitation, and with ReLU6 (TensorFlow, `models/official/efficientnet/
lite`). Padding and the epsilon of its norms are TensorFlow's. The public weights read
RGB images as (value - 127) / 128, values 0 to 255. timm has them as
`tf_efficientnet_lite0`; its `efficientnet_lite0` has arrays of the same names and shapes,
but pads as PyTorch does and has another epsilon, so its weights give wrong features here.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from twostage_jax.models import layers
from twostage_jax.models.network import Network, in_timm

# Of each stage: blocks, side of the depthwise kernels, stride of the first block, factor
# of the expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
# Name of each block -> side, stride, factor and channels.
BLOCKS = {
    f"stage{stage}_block{block}": (size, strides if block == 1 else 1, expand, features)
    for stage, (count, size, strides, expand, features) in enumerate(STAGES, start=1)
    for block in range(1, count + 1)
}
# Layer of a block -> its name in timm. The first block does not expand.
IN_TIMM = {
    "expand_conv": "conv_pw", "expand_norm": "bn1", "depthwise_conv": "conv_dw",
    "depthwise_norm": "bn2", "project_conv": "conv_pwl", "project_norm": "bn3",
}  # fmt: skip
FIRST_IN_TIMM = {
    "depthwise_conv": "conv_dw", "depthwise_norm": "bn1", "project_conv": "conv_pw",
    "project_norm": "bn2",
}  # fmt: skip


def _in_timm(block: str) -> str:
    """Returns timm's name of a block, such as 'blocks.0.0' of 'stage1_block1'."""
    stage, index = re.fullmatch(r"stage(\d)_block(\d)", block).groups()
    return f"blocks.{int(stage) - 1}.{int(index) - 1}"


def relu6(x: jax.Array) -> jax.Array:
    """Returns x limited to [0, 6]."""
    return jnp.minimum(layers.relu(x), 6)


class Block(nn.Module):
    """An inverted residual block: wide within, narrow and without a ReLU outside.

    Layers: expand_conv, expand_norm (without them where nothing is expanded),
    depthwise_conv, depthwise_norm, project_conv, project_norm. The input is added where
    the shape stays.

    Attributes:
      size: Side of the depthwise kernels.
      strides: Their step.
      expand: Channels within per channel of the input.
      features: Output channels.
      norm: Constructor from `layers.make_norm`.
      dtype: Data type of the computation.
    """

    size: int
    strides: int
    expand: int
    features: int
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, tap: Callable[..., jax.Array]) -> jax.Array:
        """Returns the output; taps it, and before it the depthwise map after ReLU6."""

        def conv(name: str, y: jax.Array, features: int, size=1, strides=1, groups=1):
            convolution = layers.Conv(
                features, size, strides, "same", groups, use_bias=False,
                dtype=self.dtype, name=f"{name}_conv",
            )  # fmt: skip
            return self.norm(name=f"{name}_norm")(convolution(y))

        wide = self.expand * x.shape[-1]
        y = relu6(conv("expand", x, wide)) if self.expand > 1 else x
        y = relu6(conv("depthwise", y, wide, self.size, self.strides, wide))
        y = conv("project", tap(f"{self.name}_relu", y), self.features)
        return tap(self.name, x + y if x.shape == y.shape else y)


class EfficientNetLite0(Network):
    """A stem, seven stages of inverted residual blocks, a last convolution, a classifier.

    Layers: stem_conv, stem_norm, stage1_block1 ... (see `Block`), last_conv, last_norm,
    head. The head reads the means of the last convolution over the image, as the
    original does, or is orderless (see `Network`).

    Attributes:
      head: 'mean' or 'orderless'.
      dropout: Rate of the dropout before the head; unused by the orderless head.
    """

    head: str = "mean"
    dropout: float = 0.2
    norm: str = "batch"

    NORMS: ClassVar = ("batch",)
    HEADS: ClassVar = ("mean", "orderless")
    FIRST_LAYER: ClassVar = "stem_conv"
    # The last block of each stage.
    MAPS: ClassVar = (
        "stem_relu", "stage1_block1_relu", "stage2_block2_relu", "stage3_block2_relu",
        "stage4_block3_relu", "stage5_block3_relu", "stage6_block4_relu",
        "stage7_block1_relu", "last_relu",
    )  # fmt: skip
    # At a half (twice), a quarter, an eighth, a sixteenth and a thirty-second of the
    # image's side.
    RECTIFIED: ClassVar = (
        "stem_relu", "stage1_block1_relu", "stage2_block2_relu", "stage3_block2_relu",
        "stage5_block3_relu", "last_relu",
    )  # fmt: skip
    # A norm comes between a convolution and its ReLU; blocks end without a ReLU.
    SIGNED: ClassVar = ("stem_conv", *BLOCKS, "last_conv")
    CHAIN: ClassVar = False
    PUBLIC_MEAN: ClassVar = (127 / 255,) * 3
    PUBLIC_DEVIATION: ClassVar = (128 / 255,) * 3
    PYTORCH: ClassVar = in_timm("tf_efficientnet_lite0")
    # Those of the PyTorch package efficientnet-lite, which counts blocks and norms from 0.
    PUBLIC_ALIASES: ClassVar = (
        (r"^_conv_(stem|head)\.", r"conv_\1."),
        (r"^_bn0\.", "bn1."),
        (r"^_bn1\.", "bn2."),
        (r"^_fc\.", "classifier."),
        (r"^_blocks\.0\._project_conv\.", "blocks.0.0.conv_pw."),
        (r"^_blocks\.0\._bn", "blocks.0.0.bn"),
        *(
            (rf"^_blocks\.{index}\.", f"{_in_timm(name)}.")
            for index, name in enumerate(BLOCKS)
        ),
        (r"\._expand_conv\.", ".conv_pw."),
        (r"\._depthwise_conv\.", ".conv_dw."),
        (r"\._project_conv\.", ".conv_pwl."),
        *((rf"\._bn{k}\.", f".bn{k + 1}.") for k in range(3)),
    )

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps stem_conv, stem_norm, stem_relu, stage1_block1_relu
          (the depthwise convolution of a block, after its ReLU6), stage1_block1 (the
          output of the block) ..., last_conv, last_norm, last_relu [N, h, w, c]; mean
          [N, 1280] or moments [N, 4800]; head, the logits.
        """
        norm = layers.make_norm(self, train=train, epsilon=1e-3)
        taps, tap = layers.recorder()

        def conv(name: str, x: jax.Array, features: int, size: int, strides: int):
            layer = layers.Conv(
                features, size, strides, "same", use_bias=False, dtype=self.dtype,
                name=f"{name}_conv",
            )  # fmt: skip
            x = tap(f"{name}_conv", layer(x))
            x = tap(f"{name}_norm", norm(name=f"{name}_norm")(x))
            return tap(f"{name}_relu", relu6(x))

        x = conv("stem", images, 32, 3, 2)
        for name, plan in BLOCKS.items():
            x = Block(*plan, norm, self.dtype, name=name)(x, tap)
        x = layers.pooled(self, conv("last", x, 1280, 1, 1), taps, tap, train=train)
        return tap(layers.HEAD, layers.head(self.num_classes)(x)), taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns timm's name of a layer, in `tf_efficientnet_lite0`."""
        block, _, part = layer.rpartition("/")
        if not block:
            return {
                "stem_conv": "conv_stem", "stem_norm": "bn1", "last_conv": "conv_head",
                "last_norm": "bn2", layers.HEAD: "classifier",
            }[part]  # fmt: skip
        parts = FIRST_IN_TIMM if block == "stage1_block1" else IN_TIMM
        return f"{_in_timm(block)}.{parts[part]}"
