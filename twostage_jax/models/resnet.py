"""Residual networks of 18, 34 and 50 layers.

He et al. 2015 (arXiv 1512.03385), table 1, with the stride of a bottleneck in its 3x3
convolution ("version 1.5", as in torchvision), which leaves the parameters as they are.
"""

import re
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax

from twostage_jax.models import layers
from twostage_jax.models.network import Network, in_timm


class Block(nn.Module):
    """One residual block: relu(convolutions(x) + shortcut(x)).

    Layers: conv1, norm1, conv2, norm2 (and conv3, norm3 in a bottleneck), and
    shortcut_conv, shortcut_norm where the shape changes. The last norm starts with a
    scale of 0, so that the block starts as its shortcut (Goyal et al. 2017,
    arXiv 1706.02677, section 5.1).

    Attributes:
      features: Channels of the 3x3 convolutions.
      strides: Step of the first 3x3 convolution and of the shortcut.
      bottleneck: 1x1, 3x3, 1x1 to four times the channels, instead of 3x3, 3x3.
      norm: Constructor from `layers.make_norm`.
      dtype: Data type of the computation.
    """

    features: int
    strides: int
    bottleneck: bool
    norm: Callable[..., nn.Module]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # (channels, kernel side, stride) of each convolution.
        if self.bottleneck:
            plan = (
                (self.features, 1, 1),
                (self.features, 3, self.strides),
                (4 * self.features, 1, 1),
            )
        else:
            plan = ((self.features, 3, self.strides), (self.features, 3, 1))

        y = x
        for k, (features, size, strides) in enumerate(plan, start=1):
            last = k == len(plan)
            y = self._conv(features, size, strides, f"conv{k}")(y)
            init = nn.initializers.zeros if last else nn.initializers.ones
            y = self.norm(scale_init=init, name=f"norm{k}")(y)
            if not last:
                y = layers.relu(y)
        if x.shape != y.shape:
            x = self._conv(plan[-1][0], 1, self.strides, "shortcut_conv")(x)
            x = self.norm(name="shortcut_norm")(x)
        return layers.relu(x + y)

    def _conv(self, features: int, size: int, strides: int, name: str) -> layers.Conv:
        return layers.Conv(
            features, size, strides, size // 2, use_bias=False, dtype=self.dtype,
            name=name,
        )  # fmt: skip


class ResNet(Network):
    """A stem, four stages of residual blocks, global mean or moments, a classifier.

    Layers: stem_conv, stem_norm, stage1_block1 ... (see `Block`), head. Any size of
    image fits; below about 64 pixels the last stages see one or two positions only.

    Attributes:
      head: 'mean', as in the original, or 'orderless' (see `Network`).
      dropout: Rate of the dropout before the head; unused by the orderless head.
      norm: 'batch' or 'group', see `layers.make_norm`.
      blocks: Number of blocks per stage.
      bottleneck: See `Block`.
    """

    head: str = "mean"
    norm: str = "batch"
    blocks: tuple[int, int, int, int] = (2, 2, 2, 2)
    bottleneck: bool = False

    NORMS: ClassVar = ("batch", "group")
    HEADS: ClassVar = ("mean", "orderless")
    FIRST_LAYER: ClassVar = "stem_conv"
    MAPS: ClassVar = ("stem_relu", "stage1", "stage2", "stage3", "stage4")
    RECTIFIED: ClassVar = MAPS
    # Its norm comes between it and the ReLU.
    SIGNED: ClassVar = ("stem_conv",)
    CHAIN: ClassVar = False
    PYTORCH: ClassVar = in_timm("resnet18")
    PUBLIC_ALIASES: ClassVar = (
        # RadImageNet numbers the children of the network.
        (r"^backbone\.0\.", "conv1."),
        (r"^backbone\.1\.", "bn1."),
        *((rf"^backbone\.{3 + stage}\.", f"layer{stage}.") for stage in (1, 2, 3, 4)),
    )

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps stem_conv, stem_norm, stem_relu, stem_pool,
          stage1_block1 ... (the output of each block, after its ReLU), stage1 ...
          stage4 (the output of the last block of each stage) [N, h, w, c]; mean [N, c]
          or moments; head, the logits.
        """
        norm = layers.make_norm(self, train=train)
        taps, tap = layers.recorder()

        x = layers.Conv(
            64, 7, 2, 3, use_bias=False, dtype=self.dtype, name="stem_conv"
        )(images)
        x = tap("stem_conv", x)
        x = tap("stem_norm", norm(name="stem_norm")(x))
        x = tap("stem_relu", layers.relu(x))
        x = tap("stem_pool", layers.max_pool(x, pad=1, ceil=False))
        for stage, count in enumerate(self.blocks, start=1):
            for block in range(1, count + 1):
                name = f"stage{stage}_block{block}"
                strides = 2 if stage > 1 and block == 1 else 1
                x = Block(
                    64 * 2 ** (stage - 1), strides, self.bottleneck, norm, self.dtype,
                    name=name,
                )(x)  # fmt: skip
                x = tap(name, x)
            x = tap(f"stage{stage}", x)
        x = layers.pooled(self, x, taps, tap, train=train)
        return tap(layers.HEAD, layers.head(self.num_classes)(x)), taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns torchvision's name of a layer, which is timm's, too."""
        block, _, part = layer.rpartition("/")
        if not block:
            return {"stem_conv": "conv1", "stem_norm": "bn1", layers.HEAD: "fc"}[part]
        stage, index = re.fullmatch(r"stage(\d)_block(\d+)", block).groups()
        part = part.replace("shortcut_conv", "downsample.0")
        part = part.replace("shortcut_norm", "downsample.1").replace("norm", "bn")
        return f"layer{stage}.{int(index) - 1}.{part}"


class ResNet34(ResNet):
    """Thirty-four layers."""

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)

    PYTORCH: ClassVar = in_timm("resnet34")


class ResNet50(ResNet):
    """Fifty layers, in bottleneck blocks."""

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    bottleneck: bool = True

    PYTORCH: ClassVar = in_timm("resnet50")
