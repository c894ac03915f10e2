"""Weights of an `.onnx` file, read without ONNX: CaffeNet of the ONNX Model Zoo.

Such a file is a `ModelProto` message of Google's protocol buffers. This module reads only
the initialisers of its graph and the order of its operations, by the numbers of their
fields in `onnx/onnx.proto` of the ONNX distribution.
"""

import re
from pathlib import Path

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.models.caffemodel import ALEXNET, fields, integers

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
