"""Gabor functions fitted to the filters of a first layer."""

import functools
from typing import NamedTuple

import numpy as np
from scipy import optimize

from twostage_jax.explain.measures.record import Measure

MEASURES = (
    Measure("gabor_share", "fraction of filters that a Gabor function fits"),
    Measure(
        "gabor_explained", "fraction of filter energy that a Gabor function explains"
    ),
)

# A filter is well fitted if this fraction of its energy is explained. Of 48 random
# filters of 5 x 5 pixels the best reaches about 0.75, of 11 x 11 about 0.2.
GOOD = 0.8
# A grey filter smaller than this has so few pixels that the function, with its eight
# parameters, fits noise: it is a good fit of 55 % of random filters of 3 x 3 pixels, and
# of 11 % of 4 x 4. Filters of three channels need not be larger: their energy includes
# components that the function, fitted to one of them, cannot explain.
LEAST_GREY_SIDE = 5
# The fitted function must also have both signs: |sum| / sum of magnitudes at most this.
# It is 1 for a blob or a constant (which a Gabor function of few cycles fits well, too),
# 0 for an edge, and about 0.5 for a bar between two flanks.
ONE_SIGN = 0.5
HIGHEST = 0.5  # cycles per pixel
# Cycles within one standard deviation of the envelope, n_x of Ringach 2002
# (J Neurophysiol 88:455).
LEAST_CYCLES, MOST_CYCLES = 0.25, 2.0


def too_small(kernels: np.ndarray) -> bool:
    """Returns whether kernels `[k, k, C, O]` have so few pixels that noise is fitted."""
    side, _, inputs, _ = kernels.shape
    return inputs == 1 and side < LEAST_GREY_SIDE


class Fits(NamedTuple):
    """The best Gabor function of each of O filters, `[O]` each; NaN for empty filters.

    Attributes:
      explained: Fraction of the filter's energy (sum of squares, over all its input
        channels) that the Gabor function explains.
      one_sign: |sum| / sum of magnitudes of the Gabor function.
    """

    explained: np.ndarray
    one_sign: np.ndarray

    @property
    def good(self) -> np.ndarray:
        """Whether each filter is well fitted, `[O]` bool; False for empty filters."""
        return (self.explained >= GOOD) & (self.one_sign <= ONE_SIGN)


def fit(kernels: np.ndarray) -> Fits:
    """Fits a two-dimensional Gabor function to each filter (Jones & Palmer 1987).

    J Neurophysiol 58:1233. Amplitude and phase are solved for exactly; position, angle,
    frequency and the two standard deviations are searched on a grid and then refined by
    least squares. For a colour filter, the strongest spatial component is fitted.

    Args:
      kernels: `[k, k, C, O]`, k at least 3.
    """
    side, _, inputs, count = kernels.shape
    energy = (np.asarray(kernels, np.float64) ** 2).sum((0, 1, 2))
    planes = kernels.transpose(3, 0, 1, 2).reshape(count, side * side, inputs)
    results = np.full((2, count), np.nan)
    if inputs > 1:
        left, sizes, _ = np.linalg.svd(planes, full_matrices=False)
        planes = left[..., :1] * sizes[:, None, :1]
    planes = planes[..., 0].astype(np.float64)
    empty = energy <= 1e-12 * max(energy.max(initial=0.0), 1e-30)
    starts = _starts(planes, side)
    for i in np.flatnonzero(np.isfinite(energy) & ~empty):
        results[:, i] = _refine(planes[i], starts[i], side, energy[i])
    return Fits(*results)


def _basis(shape: np.ndarray, side: int) -> np.ndarray:
    """Returns the cosine and sine Gabor functions, `[side * side, 2]`."""
    x0, y0, angle, frequency, cycles, along = shape
    line = np.arange(side) - (side - 1) / 2
    x, y = line[None] - x0, line[:, None] - y0
    u = np.cos(angle) * x + np.sin(angle) * y
    v = np.cos(angle) * y - np.sin(angle) * x
    envelope = np.exp(-((u * frequency / cycles) ** 2 + (v / along) ** 2) / 2)
    wave = envelope * np.exp(2j * np.pi * frequency * u)
    return np.stack([wave.real.ravel(), wave.imag.ravel()], 1)


@functools.lru_cache(maxsize=4)
def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns shapes `[M, 6]` and orthonormal bases `[M, side * side, 2]`."""
    places = np.array([-0.2, 0, 0.2]) * side
    angles = np.arange(12) * np.pi / 12
    waves = np.geomspace(0.6 / side, HIGHEST * 0.9, 6)
    cycles = np.array([0.3, 0.5, 0.9])
    along = np.array([0.2, 0.4]) * side
    mesh = np.meshgrid(places, places, angles, waves, cycles, along, indexing="ij")
    shapes = np.stack([part.ravel() for part in mesh], 1)
    bases = np.stack([_basis(shape, side) for shape in shapes])
    return shapes, np.linalg.qr(bases)[0]


def _starts(planes: np.ndarray, side: int) -> np.ndarray:
    shapes, bases = _grid(side)
    explained = (np.einsum("mpk,op->omk", bases, planes, optimize=True) ** 2).sum(2)
    return shapes[explained.argmax(1)]


def _refine(
    plane: np.ndarray, start: np.ndarray, side: int, energy: float
) -> tuple[float, float]:
    """Returns `explained` and `one_sign` of the best function near `start`."""

    def fitted(shape: np.ndarray) -> np.ndarray:
        basis = _basis(shape, side)
        # A tiny ridge: where the wave is slow, its sine part all but vanishes.
        gram = basis.T @ basis + 1e-9 * np.eye(2)
        return basis @ np.linalg.solve(gram, basis.T @ plane)

    reach = side / 2
    low = [-reach, -reach, -np.inf, 0.5 / side, LEAST_CYCLES, 0.1 * side]
    high = [reach, reach, np.inf, HIGHEST, MOST_CYCLES, 1.0 * side]
    found = optimize.least_squares(
        lambda shape: plane - fitted(shape),
        start,
        bounds=(low, high),
        max_nfev=30,
        ftol=1e-4,
        xtol=1e-4,
    )
    best = fitted(found.x)
    # The energy includes that of colour components other than the plane.
    lost = energy - plane @ plane + 2 * found.cost
    one_sign = abs(best.sum()) / np.abs(best).sum()
    return 1 - lost / energy, one_sign
