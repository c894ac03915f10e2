"""Baselines: descriptors, a linear classifier tuned inside training, the study's splits."""

import jax
import numpy as np
import pytest
from skimage.feature import graycomatrix, graycoprops
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from twostage_jax import models
from twostage_jax.baselines import descriptors, frozen, linear


def noise(seed, size=16):
    return np.random.default_rng(seed).random((size, size)).astype(np.float32)


def test_descriptors_do_not_change_when_a_patch_is_turned():
    patches = np.stack([noise(0), np.rot90(noise(0)), noise(1)])[..., None]
    one, turned, other = descriptors.describe(patches)
    # The circle of 16 points is interpolated: a few codes may change.
    np.testing.assert_allclose(one, turned, rtol=0.15, atol=0.02)
    assert np.abs(one - other).max() > 0.05


def test_descriptors_are_histograms_that_sum_to_one():
    (found,) = descriptors.describe(noise(0)[None, ..., None])
    bins = [points + 2 for points, _ in descriptors.CIRCLES]
    ends = np.cumsum(bins)
    for start, stop in zip(ends - bins, ends, strict=True):
        assert found[start:stop].sum() == pytest.approx(1)
    grey = found[-descriptors.HISTOGRAM_BINS :]
    expected, _ = np.histogram(np.rint(255 * noise(0)), 32, (0, 256))
    np.testing.assert_allclose(grey, expected / 256)


def test_co_occurrence_is_that_of_scikit_image_averaged_over_directions():
    patch = noise(0)
    (found,) = descriptors.describe(patch[None, ..., None])
    levels = np.rint(255 * patch).astype(np.uint8) // 16
    matrix = graycomatrix(levels, [1, 2, 4], descriptors.ANGLES, 16, True, True)
    start = sum(points + 2 for points, _ in descriptors.CIRCLES)
    np.testing.assert_allclose(
        found[start : start + 3], graycoprops(matrix, "contrast").mean(1)
    )


def test_channels_are_described_one_by_one():
    patches = np.stack([noise(0), noise(1)], axis=-1)[None]
    both = descriptors.describe(patches)
    apart = [descriptors.describe(patches[..., [c]]) for c in (0, 1)]
    np.testing.assert_array_equal(both, np.concatenate(apart, axis=1))


def features_of(labels, strength, seed=0):
    """Returns noise `[N, 5]` whose first column reveals the class."""
    values = np.random.default_rng(seed).standard_normal((len(labels), 5))
    values[:, 0] += strength * labels
    return values


def test_the_layer_is_chosen_on_held_out_training_groups():
    labels = np.tile([0, 1], 60)
    groups = np.repeat(np.arange(6), 20)
    # Each group has a level of its own that gives its labels away, to itself only.
    own = features_of(labels, 0)
    own[:, 1] = 20 * groups + np.where(groups % 2, labels, -labels)
    layers = {"own": own, "useful": features_of(labels, 2.0)}
    fitted = linear.fit(layers, labels, groups)
    assert fitted.layer == "useful"


@pytest.mark.parametrize(
    ("labels", "shift", "spread"), [((0, 1, 1), 0, 1), ((0, 1, 2), 100, 7)]
)
def test_the_classifier_is_scikit_learns(labels, shift, spread):
    classes, labels = max(labels) + 1, np.tile(labels, 30)
    values = shift + spread * features_of(labels, 1.0)
    fitted = linear.fit({"a": values}, labels, np.arange(90) // 10)
    scaled = StandardScaler().fit_transform(values)
    expected = LogisticRegression(
        C=fitted.strength, class_weight="balanced", max_iter=2000, tol=1e-3
    ).fit(scaled, labels)
    np.testing.assert_allclose(
        fitted.probabilities({"a": values}, classes),
        expected.predict_proba(scaled),
        rtol=1e-4,
        atol=1e-6,
    )


def test_frequencies_are_predicted_for_any_features():
    labels = np.array([0, 2, 2, 2])
    fitted = linear.frequencies({"a": features_of(labels, 1.0)}, labels)
    found = fitted.probabilities({"a": np.ones((2, 5))}, 3)
    np.testing.assert_allclose(found, [[0.25, 0, 0.75]] * 2, rtol=1e-6)


def test_one_class_of_training_examples_is_always_predicted():
    labels = np.ones(6, int)
    fitted = linear.fit({"a": features_of(labels, 1.0)}, labels, None)
    found = fitted.probabilities({"a": np.ones((2, 5))}, 3)
    np.testing.assert_array_equal(found, [[0, 1, 0]] * 2)


def test_a_class_without_training_examples_gets_no_probability():
    labels = np.tile([0, 2], 20)
    fitted = linear.fit({"a": features_of(labels, 1.0)}, labels, None)
    found = fitted.probabilities({"a": features_of(labels, 1.0)}, 3)
    assert found.shape == (40, 3) and not found[:, 1].any()
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_one_example_of_a_class_leaves_nothing_to_hold_out():
    labels = np.array([0, 0, 0, 1])
    layers = {name: features_of(labels, 1.0) for name in ("a", "b")}
    fitted = linear.fit(layers, labels, None)
    assert (fitted.layer, fitted.strength) == ("b", linear.STRENGTHS[1])


def test_frozen_features_are_moments_of_windows_averaged_over_the_image():
    """The source had other classes and, with dense layers, another size of images."""
    module = models.build("caffenet_small", num_classes=2, head="dense")
    fresh = models.init(module, jax.random.key(0), 24, 1)
    other = models.build("caffenet_small", num_classes=5, head="dense")
    source = models.init(other, jax.random.key(1), 40, 1)
    images = np.stack([np.tile(noise(k, 20), (2, 2))[:, :24] for k in range(3)])
    images = images[..., None]
    found = frozen.features(
        module,
        source,
        fresh,
        [images],
        24,
        "fixed",
        np.float32([0.5]),
        np.float32([0.25]),
    )
    source["params"] |= {k: fresh["params"][k] for k in ("fc6", "fc7", "head")}
    parts = []
    for window in (images[:, :24], images[:, 16:]):
        _, taps = module.apply(source, (window - 0.5) / 0.25, train=False)
        x = np.asarray(taps["relu3"])
        deviation = np.sqrt(x.var((1, 2)) + 1e-5)
        parts.append(np.concatenate([x.mean((1, 2)), deviation], axis=1))
    np.testing.assert_allclose(found["relu3"], np.mean(parts, axis=0), atol=1e-5)
    assert list(found) == [f"relu{k}" for k in range(1, 6)]
