"""ONNX files: weights of CaffeNet of the ONNX Model Zoo in, whole networks out.

Such a file is a `ModelProto` message of Google's protocol buffers. Reading needs no
library: only the initialisers of its graph and the order of its operations are read, by the
numbers of their fields in `onnx/onnx.proto` of the ONNX distribution. Writing needs
jax2onnx, and onnxruntime to check the file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import io
from twostage_jax.errors import UserError
from twostage_jax.models.caffemodel import ALEXNET, fields, integers
from twostage_jax.models.convolution import convertible
from twostage_jax.models.network import Network

# Fields of `ModelProto`, `GraphProto`, `NodeProto` and `TensorProto`.
GRAPH = 7
NODE, INITIALISER = 1, 5
OPERATION = 4
AXES, TYPE, NAME, RAW, LOCATION = 1, 2, 8, 9, 14
# Type of a tensor -> type of its numbers, and the field for those that are not raw bytes.
NUMBERS = {
    1: (np.dtype("<f4"), 4),
    10: (np.dtype("<f2"), None),
    11: (np.dtype("<f8"), 10),
}
# 'conv1_w_0', as Caffe2 names 'conv1.weight'.
CAFFE2 = re.compile(r"(\w+)_([wb])_\d+")
LEAVES = {"w": "weight", "b": "bias"}
# Largest difference between logits of the file and of the network, as a fraction of the
# largest logit.
TOLERANCE = 1e-4


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the float arrays by name, such as 'conv1.weight' and 'conv1.bias'.

    The axes are those of PyTorch: `[out, in, h, w]` and `[out, in]`. Whole numbers, such
    as the shapes of reshaped arrays and quantised weights, are left out.

    Raises:
      UserError: The file is damaged, lacks arrays, keeps them in other files, or is
        AlexNet with the arrays of CaffeNet.
    """
    arrays, operations = {}, []
    try:
        for number, graph in fields(memoryview(path.read_bytes())):
            for part, value in fields(graph) if number == GRAPH else ():
                if part == INITIALISER:
                    arrays.update(_tensor(value))
                elif part == NODE:
                    operations += [op for n, op in fields(value) if n == OPERATION]
    except (ValueError, TypeError, IndexError) as error:
        raise UserError.at(path, f"the file is damaged ({error}).") from None
    if not arrays:
        raise UserError.at(path, "initialisers of floating-point numbers are missing.")
    kinds = [bytes(op) for op in operations]
    if "conv1.weight" in arrays and b"LRN" in kinds and b"MaxPool" in kinds:
        if kinds.index(b"LRN") < kinds.index(b"MaxPool"):
            raise UserError.at(path, ALEXNET)
    return arrays


def _tensor(message: memoryview) -> dict[str, np.ndarray]:
    """Returns a tensor by its name; nothing for other numbers than floats."""
    found: dict[int, list] = {}
    for number, value in fields(message):
        found.setdefault(number, []).append(value)
    dtype, field = NUMBERS.get(found.get(TYPE, [0])[0], (None, None))
    if dtype is None:
        return {}
    if any(found.get(LOCATION, ())):
        raise ValueError("its arrays are in other files: save it as a single file")
    parts = found.get(RAW) or found.get(field, [])
    numbers = [np.frombuffer(part, dtype) for part in parts]
    axes = [n for value in found.get(AXES, ()) for n in integers(value)]
    name = str(found.get(NAME, [b""])[0], "utf-8")
    if caffe2 := CAFFE2.fullmatch(name):
        name = f"{caffe2[1]}.{LEAVES[caffe2[2]]}"
    array = np.concatenate(numbers or [np.zeros(0)]).astype(np.float32)
    return {name: array.reshape(axes)}


def write(
    path: Path,
    variables: Mapping[str, Any],
    module: Network,
    image_size: int,
    channels: int,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a network, with its weights, as an ONNX file for any number of images.

    Its input 'images' is `[N, image_size, image_size, channels]` float32, scaled as for the
    network; its output 'logits' is `[N, classes]`.

    Args:
      path: The file.
      variables: 'params' and, with batch normalisation, 'batch_stats'.
      module: Network that the variables are of.
      image_size, channels: Side in pixels and number of channels of the images.
      metadata: Facts about the weights: JSON values by name, for the file's metadata.

    Raises:
      UserError: A library is missing, the network cannot be converted, or the logits
        differ. Nothing is written in these cases.
    """
    try:
        import onnxruntime
        from jax2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise UserError.at(
            path,
            f"writing ONNX needs {error.name}: pip install 'twostage_jax[onnx]'.",
        ) from None

    def logits(images: Any) -> Any:
        return module.apply(variables, images, train=False)[0]

    side = (image_size, image_size, channels)
    random = np.random.default_rng(0)
    try:
        with convertible():
            model = to_onnx(
                logits, [("N", *side)], input_names=["images"], output_names=["logits"]
            )
        for name, value in metadata.items():
            text = value if isinstance(value, str) else json.dumps(value)
            model.metadata_props.add(key=name, value=text)
        content = model.SerializeToString()
        session = onnxruntime.InferenceSession(content)
        for count in (1, 3):
            images = random.normal(size=(count, *side)).astype(np.float32)
            (found,) = session.run(["logits"], {"images": images})
            expected = np.asarray(logits(images))
            wrong = np.abs(found - expected).max() / np.abs(expected).max()
            if not wrong <= TOLERANCE:
                raise ValueError(f"logits differ by {wrong:.1e} of the largest")
    except Exception as error:  # Both libraries have many kinds.
        reason = str(error).splitlines()[0]
        raise UserError.at(
            path,
            f"jax2onnx cannot convert this network ({reason}). Export to .safetensors; if "
            "PyTorch has the network, the card shows how to go on from there.",
        ) from None
    with io.replacing(path) as temporary:
        temporary.write_bytes(content)
