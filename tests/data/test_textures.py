"""Lighting and noise of procedural textures."""

import numpy as np

from twostage_jax.data.synthetic import textures
from twostage_jax.data.synthetic.textures import Surface


def test_slopes_are_lit_by_lamberts_law():
    pixels = 20
    x = textures.grid(textures.SIDE, pixels).x
    # The slope rises along x by 45 degrees; the elevation of the light is 45 degrees.
    surface = Surface(height=x, albedo=np.full_like(x, 0.5))
    light = {"elevation": np.pi / 4, "diffuse": 0.2}
    away, _ = textures.shade(surface, azimuth=0.0, **light)
    towards, highlight = textures.shade(surface, azimuth=np.pi, **light)
    # Relative to level ground: 1 / sin(45 degrees) facing the light, 0 along it.
    np.testing.assert_allclose(towards, 0.5 * (0.2 + 0.8 * np.sqrt(2)), rtol=1e-4)
    np.testing.assert_allclose(away, 0.5 * 0.2, rtol=1e-4)
    assert not highlight.any()


def test_noise_has_the_given_spectrum():
    at = textures.grid(2.0, 64)
    rng = np.random.default_rng(0)

    def band(fx, fy):
        return (np.hypot(fx, fy) > 3) & (np.hypot(fx, fy) < 5)

    field = textures.noise(rng, at, band)
    assert abs(field.mean()) < 1e-5 and abs(field.std() - 1) < 1e-5
    power = np.abs(np.fft.fft2(field)) ** 2
    frequency = np.fft.fftfreq(64, 2.0 / 64)
    inside = band(frequency[None, :], frequency[:, None])
    assert power[~inside].sum() < 1e-6 * power[inside].sum()


def test_cells_without_jitter_are_the_squares_of_a_lattice():
    at = textures.grid(2.0, 40)
    found = textures.cells(np.random.default_rng(0), at.x, at.y, 3.0, 0.0)
    u, v = at.x * 3 % 1 - 0.5, at.y * 3 % 1 - 0.5
    far, near = np.maximum(abs(u), abs(v)), np.minimum(abs(u), abs(v))
    np.testing.assert_allclose(found.nearest, np.hypot(u, v), atol=1e-5)
    np.testing.assert_allclose(
        found.gap, np.hypot(1 - far, near) - np.hypot(u, v), atol=1e-5
    )
    assert len(np.unique(found.value)) == 36


def test_jittered_cells_are_continuous():
    at = textures.grid(2.0, 24)
    found = textures.cells(np.random.default_rng(3), at.x, at.y, 2.5, 1.0)
    # A distance to a centre changes by at most the length of the step.
    step = 2.5 * at.step
    for axis in (0, 1):
        assert np.abs(np.diff(found.nearest, axis=axis)).max() <= step + 1e-4
        assert np.abs(np.diff(found.gap, axis=axis)).max() <= 2 * step + 1e-4
    assert (found.gap >= 0).all()


def test_turing_pattern_repeats_at_its_frequency():
    at = textures.grid(2.5, 160)
    pattern = textures.turing(np.random.default_rng(0), at, 6.0, 0.0)
    power = np.abs(np.fft.fft2(pattern - pattern.mean())) ** 2
    frequency = np.fft.fftfreq(160, at.step)
    radius = np.hypot(frequency[None, :], frequency[:, None])
    mean_frequency = (power * radius).sum() / power.sum()
    assert 4.5 < mean_frequency < 7.5
    assert np.abs(pattern).max() <= 1
