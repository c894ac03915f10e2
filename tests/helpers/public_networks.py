"""Networks of torchvision and timm with made-up weights, and their outputs in PyTorch.

    python tests/helpers/public_networks.py

writes `public_networks.npz` next to this file: the logits of each network on eight images,
and the names and shapes of its arrays. It needs torch, torchvision and timm; the tests do
not.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_suffix(".npz")
# Networks, and height, width and channels of the images for each.
SHAPES = {
    "alexnet": (70, 70, 3),
    # fc6 reads 2 x 2 positions.
    "caffenet": (99, 99, 3),
    "convnext_tiny": (44, 44, 3),
    # torchxrayvision's stem.
    "densenet121": (40, 40, 1),
    "efficientnet_lite0": (50, 50, 3),
    "resnet18": (64, 64, 3),
    "resnet34": (64, 64, 3),
    # torchxrayvision's stem.
    "resnet50": (64, 64, 1),
}
# Names in timm of networks that torchvision does not have.
IN_TIMM = {"efficientnet_lite0": "tf_efficientnet_lite0"}
CLASSES = 10
# Standard deviation and mean of RGB images in [0, 1].
IMAGENET = ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406))
CAFFE_BGR_MEAN = (104.00698793, 116.66876762, 122.67891434)


def images(network: str) -> np.ndarray:
    """Returns eight images `[8, height, width, channels]`."""
    shape = (8, *SHAPES[network])
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a value for an array of a state_dict, the same at every call."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = rng.normal(size=shape)
    if name.endswith("running_var"):
        value = 1 + 0.5 * np.tanh(value)
    elif len(shape) == 1 and name.endswith("weight"):
        value = 1 + 0.2 * value
    elif len(shape) > 1:
        value = value * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = 0.1 * value
    return value.astype(np.float32)


def arrays(network: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a network, as its state_dict names them."""
    with np.load(FILE) as file:
        names = file[f"{network}/names"]
        shapes = file[f"{network}/shapes"]
    return {
        str(name): array(str(name), tuple(int(n) for n in shape if n))
        for name, shape in zip(names, shapes, strict=True)
    }


def logits(network: str) -> np.ndarray:
    """Returns PyTorch's logits `[8, CLASSES]` on `images`."""
    with np.load(FILE) as file:
        return file[f"{network}/logits"]


def computed(network: str) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the state_dict of a network and its logits, by PyTorch."""
    import torch

    module = _module(network).eval()
    state = {
        name: torch.from_numpy(array(name, tuple(value.shape)))
        for name, value in module.state_dict().items()
        if value.ndim
    }
    module.load_state_dict(state, strict=False)
    seen = torch.from_numpy(images(network).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return state, module(seen).numpy()


def _module(network: str) -> Any:
    import timm
    import torch
    import torchvision

    if network == "caffenet":
        return _caffenet()
    if network in IN_TIMM:
        return timm.create_model(IN_TIMM[network], num_classes=CLASSES)
    module = getattr(torchvision.models, network)(num_classes=CLASSES)
    if SHAPES[network][-1] == 1:
        stem = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        if network == "resnet50":
            module.conv1 = stem
        else:
            module.features.conv0 = stem
    return module


def _caffenet() -> Any:
    """Returns CaffeNet as its `deploy.prototxt` describes it, for ImageNet's images."""
    import torch
    from torch import nn
    from torch.nn import functional

    class CaffeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 96, 11, 4)
            self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
            self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
            self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
            self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
            self.fc6 = nn.Linear(256 * 2 * 2, 4096)
            self.fc7 = nn.Linear(4096, 4096)
            self.fc8 = nn.Linear(4096, CLASSES)

        def forward(self, x):
            deviation, mean = torch.tensor(IMAGENET).reshape(2, 3, 1, 1)
            bgr = (255 * (x * deviation + mean)).flip(1)
            x = bgr - torch.tensor(CAFFE_BGR_MEAN).reshape(3, 1, 1)
            for conv in (self.conv1, self.conv2):
                x = functional.max_pool2d(conv(x).relu(), 3, 2, ceil_mode=True)
                x = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1)
            x = self.conv5(self.conv4(self.conv3(x).relu()).relu()).relu()
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1)
            return self.fc8(self.fc7(self.fc6(x).relu()).relu())

    return CaffeNet()


def main() -> None:
    """Writes the file."""
    saved = {}
    for network in SHAPES:
        state, saved[f"{network}/logits"] = computed(network)
        shapes = [tuple(value.shape) for value in state.values()]
        saved[f"{network}/names"] = np.array(list(state))
        saved[f"{network}/shapes"] = np.array(
            [shape + (0,) * (4 - len(shape)) for shape in shapes]
        )
    np.savez_compressed(FILE, **saved)


if __name__ == "__main__":
    main()
