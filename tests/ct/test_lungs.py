"""Lung masks of simple shapes and of phantoms."""

import numpy as np
import pytest
from scipy import ndimage

from twostage_jax.ct.lungs import find_lungs, lung_mask
from twostage_jax.ct.phantom import phantom_slices

PIXEL_MM = 1.4
SIDE = 240
Y, X = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2) * PIXEL_MM
LUNG_HU, TISSUE_HU, AIR_HU = -850, 40, -1000


def ellipse(x, y, half_width, half_height):
    """Returns the pixels of an ellipse; lengths in mm from the centre of the image."""
    return ((X - x) / half_width) ** 2 + ((Y - y) / half_height) ** 2 <= 1


LUNGS = ellipse(-65, 0, 42, 70) | ellipse(65, 0, 42, 70)


def chest(noise=0):
    """Returns an axial slice `[H, W]` float of a body with two lungs and a trachea."""
    hu = np.full((SIDE, SIDE), float(AIR_HU))
    hu[ellipse(0, 0, 145, 105)] = TISSUE_HU
    hu[LUNGS] = LUNG_HU
    hu[ellipse(0, -25, 9, 9)] = AIR_HU
    if noise:
        hu += np.random.default_rng(0).normal(0, noise, hu.shape)
    return hu


def trunk(ribs=8, gas=(), lungs=()):
    """Returns an axial slice `[H, W]` float of a body with spine and ribs, and its lungs.

    Args:
      ribs: Number of ribs on each side.
      gas: Masks of gas in stomach and bowel.
      lungs: Masks of lung, 3 mm within the ribs at most.
    """
    hu = np.full((SIDE, SIDE), float(AIR_HU))
    hu[ellipse(0, 0, 150, 110)] = -90
    hu[ellipse(0, 0, 128, 90)] = TISSUE_HU
    hu[ellipse(0, 62, 20, 18)] = 400
    for turn in np.linspace(-1.2, 1.2, ribs):
        for side in (-1, 1):
            x, y = side * 116 * np.cos(turn), 80 * np.sin(turn)
            hu[ellipse(x, y, 5, 5)] = 700
    inside = np.zeros((SIDE, SIDE), bool)
    for mask in lungs:
        inside |= mask
    hu[inside] = LUNG_HU
    for mask in gas:
        hu[mask & ~inside] = AIR_HU
    # Blurred as by a scanner, so that small gas pockets have the values of lung.
    hu = ndimage.gaussian_filter(hu, 1.0)
    return hu + np.random.default_rng(1).normal(0, 15, hu.shape), inside


BASES = ellipse(-75, 55, 40, 14), ellipse(75, 55, 40, 14)
CHEST = ellipse(-62, 0, 48, 66), ellipse(62, 0, 48, 66)
STOMACH = ellipse(50, -30, 26, 14)
BOWEL = (
    ellipse(-60, -45, 26, 12),
    ellipse(0, -55, 30, 11),
    ellipse(55, -40, 30, 16),
    ellipse(-70, 5, 6, 6),
    ellipse(35, 0, 4, 6),
)


def found(hu, spacing=(PIXEL_MM, PIXEL_MM)):
    """Returns `find_lungs` of slices or of one slice."""
    hu = np.rint(np.atleast_3d(hu.T).T).astype(np.int16)
    return find_lungs(hu, spacing)


def masked(hu, spacing=(PIXEL_MM, PIXEL_MM)):
    return lung_mask(np.rint(hu).astype(np.int16)[None], spacing)[0]


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("noise", [0, 60])
def test_two_ellipses_in_a_body_are_found(noise):
    mask = masked(chest(noise))
    assert dice(mask, LUNGS) > 0.98
    assert not mask[ellipse(0, -25, 9, 9)].any()  # The trachea.


def test_air_outside_the_body_and_under_the_table_is_excluded():
    hu = chest()
    table = ellipse(0, 135, 150, 14)
    hu[table] = -100
    hu[ellipse(0, 135, 140, 10)] = -960
    mask = masked(hu)
    assert dice(mask, LUNGS) > 0.98
    assert not mask[table].any()


@pytest.mark.parametrize(
    ("inside", "hu_inside"),
    [
        (ellipse(-65, 10, 6, 6) | ellipse(60, -20, 4, 4), 350),
        (ellipse(-65, 15, 18, 18), 30),
    ],
    ids=["vessels with contrast medium", "consolidation"],
)
def test_vessels_and_consolidation_inside_the_lung_stay_in(inside, hu_inside):
    hu = chest()
    hu[inside] = hu_inside
    assert masked(hu)[inside].all()


def test_consolidation_under_the_chest_wall_stays_in():
    hu = chest()
    # A lens at the outer edge of the lung on the left.
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


def test_bowel_gas_is_excluded():
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


def test_distant_slices_are_processed_individually():
    hu = np.rint(np.stack([chest(), chest(30)])).astype(np.int16)
    together = lung_mask(hu, (20.0, PIXEL_MM, PIXEL_MM))
    alone = np.concatenate([lung_mask(h[None], (PIXEL_MM, PIXEL_MM)) for h in hu])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("patient", [0, 3])
def test_mask_overlaps_the_lungs_of_a_phantom(patient):
    phantom = phantom_slices(patient, seed=0, slices=2, matrix=256)
    mask = lung_mask(phantom.hu, (phantom.spacing, phantom.spacing))
    assert dice(mask, phantom.lungs) > 0.9


def test_images_without_lungs_give_an_empty_mask():
    water = np.zeros((1, 64, 64), np.int16)
    assert not lung_mask(water, (1.0, 1.0)).any()
    assert lung_mask(water[:0], (1.0, 1.0)).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((1, 8, 8), (0.0, 1.0)),
        ((1, 8, 8), (-1.0, 1.0, 1.0)),
        ((1, 8, 8), (0.0, 1.0, 1.0)),
        ((8, 8), (1.0, 1.0)),
    ],
)
def test_impossible_spacings_and_shapes_are_errors(shape, spacing):
    with pytest.raises(ValueError):
        lung_mask(np.zeros(shape, np.int16), spacing)


@pytest.mark.parametrize("prone", [False, True])
@pytest.mark.parametrize("step", [None, 3.0])
def test_bowel_full_of_gas_is_not_lung(prone, step):
    hu, _ = trunk(gas=BOWEL)
    hu = hu[::-1] if prone else hu
    lungs = found(np.stack([hu] * 4), (step, PIXEL_MM, PIXEL_MM))
    assert not lungs.mask.any()
    assert lungs.gas == (1.0,) * 4
    assert lungs.doubts == ("",) * 4


def test_bowel_that_fills_the_abdomen_is_not_lung():
    hu, _ = trunk(gas=[ellipse(-40, -20, 50, 45), ellipse(48, -20, 36, 45)])
    assert not found(hu).mask.any()


@pytest.mark.parametrize("step", [None, 1.0, 5.0])
def test_stomach_gas_next_to_the_bases_of_the_lungs_is_excluded(step):
    hu, lungs = trunk(gas=[STOMACH, ellipse(20, -10, 5, 4)], lungs=BASES)
    mask = found(np.stack([hu] * 3), (step, PIXEL_MM, PIXEL_MM)).mask
    assert not (mask & STOMACH).any() and not mask[:, ellipse(20, -10, 5, 4)].any()
    assert all(dice(image, lungs) > 0.93 for image in mask)


def test_gas_that_touches_lung_in_the_next_slice_is_excluded():
    below, _ = trunk(gas=[ellipse(70, 30, 30, 30)])
    above, lungs = trunk(lungs=CHEST)
    hu = np.stack([below] * 4 + [above] * 4)
    mask = found(hu, (2.5, PIXEL_MM, PIXEL_MM)).mask
    assert not mask[:4].any()
    assert all(dice(image, lungs) > 0.97 for image in mask[4:])


def test_gas_over_fluid_with_contrast_medium_is_not_lung():
    hu, _ = trunk(gas=[STOMACH])
    hu[ellipse(50, -14, 24, 10) & ~STOMACH] = 500
    assert not found(hu).mask.any()


def test_air_between_arm_and_chest_is_not_lung():
    hu, lungs = trunk(lungs=CHEST)
    arm = ellipse(-157, 0, 14, 30)
    hu[arm] = TISSUE_HU
    hu[ellipse(-157, 0, 5, 5)] = 800
    gap = ellipse(-143, 0, 3, 14)
    hu[gap] = AIR_HU
    mask = found(hu).mask[0]
    assert not mask[gap].any()
    assert dice(mask, lungs) > 0.97


def test_lungs_of_all_kinds_stay_whole_next_to_ribs():
    apex = ellipse(-45, -5, 22, 30), ellipse(45, -5, 22, 30)
    for lungs in (CHEST, CHEST[:1], BASES, apex):
        # The chest is narrow around the apex.
        hu, inside = trunk(lungs=lungs)
        if lungs is apex:
            for turn in (-0.6, 0.0, 0.6):
                for side in (-1, 1):
                    hu[ellipse(side * 74 * np.cos(turn), 45 * np.sin(turn), 5, 5)] = 700
        result = found(hu)
        assert dice(result.mask[0], inside) > 0.93
        assert result.doubts == ("",)


def test_emphysema_nearly_as_dark_as_gas_is_uncertain_lung():
    hu, lungs = trunk(lungs=CHEST)
    hu[lungs] -= 90
    vessels = np.random.default_rng(2).random(hu.shape) < 0.01
    hu[ndimage.binary_dilation(vessels) & lungs] = -600
    result = found(hu)
    assert dice(result.mask[0], lungs) > 0.97
    assert "gas" in result.doubts[0]


def test_islands_of_air_in_consolidated_lungs_are_lung():
    hu, lungs = trunk(lungs=CHEST)
    solid = lungs & (Y > -35)
    islands = ellipse(-60, 10, 14, 9) | ellipse(55, 15, 12, 10)
    hu[solid] = 20
    hu[islands] = -550
    hu = ndimage.gaussian_filter(hu, 0.7)
    assert not found(hu).doubts[0]
    # The hull of air contains the islands if the edges of the lungs contain air, too.
    hu[lungs & (X > 100)] = -600
    hu[lungs & (X < -100)] = -600
    assert found(hu).mask[0][islands].mean() > 0.9


def test_little_lung_is_uncertain_in_a_section_but_not_in_a_volume():
    sliver = ellipse(-95, 50, 16, 6)
    hu, lungs = trunk(lungs=[sliver])
    alone = found(hu)
    assert dice(alone.mask[0], lungs) > 0.7 and "cm2" in alone.doubts[0]
    tips = found(np.stack([hu, hu]), (2.0, PIXEL_MM, PIXEL_MM))
    assert all("ml" in doubt for doubt in tips.doubts)
    whole, _ = trunk(lungs=CHEST)
    joined = found(np.stack([hu, whole, whole]), (3.0, PIXEL_MM, PIXEL_MM))
    assert joined.mask[0].any() and joined.doubts == ("",) * 3


def test_lungs_away_from_all_ribs_are_uncertain():
    hu, _ = trunk(lungs=[ellipse(-45, -5, 36, 50), ellipse(45, -5, 36, 50)])
    result = found(hu)
    assert result.mask.any() and "rib" in result.doubts[0]


def test_streaks_of_metal_are_not_lung():
    hu, _ = trunk()
    hu[ellipse(-100, 10, 9, 12)] = 3000
    hu[ellipse(-82, 10, 8, 4)] = -700
    assert not found(hu).mask.any()
