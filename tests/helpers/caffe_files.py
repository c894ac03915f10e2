"""Files of Caffe: written by Google's own library, or at full size by hand."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


@functools.cache
def net() -> Any:
    """Returns the class of `NetParameter`, with the fields of `caffe.proto` used here."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")

    def message(message_name, /, **fields):
        made = file.message_type.add(name=message_name)
        for field, (number, kind, *many) in fields.items():
            added = made.field.add(name=field, number=number)
            added.label = kinds.LABEL_REPEATED if many else kinds.LABEL_OPTIONAL
            if kind.isupper():
                added.type = getattr(kinds, f"TYPE_{kind}")
                added.options.packed = bool(many) and kind != "STRING"
            else:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".caffe.{kind}"

    message("Shape", dim=(1, "INT64", "many"))
    message(
        "Blob", num=(1, "INT32"), channels=(2, "INT32"), height=(3, "INT32"),
        width=(4, "INT32"), data=(5, "FLOAT", "many"), shape=(7, "Shape"),
        double_data=(8, "DOUBLE", "many"),
    )  # fmt: skip
    message(
        "Layer", name=(1, "STRING"), type=(2, "STRING"), bottom=(3, "STRING", "many"),
        loss_weight=(5, "FLOAT", "many"), blobs=(7, "Blob", "many"),
        phase=(10, "INT32"),
    )  # fmt: skip
    message(
        "V1Layer", bottom=(2, "STRING", "many"), name=(4, "STRING"), type=(5, "INT32"),
        blobs=(6, "Blob", "many"),
    )  # fmt: skip
    message(
        "Net", name=(1, "STRING"), layers=(2, "V1Layer", "many"),
        layer=(100, "Layer", "many"),
    )  # fmt: skip
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Net"))


def write(path: Path, layers: Mapping[str, tuple[str, tuple[np.ndarray, ...]]]) -> Path:
    """Writes layers, name -> (type, blobs), as a `.caffemodel`; returns the path.

    Google's library would read the numbers of a blob one by one.
    """
    with path.open("wb") as file:
        for name, (kind, blobs) in layers.items():
            layer = net()().layer.add(name=name, type=kind).SerializeToString()
            for blob in blobs:
                shape = net()().layer.add().blobs.add()
                shape.shape.dim.extend(blob.shape)
                data = field(5, np.asarray(blob, "<f4").tobytes())
                layer += field(7, shape.SerializeToString() + data)
            file.write(field(100, layer))
    return path


def field(number: int, content: bytes) -> bytes:
    """Returns a field of bytes, such as a message in a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Returns an integer, seven bits per byte."""
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def caffenet(path: Path, side: int = 6) -> Path:
    """Writes random weights of the shapes of Caffe's reference network.

    Args:
      path: The file; returned.
      side: Height and width of pool5, which fc6 reads: 6 for images of 227 pixels, 2 for
        99 pixels.
    """
    random = np.random.default_rng(0)
    shapes = {
        "conv1": (96, 3, 11, 11), "conv2": (256, 48, 5, 5), "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3), "conv5": (256, 192, 3, 3), "fc6": (4096, 256 * side**2),
        "fc7": (4096, 4096), "fc8": (1000, 4096),
    }  # fmt: skip
    layers = {}
    for name, shape in shapes.items():
        kind = "InnerProduct" if name.startswith("fc") else "Convolution"
        kernel = random.standard_normal(shape, np.float32)
        kernel *= np.float32(np.sqrt(2 / np.prod(shape[1:])))
        if name == "conv1":
            kernel /= 255  # It reads images from 0 to 255.
        layers[name] = kind, (kernel, np.zeros(shape[0], np.float32))
    return write(path, layers)
