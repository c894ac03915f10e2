"""Outlines and fractals of the surrogate for natural images."""

import numpy as np
import pytest

from twostage_jax.data.synthetic import natural


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("disc", [(0, 0), (0.6, 0.5)], [(0.7, 0.6)]),
        ("triangle", [(0, 0), (0, -0.9), (0.8, 0.45)], [(0.5, -0.5), (0, 0.6)]),
        # Tips point up; between the tips is a notch.
        ("star", [(0, -0.95), (0.9, -0.3)], [(0, 0.6), (0, -1.05)]),
        ("rectangle", [(0.9, 0.5)], [(0.5, 0.6), (1, 0)]),
        ("ring", [(0.7, 0), (0, -0.6)], [(0, 0), (0.95, 0)]),
        ("cross", [(0.9, 0), (0, -0.9)], [(0.5, 0.5)]),
        ("crescent", [(-0.6, 0), (0, 0.8)], [(0.3, 0), (0.8, 0)]),
        ("heart", [(0, 0.85), (0.5, -0.5)], [(0, -0.75), (0.5, 0.6)]),
    ],
)
def test_outline_is_positive_inside_and_negative_outside(name, inside, outside):
    outline = natural.OUTLINES[name]
    assert all(outline(np.array(u), np.array(v)) > 0 for u, v in inside)
    assert all(outline(np.array(u), np.array(v)) < 0 for u, v in outside)


def test_chaos_game_leaves_the_holes_of_the_carpet_empty():
    maps = natural.FRACTALS["carpet"]
    points = natural.attractor(np.random.default_rng(0), maps, 256, 40)
    assert points.shape == (2, 256 * 40)
    # The carpet spans [-1.5, 1.5], and its middle third is a hole, at every level.
    assert np.abs(points).max() <= 1.5 + 1e-4
    assert (np.abs(points).max(axis=0) >= 0.5 - 1e-4).all()
    inner = (points + 1.5) % 1 - 0.5
    assert (np.abs(inner).max(axis=0) >= 1 / 6 - 1e-4).all()


@pytest.mark.parametrize("name", natural.FRACTALS)
def test_perturbed_maps_differ_and_still_shrink(name):
    rng = np.random.default_rng(0)
    maps = natural.FRACTALS[name]
    original = maps.copy()
    for _ in range(10):
        changed = natural.perturbed(rng, maps)
        assert (changed != maps).any()
        assert (np.linalg.svd(changed[:, :, :2])[1] < 1).all()
    np.testing.assert_array_equal(maps, original)
