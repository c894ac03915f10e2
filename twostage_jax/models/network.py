"""The contract of a network: its settings, its facts and its call.

A network is one file with a subclass of `Network`, and one entry in `models.MODELS`.
Everything that other parts of the package need to know about a family of networks is a
class variable here, so that none of them asks for a network by its name.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Network(nn.Module):
    """Base class of the networks.

    Layers call `relu`, `max_pool`, `local_response_norm` and `tap` as attributes of
    `layers` (see there). The classifier is `layers.head`.

    Attributes:
      num_classes: Number of outputs.
      dropout: Rate of the dropout, in [0, 1).
      norm: One of `NORMS`; '' in a network without a choice.
      dtype: Data type of the computation; parameters and logits are float32.
      axis_name: Name of the mapped axis that a batch is spread over, or None.
      NORMS: Accepted values of `norm`; empty without a choice.
      HEADS: Accepted values of a field `head`; empty without such a field. 'orderless'
        reads the mean and standard deviation of each channel of the maps of `RECTIFIED`
        (see `layers.orderless`).
      HIDDEN: Layers that the dense head alone has.
      FIRST_LAYER: Name of the layer with the kernels that read the image.
      MAPS: Taps `[N, h, w, c]` whose channels figures show, first to last; empty for
        all of them.
      RECTIFIED: Taps `[N, h, w, c]` after a ReLU that describe a texture, first to last;
        empty for the input of the head.
      SIGNED: Taps that no ReLU follows or precedes directly: a channel below 0 is as
        alive as one above. The head is such a tap in every network.
      RELU: Whether its activations are ReLUs.
      CHAIN: Whether each layer has one input; False with shortcuts.
      PYTORCH: Expression that builds the network in PyTorch, with the fields {classes} and
        {channels}; empty if it is not public. See `pytorch`.
      PUBLIC_MEAN, PUBLIC_DEVIATION: Mean and standard deviation, per channel of RGB
        images in [0, 1], that public weights were trained with.
      PUBLIC_ALIASES: (pattern, replacement) pairs that turn the names in files of public
        weights into those of `public_name`; see `pretrained`.
    """

    num_classes: int
    dropout: float = 0.0
    norm: str = ""
    dtype: Any = jnp.float32
    axis_name: str | None = None

    NORMS: ClassVar[tuple[str, ...]] = ()
    HEADS: ClassVar[tuple[str, ...]] = ()
    HIDDEN: ClassVar[tuple[str, ...]] = ()
    FIRST_LAYER: ClassVar[str] = "conv1"
    MAPS: ClassVar[tuple[str, ...]] = ()
    RECTIFIED: ClassVar[tuple[str, ...]] = ()
    SIGNED: ClassVar[tuple[str, ...]] = ()
    RELU: ClassVar[bool] = True
    CHAIN: ClassVar[bool] = True
    PYTORCH: ClassVar[str] = ""
    # Those of ImageNet, which torchvision and timm use.
    PUBLIC_MEAN: ClassVar[tuple[float, float, float]] = (0.485, 0.456, 0.406)
    PUBLIC_DEVIATION: ClassVar[tuple[float, float, float]] = (0.229, 0.224, 0.225)
    PUBLIC_ALIASES: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __call__(
        self, images: jax.Array, *, train: bool
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns logits, float32 `[N, num_classes]`, and the taps by name.

        Args:
          images: `[N, H, W, C]`, float.
          train: Whether to drop out, which needs `rngs={'dropout': key}`, and to
            normalise by the statistics of the batch, which needs
            `mutable=['batch_stats']` in networks with batch normalisation.

        Returns:
          The logits and, in the order of computation, the named intermediate
          activations; the last is 'head', the logits.
        """
        raise NotImplementedError

    @classmethod
    def from_public(cls, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns public weights as this network reads them.

        Args:
          arrays: Path of the variable, such as 'params/conv1/kernel', -> its public
            value, with the axes of Flax. Layers may be missing.
        """
        return arrays

    def pytorch(self, channels: int) -> str:
        """Returns the expression that builds this network in PyTorch, or ''.

        The result is empty if timm and torchvision do not have the network with this
        head, this norm and so many input channels.
        """
        public = all(
            getattr(self, field, "") == getattr(type(self), field, "")
            for field in ("norm", "head")
        )
        if not public or ("{channels}" not in self.PYTORCH and channels != 3):
            return ""
        return self.PYTORCH.format(classes=self.num_classes, channels=channels)

    @classmethod
    def public_name(cls, layer: str) -> str:
        """Returns the name of a layer in torchvision, such as 'layer1.0.conv1'.

        In timm, for networks that torchvision does not have.

        Args:
          layer: Path of the layer among the parameters, such as 'stage1_block1/conv1'.

        Raises:
          NotImplementedError: no public weights have the layout of this network.
        """
        raise NotImplementedError


def in_timm(name: str) -> str:
    """Returns `Network.PYTORCH` of a network of timm."""
    return (
        f"timm.create_model('{name}', num_classes={{classes}}, in_chans={{channels}})"
    )
