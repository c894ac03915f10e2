"""The strongest responses of channels, and their patches, by hand."""

import numpy as np
import pytest
from basics import refused_at
from explained import caffenet, examples, forward, signs

from twostage_jax import models
from twostage_jax.explain import networks, strongest


def test_strongest_responses_are_found_one_an_image():
    network = signs(weights=(1, -1, 0), size=4)
    images = np.full((5, 4, 4, 1), 0.5, np.float32)
    for i, (row, column, value) in enumerate(
        [(0, 1, 0.6), (2, 3, 0.9), (1, 0, 0.7), (3, 3, 0.1), (0, 0, 0.2)]
    ):
        images[i, row, column] = value
    found = strongest.find_strongest(network, images, ["conv1"], 3)["conv1"]
    np.testing.assert_array_equal(found.images[:2], [[1, 2, 0], [3, 4, 0]])
    np.testing.assert_array_equal(found.places[0], [[2, 3], [1, 0], [0, 1]])
    np.testing.assert_array_equal(found.places[1, :2], [[3, 3], [0, 0]])
    # Scaled by mean 0.5 and deviation 0.25.
    np.testing.assert_allclose(found.values[0], [1.6, 0.8, 0.4], rtol=1e-5)
    np.testing.assert_array_equal(found.dead, [False, False, True])


def test_a_channel_that_stays_below_zero_is_dead_but_for_the_head():
    network = signs(weights=(1, 1, 1), size=4)
    images = np.random.default_rng(0).uniform(0, 0.4, (4, 4, 4, 1))
    network.variables["params"]["head"]["bias"] -= 100
    found = strongest.find_strongest(network, images, ["conv1", "head"], 2)
    assert found["conv1"].dead.all() and not found["head"].dead.any()
    network.variables["params"]["head"]["kernel"] *= 0
    found = strongest.find_strongest(network, images, ["head"], 2)
    assert found["head"].dead.all()


def test_responses_that_are_not_finite_are_named():
    network = signs(weights=(np.nan, 1, 1), size=4)
    with refused_at("conv1"):
        strongest.find_strongest(network, examples(size=4).images, ["conv1"], 2)


def test_patches_are_what_the_neurons_see():
    network, images = caffenet(), examples().images
    found = strongest.find_strongest(network, images, ["conv1"], 2)
    channels = np.array([0, 3, 5])
    shown = strongest.show(
        {"scratch": (network, found["conv1"])}, images, "conv1", channels
    )["scratch"]
    assert shown.patches.shape == shown.pictures.shape == (3, 2, 5, 5, 1)
    kernel = network.variables["params"]["conv1"]["kernel"]
    taps = forward(network, networks.scaled(network, images))[1]
    inside = 0
    for k, channel in enumerate(channels):
        for p in range(2):
            row, column = 2 * found["conv1"].places[channel, p] - 2
            if min(row, column) < 0 or max(row, column) > 13:
                continue
            inside += 1
            image = images[found["conv1"].images[channel, p]]
            window = image[row : row + 5, column : column + 5]
            np.testing.assert_array_equal(shown.patches[k, p], window)
            # One layer back: the filter itself.
            np.testing.assert_allclose(
                shown.pictures[k, p], kernel[..., channel], rtol=1e-4, atol=1e-6
            )
            largest = taps["conv1"][found["conv1"].images[channel, p], ..., channel]
            value = found["conv1"].values[channel, p]
            assert value == pytest.approx(float(largest.max()), rel=1e-3)
            assert shown.answered[k, p] == (value > 0)
    assert inside >= 2


def test_boxes_of_empty_pictures_are_one_pixel_in_the_middle():
    pictures = np.zeros((2, 9, 9, 1))
    pictures[1, 2:5, 3:9] = 1
    np.testing.assert_array_equal(
        strongest.boxes_of(pictures), [[[4, 4], [5, 5]], [[2, 3], [5, 9]]]
    )


def test_channels_are_spread_over_those_that_respond_in_most_arms():
    def spread(dead, wanted):
        return strongest.spread_channels(np.array(dead, bool), wanted).tolist()

    assert spread([[0] * 96] * 2, 4) == [0, 24, 48, 72]
    assert spread([[0] * 3], 8) == [0, 1, 2]
    assert spread([[0, 1, 0, 1, 0]], 0) == [0, 1, 2, 3, 4]
    # Channels that respond in both arms, then those of one arm.
    dead = [[0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    assert spread(dead, 3) == [0, 4, 5]
    assert spread(dead, 2) == [0, 4]
    assert spread(dead, 5) == [0, 2, 3, 4, 5]


def test_default_layers_and_method_depend_on_the_family():
    image = np.zeros((1, 64, 64, 1), np.float32)
    for name, layers, method in (
        ("caffenet_small", [f"conv{k}" for k in range(1, 6)], "desalinet"),
        ("resnet18", ["stem_relu", *(f"stage{k}" for k in range(1, 5))], "guided"),
    ):
        module = models.build(name, num_classes=2)
        shapes = networks.tap_shapes(module, models.shapes(module, 64, 1), image)
        assert strongest.default_layers(module, shapes) == layers
        assert strongest.best_method(module) == method
