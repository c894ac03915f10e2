import dataclasses
import pickle

import numpy as np
import pytest
from basics import refused_at

from twostage_jax.data.synthetic import natural

SMALL = {"size": 16, "classes": 12, "per_class": 12}


def examples(**settings):
    recipe = natural.recipe(**settings)
    return recipe, [e for task in recipe.tasks for e in recipe.make(task)]


def test_images_have_the_asked_shape_and_classes_are_balanced():
    recipe, made = examples(**SMALL, channels=3)
    assert len({e.id for e in made}) == len(made) == 12 * 12
    assert len(recipe.class_names) == len(set(recipe.class_names)) == 12
    assert recipe.kind == "natural"
    assert {(e.image.shape, e.image.dtype.str) for e in made} == {((16, 16, 3), "|u1")}
    for label in range(12):
        splits = [e.split for e in made if e.label == label]
        assert (splits.count("train"), splits.count("test")) == (10, 2)


def test_images_depend_on_the_seed_and_not_on_the_order_or_size_of_tasks():
    recipe, made = examples(**SMALL)
    again = pickle.loads(pickle.dumps(recipe))
    backwards = {e.id: e for task in recipe.tasks[::-1] for e in again.make(task)}
    for example in made:
        np.testing.assert_array_equal(example.image, backwards[example.id].image)
    alone = recipe.make(dataclasses.replace(recipe.tasks[3], first=5, last=6))
    (same,) = (e for e in made if e.id == alone[0].id)
    np.testing.assert_array_equal(alone[0].image, same.image)
    _, other = examples(**SMALL, seed=1)
    assert all((a.image != b.image).any() for a, b in zip(made, other, strict=True))


def test_key_changes_with_every_setting():
    changes = ({}, {"size": 20}, {"channels": 3}, {"classes": 11}, {"per_class": 13})
    keys = {natural.recipe(**{**SMALL, **c}).key for c in (*changes, {"seed": 1})}
    assert len(keys) == 6
    assert natural.recipe(**SMALL).key == natural.recipe(**SMALL).key


@pytest.mark.parametrize(
    "settings",
    [{"size": 8}, {"channels": 2}, {"classes": 17}, {"classes": 1}, {"per_class": 5}],
)
def test_setting_out_of_range_is_named(settings):
    with refused_at(next(iter(settings))):
        natural.recipe(**settings)


def test_brightness_and_contrast_do_not_tell_the_classes():
    recipe, made = examples(**{**SMALL, "per_class": 60})
    features = np.array([[e.image.mean(), e.image.std()] for e in made])
    labels = np.array([e.label for e in made])
    train = np.array([e.split == "train" for e in made])
    assert nearest_mean_accuracy(features, labels, train) < 0.25


def nearest_mean_accuracy(features, labels, train):
    features = features / features[train].std(axis=0)
    means = np.stack(
        [features[train & (labels == k)].mean(axis=0) for k in range(labels.max() + 1)]
    )
    distance = np.linalg.norm(features[~train][:, None] - means[None], axis=-1)
    return (distance.argmin(axis=1) == labels[~train]).mean()


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
