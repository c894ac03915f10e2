"""Initialisers of ONNX files, written field by field, against their contents."""

import jax
import numpy as np
import pytest
from basics import refused_at
from caffe_files import field, varint

from twostage_jax import models
from twostage_jax.models import onnx_file, pretrained

KERNEL = np.random.default_rng(0).normal(size=(4, 3, 2, 2)).astype(np.float32)
BIAS = np.float32([1, 2, 3, 4])
FLOAT, INT8, INT64, FLOAT16, DOUBLE = 1, 3, 7, 10, 11


def number(place, value):
    return varint(place << 3) + varint(value)


def tensor(name, array, kind, data=9):
    """Returns an initialiser, whose numbers are in the field `data`; 9 = raw bytes."""
    axes = b"".join(number(1, n) for n in array.shape)
    named = number(2, kind) + field(data, array.tobytes()) + field(8, name.encode())
    return field(5, axes + named)


def write(path, *parts):
    """Writes a graph as a model of version 8; returns the path."""
    path.write_bytes(number(1, 8) + field(7, b"".join(parts)))
    return path


def operation(name):
    return field(1, field(1, b"data_0") + field(4, name.encode()))


def test_arrays_are_read_by_the_names_of_caffe(tmp_path):
    path = write(
        tmp_path / "a.onnx",
        operation("Conv"),
        tensor("conv1_w_0", KERNEL, FLOAT),
        tensor("conv1_b_0", BIAS, FLOAT, data=4),
        tensor("fc6_w_0", KERNEL[:, 0, 0].astype("<f8"), DOUBLE),
        tensor("features.0.weight", BIAS.astype("<f2"), FLOAT16),
        tensor("shape_0", np.array([1, 9216]), INT64),
    )
    arrays = pretrained.read(path)
    expected = {
        "conv1.weight": KERNEL, "conv1.bias": BIAS, "fc6.weight": KERNEL[:, 0, 0],
        "features.0.weight": BIAS,
    }  # fmt: skip
    assert list(arrays) == list(expected)
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected[name])


def test_alexnet_is_not_taken_for_caffenet(tmp_path):
    kernel, path = tensor("conv1_w_0", KERNEL, FLOAT), tmp_path / "a.onnx"
    operations = [operation(name) for name in ("MaxPool", "LRN", "MaxPool")]
    assert onnx_file.read(write(path, *operations, kernel))
    with refused_at(write(path, *operations[1:], kernel)):
        onnx_file.read(path)


def test_arrays_elsewhere_quantised_or_damaged_are_refused(tmp_path):
    path = tmp_path / "a.onnx"
    named = number(1, 4) + number(2, FLOAT) + field(8, b"conv1_w_0")
    for part in (
        field(5, named + number(14, 1)),
        tensor("conv1_w_0", np.ones(4, np.int8), INT8),
        tensor("conv1_w_0", BIAS[:3], FLOAT)[:-6],
        field(5, named + field(9, BIAS[:3].tobytes())),
    ):
        with refused_at(write(path, part)):
            onnx_file.read(path)


def test_a_file_of_the_onnx_package_is_read(tmp_path):
    onnx = pytest.importorskip("onnx")
    initialisers = [
        onnx.numpy_helper.from_array(KERNEL, "conv1_w_0"),
        onnx.helper.make_tensor("conv1_b_0", FLOAT, [4], BIAS),
    ]
    node = onnx.helper.make_node("Conv", ["x", "conv1_w_0", "conv1_b_0"], ["y"])
    graph = onnx.helper.make_graph([node], "net", [], [], initialisers)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    arrays = onnx_file.read(tmp_path / "a.onnx")
    np.testing.assert_array_equal(arrays["conv1.weight"], KERNEL)
    np.testing.assert_array_equal(arrays["conv1.bias"], BIAS)


@pytest.mark.parametrize(
    ("name", "head", "size"),
    [
        ("caffenet_small", None, 32),
        ("alexnet", "dense", 64),
        ("resnet18", "orderless", 45),
        ("efficientnet_lite0", None, 32),
    ],
)
def test_written_networks_give_their_logits_for_any_number(name, head, size, tmp_path):
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    module = models.build(name, num_classes=3, head=head)
    variables = models.init(module, jax.random.key(0), size, 3)
    path = tmp_path / "a.onnx"
    onnx_file.write(path, variables, module, size, 3, {"classes": ["a", "b", "c"]})
    session = runtime.InferenceSession(path)
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["a", "b", "c"]'}
    for count in (1, 4):
        images = np.random.default_rng(count).normal(size=(count, size, size, 3))
        (found,) = session.run(["logits"], {"images": images.astype(np.float32)})
        expected, _ = module.apply(variables, images.astype(np.float32), train=False)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_networks_that_are_not_converted_exactly_are_refused(tmp_path, monkeypatch):
    pytest.importorskip("jax2onnx")
    module = models.build("caffenet_small", num_classes=3)
    variables = models.init(module, jax.random.key(0), 32, 1)
    monkeypatch.setattr(onnx_file, "TOLERANCE", 0.0)
    with refused_at(tmp_path / "a.onnx"):
        onnx_file.write(tmp_path / "a.onnx", variables, module, 32, 1, {})
    assert not list(tmp_path.iterdir())
