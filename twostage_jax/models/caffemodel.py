"""Arrays of a `.caffemodel` file, read without Caffe.

Such a file is a `NetParameter` message of Google's protocol buffers. This module reads only
its layers and their blobs, by the numbers of their fields in `src/caffe/proto/caffe.proto`
of the Caffe distribution, in the format of 2015 and the earlier one (`V1LayerParameter`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax.errors import UserError

ALEXNET = (
    "this is AlexNet, which has the arrays of CaffeNet but normalises before pooling, and "
    "so gives different results: use weights of CaffeNet."
)


class _Format(NamedTuple):
    """Numbers of the fields of a layer, and the type of a fully connected one."""

    name: int
    type: int
    blobs: int
    dense: int | bytes


# Field of `NetParameter` -> format of its layers.
FORMATS = {
    2: _Format(name=4, type=5, blobs=6, dense=14),
    100: _Format(name=1, type=2, blobs=7, dense=b"InnerProduct"),
}
# Fields of `BlobProto`. Before `SHAPE`, a blob always had four axes.
NUMBERS = {5: np.dtype("<f4"), 8: np.dtype("<f8")}
AXES = (1, 2, 3, 4)
SHAPE = 7


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays by name, such as 'conv1.weight' and 'conv1.bias'.

    The axes are Caffe's, which PyTorch shares: `[out, in, h, w]` and `[out, in]`.

    Raises:
      UserError: The file is damaged, lacks arrays, or is Caffe's AlexNet, which has the
        arrays of CaffeNet but normalises before pooling.
    """
    arrays, names = {}, []
    try:
        for number, layer in fields(memoryview(path.read_bytes())):
            if number in FORMATS:
                name, found = _layer(layer, FORMATS[number])
                names.append(name)
                arrays.update(found)
    except (ValueError, TypeError, IndexError) as error:
        raise UserError.at(path, f"the file is damaged ({error}).") from None
    if not arrays:
        raise UserError.at(path, "layers with arrays are missing.")
    if "pool1" in names and "norm1" in names[: names.index("pool1")]:
        raise UserError.at(path, ALEXNET)
    return arrays


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields number and value, an integer or bytes, of each field of a message.

    Raises:
      ValueError, IndexError: The message is damaged.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            # 8 bytes, a length and as many bytes, or 4 bytes.
            width = {1: 8, 2: None, 5: 4}.get(kind, -1)
            if width is None:
                width, position = _varint(message, position)
            if not 0 <= width <= len(message) - position:
                raise ValueError(f"byte {position} does not begin a field")
            value, position = message[position : position + width], position + width
        yield number, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Returns an integer, seven bits per byte, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError(f"byte {position} does not end an integer")


def _layer(message: memoryview, kind: _Format) -> tuple[str, dict[str, np.ndarray]]:
    name, dense, blobs = "", False, []
    for number, value in fields(message):
        if number == kind.name:
            name = str(value, "utf-8")
        elif number == kind.type:
            dense = value == kind.dense
        elif number == kind.blobs:
            blobs.append(_blob(value))
    if dense and blobs:
        blobs[0] = blobs[0].reshape(blobs[0].shape[-2:])
    if len(blobs) > 1:
        blobs[1] = blobs[1].ravel()
    leaves = dict(enumerate(("weight", "bias")))
    return name, {f"{name}.{leaves.get(k, k)}": blob for k, blob in enumerate(blobs)}


def _blob(message: memoryview) -> np.ndarray:
    shape, axes, parts = [], dict.fromkeys(AXES, 1), []
    for number, value in fields(message):
        if number in NUMBERS:
            parts.append(np.frombuffer(value, NUMBERS[number]).astype(np.float32))
        elif number == SHAPE:
            shape = [n for _, dims in fields(value) for n in integers(dims)]
        elif number in AXES:
            axes[number] = value
    return np.concatenate(parts or [np.zeros(0)]).reshape(shape or list(axes.values()))


def integers(value: int | memoryview) -> list[int]:
    """Returns a repeated integer field: one integer, or many in bytes."""
    if isinstance(value, int):
        return [value]
    found, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        found.append(number)
    return found
