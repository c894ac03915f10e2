"""The convolutions against NumPy written out in loops, and against XLA's."""

import functools

import jax
import numpy as np
import pytest

from twostage_jax.models import convolution


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def convolve_by_hand(x, kernel, strides, pad, groups):
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))).astype(np.float64)
    size, _, depth, features = kernel.shape
    n, height, width, _ = x.shape
    rows = (height - size) // strides + 1
    columns = (width - size) // strides + 1
    y = np.zeros((n, rows, columns, features))
    for o in range(features):
        start = o // (features // groups) * depth
        for i in range(rows):
            for j in range(columns):
                top, left = i * strides, j * strides
                window = x[
                    :, top : top + size, left : left + size, start : start + depth
                ]
                y[:, i, j, o] = (window * kernel[None, :, :, :, o]).sum((1, 2, 3))
    return y


SHAPES = [
    # image, C, size, strides, pad, groups
    ((6, 7), 8, 3, 1, 1, 1),
    ((6, 7), 8, 3, 1, 1, 2),
    ((6, 7), 8, 5, 2, 2, 2),
    ((6, 7), 8, 3, 2, 0, 4),
    # Every channel on its own.
    ((6, 7), 8, 3, 2, 1, 8),
    # Images smaller than the kernel, and two windows.
    ((1, 1), 8, 3, 1, 1, 1),
    ((2, 3), 8, 3, 2, 1, 1),
    ((4, 6), 8, 5, 1, 2, 2),
    ((4, 4), 8, 3, 2, 1, 1),
    # Kernels of which a part never reaches the image, square and not.
    ((2, 2), 8, 7, 1, 3, 8),
    ((1, 1), 8, 5, 2, 2, 8),
    ((1, 3), 8, 7, 1, 3, 8),
    ((2, 2), 8, 3, 2, 1, 1),
    ((1, 2), 8, 5, 1, 2, 2),
    # Every channel on its own: larger kernels, and steps that miss the last rows.
    ((9, 11), 16, 7, 1, 3, 16),
    ((10, 9), 16, 5, 2, 2, 16),
    ((10, 9), 16, 3, 3, 0, 16),
    # Kernels of one pixel, few and many of them.
    ((5, 4), 8, 1, 1, 0, 1),
    ((15, 14), 16, 1, 1, 0, 1),
    ((31, 30), 16, 1, 2, 0, 1),
    # Large maps: one block of rows for an image, and several that do not divide it.
    ((7, 8), 16, 3, 1, 1, 1),
    ((15, 16), 16, 3, 1, 1, 1),
    ((37, 41), 32, 3, 1, 1, 2),
    ((71, 75), 16, 5, 2, 2, 1),
]


@pytest.mark.parametrize("image, channels, size, strides, pad, groups", SHAPES)
def test_convolution_is_the_sum_written_out(
    image, channels, size, strides, pad, groups
):
    x = normal(2, *image, channels)
    kernel = normal(size, size, channels // groups, channels, seed=1)
    np.testing.assert_allclose(
        convolution.convolve(x, kernel, strides=strides, pad=pad, groups=groups),
        convolve_by_hand(x, kernel, strides, pad, groups),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "image, channels, size, strides, pad, groups",
    [
        *SHAPES,
        # TensorFlow's rule for zeros at the border.
        ((6, 7), 4, 3, 2, "same", 1),
        ((8, 5), 4, 5, 2, "same", 4),
        ((2, 3), 4, 5, 1, "same", 1),
        ((2, 2), 8, 5, 2, "same", 8),
        ((2, 1), 8, 5, 1, "same", 8),
        ((36, 39), 16, 3, 2, "same", 1),
    ],
)
def test_convolution_and_its_gradients_are_those_of_lax(
    image, channels, size, strides, pad, groups
):
    x = normal(3, *image, channels)
    kernel = normal(size, size, channels // groups, channels, seed=1)

    def of_lax(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides, strides),
            "SAME" if pad == "same" else [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip

    ours = functools.partial(
        convolution.convolve, strides=strides, pad=pad, groups=groups
    )
    (value, back), (expected, expected_back) = (
        jax.vjp(jax.jit(function), x, kernel) for function in (ours, of_lax)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)
    g = normal(*expected.shape, seed=2)
    for gradient, wanted in zip(back(g), expected_back(g), strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(gradient, wanted, atol=1e-5 * scale)


def test_two_convolutions_side_by_side_have_the_gradients_of_each():
    x, kernels = normal(2, 17, 16, 16), normal(2, 3, 3, 16, 4, seed=1)

    def kernel_gradient(kernel):
        of = functools.partial(convolution.convolve, x, strides=1, pad=1)
        return jax.grad(lambda kernel: (of(kernel) ** 2).sum())(kernel)

    together = jax.vmap(kernel_gradient)(kernels)
    for one, kernel in zip(together, kernels, strict=True):
        np.testing.assert_allclose(one, kernel_gradient(kernel), rtol=1e-4, atol=1e-2)
