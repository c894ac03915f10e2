"""The package's networks and augmentation in PyTorch, to measure speed against."""

import torch
from torch import nn
from torch.nn import functional

from twostage_jax import models


def augmented(images: torch.Tensor, shift: int) -> torch.Tensor:
    """Returns `[B, C, H, W]` in [0, 1]: each shifted by up to `shift` and flipped."""
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


def twin(
    module: models.CaffeNet | models.ResNet, size: int, channels: int
) -> nn.Module:
    """Returns the twin of a network for images of this size; it has as many parameters."""
    if isinstance(module, models.CaffeNet):
        return _caffenet(module, size, channels)
    return _resnet(module, channels)


def _caffenet(module: models.CaffeNet, size: int, channels: int) -> nn.Module:
    widths, (side, stride, pad) = module.widths, module.stem

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)

    features = nn.Sequential(
        nn.Conv2d(channels, widths[0], side, stride, pad), nn.ReLU(), pool(), norm(),
        nn.Conv2d(widths[0], widths[1], 5, 1, 2, groups=2), nn.ReLU(), pool(), norm(),
        nn.Conv2d(widths[1], widths[2], 3, 1, 1), nn.ReLU(),
        nn.Conv2d(widths[2], widths[3], 3, 1, 1, groups=2), nn.ReLU(),
        nn.Conv2d(widths[3], widths[4], 3, 1, 1, groups=2), nn.ReLU(), pool(),
        nn.Flatten(),
    )  # fmt: skip
    flat = features(torch.zeros(1, channels, size, size)).shape[1]
    return nn.Sequential(
        *features,
        nn.Linear(flat, module.hidden[0]), nn.ReLU(), nn.Dropout(module.dropout),
        nn.Linear(*module.hidden), nn.ReLU(), nn.Dropout(module.dropout),
        nn.Linear(module.hidden[1], module.num_classes),
    )  # fmt: skip


class _Block(nn.Module):
    """relu(convolutions(x) + shortcut(x)), as `resnet.Block`."""

    def __init__(self, before: int, features: int, stride: int, bottleneck: bool):
        super().__init__()
        after = 4 * features if bottleneck else features
        plan = [(before, features, 3, stride), (features, features, 3, 1)]
        if bottleneck:
            plan = [(before, features, 1, 1), (features, features, 3, stride)]
            plan.append((features, after, 1, 1))
        layers = [part for row in plan for part in (*_conv_norm(*row), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        changes = stride != 1 or before != after
        shortcut = _conv_norm(before, after, 1, stride) if changes else []
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.body(x) + self.shortcut(x))


def _conv_norm(before: int, after: int, side: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(before, after, side, stride, side // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after)]


def _resnet(module: models.ResNet, channels: int) -> nn.Module:
    layers = [*_conv_norm(channels, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for stage, count in enumerate(module.blocks):
        features = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(_Block(before, features, stride, module.bottleneck))
            before = 4 * features if module.bottleneck else features
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pool, nn.Linear(before, module.num_classes))
