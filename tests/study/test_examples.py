"""Examples for the report: chosen by hand from sets with known answers."""

import dataclasses

import numpy as np
import pytest
from basics import make_dataset

from twostage_jax.study import artifacts, results

WINDOW = (-600.0, 1500.0)


def test_each_class_shows_examples_spread_over_the_set():
    shown = results.of_each_class(make_dataset(count=60), WINDOW, per_class=4)
    assert shown["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert shown["class_names"].tolist() == ["a", "b", "c"]
    # Class 0 has the examples 0, 3, ..., 57: the first and the last are among them.
    made = make_dataset(count=60)
    np.testing.assert_array_equal(shown["images"][0], made.images[0])
    np.testing.assert_array_equal(shown["images"][3], made.images[57])


def test_a_small_class_shows_each_example_once():
    shown = results.of_each_class(make_dataset(count=7), WINDOW, per_class=4)
    assert shown["labels"].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert len(np.unique(shown["images"], axis=0)) == 7


def save(path, dataset, indices, right):
    """Writes predictions in which the true class has the probabilities `right`."""
    indices = np.asarray(indices)
    probabilities = np.zeros((len(indices), 3))
    rows = np.arange(len(indices))
    labels = dataset.labels[indices]
    probabilities[rows, labels] = right
    probabilities[rows, (labels + 1) % 3] = 1 - np.asarray(right)
    artifacts.save_predictions(path, dataset, indices, probabilities)
    return path


def test_worst_mistakes_are_the_most_confident_over_all_seeds(tmp_path):
    dataset = make_dataset(count=9, groups=np.array([f"p{i}" for i in range(9)]))
    # Example 4: wrong for one seed, right in the mean. 5 is wrong, 7 is worse.
    one = save(tmp_path / "0.npz", dataset, [4, 5, 7], [0.2, 0.4, 0.1])
    two = save(tmp_path / "1.npz", dataset, [7, 5, 4], [0.3, 0.2, 0.9])
    other = save(tmp_path / "2.npz", dataset, [4, 5, 7], [0.1, 0.9, 0.9])
    found = results.worst_mistakes(
        dataset,
        WINDOW,
        [("mine", one), ("mine", two), ("theirs", other)],
    )
    assert found["arm"].tolist() == ["mine", "mine", "theirs"]
    assert found["ids"].tolist() == ["example0007", "example0005", "example0004"]
    assert found["groups"].tolist() == ["p7", "p5", "p4"]
    assert found["labels"].tolist() == [1, 2, 1]
    np.testing.assert_allclose(found["probabilities"][0], [0, 0.2, 0.8])
    np.testing.assert_allclose(found["probabilities"][1], [0.7, 0, 0.3])
    np.testing.assert_array_equal(found["images"], dataset.images[[7, 5, 4]])


def test_no_more_mistakes_than_asked_for_and_none_is_no_error(tmp_path):
    dataset = make_dataset(count=9)
    wrong = save(tmp_path / "0.npz", dataset, range(9), np.linspace(0.1, 0.4, 9))
    right = save(tmp_path / "1.npz", dataset, range(9), np.full(9, 0.9))

    def found(path):
        return results.worst_mistakes(dataset, WINDOW, [("arm", path)], count=4)

    assert found(wrong)["ids"].tolist() == [f"example{i:04d}" for i in range(4)]
    assert found(wrong)["groups"].tolist() == [""] * 4
    assert found(right)["images"].shape == (0, 8, 8, 1)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 7, 255], np.uint8, [0, 7, 255]),
        # Centre -600, width 1500: from -1350 to 150 HU.
        ([-2000, -1350, -600, 150, 900], np.int16, [0, 0, 128, 255, 255]),
        ([-0.5, 0.0, 0.2, 1.0], np.float32, [0, 0, 51, 255]),
    ],
)
def test_images_are_shown_as_8_bit_through_the_window(values, dtype, expected):
    images = np.array(values, dtype).reshape(-1, 1, 1, 1)
    shown = results.shown(images, WINDOW)
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown.ravel(), expected)


def test_examples_on_disk_are_read_one_class_at_a_time():
    """A random-access source has indices, not slices."""

    class Source:
        def __init__(self, images):
            self.images, self.shape, self.dtype = images, images.shape, images.dtype

        def __getitem__(self, indices):
            return self.images[np.asarray(indices)]

    dataset = make_dataset()
    lazy = dataclasses.replace(dataset, images=Source(dataset.images))
    one = results.of_each_class(dataset, WINDOW)
    other = results.of_each_class(lazy, WINDOW)
    np.testing.assert_array_equal(one["images"], other["images"])
