"""Effects of changes on images, and on networks with known cue reliance."""

import numpy as np
import pytest

from twostage_jax.explain.measures import reliance


@pytest.fixture
def images():
    return np.random.default_rng(0).random((6, 16, 16, 1)).astype(np.float32)


def rng():
    return np.random.default_rng(1)


def test_changes_keep_size_and_range(images):
    named = reliance.changes(16)
    assert next(iter(named)) == reliance.UNCHANGED
    for name, changed in reliance.changed_images(images, named):
        assert changed.shape == images.shape and changed.dtype == np.float32, name
        assert changed.min() >= 0 and changed.max() <= 1, name
        same = np.array_equal(changed, images)
        assert same == (name == reliance.UNCHANGED), name


def test_shuffling_moves_whole_squares(images):
    shuffled = reliance.shuffle(images, rng(), 4)
    for before, after in zip(images[..., 0], shuffled[..., 0], strict=True):
        squares = [
            {
                picture[i : i + 4, j : j + 4].tobytes()
                for i in range(0, 16, 4)
                for j in range(0, 16, 4)
            }
            for picture in (before, after)
        ]
        assert squares[0] == squares[1]
    assert not np.array_equal(shuffled[0] == images[0], shuffled[1] == images[1])


def test_shuffling_leaves_what_fills_no_square(images):
    odd = images[:, :11, :13]
    shuffled = reliance.shuffle(odd, rng(), 4)
    np.testing.assert_array_equal(shuffled[:, 8:], odd[:, 8:])
    np.testing.assert_array_equal(shuffled[:, :, 12:], odd[:, :, 12:])
    np.testing.assert_allclose(shuffled.sum(), odd.sum(), rtol=1e-5)


def test_filters_part_an_image(images):
    mild = 0.4 + 0.2 * images
    low, high = (f(mild, rng(), 2.0) for f in (reliance.low_pass, reliance.high_pass))
    np.testing.assert_allclose(low + high - mild.mean(), mild, atol=1e-5)
    flat = reliance.low_pass(images, rng(), np.inf)
    np.testing.assert_allclose(flat[3], images[3].mean(), rtol=1e-5)
    # A wave of a whole number of periods is damped as a Gaussian says.
    wave = np.cos(2 * np.pi * 2 * (np.arange(16) + 0.5) / 16)
    stripes = np.tile(wave, (16, 1))[None, :, :, None]
    expected = np.exp(-2 * (np.pi * 2 / 16 * 1.5) ** 2) * stripes
    np.testing.assert_allclose(
        reliance.low_pass(stripes, rng(), 1.5), expected, atol=2e-3
    )


def test_contrast_is_scaled_about_the_mean(images):
    halved = reliance.contrast(images, rng(), 0.5)
    np.testing.assert_allclose(halved.mean((1, 2)), images.mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(halved.std((1, 2)), images.std((1, 2)) / 2, rtol=1e-4)


def bright_or_dark(count=80):
    """Returns images of two classes, which differ in brightness alone."""
    labels = np.arange(count) % 2
    noise = np.random.default_rng(0).random((count, 16, 16, 1)).astype(np.float32)
    return 0.3 * noise + 0.4 * labels.reshape(-1, 1, 1, 1).astype(np.float32), labels


def test_network_that_averages_is_indifferent_to_shuffling():
    images, labels = bright_or_dark()

    def classify(x):
        return (x.mean((1, 2, 3)) > 0.35).astype(int)

    found = reliance.scores(classify, images, labels, reliance.changes(16))
    assert found["unchanged"].accuracy == 1
    for name in ("shuffled 8 px", "shuffled 4 px", "shuffled 1 px", "mean only"):
        assert found[name] == reliance.Score(1.0, 1.0)
    assert found["mean removed"].kept < 0.3


def test_network_that_looks_at_the_layout_is_not():
    labels = np.arange(80) % 2
    images = np.full((80, 16, 16, 1), 0.2, np.float32)
    images[labels == 1, :8] = 0.8
    images[labels == 0, 8:] = 0.8

    def classify(x):
        return (x[:, :8].mean((1, 2, 3)) > x[:, 8:].mean((1, 2, 3))).astype(int)

    found = reliance.scores(classify, images, labels, reliance.changes(16))
    assert found["unchanged"].kept == 1 and found["mean removed"].kept == 1
    assert found["shuffled 4 px"].kept < 0.5
    assert found["mean only"].kept < 0.3


def test_share_kept_is_not_given_without_accuracy_above_chance(images):
    labels = np.arange(6) % 2
    found = reliance.scores(
        lambda x: np.zeros(len(x), int), images, labels, reliance.changes(16)
    )
    assert found["unchanged"] == reliance.Score(0.5, None)


def test_share_kept_is_not_given_of_next_to_nothing():
    images, labels = bright_or_dark(100)

    def right(count):
        answers = labels.copy()
        answers[count:] = 1 - answers[count:]
        return lambda x: answers

    named = {reliance.UNCHANGED: reliance.changes(16)[reliance.UNCHANGED]}

    def kept(count):
        found = reliance.scores(right(count), images, labels, named)
        return found["unchanged"].kept

    # 4 and 6 points above chance.
    assert kept(54) is None
    assert kept(56) == 1


def test_chance_is_that_of_the_classes_shown_and_not_of_all_that_are_known():
    """A network of five classes guesses one of the two shown on flat images."""
    images, labels = bright_or_dark()

    def classify(x):
        return 4 * labels if np.ptp(x[0]) else np.full(len(x), 4)

    found = reliance.scores(classify, images, 4 * labels, reliance.changes(16))
    assert found["unchanged"] == reliance.Score(1.0, 1.0)
    assert found["mean only"] == reliance.Score(0.5, 0.0)
    # An answer that is none of the classes shown is wrong.
    found = reliance.scores(
        lambda x: np.where(labels == 1, 4, 3), images, 4 * labels, reliance.changes(16)
    )
    assert found["unchanged"] == reliance.Score(0.5, None)
