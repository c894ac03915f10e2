"""Files of Caffe, written by Google's own library, against what was put in."""

import numpy as np
import pytest
from ct_files import refused_at
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from twostage_jax.models import caffemodel


@pytest.fixture(scope="module")
def net():
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


KERNEL = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
DENSE = np.random.default_rng(1).normal(size=(5, 300)).astype(np.float32)
BIAS = np.float32([1, 2, 3, 4])


def save(message, path):
    path.write_bytes(message.SerializeToString())
    return path


def read_as_it_was(path):
    arrays = caffemodel.read(path)
    assert list(arrays) == ["conv1.weight", "conv1.bias", "fc6.weight", "fc6.bias"]
    for array, value in zip(
        arrays.values(), (KERNEL, BIAS, DENSE, BIAS[:1]), strict=True
    ):
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, value)


def test_layers_of_today(net, tmp_path):
    made = net(name="net")
    made.layer.add(name="data", type="Data", phase=1)
    for name, kind, blobs in (
        ("conv1", "Convolution", (KERNEL, BIAS)),
        ("fc6", "InnerProduct", (DENSE, BIAS[:1])),
    ):
        layer = made.layer.add(name=name, type=kind, bottom=["data"], loss_weight=[1.5])
        for value in blobs:
            layer.blobs.add(data=value.ravel()).shape.dim.extend(value.shape)
    # In double precision.
    last = made.layer[-1].blobs[0]
    last.double_data.extend(last.data)
    last.ClearField("data")
    read_as_it_was(save(made, tmp_path / "a.caffemodel"))


def test_layers_of_the_format_before_which_have_four_axes(net, tmp_path):
    made = net()
    for name, kind, blobs in (
        ("conv1", 4, (KERNEL, BIAS)),
        ("fc6", 14, (DENSE, BIAS[:1])),
    ):
        layer = made.layers.add(name=name, type=kind, bottom=["data"])
        for value in blobs:
            axes = (1,) * (4 - value.ndim) + value.shape
            names = ("num", "channels", "height", "width")
            layer.blobs.add(data=value.ravel(), **dict(zip(names, axes, strict=True)))
    read_as_it_was(save(made, tmp_path / "a.caffemodel"))


def test_alexnet_of_caffe_is_not_taken_for_caffenet(net, tmp_path):
    made = net()
    made.layer.add(name="conv1").blobs.add(data=BIAS).shape.dim.append(4)
    for name in ("pool1", "norm1"):
        made.layer.add(name=name)
    caffemodel.read(save(made, tmp_path / "a.caffemodel"))
    made.layer[1].name, made.layer[2].name = "norm1", "pool1"
    path = save(made, tmp_path / "b.caffemodel")
    with refused_at(path):
        caffemodel.read(path)


def test_damaged_files_are_refused(net, tmp_path):
    made = net()
    made.layer.add(name="conv1").blobs.add(data=BIAS).shape.dim.append(4)
    whole = made.SerializeToString()
    path = tmp_path / "a.caffemodel"
    made.layer[0].blobs[0].shape.dim[0] = 5
    for content in (*(whole[:end] for end in range(len(whole))), save(made, path)):
        if isinstance(content, bytes):
            path.write_bytes(content)
        with refused_at(path):
            caffemodel.read(path)
