"""The registered networks: size, names, finite gradients, devices, refusals."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from basics import refused_at

from twostage_jax import models
from twostage_jax.errors import UserError
from twostage_jax.models import HEAD, MODELS, build, descriptor, init, layers


@functools.cache
def shapes(name, size, channels, classes, **options):
    """Shapes of variables, without allocating them."""
    module = build(name, num_classes=classes, **options)
    return models.shapes(module, size, channels)


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


# By network, height, width and channels of images; only dense layers depend on the size,
# so the others have an odd one. caffenet: by hand, 34,944 + 307,456 + 885,120 + 663,936 +
# 442,624 + 37,752,832 + 16,781,312 + 4,097,000. The others: counts that torchvision and
# timm publish.
COUNTS = {
    ("caffenet", 227, 3): 60_965_224,
    ("alexnet", 224, 3): 61_100_840,
    ("convnext_tiny", 75, 3): 28_589_128,
    ("densenet121", 75, 3): 7_978_856,
    ("efficientnet_lite0", 75, 3): 4_652_008,
    ("resnet18", 75, 3): 11_689_512,
    ("resnet34", 75, 3): 21_797_672,
    ("resnet50", 75, 3): 25_557_032,
    # conv1 5*5*1*48, conv2 5*5*24*96, conv3 3*3*96*128, conv4 3*3*64*128, conv5
    # 3*3*64*96; norms 2*(48+96+128+128+96) = 992; moments 992: head_norm 2*992, head
    # 992*1000+1000.
    ("caffenet_small", 32, 1): 1_200 + 57_600 + 110_592 + 73_728 + 55_296
    + 992 + 1_984 + 993_000,
}  # fmt: skip
# Parameters of another norm, less those of the network's own: with BatchNorm a scale and
# a bias per channel instead of the bias of the convolution.
OTHER_NORM = {"caffenet": 96 + 256 + 384 + 384 + 256, "caffenet_small": -496}


# Side of grey images, where it is not 32 pixels, which is too small.
GREY = {"alexnet": 63}


def test_every_model_has_a_pinned_count():
    assert {name for name, _, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize("name, size, channels", COUNTS)
def test_number_of_parameters(name, size, channels):
    for norm in MODELS[name].NORMS or (None,):
        options = {} if norm in (None, MODELS[name].norm) else {"norm": norm}
        variables = shapes(name, size, channels, 1000, **options)
        more = OTHER_NORM.get(name, 0) if options else 0
        assert count(variables["params"]) == COUNTS[name, size, channels] + more


def test_caffenet_has_the_layers_and_sizes_of_caffe():
    params = shapes("caffenet", 227, 3, 1000)["params"]
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        "conv1": (11, 11, 3, 96),
        "conv2": (5, 5, 48, 256),
        "conv3": (3, 3, 256, 384),
        "conv4": (3, 3, 192, 384),
        "conv5": (3, 3, 192, 256),
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "head": (4096, 1000),
    }
    taps = apply_shapes("caffenet", 227, 3, 1000)
    side = {name: tap.shape[1] for name, tap in taps.items() if len(tap.shape) == 4}
    assert [side[n] for n in ("conv1", "norm1", "conv2", "norm2", "conv5", "pool5")] == [
        55, 27, 27, 13, 13, 6,
    ]  # fmt: skip


@functools.cache
def apply_shapes(name, size, channels, classes=3):
    module = build(name, num_classes=classes)
    variables = shapes(name, size, channels, classes)
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    logits, taps = jax.eval_shape(
        functools.partial(module.apply, train=False), variables, images
    )
    assert logits.shape == taps[HEAD].shape == (2, classes)
    assert HEAD in variables["params"]
    return taps


@pytest.mark.parametrize("name, size, channels", COUNTS)
def test_any_number_of_channels_and_size_of_image(name, size, channels):
    apply_shapes(name, GREY.get(name, 32), 1)
    apply_shapes(name, size, channels, 1000)


@pytest.mark.parametrize("name", MODELS)
def test_facts_name_maps_and_a_layer(name):
    network, size = MODELS[name], GREY.get(name, 32)
    taps = apply_shapes(name, size, 1)
    assert {*network.MAPS, *network.RECTIFIED, *network.SIGNED} <= taps.keys()
    assert all(taps[tap].ndim == 4 for tap in (*network.MAPS, *network.RECTIFIED))
    kernel = shapes(name, size, 1, 3)["params"][network.FIRST_LAYER]["kernel"]
    assert kernel.shape[2] == 1


@pytest.mark.parametrize("name, size, channels", COUNTS)
def test_convolution_parameters_do_not_depend_on_the_size_of_the_image(
    name, size, channels
):
    small = shapes(name, GREY.get(name, 32), 1, 3)["params"]
    large = shapes(name, size, channels, 1000)["params"]
    assert small.keys() == large.keys()
    # The first layer depends on the channels, and the head on the classes.
    for layer in small.keys() - {"fc6", MODELS[name].FIRST_LAYER, HEAD}:
        assert small[layer] == large[layer]
    first, other = (params[MODELS[name].FIRST_LAYER] for params in (small, large))
    side, _, one, features = first["kernel"].shape
    assert (one, other["kernel"].shape) == (1, (side, side, channels, features))


def shallow(name, **options):
    """Returns a network of four classes, with one block per stage: quick to compile."""
    module = build(name, num_classes=4, **options)
    return module.clone(blocks=(1, 1, 1, 1)) if hasattr(module, "blocks") else module


@functools.cache
def ready(name, size=32, norm=None, head=None):
    module = shallow(name, norm=norm, head=head)
    return module, init(module, jax.random.key(0), size, 1)


@functools.cache
def evaluate(name, dtype="float32", head=None):
    """Logits and taps of two images."""
    _, variables = ready(name, head=head)
    module = shallow(name, dtype=dtype, head=head)
    return jax.jit(functools.partial(module.apply, train=False))(variables, images(2))


def images(n, size=32, seed=0):
    pixels = np.random.default_rng(seed).standard_normal((n, size, size, 1))
    return jnp.asarray(pixels, jnp.float32)


def train_step(module, variables, x, labels):
    """Loss, gradients, taps and changed statistics of one batch."""

    def loss(params):
        (logits, taps), changed = module.apply(
            {**variables, "params": params}, x, train=True,
            rngs={"dropout": jax.random.key(1)}, mutable=["batch_stats"],
        )  # fmt: skip
        score = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(score, labels[:, None], axis=1)
        return -picked.mean(), (taps, changed)

    (value, (taps, changed)), gradients = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    return value, gradients, taps, changed


@pytest.mark.parametrize(
    "name, size, options",
    [
        ("caffenet_small", 32, {}),
        ("caffenet_small", 32, {"head": "dense", "norm": "local"}),
        ("caffenet", 67, {}),
        # Both blocks and both norms.
        ("resnet18", 45, {"norm": "group"}),
        ("resnet50", 32, {}),
    ],
)
def test_loss_and_gradients_are_finite(name, size, options):
    module, variables = ready(name, size, **options)
    labels = jnp.arange(4)
    step = jax.jit(functools.partial(train_step, module))
    loss, gradients, taps, _ = step(variables, images(4, size), labels)
    # A small head: the classes start nearly equally probable. (CaffeNet's adds up
    # 4,096 inputs.)
    near = 1.0 if name == "caffenet" else 0.1
    assert float(loss) == pytest.approx(math.log(4), abs=near)
    for path, leaf in jax.tree_util.tree_leaves_with_path((gradients, taps)):
        assert np.isfinite(leaf).all(), path
    assert all(np.abs(gradients[HEAD][leaf]).max() > 0 for leaf in ("kernel", "bias"))
    if name == "caffenet_small":
        for layer, leaves in gradients.items():
            weights = "scale" if "norm" in layer else "kernel"
            assert np.abs(leaves[weights]).max() > 0, layer


def test_dense_layer_reads_the_image_by_row_column_channel():
    _, variables = ready("caffenet_small", head="dense")
    _, taps = evaluate("caffenet_small", head="dense")
    kernel = np.asarray(variables["params"]["fc6"]["kernel"])
    height, width, channels = taps["pool5"].shape[1:]
    expected = np.einsum(
        "nhwc,hwco->no", taps["pool5"], kernel.reshape(height, width, channels, -1)
    )
    np.testing.assert_allclose(taps["fc6"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "norm, head, last",
    [
        ("local", "dense", ["pool5", "fc6", "relu6", "fc7", "relu7", HEAD]),
        ("batch", "orderless", ["moments", HEAD]),
    ],
)
def test_taps_come_in_the_order_of_computation(norm, head, last):
    module, variables = ready("caffenet_small", norm=norm, head=head)
    names = []

    def note(x):
        names.extend(module.apply(variables, x, train=False)[1])

    jax.eval_shape(note, images(2))
    first = [f"{kind}{k}" for k in (1, 2) for kind in ("conv", "relu", "pool", "norm")]
    if norm == "batch":  # It is part of the convolution.
        first = [name for name in first if "norm" not in name]
    rest = [f"{kind}{k}" for k in (3, 4, 5) for kind in ("conv", "relu")]
    assert names == [*first, *rest, *last]


def test_batch_norm_of_caffenet_is_before_the_relu():
    module, variables = ready("caffenet_small")
    _, taps = evaluate("caffenet_small")
    kernel = variables["params"]["conv1"]["kernel"]
    expected = jax.lax.conv_general_dilated(
        images(2),
        kernel,
        (2, 2),
        [(2, 2)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    # Running mean 0 and variance 1 before the first step.
    np.testing.assert_allclose(
        taps["conv1"], expected / math.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5
    )
    step = jax.jit(functools.partial(train_step, module))
    _, _, taps, changed = step(variables, images(4), jnp.arange(4))
    np.testing.assert_allclose(taps["conv1"].mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(taps["conv1"].std((0, 1, 2)), 1, rtol=1e-2)
    assert {f"norm{k}" for k in range(1, 6)} <= changed["batch_stats"].keys()


def test_orderless_head_reads_mean_and_standard_deviation_of_each_channel():
    _, variables = ready("caffenet_small")
    logits, taps = evaluate("caffenet_small")
    features = []
    for layer in ("relu1", "relu2", "relu3", "relu4", "relu5"):
        values = np.asarray(taps[layer], np.float64)
        # A silent channel has the square root of 1e-5, which keeps its gradient finite.
        spread = np.sqrt(values.var((1, 2)) + 1e-5)
        features += [values.mean((1, 2)), spread]
    weights, running = variables["params"][HEAD], variables["batch_stats"]["head_norm"]
    features = np.concatenate(features, axis=1) - running["mean"]
    features = features / np.sqrt(running["var"] + 1e-5)
    norm = variables["params"]["head_norm"]
    features = features * norm["scale"] + norm["bias"]
    expected = features @ weights["kernel"] + weights["bias"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, last, channels",
    [
        ("efficientnet_lite0", 1280, (32, 32, 144, 240, 672, 1280)),
        ("resnet18", 512, (64, 64, 128, 256, 512)),
        ("densenet121", 1024, (64, 256, 512, 1024, 1024)),
        ("convnext_tiny", 768, (4 * 96, 4 * 96, 4 * 192, 4 * 384, 4 * 768)),
    ],
)
def test_orderless_head_reads_maps_from_the_stem_to_the_last(name, last, channels):
    found = {}
    for head in MODELS[name].HEADS:
        variables = shapes(name, 32, 1, 3, head=head)
        found[head] = variables["params"][HEAD]["kernel"].shape
    assert found == {"mean": (last, 3), "orderless": (2 * sum(channels), 3)}


def test_orderless_head_does_not_see_where_a_feature_lies():
    values = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    shuffled = values.reshape(2, 16, 3)[:, ::-1].reshape(values.shape)
    np.testing.assert_allclose(
        layers.moments(values), layers.moments(shuffled), rtol=1e-5
    )
    assert layers.moments(values).shape == (2, 6)


def test_orderless_head_does_not_depend_on_the_size_of_the_image():
    small, large = (shapes("caffenet_small", size, 1, 3) for size in (32, 64))
    assert small == large


def test_the_tap_of_the_head_is_the_logits():
    logits, taps = evaluate("caffenet_small")
    np.testing.assert_array_equal(taps[HEAD], logits)


def test_logits_and_parameters_are_float32_when_the_computation_is_not():
    variables = shapes("caffenet_small", 32, 1, 4, dtype="bfloat16")
    logits, taps = evaluate("caffenet_small", "bfloat16")
    assert logits.dtype == jnp.float32
    assert taps["conv1"].dtype == taps["relu5"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    exact, _ = evaluate("caffenet_small")
    np.testing.assert_allclose(logits, exact, atol=0.05)


def test_batch_statistics_move_by_a_tenth_in_training_only():
    module, variables = ready("resnet18")
    x = images(4)
    apply = jax.jit(
        functools.partial(module.apply, mutable=["batch_stats"]),
        static_argnames="train",
    )
    (_, taps), changed = apply(variables, x, train=True)
    signal = np.asarray(taps["stem_conv"], np.float64)
    moved = changed["batch_stats"]["stem_norm"]
    np.testing.assert_allclose(
        moved["mean"], 0.1 * signal.mean((0, 1, 2)), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        moved["var"], 0.9 + 0.1 * signal.var((0, 1, 2)), rtol=1e-3, atol=1e-4
    )
    _, same = apply(variables, x, train=False)
    jax.tree.map(
        np.testing.assert_array_equal, same["batch_stats"], variables["batch_stats"]
    )


def test_group_norm_has_no_statistics_to_keep():
    assert set(shapes("resnet18", 75, 3, 1000, norm="group")) == {"params"}
    assert set(shapes("resnet18", 75, 3, 1000)) == {"params", "batch_stats"}


@pytest.mark.parametrize("name", ["caffenet_small", "resnet18"])
def test_training_pass_is_the_same_on_one_device_and_on_all(devices, name):
    module, variables = ready(name)
    spread = shallow(name, axis_name="batch")
    x = images(2 * devices)

    def train(module, x):
        (logits, _), changed = module.apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )  # fmt: skip
        return logits, changed

    logits, changed = jax.jit(functools.partial(train, module))(x)
    parts, replicas = jax.pmap(functools.partial(train, spread), axis_name="batch")(
        x.reshape(devices, 2, *x.shape[1:])
    )
    np.testing.assert_allclose(
        parts.reshape(logits.shape), logits, rtol=1e-3, atol=1e-4
    )
    for one, all_devices in zip(
        jax.tree.leaves(changed), jax.tree.leaves(replicas), strict=True
    ):
        for replica in np.asarray(all_devices):
            np.testing.assert_allclose(replica, one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "options, where",
    [
        ({"name": "cafenet"}, "model.name"),
        ({"name": "resnet18", "norm": "grup"}, "model.norm"),
        ({"name": "caffenet_small", "norm": "group"}, "model.norm"),
        ({"head": "densed"}, "model.head"),
        ({"name": "resnet18", "head": "dense"}, "model.head"),
        ({"dtype": "float23"}, "model.dtype"),
        ({"dropout": 1.0}, "model.dropout"),
        ({"num_classes": 0}, "classes"),
    ],
)
def test_what_cannot_be_built_is_refused(options, where):
    with refused_at(where):
        build(**{"name": "caffenet_small", "num_classes": 2, **options})


def test_a_close_name_is_suggested():
    with pytest.raises(UserError) as error:
        build("cafenet", num_classes=2)
    assert "'caffenet'?" in str(error.value)


@pytest.mark.parametrize(
    "name, size",
    [("caffenet", 10), ("alexnet", 62), ("densenet121", 28), ("convnext_tiny", 31)],
)
def test_images_whose_last_map_would_be_empty_are_refused(name, size):
    with refused_at("model.image_size"):
        init(build(name, num_classes=2), jax.random.key(0), size, 3)


def test_smallest_images_go_through():
    apply_shapes("caffenet", 11, 1)
    apply_shapes("caffenet_small", 1, 1)
    apply_shapes("resnet18", 1, 1)
    apply_shapes("efficientnet_lite0", 1, 1)
    taps = apply_shapes("densenet121", 29, 1)
    assert taps["last_relu"].shape[1:3] == (1, 1)


@pytest.mark.parametrize(
    "name, head, first, last",
    [
        ("caffenet_small", "dense", "pool1", "relu7"),
        ("caffenet_small", "orderless", "pool1", "moments"),
        ("resnet18", None, "stem_pool", "mean"),
    ],
)
def test_descriptor_is_what_the_network_sees_first_and_last(name, head, first, last):
    module, variables = ready(name, head=head)

    @jax.jit
    def found(x):
        # Inside, taps come in the order of computation.
        _, taps = module.apply(variables, x, train=False)
        return descriptor(taps), taps

    features, taps = found(images(2))
    expected = np.concatenate([np.mean(taps[first], (1, 2)), taps[last]], axis=1)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)
