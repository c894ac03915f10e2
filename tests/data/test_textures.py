import pickle

import numpy as np
import pytest
from basics import refused_at

from twostage_jax.data.synthetic import textures
from twostage_jax.data.synthetic.textures import Surface

SMALL = {"size": 16, "samples_per_class": 4, "views_per_sample": 3}


def examples(**settings):
    recipe = textures.recipe(**settings)
    return recipe, [e for task in recipe.tasks for e in recipe.make(task)]


def test_images_have_the_asked_shape_and_each_class_its_samples():
    recipe, made = examples(**SMALL, channels=3)
    assert len(recipe.class_names) >= 12
    assert len({e.id for e in made}) == len(made) == len(recipe.class_names) * 4 * 3
    assert {(e.image.shape, e.image.dtype.str) for e in made} == {((16, 16, 3), "|u1")}
    for label in range(len(recipe.class_names)):
        assert len({e.group for e in made if e.label == label}) == 4


def test_no_sample_is_in_train_and_test():
    recipe, made = examples(**SMALL)
    groups = {s: {e.group for e in made if e.split == s} for s in ("train", "test")}
    assert not groups["train"] & groups["test"]
    for split, count in (("train", 3), ("test", 1)):
        per_class = [
            len({e.group for e in made if e.label == label and e.split == split})
            for label in range(len(recipe.class_names))
        ]
        assert set(per_class) == {count}


def test_images_depend_on_the_seed_and_not_on_the_order_of_tasks():
    recipe, made = examples(**SMALL)
    again = pickle.loads(pickle.dumps(recipe))
    backwards = {e.id: e for task in recipe.tasks[::-1] for e in again.make(task)}
    for example in made:
        np.testing.assert_array_equal(example.image, backwards[example.id].image)
    _, other = examples(**SMALL, seed=1)
    assert all((a.image != b.image).any() for a, b in zip(made, other, strict=True))


def test_more_samples_leave_the_earlier_ones_as_they_are():
    _, few = examples(**SMALL)
    _, more = examples(**{**SMALL, "samples_per_class": 13})
    images = {e.id: e.image for e in more}
    assert all((images[e.id] == e.image).all() for e in few)


def test_views_and_samples_all_differ_and_have_contrast():
    _, made = examples(**SMALL)
    assert len({e.image.tobytes() for e in made}) == len(made)
    assert min(e.image.std() for e in made) > 3


def test_key_changes_with_every_setting():
    changes = ({}, {"size": 20}, {"channels": 3}, {"samples_per_class": 5})
    changes = (*changes, {"views_per_sample": 4}, {"seed": 1})
    assert len({textures.recipe(**{**SMALL, **c}).key for c in changes}) == 6


@pytest.mark.parametrize(
    "settings",
    [{"size": 8}, {"channels": 2}, {"samples_per_class": 1}, {"views_per_sample": 0}],
)
def test_setting_out_of_range_is_named(settings):
    with refused_at(next(iter(settings))):
        textures.recipe(**settings)


def test_brightness_does_not_tell_the_classes():
    _, made = examples(**{**SMALL, "samples_per_class": 12, "views_per_sample": 4})
    means = np.array([e.image.mean() for e in made])
    labels = np.array([e.label for e in made])
    train = np.array([e.split == "train" for e in made])
    centres = np.array(
        [means[train & (labels == k)].mean() for k in range(labels.max() + 1)]
    )
    guess = np.abs(means[~train][:, None] - centres).argmin(axis=1)
    assert (guess == labels[~train]).mean() < 0.25


def test_a_slope_that_faces_the_light_is_lit_by_lamberts_law():
    pixels = 20
    x = textures.grid(textures.SIDE, pixels).x
    # It rises along x by 45 degrees; the light stands at 45 degrees.
    surface = Surface(height=x, albedo=np.full_like(x, 0.5))
    light = {"elevation": np.pi / 4, "diffuse": 0.2}
    away, _ = textures.shade(surface, azimuth=0.0, **light)
    towards, highlight = textures.shade(surface, azimuth=np.pi, **light)
    # Relative to level ground: 1 / sin(45 degrees) head on, nothing along the surface.
    np.testing.assert_allclose(towards, 0.5 * (0.2 + 0.8 * np.sqrt(2)), rtol=1e-4)
    np.testing.assert_allclose(away, 0.5 * 0.2, rtol=1e-4)
    assert not highlight.any()


def test_noise_keeps_to_its_spectrum():
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


def test_jittered_cells_have_no_seams():
    at = textures.grid(2.0, 24)
    found = textures.cells(np.random.default_rng(3), at.x, at.y, 2.5, 1.0)
    # A distance to a centre changes by at most the distance walked.
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
