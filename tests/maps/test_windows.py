"""Windows along an axis, their weights, and their average."""

import numpy as np
import pytest

from twostage_jax.maps import classify


@pytest.mark.parametrize(
    ("length", "size", "stride", "expected"),
    [
        (10, 4, 2, [0, 2, 4, 6]),
        (10, 4, 4, [0, 4, 6]),  # the last window ends with the axis
        (4, 4, 8, [0]),
        (5, 4, 8, [0, 1]),
    ],
)
def test_windows_reach_every_pixel(length, size, stride, expected):
    assert classify.starts(length, size, stride).tolist() == expected


def test_window_longer_than_the_axis_is_refused():
    with pytest.raises(ValueError):
        classify.starts(4, 5, 1)


def test_fractions_inside_are_those_counted_window_by_window():
    mask = np.random.default_rng(0).random((13, 17)) < 0.4
    rows, columns = classify.starts(13, 5, 3), classify.starts(17, 5, 4)
    counted = [[mask[r : r + 5, c : c + 5].mean() for c in columns] for r in rows]
    np.testing.assert_allclose(
        classify.fractions_inside(mask, rows, columns, 5), counted
    )


def test_window_weighs_most_at_its_centre_and_falls_to_its_edges():
    # Centres of pixels lie at 0.5, 1.5, ...; that of the window at 2.
    weights = classify.weights(np.array([0, 2]), 4, 6, 6)
    np.testing.assert_allclose(weights[:, 0], [0.25, 0.75, 0.75, 0.25, 0, 0])
    np.testing.assert_allclose(weights[:, 1], [0, 0, 0.25, 0.75, 0.75, 0.25])


def test_weights_on_a_finer_map_lie_at_the_same_places():
    # Three map pixels to two of the windows' grid: their centres at 1/3, 1, 5/3, ...
    weights = classify.weights(np.array([0]), 4, 4, 6)[:, 0]
    centres = np.array([1, 3, 5, 7, 9, 11]) / 3
    np.testing.assert_allclose(weights, 1 - np.abs(centres - 2) / 2, rtol=1e-6)


def test_average_is_that_of_a_loop_over_windows():
    rng = np.random.default_rng(1)
    size, shape, classes = 4, (11, 9), 3
    rows, columns = classify.starts(11, size, 3), classify.starts(9, size, 2)
    windows = rng.dirichlet(np.ones(classes), (len(rows), len(columns)))
    used = rng.random((len(rows), len(columns))) < 0.6
    tent = np.array([0.25, 0.75, 0.75, 0.25])
    sums, total = np.zeros((classes, *shape)), np.zeros(shape)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            if used[i, j]:
                weight = np.outer(tent, tent)
                total[r : r + size, c : c + size] += weight
                sums[:, r : r + size, c : c + size] += windows[i, j][:, None, None] * (
                    weight
                )
    down = classify.weights(rows, size, 11, 11)
    across = classify.weights(columns, size, 9, 9)
    mean, reached = classify.average(windows, used, down, across)
    np.testing.assert_array_equal(reached, total > 0)
    assert 0 < (~reached).sum() < reached.size
    np.testing.assert_allclose(
        mean[:, reached], sums[:, reached] / total[reached], 1e-5
    )
    assert not mean[:, ~reached].any()
