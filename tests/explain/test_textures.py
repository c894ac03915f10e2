"""Cells that distinguish textures from noise of the same spectrum, and others."""

import constructed
import numpy as np
import pytest

from twostage_jax.explain import stimuli
from twostage_jax.explain.measures.textures import modulation_index, pairs
from twostage_jax.explain.responses import of_layer, respond


def crosses(count=12, size=32):
    """Returns a family of textures: crosses of two lines at random places, few."""
    rng = np.random.default_rng(0)
    images = np.full((count, size, size), 0.3, np.float32)
    for image in images:
        for row, column in rng.integers(0, size, (4, 2)):
            reach = np.arange(-3, 4)
            image[row, (column + reach) % size] = 0.9
            image[(row + reach) % size, column] = 0.9
    return stimuli.Textures(images[..., None], np.zeros(count, int), None, ("crosses",))


def indices(textures):
    """Returns the modulation index of each channel of simple, complex, product cells."""
    taps = ["simple", "energy", "product"]
    pair = pairs(textures)
    at = [respond(constructed.visual(), images, taps) for images in pair]
    return {
        tap: modulation_index(at[0][tap].mean, at[1][tap].mean, textures.labels)
        for tap in taps
    }


@pytest.fixture(scope="module")
def of_crosses():
    return indices(crosses())


@pytest.fixture(scope="module")
def of_embedded():
    return indices(stimuli.embedded_textures(32, samples=4, views=3))


def test_energy_cannot_tell_texture_from_noise(of_crosses, of_embedded):
    # By Parseval: the mean square of a filtered image is a matter of its spectrum.
    np.testing.assert_allclose(of_crosses["energy"], 0, atol=1e-4)
    np.testing.assert_allclose(of_embedded["energy"], 0, atol=1e-4)


def test_gabor_bank_is_not_texture_selective(of_crosses, of_embedded):
    # Sparse responses have a smaller mean magnitude than normal ones of their variance.
    assert of_crosses["simple"].max() < 0
    assert np.abs(of_embedded["simple"]).max() < 0.05


def test_products_of_energies_are_texture_selective(of_crosses, of_embedded):
    assert of_crosses["product"].min() > 0.3
    assert of_embedded["product"].mean() > of_embedded["simple"].mean() + 0.01


def test_modulation_index_is_the_mean_over_families():
    labels = np.array([0, 0, 1, 1])
    at_texture = np.array([[3.0, 0, 0], [5, 0, 0], [0, 2, 0], [0, 4, 0]])
    at_noise = np.array([[2.0, 0, 0], [2, 0, 0], [1, 0, 0], [3, 3, 0]])
    index = modulation_index(at_texture, at_noise, labels)
    # First channel: (4 - 2) / 6 and (0 - 2) / 2; second: only the second family.
    np.testing.assert_allclose(index[:2], [(1 / 3 - 1) / 2, (3 - 1.5) / 4.5])
    assert np.isnan(index[2])
    summary = of_layer(index, np.concatenate([at_texture, at_noise]))
    assert summary.silent == 1 and summary.channels == 3


def test_constant_images_and_broken_channels_are_named():
    labels = np.zeros(4, int)
    images = np.full((4, 16, 16, 1), 0.3, np.float32)
    flat = stimuli.Textures(images, labels, None, ("flat",))
    shown, noise = pairs(flat)
    np.testing.assert_allclose(shown, noise, atol=1e-6)
    broken = np.ones((4, 2))
    broken[2, 1] = np.nan
    index = modulation_index(broken, np.ones((4, 2)), labels)
    assert index[0] == 0 and np.isnan(index[1])
    assert of_layer(index, broken).not_finite == 1
