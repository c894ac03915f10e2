"""Tuning curves of known shape, Gabor banks, and Gabor fits."""

import constructed
import numpy as np
import pytest
from scipy import special
from skimage.filters import gabor_kernel

from twostage_jax.explain import stimuli
from twostage_jax.explain.measures import gabor, tuning
from twostage_jax.explain.responses import of_layer, over_seeds, p_value, respond

FREQUENCIES = 2.0 ** np.arange(-5, -1, 0.5)


def curves(kappa, preferred, width, centre):
    """Returns responses `[F, O, 2, 1]`: von Mises over angle, Gauss over octaves."""
    angle = np.exp(kappa * (np.cos(2 * (stimuli.ORIENTATIONS - preferred)) - 1))
    octaves = np.exp(-((np.log2(FREQUENCIES / centre) / width) ** 2) / 2)
    product = octaves[:, None] * angle
    # The phases differ; their mean is what counts.
    return np.stack([0.5 * product, 1.5 * product], -1)[..., None]


def test_tuning_of_known_curves():
    preferred, kappa, width = np.pi / 3, 2.0, 0.6
    found = tuning.of_gratings(
        curves(kappa, preferred, width, FREQUENCIES[3]),
        FREQUENCIES,
        stimuli.ORIENTATIONS,
    )
    assert found.frequency[0] == FREQUENCIES[3]
    expected = special.iv(1, kappa) / special.iv(0, kappa)
    assert found.selectivity[0] == pytest.approx(expected, rel=1e-4)
    half = 0.5 * np.arccos(1 - np.log(2) / kappa)
    bandwidth = found.orientation_bandwidth[0]
    assert bandwidth == pytest.approx(np.rad2deg(2 * half), rel=0.03)
    octaves = found.frequency_bandwidth[0]
    assert octaves == pytest.approx(2 * np.sqrt(2 * np.log(2)) * width, rel=0.05)


def test_curves_without_flanks_or_responses_have_no_bandwidth():
    flat = np.ones((8, 12, 2, 1))
    low_pass = curves(2.0, 0, 0.6, FREQUENCIES[0])
    silent = np.zeros((8, 12, 2, 1))
    broken = np.full((8, 12, 2, 1), np.nan)
    responses = np.concatenate([flat, low_pass, silent, broken], -1)
    found = tuning.of_gratings(responses, FREQUENCIES, stimuli.ORIENTATIONS)
    assert found.selectivity[0] == pytest.approx(0, abs=1e-12)
    assert np.isnan(found.orientation_bandwidth[[0, 2, 3]]).all()
    assert np.isnan(found.frequency_bandwidth).all()
    assert np.isnan(found.selectivity[2:]).all()
    summary = of_layer(found.selectivity, responses)
    assert (summary.channels, summary.silent, summary.not_finite) == (4, 1, 1)
    assert summary.value == pytest.approx(found.selectivity[:2].mean())


def test_median_of_open_ended_values_is_not_that_of_the_narrow_ones():
    responses = np.ones((2, 5))
    few = of_layer(np.array([1, 2, 3, np.nan, np.nan]), responses, open_ended=True)
    assert few.value == 3 and few.undefined == 2
    most = of_layer(np.array([1, 2, *[np.nan] * 3]), responses, open_ended=True)
    assert most.value is None and most.undefined == 3


def test_edges_are_told_by_orientation_whatever_their_sign():
    along = np.exp(2 * np.cos(stimuli.DIRECTIONS))
    both = along + np.roll(along, 12)
    responses = np.stack([both, np.ones(24), along * 0], -1)[:, None]
    found = tuning.of_edges(responses, stimuli.DIRECTIONS)
    # Of exp(k cos a), made even: I2(k) / I0(k).
    assert found[0] == pytest.approx(special.iv(2, 2) / special.iv(0, 2), rel=1e-4)
    assert found[1] == pytest.approx(0, abs=1e-12)
    assert np.isnan(found[2])


def test_gabor_bank_is_found_selective_and_random_filters_less():
    network = constructed.visual()
    random = np.random.default_rng(0).normal(size=(11, 11, 1, 16)).astype(np.float32)
    images = stimuli.gratings(32)
    edges = stimuli.edges(32)
    results = []
    for one in (network, constructed.visual(kernel=random)):
        at = respond(one, images.reshape(-1, 32, 32, 1), ["conv1", "energy"])
        found = {
            tap: tuning.of_gratings(
                r.centre.reshape(*images.shape[:3], -1),
                stimuli.frequencies(32),
                stimuli.ORIENTATIONS,
            )
            for tap, r in at.items()
        }
        at_edges = respond(one, edges.reshape(-1, 32, 32, 1), ["energy"])["energy"]
        edge = tuning.of_edges(at_edges.centre.reshape(24, 5, -1), stimuli.DIRECTIONS)
        results.append((found, edge))
    (bank, bank_edges), (other, other_edges) = results
    expected = np.repeat(constructed.FREQUENCIES, 4)
    np.testing.assert_allclose(
        np.log2(bank["energy"].frequency / expected), 0, atol=0.5
    )
    assert (bank["energy"].selectivity > 0.75).all()
    assert bank_edges.min() > 0.6
    assert other["energy"].selectivity.mean() < bank["energy"].selectivity.mean() - 0.2
    assert other_edges.mean() < bank_edges.mean() - 0.2


def test_gabor_fit_explains_the_functions_of_scikit_image():
    fits = gabor.fit(constructed.gabor_bank())
    assert fits.good.all() and fits.explained.min() > 0.97
    kernel = np.real(gabor_kernel(0.2, theta=0.7, sigma_x=2, sigma_y=2.5, offset=0.4))
    middle = np.array(kernel.shape) // 2
    one = kernel[middle[0] - 5 : middle[0] + 6, middle[1] - 5 : middle[1] + 6]
    colour = np.stack([one, -0.5 * one, 2 * one], 2)[..., None]
    fits = gabor.fit(colour)
    assert fits.explained[0] == pytest.approx(1, abs=1e-3)


def test_noise_blobs_and_empty_filters_are_no_gabor_functions():
    random = np.random.default_rng(0).normal(size=(5, 5, 1, 12))
    assert not gabor.fit(random).good.any()
    x = np.arange(5) - 2.0
    blob = np.exp(-(x[:, None] ** 2 + x**2) / 2)
    others = np.stack([blob, np.ones((5, 5)), np.zeros((5, 5))], -1)[:, :, None]
    fits = gabor.fit(others)
    assert not fits.good.any()
    assert np.isnan(fits.explained[2]) and np.isfinite(fits.explained[:2]).all()
    edge = np.tile(np.sign(x), (5, 1))[:, :, None, None]
    assert gabor.fit(edge).good.all()


def test_interval_over_seeds_is_the_t_interval():
    entry = over_seeds([1.0, 2.0, 4.0])
    # t(0.975, 2) = 4.30265, deviation 1.527525.
    half = 4.30265 * 1.527525 / np.sqrt(3)
    assert entry["mean"] == pytest.approx(7 / 3)
    assert entry["high"] - entry["mean"] == pytest.approx(half, rel=1e-4)
    assert entry["mean"] - entry["low"] == pytest.approx(half, rel=1e-4)
    assert (
        over_seeds([1.0])["low"] is None and "one seed" in over_seeds([1.0])["reason"]
    )
    with_gap = over_seeds([1.0, None, 2.0], "at chance")
    assert with_gap["mean"] is None and with_gap["low"] is None
    assert with_gap["reason"] == "1 of 3 seeds without a value: at chance"
    assert over_seeds([None])["mean"] is None
    # One imported network for all seeds says nothing about their variation.
    same = over_seeds([0.5, 0.5, 0.5])
    assert (same["mean"], same["low"], same["high"]) == (0.5, None, None)


def test_p_value_is_that_of_the_t_test():
    # t = 2 / (1 / sqrt(3)) on 2 degrees of freedom: p = 1 - t / sqrt(2 + t**2).
    t = 2 * np.sqrt(3)
    expected = 1 - t / np.sqrt(2 + t**2)
    assert p_value([1.0, 2.0, 3.0]) == pytest.approx(expected)
    assert p_value([-1.0, -2.0, -3.0]) == pytest.approx(expected)
    for none in ([], [1.0], [1.0, None, 2.0], [2.0, 2.0]):
        assert p_value(none) is None
