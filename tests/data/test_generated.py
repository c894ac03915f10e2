"""Generated images: recipes of shapes and fractals, textures, phantoms; their parts."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from basics import refused_at

from twostage_jax.data.synthetic import natural, phantoms, textures
from twostage_jax.data.synthetic.textures import Surface

SMALL = {
    natural: {"size": 16, "classes": 12, "per_class": 12},
    textures: {"size": 16, "samples_per_class": 4, "views_per_sample": 3},
    phantoms: {"patients": 4, "slices": 1},
}
DRAWN = [natural, textures]


@functools.cache
def examples(source, **changes):
    """Returns the recipe with small settings, and its examples."""
    recipe = source.recipe(**{**SMALL[source], **changes})
    return recipe, [e for task in recipe.tasks for e in recipe.make(task)]


@pytest.mark.parametrize("source", DRAWN)
def test_images_have_the_requested_shape_and_differ(source):
    recipe, made = examples(source, channels=3)
    assert len({e.id for e in made}) == len(made) == len(recipe.class_names) * 12
    assert {(e.image.shape, e.image.dtype.str) for e in made} == {((16, 16, 3), "|u1")}
    assert len({e.image.tobytes() for e in made}) == len(made)
    assert min(e.image.std() for e in made) > 3


def test_classes_of_shapes_are_balanced_in_each_split():
    recipe, made = examples(natural, channels=3)
    assert len(set(recipe.class_names)) == 12
    for label in range(12):
        splits = [e.split for e in made if e.label == label]
        assert (splits.count("train"), splits.count("test")) == (10, 2)


def test_samples_of_textures_are_not_split():
    recipe, made = examples(textures, channels=3)
    assert len(recipe.class_names) >= 12
    for split, count in (("train", 3), ("test", 1)):
        for label in range(len(recipe.class_names)):
            own = [e for e in made if e.label == label]
            samples = {e.group for e in own if e.split == split}
            assert len(samples) == count
            assert not samples & {e.group for e in own if e.split != split}


@pytest.mark.parametrize("source", DRAWN)
def test_images_depend_on_the_seed_and_not_on_the_order_of_tasks(source):
    recipe, made = examples(source)
    again = pickle.loads(pickle.dumps(recipe))
    backwards = {e.id: e for task in recipe.tasks[::-1] for e in again.make(task)}
    for example in made:
        np.testing.assert_array_equal(example.image, backwards[example.id].image)
    _, other = examples(source, seed=1)
    assert all((a.image != b.image).any() for a, b in zip(made, other, strict=True))


def test_images_do_not_depend_on_the_size_of_tasks():
    recipe, made = examples(natural)
    alone = recipe.make(dataclasses.replace(recipe.tasks[3], first=5, last=6))
    (same,) = (e for e in made if e.id == alone[0].id)
    np.testing.assert_array_equal(alone[0].image, same.image)


def test_more_samples_do_not_change_the_first_ones():
    _, few = examples(textures)
    _, more = examples(textures, samples_per_class=11)
    images = {e.id: e.image for e in more}
    assert all((images[e.id] == e.image).all() for e in few)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (natural, ({"size": 20}, {"channels": 3}, {"classes": 11}, {"per_class": 13})),
        (
            textures,
            (
                {"size": 20},
                {"channels": 3},
                {"samples_per_class": 5},
                {"views_per_sample": 4},
            ),
        ),
        (phantoms, ({"size": 48}, {"slices": 2}, {"patients": 12})),
    ],
)
def test_key_changes_with_every_setting(source, changes):
    settings = ({}, {"seed": 1}, *changes)
    keys = [source.recipe(**{**SMALL[source], **change}).key for change in settings]
    assert len(set(keys)) == len(keys)
    assert source.recipe(**SMALL[source]).key == keys[0]


@pytest.mark.parametrize(
    ("source", "setting", "value"),
    [
        (natural, "size", 8),
        (natural, "channels", 2),
        (natural, "classes", 17),
        (natural, "classes", 1),
        (natural, "per_class", 5),
        (textures, "size", 8),
        (textures, "channels", 2),
        (textures, "samples_per_class", 1),
        (textures, "views_per_sample", 0),
        (phantoms, "patients", 3),
        (phantoms, "slices", 0),
        (phantoms, "seed", -1),
        (phantoms, "coverage", 0),
        (phantoms, "spacing", 0.0),
    ],
)
def test_setting_out_of_range_is_refused(source, setting, value):
    with refused_at(setting):
        source.recipe(**{setting: value})


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (natural, {"per_class": 60}),
        (textures, {"samples_per_class": 12, "views_per_sample": 4}),
    ],
)
def test_brightness_does_not_distinguish_the_classes(source, changes):
    _, made = examples(source, **changes)
    features = np.array([[e.image.mean(), e.image.std()] for e in made])
    # Contrast is a property of textures.
    features = features[:, :1] if source is textures else features
    labels = np.array([e.label for e in made])
    train = np.array([e.split == "train" for e in made])
    features = features / features[train].std(axis=0)
    means = np.stack([features[train & (labels == k)].mean(0) for k in set(labels)])
    distance = np.linalg.norm(features[~train][:, None] - means, axis=-1)
    assert (distance.argmin(axis=1) == labels[~train]).mean() < 0.25


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
