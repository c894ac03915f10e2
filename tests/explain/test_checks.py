"""Checks of saliency methods, against loops, SciPy, and methods that must fail."""

import jax
import numpy as np
import pytest
import scipy.ndimage
from explained import caffenet, examples, forward, signs
from scipy import special, stats

from twostage_jax import models
from twostage_jax.explain import checks, networks, saliency


def test_ranks_go_from_the_most_important_and_break_ties_by_chance():
    maps = np.array([[[0.1, 3.0], [-2.0, 1.0]], [[0.0, 0.0], [0.0, 5.0]]])
    found = checks.ranks(maps)
    np.testing.assert_array_equal(found[0], [[2, 0], [3, 1]])
    assert found[1, 1, 1] == 0
    assert sorted(found[1].reshape(-1)) == [0, 1, 2, 3]
    many = checks.ranks(np.zeros((1, 20, 20)))[0]
    # In reading order, the first half would have the ranks below 200.
    assert 150 < many[:10].mean() < 250


def test_curves_are_those_of_changing_pixels_one_image_at_a_time():
    network, rng = signs(size=4), np.random.default_rng(0)
    inputs = rng.normal(size=(3, 4, 4, 1)).astype(np.float32)
    labels, maps = np.array([0, 1, 1]), rng.normal(size=(3, 4, 4))
    found = checks.deletion_insertion(network, inputs, labels, {"mine": maps})
    changed = []
    for image, heat in zip(inputs, maps, strict=True):
        order = np.argsort(-heat.reshape(-1))
        for share in checks.SHARES:
            one = image.reshape(-1).copy()
            one[order[: int(share * 16)]] = image.mean()
            changed.append(one.reshape(4, 4, 1))
    chances = special.softmax(forward(network, changed)[0], -1).reshape(3, -1, 2)
    curve = chances[np.arange(3), :, labels].mean(0)
    deletion = found["deletion"]["mine"]
    np.testing.assert_allclose(deletion["curve"], curve, rtol=1e-4)
    assert deletion["area"] == pytest.approx(((curve[1:] + curve[:-1]) / 2).mean())
    # Insertion ends with the image as it is, and begins with the blurred one.
    blurred = [
        scipy.ndimage.gaussian_filter(one[..., 0], 0.5, mode="nearest")[..., None]
        for one in inputs
    ]
    begin = special.softmax(forward(network, blurred)[0], -1)
    begin = begin[np.arange(3), labels].mean()
    insertion = found["insertion"]["mine"]["curve"]
    assert insertion[-1] == pytest.approx(curve[0], rel=1e-4)
    assert insertion[0] == pytest.approx(begin, rel=1e-3)


def test_a_map_that_knows_beats_the_random_order():
    network = signs(size=4)
    # All of class 0's evidence is in one pixel.
    kernel = np.zeros((48, 2), np.float32)
    kernel[15, 0] = 3
    bias = np.array([-5, 0], np.float32)
    network.variables["params"]["head"] = {"kernel": kernel, "bias": bias}
    rng = np.random.default_rng(0)
    inputs = rng.normal(0, 0.1, (8, 4, 4, 1)).astype(np.float32)
    inputs[:, 1, 1] = 2
    labels = np.zeros(8, int)
    maps = {
        "known": np.broadcast_to(inputs[..., 0] == 2, inputs.shape[:3]).astype(float),
        "opposite": -1.0 * (inputs[..., 0] == 2),
    }
    found = checks.deletion_insertion(network, inputs, labels, maps)
    deletion, insertion = (
        {method: one["area"] for method, one in found[kind].items()}
        for kind in ("deletion", "insertion")
    )
    assert deletion["known"] < deletion["random_order"] - 0.1
    assert deletion["opposite"] > deletion["random_order"] + 0.1
    assert insertion["known"] > insertion["random_order"] + 0.1


def test_rank_correlation_is_scipys_and_says_where_there_is_none():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 5, (4, 6, 6)).astype(float)  # with ties
    other = one + rng.normal(0, 2, one.shape)
    one[2], other[3], one[3] = 1, 1, 1
    found = checks.rank_correlation(one, other)
    for i in (0, 1):
        expected = stats.spearmanr(one[i].reshape(-1), other[i].reshape(-1)).statistic
        assert found[i] == pytest.approx(expected)
    assert found[2] == 0 and np.isnan(found[3])


def test_layers_are_drawn_anew_from_the_head_down():
    network = caffenet()
    layers = checks.layers_from_the_head(network, examples().images)
    convs = [f"conv{k}" for k in (5, 4, 3, 2, 1)]
    assert layers == [(name,) for name in ("head", "fc7", "fc6", *convs)]
    fresh = jax.tree.map(np.zeros_like, network.variables)
    changed = checks.replaced_layers(network.variables, fresh, ("head", "fc7"))
    for layer, arrays in changed["params"].items():
        for name, array in arrays.items():
            is_zero = not np.any(array)
            assert is_zero == (layer in ("head", "fc7")), (layer, name)


@pytest.mark.parametrize("name", ["caffenet_small", "resnet18"])
def test_norms_are_drawn_with_their_layers(name):
    module = models.build(name, num_classes=3, head="orderless")
    shapes = models.shapes(module, 32, 1)
    trained, fresh = (
        jax.tree.map(lambda s, v=value: np.full(s.shape, v), shapes) for value in (0, 1)
    )
    network = caffenet()._replace(module=module, variables=trained)
    layers = checks.layers_from_the_head(network, np.zeros((1, 32, 32, 1), np.float32))
    assert layers[0] == ("head", "head_norm")
    names = [name for names in layers for name in names]
    assert sorted(names) == sorted(shapes["params"])
    changed = checks.replaced_layers(trained, fresh, names)
    jax.tree.map(np.testing.assert_array_equal, changed, fresh)


def test_a_method_that_does_not_see_the_weights_is_found_out(monkeypatch):
    def edges(module, variables, images, labels):
        return np.abs(np.gradient(images[..., 0], axis=(1, 2))).sum(0)

    def features(module, variables, images, labels):
        # Sees the features and not the classifier.
        taps = module.apply(variables, images, train=False)[1]
        return np.asarray(taps["conv1"])[..., 0]

    monkeypatch.setitem(saliency.SALIENCY, "edges", edges)
    monkeypatch.setitem(saliency.SALIENCY, "features", features)
    network = signs(size=8)
    inputs = networks.scaled(network, examples(size=8).images)
    labels = np.arange(12) % 2
    methods = ["edges", "features", "gradient_x_input"]
    maps = checks.saliency_maps(network, inputs, labels, methods)
    # A key of a network whose conv1 has the other sign in the first channel.
    monkeypatch.setattr(checks, "RANDOMISATION_KEY", opposite_key(network))
    found = checks.randomisation(network, inputs, labels, maps)
    assert found["steps"] == ["head", "conv1"]
    correlation = found["correlation"]
    assert correlation["edges"] == pytest.approx([1, 1])
    assert correlation["features"] == pytest.approx([1, -1])
    assert all(abs(value) < 0.3 for value in correlation["gradient_x_input"])
    assert checks.labels_of([found]) == {
        "unchanged": ["edges"],
        "class_blind": ["features"],
        "undefined": [],
    }


def opposite_key(network):
    def first(key):
        drawn = networks.drawn(network, jax.random.key(key)).variables
        return drawn["params"]["conv1"]["kernel"][0, 0, 0, 0]

    return next(key for key in range(20) if first(key) < 0)


def test_labels_take_the_mean_over_networks():
    runs = [
        {"correlation": {"a": [0.9, 0.7], "b": [0.95, 0.1], "c": [None, None]}},
        {"correlation": {"a": [0.9, 0.4], "b": [0.8, 0.1], "c": [0.9, 0.9]}},
    ]
    signless = [{**run, "magnitudes": {}} for run in runs]
    assert checks.labels_of(signless) == {
        "unchanged": ["a"],
        "class_blind": [],
        "undefined": ["c"],
    }
    # Of a method with signs, the larger mean counts: b now keeps 0.55 at the last step.
    magnitudes = [{"b": [0.1, 0.7]}, {"b": [0.1, 0.4]}]
    both = [
        {**run, "magnitudes": one} for run, one in zip(runs, magnitudes, strict=True)
    ]
    assert checks.labels_of(both)["unchanged"] == ["a", "b"]


def test_maps_whose_signs_alone_follow_the_weights_are_found_out(monkeypatch):
    """conv1 times -w is the image again, with the other sign: as much the image."""

    def features(module, variables, images, labels):
        taps = module.apply(variables, images, train=False)[1]
        return np.asarray(taps["conv1"])[..., 0]

    monkeypatch.setitem(saliency.SALIENCY, "occlusion", features)
    network = signs(size=8)
    inputs = networks.scaled(network, examples(size=8).images)
    labels = np.arange(12) % 2
    maps = checks.saliency_maps(network, inputs, labels, ["occlusion"])
    monkeypatch.setattr(checks, "RANDOMISATION_KEY", opposite_key(network))
    found = checks.randomisation(network, inputs, labels, maps)
    assert found["correlation"]["occlusion"] == pytest.approx([1, -1])
    assert found["magnitudes"]["occlusion"] == pytest.approx([1, 1])
    assert checks.labels_of([found])["unchanged"] == ["occlusion"]
