"""Files of Caffe, written by Google's library, against their contents."""

import numpy as np
from basics import refused_at
from caffe_files import net

from twostage_jax.models import caffemodel

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


def test_layers_of_today(tmp_path):
    made = net()(name="net")
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


def test_layers_of_the_format_before_which_have_four_axes(tmp_path):
    made = net()()
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


def test_alexnet_of_caffe_is_not_taken_for_caffenet(tmp_path):
    made = net()()
    made.layer.add(name="conv1").blobs.add(data=BIAS).shape.dim.append(4)
    for name in ("pool1", "norm1"):
        made.layer.add(name=name)
    caffemodel.read(save(made, tmp_path / "a.caffemodel"))
    made.layer[1].name, made.layer[2].name = "norm1", "pool1"
    path = save(made, tmp_path / "b.caffemodel")
    with refused_at(path):
        caffemodel.read(path)


def test_damaged_files_are_refused(tmp_path):
    made = net()()
    made.layer.add(name="conv1").blobs.add(data=BIAS).shape.dim.append(4)
    whole = made.SerializeToString()
    path = tmp_path / "a.caffemodel"
    made.layer[0].blobs[0].shape.dim[0] = 5
    for content in (*(whole[:end] for end in range(len(whole))), save(made, path)):
        if isinstance(content, bytes):
            path.write_bytes(content)
        with refused_at(path):
            caffemodel.read(path)
