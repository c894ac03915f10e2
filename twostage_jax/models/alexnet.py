"""AlexNet as torchvision has it: the network of most public AlexNet weights.

Krizhevsky 2014 (arXiv 1404.5997): five convolutions without groups and without response
normalisation, and three dense layers. `caffenet` is the network of 2012.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax.models import layers
from twostage_jax.models.network import Network

# Of each convolution: output channels, side of the kernel, stride, padding.
CONVOLUTIONS = (
    (64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1),
)  # fmt: skip
# Side of the map that fc6 reads, whatever the size of the image.
GRID = 6


class AlexNet(Network):
    """Five convolutions and a classifier with or without two hidden dense layers.

    Layers: conv1 ... conv5, head, and with the dense head fc6 and fc7. The dense head
    averages pool5 to 6 x 6 positions, so that any size of image fits; its inputs are in
    PyTorch's order, channels slowest. The orderless head is that of `CaffeNet`.

    Attributes:
      head: 'dense' or 'orderless'.
      dropout: Rate of the dropout before fc6 and fc7; unused by the orderless head.
    """

    head: str = "dense"
    dropout: float = 0.5

    HEADS: ClassVar = ("dense", "orderless")
    HIDDEN: ClassVar = ("fc6", "fc7")
    MAPS: ClassVar = ("conv1", "conv2", "conv3", "conv4", "conv5")
    RECTIFIED: ClassVar = ("relu1", "relu2", "relu3", "relu4", "relu5")
    PYTORCH: ClassVar = "torchvision.models.alexnet(num_classes={classes})"

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits and taps, see `Network`.

        Returns:
          The logits and the taps conv1, relu1, pool1, conv2, relu2, pool2, conv3, relu3,
          conv4, relu4, conv5, relu5 [N, h, w, c]; in the dense head pool5 [N, h, w, c],
          fc6, relu6, fc7, relu7 [N, 4096]; in the orderless head moments [N, 2304];
          head, the logits.

        Raises:
          UserError: The images are smaller than 63 pixels, where a map of pool5 would
            be empty.
        """
        layers.check_size(images, 63)
        taps, tap = layers.recorder()
        x = images
        for k, (width, side, strides, pad) in enumerate(CONVOLUTIONS, start=1):
            conv = layers.Conv(
                width, side, strides, pad, dtype=self.dtype, name=f"conv{k}"
            )
            x = tap(f"relu{k}", layers.relu(tap(f"conv{k}", conv(x))))
            if k < 3:
                x = tap(f"pool{k}", layers.max_pool(x, ceil=False))
        if self.head == "orderless":
            x = tap("moments", layers.orderless(self, taps, train=train))
        else:
            x = tap("pool5", layers.max_pool(x, ceil=False))
            x = adaptive_mean(x, GRID).transpose(0, 3, 1, 2)
            x = x.reshape(x.shape[0], -1)
            for k in (6, 7):
                x = layers.Dropout(self.dropout, self.axis_name)(x, train=train)
                dense = nn.Dense(
                    4096, dtype=self.dtype, kernel_init=layers.he_normal, name=f"fc{k}"
                )
                x = tap(f"relu{k}", layers.relu(tap(f"fc{k}", dense(x))))
        logits = tap(layers.HEAD, layers.head(self.num_classes)(x.astype(jnp.float32)))
        return logits, taps

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns torchvision's name of a layer: its place in two sequences."""
        places = {
            "conv1": "features.0", "conv2": "features.3", "conv3": "features.6",
            "conv4": "features.8", "conv5": "features.10",
            "fc6": "classifier.1", "fc7": "classifier.4", layers.HEAD: "classifier.6",
        }  # fmt: skip
        return places[layer]


def adaptive_mean(x: jax.Array, size: int) -> jax.Array:
    """Returns [N, size, size, C]: means of [N, H, W, C] over windows that cover it.

    Window i of an axis of n positions is floor(i n / size) to ceil((i + 1) n / size), as
    in PyTorch's `AdaptiveAvgPool2d`; they overlap where `size` does not divide n.
    """

    def weights(count: int) -> np.ndarray:
        matrix = np.zeros((size, count), np.float32)
        for i in range(size):
            low, high = i * count // size, -(-(i + 1) * count // size)
            matrix[i, low:high] = 1 / (high - low)
        return matrix

    rows, columns = (jnp.asarray(weights(n), x.dtype) for n in x.shape[1:3])
    return jnp.einsum("ip,jq,npqc->nijc", rows, columns, x)
