"""Networks and augmentation of the package in PyTorch, to compare speed."""

import timm
import torch
from torch import nn
from torch.nn import functional

from twostage_jax import models


def augmented(images: torch.Tensor, shift: int) -> torch.Tensor:
    """Returns images `[B, C, H, W]` in [0, 1], shifted by up to `shift` and flipped."""
    count, _, height, width = images.shape
    device = images.device
    padded = functional.pad(images.float() / 255, (shift,) * 4, mode="reflect")
    corner = torch.randint(0, 2 * shift + 1, (2, count, 1), device=device)
    rows = corner[0] + torch.arange(height, device=device)
    columns = corner[1] + torch.arange(width, device=device)
    flip = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    example = torch.arange(count, device=device)[:, None, None]
    # The indexed axes come first: [B, H, W, C].
    shifted = padded[example, :, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)


def twin(name: str, num_classes: int, size: int, channels: int) -> nn.Module:
    """Returns a network of `models.MODELS` in PyTorch, with as many parameters.

    Those of timm's library are its own; the Caffe networks are here. `size` is the side
    of the images.
    """
    if name.startswith("caffenet"):
        return CaffeNet(models.build(name, num_classes=num_classes), size, channels)
    return timm.create_model(name, num_classes=num_classes, in_chans=channels)


class CaffeNet(nn.Module):
    """Equivalent of `models.CaffeNet` with either head and either norm."""

    def __init__(self, like: models.CaffeNet, size: int, channels: int):
        super().__init__()
        widths, (side, stride, pad) = like.widths, like.stem
        plan = [
            (side, stride, pad, 1), (5, 1, 2, 2), (3, 1, 1, 1), (3, 1, 1, 2), (3, 1, 1, 2)
        ]  # fmt: skip
        before = (channels, *widths)
        batch = like.norm == "batch"
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(
                    before[k],
                    widths[k],
                    side,
                    stride,
                    pad,
                    groups=groups,
                    bias=not batch,
                ),
                nn.BatchNorm2d(widths[k]) if batch else nn.Identity(),
            )
            for k, (side, stride, pad, groups) in enumerate(plan)
        )
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = (
            nn.Identity()
            if batch
            else nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
        )
        self.orderless = like.head == "orderless"
        if self.orderless:
            count = 2 * sum(widths)
            layers = [nn.BatchNorm1d(count), nn.Linear(count, like.num_classes)]
        else:
            features = self.pool(self._maps(torch.zeros(1, channels, size, size))[-1])
            layers, count = [], features[0].numel()
            for hidden in like.hidden:
                layers += [
                    nn.Linear(count, hidden),
                    nn.ReLU(),
                    nn.Dropout(like.dropout),
                ]
                count = hidden
            layers.append(nn.Linear(count, like.num_classes))
        self.head = nn.Sequential(*layers)

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Returns relu1 to relu5."""
        maps = []
        for k, conv in enumerate(self.convs):
            x = functional.relu(conv(x))
            maps.append(x)
            if k < 2:
                x = self.norm(self.pool(x))
        return maps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = self._maps(x)
        if not self.orderless:
            return self.head(self.pool(maps[-1]).flatten(1))
        variances = [m.var((2, 3), correction=0) for m in maps]
        moments = [m.mean((2, 3)) for m in maps]
        moments += [(variance + 1e-5).sqrt() for variance in variances]
        return self.head(torch.cat(moments, 1))
