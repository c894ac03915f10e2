"""CKA against its definition; drift by hand."""

import itertools

import numpy as np
import pytest
from scipy.stats import ortho_group

from twostage_jax.explain.measures.similarity import cka, drift, gram


def test_rotated_and_scaled_copy_is_the_same():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 12)) + 3
    turned = 5 * features @ ortho_group.rvs(12, random_state=1) - 2
    assert cka(gram(features), gram(turned)) == pytest.approx(1, abs=1e-9)


def test_independent_features_are_unlike_whatever_their_width():
    rng = np.random.default_rng(0)
    found = [
        cka(gram(rng.normal(size=(60, 400))), gram(rng.normal(size=(60, 400))))
        for _ in range(5)
    ]
    # The usual, biased estimator gives 0.87 here.
    assert np.abs(found).max() < 0.1


def test_hsic_is_the_mean_over_quadruples_of_song():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(6, 2))
    k, l = x @ x.T, y @ y.T  # noqa: E741

    def hsic(k, l):  # noqa: E741
        # Song et al. 2012: over ordered quadruples of distinct examples.
        terms = [
            k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
            for i, j, q, r in itertools.permutations(range(6), 4)
        ]
        return np.mean(terms)

    expected = hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))
    assert cka(gram(x), gram(y)) == pytest.approx(expected, rel=1e-9)


def test_constant_or_broken_features_have_no_similarity():
    assert gram(np.ones((8, 3, 3, 2))) is None
    assert gram(np.full((8, 3), np.nan)) is None


def test_drift_by_hand():
    before = {
        "params": {"conv1": {"kernel": np.array([3.0, 0]), "bias": np.array(4.0)}}
    }
    after = {"params": {"conv1": {"kernel": np.array([3.0, 3]), "bias": np.array(0.0)}}}
    assert drift(before, after) == {"conv1": pytest.approx(5 / 5)}
    assert drift(before, before) == {"conv1": 0}


def test_layers_without_a_counterpart_have_no_drift():
    before = {"params": {"a": {"w": np.ones(2)}, "zero": {"w": np.zeros(2)}}}
    after = {"params": {n: {"w": np.ones(s)} for n, s in (("a", 3), ("new", 2))}}
    after["params"]["zero"] = {"w": np.ones(2)}
    assert drift(before, after) == {"a": None, "new": None, "zero": None}
