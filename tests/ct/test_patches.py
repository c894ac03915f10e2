"""Positions of patches, and resampling."""

from pathlib import Path

import numpy as np
from basics import refused_at

from twostage_jax.ct.patches import (
    apart,
    check_size,
    choose,
    covered,
    regions_of,
    resample_image,
    resample_mask,
    resampled_shape,
)


def test_positions_and_coverage_of_a_simple_slice():
    # Class 0 fills columns 0-4 of a 6 x 8 slice. Patches of 4 at columns 0, 2, 4 cover
    # 4/4, 3/4 and 1/4 of their width, at rows 0 and 2.
    labels = np.zeros((6, 8), int)
    labels[:, :5] = 1

    def cut(coverage):
        found, _ = covered(labels, size=4, stride=2, coverage=[coverage])
        return found.tolist()

    assert cut(1.0) == [[0, 0, 0], [2, 0, 0]]
    assert cut(0.75) == [[0, 0, 0], [0, 2, 0], [2, 0, 0], [2, 2, 0]]
    assert len(cut(0.25)) == 6
    assert len(cut(0.26)) == 4


def test_patch_belongs_to_the_class_with_most_pixels_unless_tied():
    labels = np.array([[1, 1, 1, 2, 2, 1, 1, 2]] * 2)
    found, _ = covered(labels, size=2, stride=2, coverage=[0.5, 0.5])
    assert found.tolist() == [[0, 0, 0]]
    found, _ = covered(labels, size=2, stride=1, coverage=[0.5, 0.5])
    assert found.tolist() == [[0, 0, 0], [0, 1, 0], [0, 3, 1], [0, 5, 0]]


def test_each_class_has_its_own_coverage():
    labels = np.array([[1, 0, 2, 0]] * 2)
    found, _ = covered(labels, size=2, stride=2, coverage=[0.6, 0.5])
    assert found.tolist() == [[0, 2, 1]]


def test_pure_classes_exclude_pixels_of_others():
    labels = np.ones((4, 8), int)
    labels[0, 0] = 2
    found, _ = covered(labels, size=4, stride=4, coverage=[0.5, 0.5], pure=(0,))
    assert found.tolist() == [[0, 4, 0]]


def test_positions_agree_with_counting_pixel_by_pixel():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (23, 31))
    expected = []
    for row in range(0, 23 - 5 + 1, 3):
        for column in range(0, 31 - 5 + 1, 3):
            patch = labels[row : row + 5, column : column + 5]
            counts = [np.sum(patch == k + 1) for k in range(3)]
            top = max(counts)
            if counts.count(top) == 1 and top >= 0.36 * 25:
                expected.append([row, column, counts.index(top)])
    found, _ = covered(labels, size=5, stride=3, coverage=[0.36] * 3)
    assert expected
    assert found.tolist() == expected


def test_patch_of_the_size_of_the_slice_fits_and_a_larger_one_does_not():
    found, _ = covered(np.ones((4, 4), int), size=4, stride=9, coverage=[1.0])
    assert found.tolist() == [[0, 0, 0]]
    check_size((4, 4), 4, Path("a.dcm"))
    with refused_at("a.dcm"):
        check_size((4, 9), 5, Path("a.dcm"))


def test_choice_keeps_the_cap_and_repeats():
    classes = np.array([0] * 10 + [1] * 3 + [2] * 10)
    chosen = choose(classes, per_class=4, seed=0, patient="a")
    assert np.bincount(classes[chosen]).tolist() == [4, 3, 4]
    assert (np.diff(chosen) > 0).all()
    again = choose(classes, per_class=4, seed=0, patient="a")
    assert chosen.tolist() == again.tolist()
    others = [choose(classes, per_class=4, seed=s, patient="b") for s in range(4)]
    assert len({tuple(c) for c in [chosen, *others]}) > 1
    assert len(choose(classes, per_class=0, seed=0, patient="a")) == 23
    assert len(choose(classes[:0], per_class=4, seed=0, patient="a")) == 0


def test_resampling_keeps_the_field_of_view():
    assert resampled_shape((100, 50), (0.5, 1.0), 0.8, Path("a")) == (62, 62)
    with refused_at("spacing"):
        resampled_shape((512, 512), (0.5, 0.5), 0.001, Path("a"))
    # A ramp is unchanged in millimetres: value = position of the pixel centre.
    ramp = np.tile(np.arange(40) + 0.5, (8, 1))
    for new in (20, 80):
        found = resample_image(ramp, (8, new))
        expected = (np.arange(new) + 0.5) * 40 / new
        np.testing.assert_allclose(found[4, 4:-4], expected[4:-4], atol=1e-4)


def test_shrinking_does_not_alias_fine_texture():
    stripes = np.tile([0.0, 100.0], (60, 30))
    assert np.ptp(resample_image(stripes, (20, 20))[4:-4, 4:-4]) < 30


def test_masks_are_resampled_by_the_nearest_neighbour():
    mask = np.array([[1, 2], [3, 4]])
    assert resample_mask(mask, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    wide = np.repeat(np.arange(6), 2)[None]
    assert resample_mask(wide, (1, 6)).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_coverage_is_returned_with_each_patch():
    labels = np.zeros((4, 8), int)
    labels[:, :5] = 1
    places, shares = covered(labels, size=4, stride=2, coverage=[0.25])
    assert places.tolist() == [[0, 0, 0], [0, 2, 0], [0, 4, 0]]
    assert shares.tolist() == [1.0, 0.75, 0.25]


def test_better_covered_patches_are_kept_if_they_overlap():
    corners = np.array([[0, 0], [0, 1], [0, 2], [0, 4], [3, 4]])
    shares = np.array([0.7, 0.9, 0.8, 1.0, 0.95])

    def kept(overlap):
        return apart(corners, shares, size=4, overlap=overlap).tolist()

    # Patch 3 comes first; 4 overlaps it by 1/4, 2 by 1/2, 1 by 1/4.
    assert kept(0.0) == [0, 3]
    assert kept(0.25) == [1, 3, 4]
    # 2 overlaps 1, which is taken, by 3/4; so does 0.
    assert kept(0.5) == [1, 3, 4]
    assert kept(0.75) == [0, 1, 2, 3, 4]
    assert kept(1.0) == [0, 1, 2, 3, 4]


def test_patches_apart_agree_with_pairwise_counting():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 30, (80, 2))
    kept = apart(corners, rng.random(80), size=6, overlap=0.3)
    canvas = np.zeros((len(kept), 40, 40), bool)
    for image, (row, column) in zip(canvas, corners[kept], strict=True):
        image[row : row + 6, column : column + 6] = True
    flat = canvas.reshape(len(kept), -1).astype(int)
    shared = (flat @ flat.T) / 36
    np.fill_diagonal(shared, 0)
    assert 0 < shared.max() <= 0.3
    # Every other patch overlaps one of them by more.
    left = np.setdiff1d(np.arange(80), kept)
    for row, column in corners[left]:
        own = np.zeros((40, 40), bool)
        own[row : row + 6, column : column + 6] = True
        assert (flat @ own.ravel()).max() / 36 > 0.3


def test_regions_of_patches_are_numbered():
    labels = np.zeros((6, 12), int)
    labels[:, :4] = 1
    labels[:, 5:7] = 2
    labels[:, 8:] = 1
    places = np.array([[0, 0, 0], [2, 1, 0], [0, 8, 0], [0, 5, 1]])
    numbers = regions_of(labels, places, size=2)
    assert numbers[0] == numbers[1]
    assert len(set(numbers.tolist())) == 3
    assert numbers.min() > 0
