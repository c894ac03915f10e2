"""Test images that training has seen under another name."""

import dataclasses
import logging

import numpy as np
import pytest
from basics import make_dataset
from small_study import datasets, parsed

from twostage_jax.data.splits import Splits, copies
from twostage_jax.study import plan

GROUPS = [f"p{i // 3}" for i in range(60)]


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


def test_images_of_one_value_are_no_copies(splits):
    dataset = make_dataset()
    assert copies(with_images(dataset, {3: 7, 51: 7}), splits) == ""


def test_study_warns_of_copies_before_training(caplog):
    made = make_dataset(seed=3, groups=GROUPS)
    # Every patient is there under two names.
    made = with_images(made, {i: made.images[i - 30] for i in range(30, 60)})
    config, sets = parsed(), datasets(target=made)
    with caplog.at_level(logging.WARNING):
        plan.check_data(config, sets, plan.rows(config, sets))
    [line] = [record.getMessage() for record in caplog.records]
    assert "pixel for pixel" in line
