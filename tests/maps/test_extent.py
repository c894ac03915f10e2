"""Volumes and fractions of classes by region."""

import numpy as np
import pytest

from twostage_jax.maps import extent
from twostage_jax.maps.extent import UNCLASSIFIED

NAMES = ("normal", "ground_glass")


def measured(labels, lungs, probabilities=None, pixel_mm=(2.0, 0.5), step_mm=10.0):
    """Returns {(region, class): Measure}."""
    if probabilities is None:
        probabilities = np.stack([255 * (labels == 1), 255 * (labels == 2)])
    found = extent.measure(labels, lungs, probabilities, NAMES, pixel_mm, step_mm)
    return {(m.region, m.class_name): m for m in found}


def test_volumes_and_fractions_are_those_of_counted_pixels():
    lungs = np.zeros((2, 10, 10), bool)
    lungs[:, 2:6, 3:8] = True  # 20 pixels a slice, 40 in all
    labels = np.zeros((2, 10, 10), np.uint8)
    labels[0, 2:6, 3:8] = 1
    labels[1, 2:4, 3:8] = 2  # 10 pixels; the other 10 of this slice have no class
    found = measured(labels, lungs)
    # A pixel of 2 mm x 0.5 mm, slices 10 mm apart: 10 mm^3 = 0.01 ml.
    for name, pixels in (("normal", 20), ("ground_glass", 10), (UNCLASSIFIED, 10)):
        measure = found["lungs", name]
        assert measure.volume_ml == pytest.approx(pixels * 0.01)
        assert measure.fraction == pytest.approx(pixels / 40)
        assert measure.region_ml == pytest.approx(0.4)


def test_mean_probability_is_over_classified_lung_only():
    lungs = np.ones((1, 1, 4), bool)
    labels = np.array([[[1, 2, 2, 0]]], np.uint8)
    probabilities = np.array([[[[204, 102, 51, 0]]], [[[51, 153, 204, 0]]]], np.uint8)
    found = measured(labels, lungs, probabilities)
    assert found["lungs", "normal"].probability == pytest.approx((0.8 + 0.4 + 0.2) / 3)
    assert found["lungs", "ground_glass"].probability == pytest.approx(1.6 / 3)
    assert found["lungs", UNCLASSIFIED].probability is None


def test_single_slice_has_fractions_but_no_volume():
    lungs = np.ones((1, 3, 3), bool)
    found = measured(lungs.astype(np.uint8), lungs, step_mm=None)
    assert found["lungs", "normal"].fraction == 1
    assert found["lungs", "normal"].volume_ml is None
    assert found["lungs", "normal"].region_ml is None
    assert ("upper", "normal") not in found


def test_heights_are_thirds_of_the_slices_with_lung_from_the_feet():
    lungs = np.zeros((8, 4, 4), bool)
    lungs[1:7] = True  # six slices: lower 1-2, middle 3-4, upper 5-6
    labels = np.ones((8, 4, 4), np.uint8)
    labels[5:7] = 2
    labels[4, 0] = 2  # a quarter of a slice, an eighth of the middle third
    found = measured(labels, lungs)
    fractions = [
        found[h, "ground_glass"].fraction for h in ("lower", "middle", "upper")
    ]
    assert fractions == pytest.approx([0, 1 / 8, 1])
    heights = [found[h, "normal"].region_ml for h in ("lower", "middle", "upper")]
    assert sum(heights) == pytest.approx(found["lungs", "normal"].region_ml)


def by_hand(lungs, pixel_mm):
    """Distance in mm to the nearest pixel outside of the lungs and what lies between."""
    between = np.zeros(np.add(lungs.shape, 2), bool)
    for y, row in enumerate(lungs, start=1):
        inside = np.flatnonzero(row)
        if len(inside):
            between[y, 1 + inside[0] : 2 + inside[-1]] = True
    outside = np.argwhere(~between)
    distances = np.zeros(lungs.shape)
    for y, x in np.ndindex(lungs.shape):
        steps = (outside - (y + 1, x + 1)) * pixel_mm
        distances[y, x] = np.sqrt((steps**2).sum(1)).min()
    return distances


def test_depth_is_the_distance_from_the_chest_wall_not_from_the_mediastinum():
    lungs = np.zeros((13, 21), bool)
    lungs[2:11, 1:8] = lungs[3:12, 12:20] = True
    pixel_mm = (1.0, 0.7)
    expected = by_hand(lungs, pixel_mm)
    for side in (np.s_[:, :10], np.s_[:, 10:]):
        expected[side] /= expected[side][lungs[side]].max()
    assert extent.middle(lungs[None]) == 10
    found = extent.depth(lungs, pixel_mm, 10)
    np.testing.assert_allclose(found[lungs], np.minimum(1, expected)[lungs])
    # Beside the heart is deeper than beside the ribs.
    assert found[6, 7] > 2 / 3 > 1 / 3 > found[6, 1]


def test_central_and_peripheral_thirds_share_out_the_lung():
    lungs = np.zeros((1, 60, 60), bool)
    lungs[0, 10:50, 5:27] = lungs[0, 10:50, 33:55] = True
    depth = extent.depth(lungs[0], (1.0, 1.0), 30)
    labels = np.where(lungs & (depth[None] < 1 / 3), 2, 1).astype(np.uint8)
    found = measured(labels, lungs, pixel_mm=(1.0, 1.0))
    assert found["peripheral", "ground_glass"].fraction == 1
    assert found["intermediate", "ground_glass"].fraction == 0
    assert found["central", "ground_glass"].fraction == 0
    thirds = [found[d, "normal"].region_ml for d in extent.DEPTHS]
    assert sum(thirds) == pytest.approx(found["lungs", "normal"].region_ml)
    assert min(thirds) > 0


def test_regions_of_a_turned_image_are_the_same():
    lungs = np.zeros((3, 40, 60), bool)
    lungs[:, 5:35, 5:27] = lungs[:, 10:30, 33:55] = True
    labels = np.where(lungs, 1 + (np.indices(lungs.shape)[2] % 7 < 2), 0)
    probabilities = np.stack([200 * (labels == 1), 150 * (labels == 2)])
    upright = extent.measure(labels, lungs, probabilities, NAMES, (2.0, 0.5), 10.0)
    turned = (np.rot90(a, axes=(-2, -1)) for a in (labels, lungs, probabilities))
    found = extent.measure(*turned, NAMES, (0.5, 2.0), 10.0, across=-2)
    assert found == upright


def test_middle_lies_between_lungs_of_different_size():
    lungs = np.zeros((2, 20, 40), bool)
    lungs[0, :, 2:22] = lungs[1, 5:15, 30:38] = True
    assert extent.middle(lungs) == 26
    assert extent.middle(lungs.swapaxes(1, 2), -2) == 26
    lungs[1, 5:8, 22:30] = True  # the lungs touch in front
    assert extent.middle(lungs) == 26


def test_slice_with_one_lung_has_the_depths_of_a_slice_with_two():
    both = np.zeros((1, 40, 60), bool)
    both[0, 5:35, 5:25] = both[0, 5:35, 35:55] = True
    one = both[0].copy()
    one[:, 30:] = False
    between = extent.middle(both)
    expected = extent.depth(both[0], (1.0, 1.0), between)
    found = extent.depth(one, (1.0, 1.0), between)
    np.testing.assert_array_equal(found[one], expected[one])
    assert found[20, 24] == 1  # next to the mediastinum
    assert extent.depth(one & False, (1.0, 1.0), between).max() == 0


@pytest.mark.parametrize("first", [5, 20])
def test_depth_is_not_measured_without_a_second_lung(first):
    lungs = np.zeros((3, 40, 60), bool)
    lungs[:, 5:35, first : first + 20] = True
    for speck in (False, True):
        lungs[0, 20, 50] = speck
        regions = {region for region, _ in measured(lungs.astype(np.uint8), lungs)}
        assert regions == {"lungs", *extent.HEIGHTS}
