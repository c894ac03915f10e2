"""`explain` on a residual network, against one written by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import public_networks
import pytest
from basics import refused_at
from explained import examples, forward, network
from jax import lax

from twostage_jax import models
from twostage_jax.explain import backward, networks, saliency, strongest
from twostage_jax.explain.saliency import reconstruct
from twostage_jax.models import pretrained

SIZE = 32


def drawn_resnet(*blocks):
    """Returns a ResNet, no part of which is the identity, its variables, and images."""
    module = models.ResNet(num_classes=3, blocks=blocks)
    rng = np.random.default_rng(0)

    def drawn(path, start):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return rng.uniform(0.5, 1.5, start.shape).astype(np.float32)
        spread = 0.2 if kind in ("bias", "mean") else np.std(start)
        return rng.normal(0, spread, start.shape).astype(np.float32)

    variables = models.init(module, jax.random.key(0), SIZE, 1)
    variables = jax.tree_util.tree_map_with_path(drawn, variables)
    images = rng.normal(size=(2, SIZE, SIZE, 1)).astype(np.float32)
    return module, variables, images


@pytest.fixture(scope="module")
def resnet():
    """A network of one block per stage."""
    return drawn_resnet(1, 1, 1, 1)


def test_salinet_of_a_residual_network_is_its_gradient(resnet):
    module, variables, images = resnet
    places, channels = np.array([[1, 2], [3, 0]]), np.array([5, 70])

    @jax.jit
    @jax.grad
    def gradient(x):
        stage2 = module.apply(variables, x, train=False)[1]["stage2"]
        return stage2[jnp.arange(2), places[:, 0], places[:, 1], channels].sum()

    found = reconstruct(
        module, variables, images, "stage2", method="salinet", channels=channels,
        positions=places,
    )  # fmt: skip
    expected = gradient(images)
    scale = np.abs(expected).max()
    assert scale > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)


def normalised(variables, names, x, stride=1):
    """Returns a convolution without bias, and its batch normalisation in evaluation."""
    (conv, norm), (params, stats) = names, variables
    kernel = params[conv]["kernel"]
    pad = kernel.shape[0] // 2
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    centred = (y - stats[norm]["mean"]) / np.sqrt(stats[norm]["var"] + 1e-5)
    return centred * params[norm]["scale"] + params[norm]["bias"]


def guided_relu(before, g):
    return jnp.where(before > 0, jnp.maximum(g, 0), 0)


def block(variables, x, stride):
    """Returns the output of a block, and its guided backpropagation."""
    part = functools.partial(normalised, variables)
    first, to_x = jax.vjp(lambda x: part(("conv1", "norm1"), x, stride), x)
    second, to_first = jax.vjp(
        lambda x: part(("conv2", "norm2"), x), jnp.maximum(first, 0)
    )
    short, to_short = jax.vjp(lambda x: x, x)
    if "shortcut_conv" in variables[0]:
        names = ("shortcut_conv", "shortcut_norm")
        short, to_short = jax.vjp(lambda x: part(names, x, stride), x)

    def back(g):
        g = guided_relu(short + second, g)
        return to_short(g)[0] + to_x(guided_relu(first, to_first(g)[0]))[0]

    return jnp.maximum(short + second, 0), back


def test_guided_backpropagation_is_that_of_the_network_by_hand(resnet):
    module, variables, images = resnet
    params, stats = variables["params"], variables["batch_stats"]
    stem, to_images = jax.vjp(
        lambda x: normalised((params, stats), ("stem_conv", "stem_norm"), x, 2), images
    )
    pooled, to_stem = jax.vjp(
        lambda x: lax.reduce_window(
            x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
            ((0, 0), (1, 1), (1, 1), (0, 0)),
        ),
        jnp.maximum(stem, 0),
    )  # fmt: skip
    names = ("stage1_block1", "stage2_block1")
    assert ["shortcut_conv" in params[name] for name in names] == [False, True]
    one, to_pooled = block([v[names[0]] for v in (params, stats)], pooled, 1)
    two, to_one = block([v[names[1]] for v in (params, stats)], one, 2)
    taps = jax.jit(functools.partial(module.apply, train=False))(variables, images)[1]
    np.testing.assert_allclose(two, taps["stage2"], rtol=1e-3, atol=1e-4)

    channel = 70
    largest = two[..., channel].reshape(2, -1).argmax(1)
    start = np.zeros(two.shape, np.float32)
    for i, place in enumerate(largest):
        start[(i, *np.unravel_index(place, two.shape[1:3]), channel)] = 1
    g = to_stem(to_pooled(to_one(start)))
    expected = to_images(guided_relu(stem, g[0]))[0]
    found = reconstruct(
        module, variables, images, "stage2", method="guided", channels=channel
    )
    scale = np.abs(expected).max()
    assert scale > 0.01
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 * scale)


@pytest.mark.parametrize("method", backward.CHAIN_ONLY)
def test_methods_that_need_a_chain_are_refused_by_name(resnet, method):
    module, variables, images = resnet
    with refused_at("method"):
        reconstruct(module, variables, images, "stage1", method=method, channels=0)


def test_every_saliency_method_that_a_residual_network_has_gives_a_map():
    # A block without and one with a convolution in its shortcut.
    module, variables, images = drawn_resnet(1, 1, 0, 0)
    methods = saliency.methods_for(module)
    assert set(saliency.SALIENCY) - set(methods) == set(backward.CHAIN_ONLY)
    for method in methods:
        maps = saliency.SALIENCY[method](module, variables, images, np.array([2, 0]))
        assert maps.shape == (2, SIZE, SIZE), method
        assert np.isfinite(maps).all(), method
        # At this size Grad-CAM's map is one place, and 0 where that speaks against.
        assert method.startswith("grad_cam") or maps.any((1, 2)).all(), method


def test_gradient_times_input_of_efficientnet_is_the_slope_of_its_logit():
    """The mean over images at 16 brightnesses: ReLUs that switch on bend the logit."""
    name, label = "efficientnet_lite0", 3
    module = models.build(name, num_classes=public_networks.CLASSES)
    expected = models.shapes(module, 32, 3)
    arrays = public_networks.arrays(name)
    variables = pretrained.place(arrays, type(module), expected, "file").variables
    image, half = public_networks.images(name)[0, :32, :32], 2e-3
    levels = 1 + half * (np.arange(16) - 7.5) / 8
    images = np.float32(levels[:, None, None, None] * image)
    maps = saliency.gradient_x_input(module, variables, images, np.full(16, label))
    assert maps.shape == (16, 32, 32)
    slopes = maps.sum((1, 2)) / levels

    apply = jax.jit(functools.partial(module.apply, train=False))
    ends = np.stack([(1 + half) * image, (1 - half) * image]).astype(np.float32)
    above, below = apply(variables, ends)[0][:, label]
    np.testing.assert_allclose(slopes.mean(), (above - below) / (2 * half), rtol=0.05)


def test_strongest_responses_of_the_default_layers_are_those_of_the_taps(resnet):
    module, variables, _ = resnet
    found_in = network(module, {}, SIZE)._replace(variables=variables)
    images = examples(count=3, size=SIZE).images
    shapes = networks.tap_shapes(module, variables, images)
    layers = strongest.default_layers(module, shapes)
    assert layers == ["stem_relu", "stage1", "stage2", "stage3", "stage4"]
    found = strongest.find_strongest(found_in, images, layers, 2)
    taps = forward(found_in, networks.scaled(found_in, images))[1]
    for layer in layers:
        tap = np.asarray(taps[layer])
        largest = tap.max((1, 2))
        expected = np.sort(largest, axis=0)[::-1][:2].T
        one = found[layer]
        np.testing.assert_allclose(one.values, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_array_equal(one.dead, largest.max(0) <= 0)
        rows, columns = np.moveaxis(one.places, -1, 0)
        there = tap[one.images, rows, columns, np.arange(tap.shape[-1])[:, None]]
        np.testing.assert_allclose(there, one.values, rtol=1e-3, atol=1e-4)
