"""Lung masks of shapes whose lungs are known, and of phantoms."""

import numpy as np
import pytest

from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.phantom import phantom_slices

PIXEL_MM = 1.4
SIDE = 240
Y, X = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2) * PIXEL_MM
LUNG_HU, TISSUE_HU, AIR_HU = -850, 40, -1000


def ellipse(x, y, half_width, half_height):
    """The pixels of an ellipse; lengths in mm from the middle of the image."""
    return ((X - x) / half_width) ** 2 + ((Y - y) / half_height) ** 2 <= 1


LUNGS = ellipse(-65, 0, 42, 70) | ellipse(65, 0, 42, 70)


def chest(noise=0):
    """An axial slice, `[H, W]` float: a body with two lungs and a trachea."""
    hu = np.full((SIDE, SIDE), float(AIR_HU))
    hu[ellipse(0, 0, 145, 105)] = TISSUE_HU
    hu[LUNGS] = LUNG_HU
    hu[ellipse(0, -25, 9, 9)] = AIR_HU
    if noise:
        hu += np.random.default_rng(0).normal(0, noise, hu.shape)
    return hu


def masked(hu, spacing=(PIXEL_MM, PIXEL_MM)):
    return lung_mask(np.rint(hu).astype(np.int16)[None], spacing)[0]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("noise", [0, 60])
def test_two_ellipses_in_a_body_are_found(noise):
    assert dice(masked(chest(noise)), LUNGS) > 0.98


def test_trachea_is_left_out():
    assert not masked(chest())[ellipse(0, -25, 9, 9)].any()


def test_air_around_the_body_and_under_the_table_is_left_out():
    hu = chest()
    table = ellipse(0, 135, 150, 14)
    hu[table] = -100
    hu[ellipse(0, 135, 140, 10)] = -960
    mask = masked(hu)
    assert dice(mask, LUNGS) > 0.98
    assert not mask[table].any()


def test_vessels_stay_in_even_with_contrast_medium():
    hu = chest()
    vessels = ellipse(-65, 10, 6, 6) | ellipse(60, -20, 4, 4)
    hu[vessels] = 350
    assert masked(hu)[vessels].all()


def test_consolidation_inside_the_lung_stays_in():
    hu = chest()
    disease = ellipse(-65, 15, 18, 18)
    hu[disease] = 30
    assert masked(hu)[disease].all()


def test_consolidation_under_the_chest_wall_stays_in():
    hu = chest()
    # A lens on the outer edge of the left-hand lung.
    disease = LUNGS & ellipse(-112, 5, 18, 22)
    assert disease.sum() > 50
    hu[disease] = 30
    found = masked(hu)[disease].mean()
    assert found > 0.85


def test_ribs_and_the_mediastinum_are_not_filled_in():
    hu = chest()
    rib = ellipse(-118, 0, 5, 14) & ~LUNGS
    hu[rib] = 700
    mask = masked(hu)
    assert not mask[rib].any()
    heart = ellipse(0, 20, 18, 40)
    assert not mask[heart].any()


def test_bowel_gas_is_left_out():
    hu = chest()
    hu[LUNGS] = TISSUE_HU
    lungs = ellipse(65, 20, 42, 40)
    hu[lungs] = LUNG_HU
    gas = ellipse(-60, -30, 18, 14)
    hu[gas] = AIR_HU
    mask = masked(hu)
    assert not mask[gas].any()
    assert dice(mask, lungs) > 0.97


def test_emphysema_counts_as_lung():
    hu = chest(noise=20)
    hu[ellipse(-65, -30, 25, 25)] = -970
    assert dice(masked(hu), LUNGS) > 0.97


@pytest.mark.parametrize("factor", [1, 2])
def test_mask_does_not_depend_on_the_matrix(factor):
    hu = chest().repeat(factor, 0).repeat(factor, 1)
    pixel = PIXEL_MM / factor
    expected = LUNGS.repeat(factor, 0).repeat(factor, 1)
    assert dice(masked(hu, (pixel, pixel)), expected) > 0.98


def test_slices_far_apart_are_taken_one_by_one():
    hu = np.rint(np.stack([chest(), chest(30)])).astype(np.int16)
    together = lung_mask(hu, (20.0, PIXEL_MM, PIXEL_MM))
    alone = np.concatenate([lung_mask(h[None], (PIXEL_MM, PIXEL_MM)) for h in hu])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("patient", [0, 3])
def test_mask_overlaps_the_lungs_of_a_phantom(patient):
    phantom = phantom_slices(patient, seed=0, slices=2, matrix=256)
    mask = lung_mask(phantom.hu, (phantom.spacing, phantom.spacing))
    assert dice(mask, phantom.lungs) > 0.9


def test_no_lungs_give_an_empty_mask():
    water = np.zeros((1, 64, 64), np.int16)
    assert not lung_mask(water, (1.0, 1.0)).any()
    assert lung_mask(water[:0], (1.0, 1.0)).shape == (0, 64, 64)


@pytest.mark.parametrize("spacing", [(0.0, 1.0), (-1.0, 1.0, 1.0), (0.0, 1.0, 1.0)])
def test_impossible_spacing_is_an_error(spacing):
    with pytest.raises(ValueError, match="spacing"):
        lung_mask(np.zeros((1, 8, 8), np.int16), spacing)


def test_flat_array_is_an_error():
    with pytest.raises(ValueError, match="Z, H, W"):
        lung_mask(np.zeros((8, 8), np.int16), (1.0, 1.0))
