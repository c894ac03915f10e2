"""Probes find the information that is present, and nothing else."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from twostage_jax.explain.measures.probes import discriminant, probe


def data(count=240, width=20, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    groups = np.arange(count) // 12
    means = rng.normal(size=(classes, width)) * 2
    return means[labels] + rng.normal(size=(count, width)), labels, groups


def test_decodable_labels_are_read_and_shuffled_ones_are_not():
    features, labels, groups = data()
    found = probe(features, labels, groups)
    assert found.score > 0.97 and found.chance == 0.25 and not found.reason
    shuffled = np.random.default_rng(1).permutation(labels)
    assert probe(features, shuffled, groups).score == pytest.approx(0.25, abs=0.1)


def test_features_of_the_group_do_not_tell_the_class_of_others():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(24), 10)
    labels = groups % 2
    features = rng.normal(size=(24, 60))[groups] + 0.01 * rng.normal(size=(240, 60))
    assert probe(features, labels, None).score > 0.95
    assert probe(features, labels, groups).score < 0.75


def test_discriminant_agrees_with_scikit_learn():
    features, labels, _ = data(2000, 8, 3)
    # A covariance that is not round, where shrinkage hardly acts.
    features = features @ np.random.default_rng(1).normal(size=(8, 8))
    weights, offsets = discriminant(features, labels)
    reference = LinearDiscriminantAnalysis(solver="lsqr", priors=np.full(3, 1 / 3))
    reference.fit(features, labels)
    expected = reference.predict(features)
    ours = (features @ weights + offsets).argmax(1)
    assert (ours == expected).mean() > 0.995


def test_more_channels_than_examples():
    features, labels, groups = data(60, 300, 3)
    assert probe(features, labels, groups).score > 0.9
    # No weight lies outside the space that the examples span: nothing is known there.
    weights, _ = discriminant(features, labels)
    within = np.linalg.pinv(features) @ (features @ weights)
    np.testing.assert_allclose(within, weights, atol=1e-9)


def test_channels_that_say_nothing_are_counted():
    features, labels, groups = data()
    features[:, 0], features[3, 1] = 7.0, np.nan
    found = probe(features, labels, groups)
    assert found.left_out == 2 and found.channels == 20 and found.score > 0.95


def test_what_cannot_be_probed_says_why():
    features, labels, groups = data()
    assert "one class" in probe(features, labels * 0, groups).reason
    assert "two folds" in probe(features, labels, groups * 0).reason
    constant = probe(np.ones((240, 5)), labels, groups)
    assert constant.score is None and "none of the 5" in constant.reason


def test_classes_of_fewer_examples_than_folds():
    features, labels, groups = data(24, 10, 8)
    found = probe(features * 3, labels, np.arange(24) // 8)
    assert found.score > 0.9 and not found.reason


def test_class_that_one_group_holds_alone_counts_as_wrong():
    features, labels, groups = data()
    only = labels == 3
    groups = np.where(only, 99, groups)
    found = probe(features, labels, groups)
    assert f"{only.sum()} of 240" in found.reason
    assert found.score == pytest.approx(0.75, abs=0.03)
