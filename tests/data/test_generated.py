"""Recipes of generated images: shapes and fractals, textures, phantoms."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from basics import refused_at

from twostage_jax.data.synthetic import natural, phantoms, textures

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
