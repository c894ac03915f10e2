"""Actions: each against hand computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transfer_trees import CHANNELS, array, convolve, move, network

from twostage_jax.transfer import transfer


def test_copy_takes_the_source_and_init_keeps_the_target():
    source, target = network(3, seed=1), network(3, seed=2)
    variables, _ = transfer(
        source, target, [("params/conv1/.*", "init"), (".*", "copy")]
    )
    np.testing.assert_array_equal(
        variables["params"]["conv1"]["kernel"], target["params"]["conv1"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["params"]["fc6"]["kernel"], source["params"]["fc6"]["kernel"]
    )
    np.testing.assert_array_equal(
        variables["batch_stats"]["norm1"]["mean"],
        source["batch_stats"]["norm1"]["mean"],
    )


def test_copy_is_bit_identical_even_for_negative_zero_and_subnormals():
    source = np.array([-0.0, 0.0, 1e-45, 3.4e38], np.float32)
    moved = move(source, np.ones(4, np.float32), "copy")
    assert moved.tobytes() == source.tobytes()


def test_rgb_to_grey_sums_the_input_channels():
    kernel = np.array([[[[1, 10], [2, 20], [3, 30]]]], np.float32)  # [1, 1, 3, 2]
    moved = move(kernel, np.zeros((1, 1, 1, 2), np.float32), "rgb_to_grey")
    np.testing.assert_array_equal(moved, [[[[6, 60]]]])


def test_rgb_to_grey_answers_to_grey_as_the_source_to_grey_in_three_channels():
    kernel = array(5, 5, 3, 7)
    grey = array(2, 9, 9, 1, seed=1)
    moved = move(kernel, np.zeros((5, 5, 1, 7), np.float32), "rgb_to_grey")
    expected = convolve(np.repeat(grey, 3, axis=3), kernel)
    np.testing.assert_allclose(convolve(grey, moved), expected, rtol=1e-4, atol=1e-4)


def test_grey_to_rgb_spreads_a_third_over_each_channel():
    kernel = np.array([[[[3, 6]]]], np.float32)
    moved = move(kernel, np.zeros((1, 1, 3, 2), np.float32), "grey_to_rgb")
    np.testing.assert_array_equal(moved, [[[[1, 2], [1, 2], [1, 2]]]])


def test_grey_to_rgb_answers_to_colour_as_the_source_to_the_mean_of_the_channels():
    kernel = array(3, 3, 1, 4)
    colour = array(2, 8, 8, 3, seed=1)
    moved = move(kernel, np.zeros((3, 3, 3, 4), np.float32), "grey_to_rgb")
    expected = convolve(colour.mean(axis=3, keepdims=True), kernel)
    np.testing.assert_allclose(convolve(colour, moved), expected, rtol=1e-4, atol=1e-5)


def test_grey_to_rgb_then_rgb_to_grey_gives_the_kernel_back():
    kernel = array(3, 3, 1, 4)
    colour = move(kernel, np.zeros((3, 3, 3, 4), np.float32), "grey_to_rgb")
    np.testing.assert_allclose(move(colour, kernel, "rgb_to_grey"), kernel, rtol=1e-6)


def test_resize_kernel_from_two_to_one_sums_the_window():
    # The one pixel, interpolated to two positions, is itself at both.
    kernel = np.array([[1, 2], [4, 8]], np.float32)[:, :, None, None]
    moved = move(kernel, np.zeros((1, 1, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_array_equal(moved, [[[[15]]]])


def test_resize_kernel_from_one_to_two_halves_along_each_axis():
    # Two pixels shrink to their mean: the weight 4 becomes 2 and 2, here in columns.
    kernel = np.full((1, 1, 1, 1), 4, np.float32)
    moved = move(kernel, np.zeros((1, 2, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_array_equal(moved[0, :, 0, 0], [2, 2])


def test_resize_kernel_from_four_to_two_by_hand():
    # Positions 0..3 of the source look at -0.25, 0.25, 0.75, 1.25 of the two pixels.
    reads = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    kernel = np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1, 1)
    moved = move(kernel, np.zeros((2, 1, 1, 1), np.float32), "resize_kernel")
    np.testing.assert_allclose(moved.ravel(), reads.T @ [1, 2, 3, 4])


@pytest.mark.parametrize("new", [(3, 3), (7, 7), (5, 2), (4, 11), (1, 1)])
def test_resized_kernel_answers_as_the_source_to_the_resized_patch(new):
    kernel, patch = array(5, 5, 3, 4), array(*new, 3, seed=1)
    moved = move(kernel, np.zeros((*new, 3, 4), np.float32), "resize_kernel")
    resized = jax.image.resize(patch, (5, 5, 3), "linear")
    np.testing.assert_allclose(
        np.einsum("hwc,hwcn->n", patch, moved),
        np.einsum("hwc,hwcn->n", resized, kernel),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("side", [1, 2, 4, 6, 7])
def test_resized_dense_layer_answers_as_the_source_to_the_resized_map(side):
    kernel = array(3 * 3 * CHANNELS, 5)
    features = array(side, side, CHANNELS, seed=1)
    moved = move(
        kernel, np.zeros((side * side * CHANNELS, 5), np.float32), "resize_dense:2"
    )
    resized = jax.image.resize(features, (3, 3, CHANNELS), "linear")
    np.testing.assert_allclose(
        features.ravel() @ moved, resized.ravel() @ kernel, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("side", [1, 2, 5, 6])
def test_resized_dense_layer_keeps_its_answer_to_constant_features(side):
    kernel, values = array(3 * 3 * CHANNELS, 5), np.array([0.3, -2.0], np.float32)
    moved = move(
        kernel, np.zeros((side * side * CHANNELS, 5), np.float32), "resize_dense:2"
    )
    np.testing.assert_allclose(
        np.tile(values, side * side) @ moved,
        np.tile(values, 9) @ kernel,
        rtol=1e-5,
        atol=1e-5,
    )


def test_resized_dense_layer_does_not_mix_channels():
    kernel = array(3 * 3 * CHANNELS, 5).reshape(9, CHANNELS, 5)
    kernel[:, 1] = 0
    moved = move(
        kernel.reshape(18, 5), np.zeros((4 * 2, 5), np.float32), "resize_dense:2"
    ).reshape(4, CHANNELS, 5)
    assert np.all(moved[:, 1] == 0) and np.all(moved[:, 0] != 0)


@pytest.mark.parametrize(
    ("action", "shape"), [("resize_dense:2", (18, 5)), ("resize_kernel", (4, 5, 2, 3))]
)
def test_resizing_to_the_same_size_is_the_identity(action, shape):
    kernel = array(*shape)
    assert move(kernel, np.zeros_like(kernel), action).tobytes() == kernel.tobytes()


@pytest.mark.parametrize(
    ("action", "old", "new"),
    [
        ("rgb_to_grey", (3, 3, 3, 2), (3, 3, 1, 2)),
        ("grey_to_rgb", (3, 3, 1, 2), (3, 3, 3, 2)),
        ("resize_kernel", (3, 3, 1, 2), (5, 5, 1, 2)),
        ("resize_dense:2", (18, 2), (8, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_shape_changes_keep_the_dtype_and_round_once(action, old, new, dtype):
    kernel = array(*old).astype(dtype)
    moved = move(kernel, np.zeros(new, dtype), action)
    exact = move(kernel.astype(np.float64), np.zeros(new), action)
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, exact.astype(dtype))
