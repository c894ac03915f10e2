"""The Caffe reference network, and a small network of the same design.

CaffeNet is AlexNet (Krizhevsky et al. 2012) on one device with the pooling before the
normalisation: Jia et al. 2014 (arXiv 1408.5093), `models/bvlc_reference_caffenet` of
the Caffe distribution. It is the network of Suzuki et al. 2018 (arXiv 1810.06282).

Caffe's weights read BGR images, 0 to 255, minus `CAFFE_MEAN`. When they are read, that is
folded into conv1, which then reads RGB images with ImageNet's mean and standard deviation
(`Network.PUBLIC_MEAN`), as all other networks do. This is exact up to rounding, also at the
border, because conv1 has no padding.
"""

import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.models import layers
from twostage_jax.models.network import Network

# RGB, 0 to 255: the means over the pixels of `ilsvrc_2012_mean.npy` of the distribution.
CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)


class CaffeNet(Network):
    """Five convolutions and a classifier with or without two hidden dense layers.

    Layers, and so parameters: conv1 ... conv5, head, and with the dense head fc6 and
    fc7, each with `kernel` and `bias`. conv2, conv4 and conv5 work in two groups of
    channels.

    The dense head is that of the original: fc6 and fc7 on pool5. The input of fc6 is
    pool5 laid out row by row, channels fastest: row (i * width + j) * channels + c of
    its kernel belongs to row i, column j, channel c of pool5, and
    `kernel.reshape(height, width, channels, -1)` undoes it. Its height and width
    follow from the size of the image.

    The orderless head is one linear layer on the mean and standard deviation of each
    channel of relu1 to relu5 over the image (`layers.orderless`). A texture is the same
    at every position, which dense layers would have to learn. The early layers see fine
    detail, as texture descriptors do.

    With 'local' norms, local response normalisation follows the first two poolings, as in
    the original. With 'batch' norms, BatchNorm norm1 ... norm5 (`scale` and `bias`)
    follows each convolution instead of its bias. It keeps every channel in use: without
    it, training on many classes leaves half of the channels of conv3 to conv5 at 0 on
    every image, and later stages do not revive them (experiments/heads.md).

    Attributes:
      head: 'dense' or 'orderless'.
      dropout: Rate of the dropout after fc6 and fc7; unused by the orderless head.
      widths: Output channels of conv1 ... conv5.
      hidden: Sizes of fc6 and fc7, in the dense head.
      stem: Kernel side, stride and padding of conv1, pixels.
    """

    head: str = "dense"
    dropout: float = 0.5
    norm: str = "local"
    widths: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: tuple[int, int] = (4096, 4096)
    stem: tuple[int, int, int] = (11, 4, 0)

    NORMS: ClassVar = ("local", "batch")
    HEADS: ClassVar = ("dense", "orderless")
    HIDDEN: ClassVar = ("fc6", "fc7")
    MAPS: ClassVar = ("conv1", "conv2", "conv3", "conv4", "conv5")
    RECTIFIED: ClassVar = ("relu1", "relu2", "relu3", "relu4", "relu5")

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps conv1, relu1, pool1, norm1, conv2, relu2, pool2, norm2,
          conv3, relu3, conv4, relu4, conv5, relu5 [N, h, w, c]; in the dense head pool5,
          and fc6, relu6, fc7, relu7 [N, size], before dropout; in the orderless head
          moments [N, 2 * (channels of conv1 to conv5)]; head, the logits. A tap of a
          convolution or dense layer is its value before the ReLU, after BatchNorm. Only
          local norms have taps (norm1, norm2).

        Raises:
          UserError: The images are smaller than the kernel of conv1.
        """
        size, strides, pad = self.stem
        layers.check_size(images, size - 2 * pad)
        taps, tap = layers.recorder()
        local = self.norm == "local"
        norm = layers.make_norm(self, train=train)

        def conv(k: int, x: jax.Array, size: int, pad: int, groups: int, strides=1):
            layer = layers.Conv(
                self.widths[k - 1], size, strides, pad, groups, use_bias=local,
                dtype=self.dtype, name=f"conv{k}",
            )  # fmt: skip
            x = layer(x) if local else norm(name=f"norm{k}")(layer(x))
            return tap(f"relu{k}", layers.relu(tap(f"conv{k}", x)))

        def pool_and_norm(k: int, x: jax.Array) -> jax.Array:
            x = tap(f"pool{k}", layers.max_pool(x))
            return tap(f"norm{k}", layers.local_response_norm(x)) if local else x

        def dense(k: int, x: jax.Array) -> jax.Array:
            layer = nn.Dense(
                self.hidden[k - 6], dtype=self.dtype, kernel_init=layers.he_normal,
                name=f"fc{k}",
            )  # fmt: skip
            x = tap(f"relu{k}", layers.relu(tap(f"fc{k}", layer(x))))
            return layers.Dropout(self.dropout, self.axis_name)(x, train=train)

        x = pool_and_norm(1, conv(1, images, size, pad, 1, strides))
        x = pool_and_norm(2, conv(2, x, 5, 2, 2))
        x = conv(5, conv(4, conv(3, x, 3, 1, 1), 3, 1, 2), 3, 1, 2)
        if self.head == "orderless":
            x = tap("moments", layers.orderless(self, taps, train=train))
        else:
            x = tap("pool5", layers.max_pool(x))
            x = dense(7, dense(6, x.reshape(x.shape[0], -1)))
        logits = tap(layers.HEAD, layers.head(self.num_classes)(x.astype(jnp.float32)))
        return logits, taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns Caffe's name of a layer."""
        return "fc8" if layer == layers.HEAD else layer

    @classmethod
    def from_public(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns Caffe's weights for images scaled with `PUBLIC_MEAN`.

        See the module's docstring for conv1. In Caffe, the rows of fc6 are in the order
        channel, row, column.
        """
        arrays = dict(arrays)
        conv1, fc6 = (f"params/{name}/kernel" for name in ("conv1", "fc6"))
        if conv1 in arrays and arrays[conv1].shape[2] == 3:
            kernel = arrays[conv1][:, :, ::-1].astype(np.float64)
            spread = 255 * np.reshape(cls.PUBLIC_DEVIATION, (3, 1))
            offset = 255 * np.array(cls.PUBLIC_MEAN) - CAFFE_MEAN
            bias = arrays["params/conv1/bias"] + np.einsum("hwio,i->o", kernel, offset)
            arrays[conv1] = np.float32(kernel * spread)
            arrays["params/conv1/bias"] = np.float32(bias)
        if fc6 in arrays:
            rows, features = arrays[fc6].shape
            side = math.isqrt(rows // cls.widths[-1])
            kernel = arrays[fc6].reshape(-1, side, side, features)
            arrays[fc6] = kernel.transpose(1, 2, 0, 3).reshape(rows, features)
        return arrays


class CaffeNetSmall(CaffeNet):
    """For patches of 32 to 64 pixels: narrower, with half the strides of the stem."""

    head: str = "orderless"
    norm: str = "batch"
    widths: tuple[int, int, int, int, int] = (48, 96, 128, 128, 96)
    hidden: tuple[int, int] = (256, 256)
    stem: tuple[int, int, int] = (5, 2, 2)
