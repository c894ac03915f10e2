"""Windows, normalisation and augmentation by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from twostage_jax.config import AugmentConfig
from twostage_jax.train import augment

LUNG = (-600.0, 1500.0)


def test_window_maps_its_edges_to_zero_and_one():
    hu = jnp.array([-2000, -1350, -600, 150, 3000], jnp.int16).reshape(1, 5, 1)
    unit = augment.to_unit(hu, LUNG, 1)
    np.testing.assert_allclose(unit.ravel(), [0, 0, 0.5, 1, 1])


def test_three_windows_become_three_channels():
    hu = jnp.array([-600, 40], jnp.int16).reshape(1, 2, 1)
    unit = augment.to_unit(hu, (-600.0, 1200.0, 40.0, 400.0, 0.0, 2000.0), 3)
    np.testing.assert_allclose(unit[0, 0], [0.5, 0, 0.2], atol=1e-6)
    np.testing.assert_allclose(unit[0, 1], [1, 0.5, 0.52], atol=1e-6)


def test_bytes_are_divided_by_255_and_grey_is_repeated():
    images = jnp.array([0, 255], jnp.uint8).reshape(1, 2, 1)
    unit = augment.to_unit(images, LUNG, 3)
    np.testing.assert_allclose(unit[0], [[0, 0, 0], [1, 1, 1]])


def one(image, settings, key=0, size=None, window=LUNG):
    return augment.augment(
        jax.random.key(key),
        image,
        settings=settings,
        window=window,
        channels=1,
        size=size or image.shape[0],
    )


def test_no_augmentation_leaves_the_image():
    image = jnp.arange(64, dtype=jnp.uint8).reshape(8, 8, 1)
    np.testing.assert_allclose(one(image, AugmentConfig()), image / 255, rtol=1e-6)


def test_dihedral_gives_all_eight_turns_and_no_other():
    image = jnp.arange(9, dtype=jnp.float32).reshape(3, 3, 1) / 9
    plain = np.asarray(image[..., 0])
    turns = {np.rot90(flip, k).tobytes() for flip in (plain, plain.T) for k in range(4)}
    seen = {
        np.asarray(one(image, AugmentConfig(flip="dihedral"), key)[..., 0]).tobytes()
        for key in range(64)
    }
    assert seen == turns


def test_orientations_are_those_that_the_flips_draw_from():
    image = jnp.arange(9, dtype=jnp.float32).reshape(3, 3, 1) / 9
    for flip in ("none", "horizontal", "dihedral"):
        drawn = {
            np.asarray(one(image, AugmentConfig(flip=flip), key)).tobytes()
            for key in range(64)
        }
        count = AugmentConfig(flip=flip, average=True).orientations
        views = augment.views(AugmentConfig(flip=flip, average=True), 3, 3, 3)
        listed = [np.asarray(augment.seen(image, view, 3)).tobytes() for view in views]
        assert set(listed) == drawn and len(views) == len(drawn) == count
        (centre,) = augment.views(AugmentConfig(flip=flip), 3, 3, 3)
        assert np.array_equal(augment.seen(image, centre, 3), image)


def test_views_are_the_fewest_windows_that_cover_an_image_evenly():
    image = jnp.arange(7 * 5).reshape(7, 5, 1)
    whole = augment.views(AugmentConfig(average=True), 7, 5, 3)
    corners = [(0, top, left) for top in (0, 2, 4) for left in (0, 2)]
    assert [tuple(map(int, view)) for view in whole] == corners
    pieces = [np.asarray(augment.seen(image, view, 3)) for view in whole]
    for (_, top, left), piece in zip(corners, pieces, strict=True):
        assert np.array_equal(piece, image[top : top + 3, left : left + 3])
    assert set(np.concatenate(pieces).ravel()) == set(range(35))
    (centre,) = augment.views(AugmentConfig(flip="dihedral"), 7, 5, 3)
    assert tuple(centre) == (0, 2, 1)


def test_shift_moves_the_crop_over_mirrored_edges():
    image = jnp.arange(16, dtype=jnp.float32).reshape(4, 4, 1) / 16
    padded = np.pad(np.asarray(image[..., 0]), 1, mode="reflect")
    windows = {
        padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)
    }
    seen = {
        np.asarray(one(image, AugmentConfig(shift=1), key)[..., 0]).tobytes()
        for key in range(64)
    }
    assert seen == windows


def test_larger_stored_images_are_cropped():
    image = jnp.zeros((10, 10, 1), jnp.uint8)
    assert one(image, AugmentConfig(), size=6).shape == (6, 6, 1)
    centre = augment.centre_crop(jnp.arange(100).reshape(1, 10, 10, 1), 6)
    assert centre[0, 0, 0, 0] == 22


def test_window_jitter_changes_only_images_in_hu():
    settings = AugmentConfig(window=0.2)
    grey = jnp.full((4, 4, 1), 100, jnp.uint8)
    hu = jnp.full((4, 4, 1), -600, jnp.int16)
    np.testing.assert_allclose(one(grey, settings), 100 / 255, rtol=1e-6)
    assert abs(float(one(hu, settings)[0, 0, 0]) - 0.5) > 1e-3


def test_augmented_values_stay_in_range():
    image = jnp.arange(64, dtype=jnp.float32).reshape(8, 8, 1) / 63
    settings = AugmentConfig(brightness=0.5, contrast=0.5)
    for key in range(20):
        changed = one(image, settings, key)
        assert changed.min() >= 0 and changed.max() <= 1


def test_patch_normalisation_leaves_structure_only():
    rng = np.random.default_rng(0)
    image = rng.random((1, 8, 8, 1), np.float32)
    zero, unit = np.zeros(1, np.float32), np.ones(1, np.float32)
    a = augment.normalise(jnp.asarray(image), "patch", zero, unit)
    b = augment.normalise(jnp.asarray(0.3 + 0.5 * image), "patch", zero, unit)
    np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose([a.mean(), a.std()], [0, 1], atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_constant_patch_does_not_blow_up(value):
    image = jnp.full((1, 8, 8, 1), value)
    zero, unit = np.zeros(1, np.float32), np.ones(1, np.float32)
    normal = augment.normalise(image, "patch", zero, unit)
    assert float(jnp.abs(normal).max()) < 1e-3


def test_fixed_normalisation_by_hand():
    image = jnp.full((1, 2, 2, 1), 0.75)
    mean, deviation = np.full(1, 0.5, np.float32), np.full(1, 0.25, np.float32)
    np.testing.assert_allclose(augment.normalise(image, "fixed", mean, deviation), 1)
