"""Gratings, edges and scrambled textures have the stated content."""

import numpy as np
import pytest
from basics import refused_at
from PIL import Image

from twostage_jax.explain import stimuli


def test_gratings_have_their_frequency_and_orientation():
    size = 32
    frequencies = stimuli.frequencies(size)
    images = stimuli.gratings(size)
    assert images.shape == (len(frequencies), 12, 8, size, size, 1)
    assert images.min() >= 0 and images.max() <= 1
    # Whole numbers of periods along an axis are single lines of the spectrum.
    for f, periods in ((2, 2), (4, 4), (6, 8)):
        for o, place in ((0, (0, periods)), (6, (periods, 0))):
            spectrum = np.abs(np.fft.fft2(images[f, o, 3, :, :, 0]))
            spectrum[0, 0] = 0
            assert np.unravel_index(spectrum.argmax(), spectrum.shape) in (
                place,
                tuple(-np.array(place) % size),
            )
            assert spectrum.max() == pytest.approx(0.25 * size**2 / 2, rel=1e-4)


def test_frequencies_fit_in_the_patch():
    frequencies = stimuli.frequencies(32)
    assert frequencies[0] * 32 == 1
    assert 0.25 < frequencies[-1] <= stimuli.FINEST
    np.testing.assert_allclose(np.diff(np.log2(frequencies)), 0.5)
    assert len(stimuli.frequencies(227)) > len(frequencies)
    with refused_at("size"):
        stimuli.frequencies(8)


def test_edges_rise_in_their_direction():
    images = stimuli.edges(32)[..., 0]
    assert images.shape == (24, 5, 32, 32)
    for d, direction in enumerate(stimuli.DIRECTIONS):
        slope_y, slope_x = np.gradient(images[d, 2])
        assert np.hypot(slope_x.sum(), slope_y.sum()) > 1
        angle = np.arctan2(slope_y[8:-8, 8:-8].sum(), slope_x[8:-8, 8:-8].sum())
        assert abs(np.angle(np.exp(1j * (angle - direction)))) < 0.1


def test_periodic_component_solves_the_poisson_equation_of_moisan():
    image = np.random.default_rng(0).random((1, 12, 15, 1))
    smooth = image - stimuli.periodic_component(image)
    # Its periodic Laplacian is the jump across the borders.
    s = smooth[0, :, :, 0]
    laplacian = sum(np.roll(s, k, axis) for k in (1, -1) for axis in (0, 1)) - 4 * s
    u, jump = image[0, :, :, 0], np.zeros((12, 15))
    jump[0] += u[-1] - u[0]
    jump[-1] += u[0] - u[-1]
    jump[:, 0] += u[:, -1] - u[:, 0]
    jump[:, -1] += u[:, 0] - u[:, -1]
    np.testing.assert_allclose(laplacian, jump, atol=1e-5)
    assert abs(s.mean()) < 1e-6


def test_scrambled_image_has_the_spectrum_and_other_phases():
    images = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)
    noise = stimuli.phase_scrambled(images)
    before, after = (np.fft.fft2(i, axes=(1, 2)) for i in (images, noise))
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-4)
    np.testing.assert_allclose(noise.mean((1, 2)), images.mean((1, 2)), atol=1e-6)
    assert np.corrcoef(images.ravel(), noise.ravel())[0, 1] < 0.2
    # The relation of the colours is kept.
    np.testing.assert_allclose(
        after[..., 0] * after[..., 1].conj(),
        before[..., 0] * before[..., 1].conj(),
        atol=1e-2,
    )
    np.testing.assert_array_equal(noise, stimuli.phase_scrambled(images))


def test_embedded_textures_are_other_samples_than_the_default_set():
    from twostage_jax.data.synthetic import textures

    made = stimuli.embedded_textures(16, samples=2, views=1)
    assert made.images.shape == (32, 16, 16, 1) and len(made.names) == 16
    assert len(np.unique(made.groups)) == 32
    recipe = textures.recipe(size=16, samples_per_class=2, views_per_sample=1)
    trained_on = np.stack([e.image for t in recipe.tasks for e in recipe.make(t)])
    flat = np.round(made.images * 255).astype(np.uint8).reshape(32, -1)
    assert not (flat[:, None] == trained_on.reshape(1, 32, -1)).all(2).any()


def test_textures_of_a_folder_are_taken_evenly(tmp_path):
    for label, name in enumerate(("bark", "cork")):
        (tmp_path / name).mkdir()
        for i in range(6):
            pixels = np.full((20, 20), 100 * label + 10 * i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    made = stimuli.folder_textures(str(tmp_path), 16, per_family=3)
    assert made.names == ("bark", "cork") and made.groups is None
    np.testing.assert_array_equal(made.labels, [0, 0, 0, 1, 1, 1])
    values = np.round(made.images[:, 0, 0, 0] * 255)
    np.testing.assert_array_equal(values, [0, 20, 50, 100, 120, 150])
    with refused_at(tmp_path / "none"):
        stimuli.folder_textures(str(tmp_path / "none"), 16)
    pieces = stimuli.folder_textures(
        str(tmp_path), 16, per_family=3, group_regex=r"(\w+/\d)"
    )
    assert pieces.groups[[0, 5]].tolist() == ["bark/0", "cork/5"]


def test_textures_that_a_stage_was_trained_on_are_recognised(tmp_path, monkeypatch):
    empty = np.zeros((0, 16, 16, 1), np.float32), np.zeros(0, int), None, ()
    embedded = stimuli.Textures(*empty)
    assert stimuli.trained_on(embedded, "textures", "")
    assert not stimuli.trained_on(embedded, "folder", str(tmp_path))
    folder = stimuli.Textures(*empty, path=str(tmp_path / "kth"))
    monkeypatch.chdir(tmp_path)
    assert stimuli.trained_on(folder, "folder", "kth")
    assert stimuli.trained_on(folder, "folder", str(tmp_path / "kth" / "train"))
    assert stimuli.trained_on(folder, "folder", str(tmp_path / "x" / ".."))
    for source, path in (("textures", ""), ("folder", str(tmp_path / "kth2"))):
        assert not stimuli.trained_on(folder, source, path)
    # Several sets in one stage are links to the class folders of each.
    (tmp_path / "kth" / "cork").mkdir(parents=True)
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "kth_cork").symlink_to(tmp_path / "kth" / "cork")
    assert stimuli.trained_on(folder, "folder", str(tmp_path / "both"))


def test_probe_gratings_are_balanced_over_frequencies():
    images, labels, groups = stimuli.oriented(32)
    assert images.shape[1:] == (32, 32, 1) and images.min() >= 0 and images.max() <= 1
    counts = np.zeros((8, groups.max() + 1))
    np.add.at(counts, (labels, groups), 1)
    assert (counts == stimuli.REPEATS).all()
