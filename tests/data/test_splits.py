"""Splits, subsets of the training examples, and copies across splits."""

import dataclasses
import logging

import numpy as np
import pytest
from basics import make_dataset, refused_at
from hypothesis import given, settings
from hypothesis import strategies as st
from small_study import datasets, parsed

from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import Splits, copies, split, subset
from twostage_jax.errors import UserError
from twostage_jax.study import plan

GROUPS = [f"p{i // 3}" for i in range(60)]
NAMES = ("a", "b", "c", "d")


def dataset(labels, groups=None, splits=None, classes=None):
    labels = np.asarray(labels, np.int32)
    size = len(labels)
    return Dataset(
        name="toy",
        kind="ct",
        class_names=NAMES[: classes or labels.max() + 1],
        images=np.zeros((size, 1, 1, 1), np.uint8),
        labels=labels,
        groups=None if groups is None else np.array([f"g{g:03d}" for g in groups]),
        ids=np.array([f"{i:05d}" for i in range(size)]),
        splits=np.full(size, "train") if splits is None else np.array(splits),
        fingerprint="",
    )


def patients(count=16, each=10, classes=2):
    groups = np.repeat(np.arange(count), each)
    return dataset(np.arange(count * each) % classes, groups)


def parts(splits):
    return splits.train, splits.validation, splits.test


def assert_partition(data, splits):
    together = np.concatenate(parts(splits))
    assert sorted(together) == list(range(len(data)))
    for part in parts(splits):
        assert len(part) and (np.diff(part) > 0).all()
    if data.groups is not None:
        sets = [set(data.groups[part]) for part in parts(splits)]
        assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert set(data.labels[splits.train]) == set(range(data.num_classes))


@st.composite
def unequal_groups(draw):
    """Groups of 1 to 60 examples, most of them of few classes."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=3, max_size=25))
    classes = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = [
        rng.choice(classes, size, p=rng.dirichlet(np.full(classes, 0.3)))
        for size in sizes
    ]
    groups = np.repeat(rng.permutation(len(sizes)), sizes)
    return dataset(np.concatenate(labels), groups, classes=classes)


@settings(max_examples=60, deadline=None)
@given(unequal_groups(), st.integers(0, 5), st.sampled_from([0.1, 0.2, 0.25, 0.4]))
def test_groups_are_not_split(data, seed, share):
    try:
        splits = split(data, seed=seed, validation=share, test=share)
    except UserError:
        return
    assert_partition(data, splits)


@settings(max_examples=60, deadline=None)
@given(unequal_groups(), st.integers(0, 5), st.sampled_from(["group", "patch"]))
def test_parts_of_the_training_examples_are_nested(data, seed, by):
    indices = np.flatnonzero(np.arange(len(data)) % 5)
    previous = np.array([], int)
    for fraction in (0.05, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0):
        try:
            chosen = subset(data, indices, fraction, seed=seed, by=by)
        except UserError:
            assert fraction < 1 or len(set(data.labels[indices])) < data.num_classes
            continue
        assert set(previous) <= set(chosen) <= set(indices)
        assert len(set(chosen)) == len(chosen)
        groups = np.unique(data.groups[indices])
        if by == "group":
            taken = np.unique(data.groups[chosen])
            assert len(taken) == max(round(fraction * len(groups)), 1)
            np.testing.assert_array_equal(
                chosen, indices[np.isin(data.groups[indices], taken)]
            )
        previous = chosen
    if len(set(data.labels[indices])) == data.num_classes:
        np.testing.assert_array_equal(previous, indices)


def test_shares_are_met_where_groups_allow_it():
    data = patients()
    splits = split(data, seed=3, validation=0.25, test=0.25)
    assert_partition(data, splits)
    assert [len(part) for part in parts(splits)] == [90, 30, 40]
    for part in parts(splits):
        assert (data.labels[part] == 0).mean() == 0.5


def test_shares_that_are_not_one_of_n():
    splits = split(patients(20), seed=0, validation=0.3, test=0.4)
    assert len(splits.test) == 80
    assert len(splits.validation) == pytest.approx(0.3 * 120, abs=10)


def test_examples_are_split_without_groups():
    data = dataset(np.repeat([0, 1], [300, 100]))
    splits = split(data, seed=0)
    assert_partition(data, splits)
    assert [len(part) for part in parts(splits)] == [240, 60, 100]
    assert (data.labels[splits.test] == 1).sum() == 25


def test_seeds_test_different_patients_of_unequal_size():
    sizes = np.arange(1, 18) * 5
    groups = np.repeat(np.arange(17), sizes)
    data = dataset(np.arange(len(groups)) % 3, groups)
    tests = [split(data, seed=seed).test for seed in range(6)]
    assert len({tuple(np.unique(groups[test])) for test in tests}) >= 4
    for test in tests:
        assert len(test) / len(data) == pytest.approx(0.25, abs=0.08)


def test_few_groups_that_have_every_class_are_drawn_first():
    # Two of many patients have class c: any 10 % must contain one of them.
    labels = np.concatenate([np.arange(58) % 2, [2, 2]])
    data = dataset(np.repeat(labels, 3), np.repeat(np.arange(60), 3))
    for seed in range(5):
        chosen = subset(data, np.arange(180), 0.05, seed=seed)
        assert set(data.labels[chosen]) == {0, 1, 2}


def test_seed_alone_decides():
    data = patients(40)
    first, again, other = (split(data, seed=seed) for seed in (1, 1, 2))
    for a, b in zip(parts(first), parts(again), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(first.test) != set(other.test)


def test_every_group_is_tested_once_over_the_folds():
    data = patients(13, each=7)
    tested = []
    for fold in range(5):
        splits = split(data, seed=4, folds=5, fold=fold)
        assert_partition(data, splits)
        tested.append(splits.test)
    assert sorted(np.concatenate(tested)) == list(range(len(data)))


def test_own_splits_are_taken():
    labels = np.arange(40) % 2
    names = np.repeat(["train", "validation", "test"], [20, 10, 10])
    splits = split(dataset(labels, splits=names), seed=0)
    assert [part.tolist() for part in parts(splits)] == [
        list(range(20)),
        list(range(20, 30)),
        list(range(30, 40)),
    ]
    names = np.repeat(["train", "test"], [30, 10])
    splits = split(dataset(labels, splits=names), seed=0)
    assert splits.test.tolist() == list(range(30, 40))
    assert len(splits.validation) == 6 and max(splits.validation) < 30
    names = np.repeat(["train", "validation"], [30, 10])
    splits = split(dataset(labels, splits=names), seed=0)
    assert splits.validation.tolist() == list(range(30, 40))
    assert max(splits.test) < 30


def test_a_split_that_keeps_every_class_is_found():
    # Class c is in two of twelve patients: they must not both be tested.
    labels = np.repeat([0, 1] * 5 + [2, 2], 10)
    data = dataset(labels, np.repeat(np.arange(12), 10))
    for seed in range(8):
        splits = split(data, seed=seed, validation=0.2, test=0.25)
        assert 2 in data.labels[splits.train]


@pytest.mark.parametrize(
    ("data", "options", "where"),
    [
        (patients(2), {}, "toy"),
        (patients(4), {"folds": 5}, "toy"),
        (patients(), {"test": 0.0}, "test"),
        (patients(), {"validation": 1.0}, "validation"),
        (patients(), {"folds": 1}, "folds"),
        (patients(), {"folds": 3, "fold": 3}, "folds"),
        (dataset(np.zeros(9, int)), {}, "toy"),
        (
            dataset([0, 1] * 4, [0, 1, 2, 3, 4, 5, 6, 0], ["train"] * 7 + ["test"]),
            {},
            "toy",
        ),
        (
            dataset([0, 1] * 4, splits=["train"] * 7 + ["test"]),
            {"folds": 2},
            "folds",
        ),
        (
            dataset([0, 1, 0, 1, 0, 2], splits=["train"] * 5 + ["test"]),
            {},
            "toy",
        ),
        (dataset([0, 1] * 4, splits=["test"] * 8), {}, "toy"),
    ],
)
def test_impossible_splits_are_refused(data, options, where):
    with refused_at(where):
        split(data, seed=0, **options)


def test_fraction_by_group_covers_classes_in_turn():
    # Ten patients of class a, five of b, one of both c and a.
    labels = np.repeat([0] * 10 + [1] * 5 + [2], 4)
    labels[-1] = 0
    data = dataset(labels, np.repeat(np.arange(16), 4))
    for seed in range(10):
        chosen = subset(data, np.arange(64), 0.25, seed=seed)
        assert sorted(labels[chosen][::4]) == [0, 0, 1, 2]


def test_fraction_by_patch_keeps_class_shares_and_every_patient():
    data = patients(8, each=40, classes=4)
    indices = np.arange(len(data))
    chosen = subset(data, indices, 0.25, seed=0, by="patch")
    assert np.bincount(data.labels[chosen]).tolist() == [20] * 4
    counts = np.unique(data.groups[chosen], return_counts=True)[1]
    assert len(counts) == 8 and counts.min() >= 6 and counts.max() <= 14


def test_fraction_of_a_set_without_groups():
    data = dataset(np.arange(100) % 2)
    np.testing.assert_array_equal(
        subset(data, np.arange(100), 0.1, seed=0, by="group"),
        subset(data, np.arange(100)[::-1], 0.1, seed=0, by="patch"),
    )


def test_fraction_that_empties_a_class_is_named():
    data = dataset([0] * 50 + [1] * 3)
    with refused_at("toy"):
        subset(data, np.arange(53), 0.1, seed=0)
    one_patient_each = dataset(np.repeat([0, 1, 2], 5), np.repeat([0, 1, 2], 5))
    with refused_at("toy"):
        subset(one_patient_each, np.arange(15), 0.3, seed=0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_fraction_out_of_range(fraction):
    with refused_at("fraction"):
        subset(patients(), np.arange(10), fraction, seed=0)


def test_unknown_way_to_draw():
    with refused_at("by"):
        subset(patients(), np.arange(10), 0.5, seed=0, by="lesion")


def test_only_labels_groups_and_splits_matter():
    data = patients()
    other = dataclasses.replace(data, images=None, fingerprint="x", name="y")
    np.testing.assert_array_equal(split(data, seed=0).test, split(other, seed=0).test)


def test_folds_of_other_seeds_separate_any_two_groups():
    """Even groups with unique class counts, so that training sets really differ."""
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 200, (17, 2))
    labels = np.concatenate([np.repeat([0, 1], pair) for pair in counts])
    data = dataset(labels, np.repeat(np.arange(17), counts.sum(1)))
    groups = data.groups
    together = np.zeros((17, 17))
    seeds = 40
    for seed in range(seeds):
        tested = np.unique(groups[split(data, seed=seed, folds=2, fold=0).test])
        inside = np.isin(np.unique(groups), tested)
        assert inside.sum() in (8, 9)
        shares = [np.mean(np.isin(groups[labels == k], tested)) for k in (0, 1)]
        assert all(0.35 < share < 0.65 for share in shares)
        together += inside[:, None] == inside
    apart = seeds - together[~np.eye(17, dtype=bool)]
    assert apart.min() > 5 and apart.max() < seeds - 5


@pytest.fixture
def splits():
    return Splits(np.arange(40), np.arange(40, 50), np.arange(50, 60))


def with_images(dataset, changes):
    images = dataset.images.copy()
    for index, image in changes.items():
        images[index] = image
    return dataclasses.replace(dataset, images=images)


def test_copies_are_counted_and_named(splits):
    dataset = make_dataset(groups=GROUPS)
    assert copies(dataset, splits) == ""
    dataset = with_images(dataset, {51: dataset.images[3], 55: dataset.images[44]})
    line = copies(dataset, splits)
    assert "2 of 10 test images" in line
    assert "example0051 of p17 = example0003 of p1; example0055 of p18 = " in line


def test_copies_in_another_class_are_named(splits):
    dataset = make_dataset(groups=GROUPS)
    first, *others = splits.train
    other = next(i for i in others if dataset.labels[i] != dataset.labels[first])
    line = copies(with_images(dataset, {other: dataset.images[first]}), splits)
    assert "1 images have a copy" in line
    assert f"example{other:04d} of " in line and f"example{first:04d} of " in line


def test_constant_images_are_not_copies(splits):
    dataset = make_dataset()
    assert copies(with_images(dataset, {3: 7, 51: 7}), splits) == ""


def test_study_warns_of_copies_before_training(caplog):
    made = make_dataset(seed=3, groups=GROUPS)
    # Every patient has two names.
    made = with_images(made, {i: made.images[i - 30] for i in range(30, 60)})
    config, sets = parsed(), datasets(target=made)
    with caplog.at_level(logging.WARNING):
        plan.check_data(config, sets, plan.rows(config, sets))
    [line] = [record.getMessage() for record in caplog.records]
    assert "pixel for pixel" in line
