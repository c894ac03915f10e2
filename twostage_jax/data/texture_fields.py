"""What the procedural materials are drawn with: coordinates, noise, cells, surface.

Lengths are in view widths: an image at zoom 1 shows one unit, at any number of pixels.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.fft
from scipy import ndimage

Envelope = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pixel centres of one square piece of material.

    Attributes:
      x: `[n, n]` float32, grows with the column.
      y: `[n, n]` float32, grows with the row.
      step: Distance between neighbouring pixels.
    """

    x: np.ndarray
    y: np.ndarray
    step: float

    @property
    def pixels(self) -> int:
        return len(self.x)


def grid(side: float, pixels: int) -> Grid:
    """Returns the grid of a piece `side` units wide."""
    step = side / pixels
    line = ((np.arange(pixels) + 0.5) * step).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return Grid(x, y, step)


def noise(rng: np.random.Generator, at: Grid, envelope: Envelope) -> np.ndarray:
    """Gaussian noise with a given spectrum.

    Args:
      rng: Where the randomness comes from.
      at: The pixels.
      envelope: Amplitude at frequencies `fx`, `fy` in cycles a unit.

    Returns:
      `[n, n]` float32, mean 0, deviation 1; it wraps around at the borders.
    """
    n = at.pixels
    white = rng.standard_normal((n, n), dtype=np.float32)
    fy = scipy.fft.fftfreq(n, at.step).astype(np.float32)[:, None]
    fx = scipy.fft.rfftfreq(n, at.step).astype(np.float32)[None, :]
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * envelope(fx, fy), (n, n))
    field = field - field.mean()
    return (field / max(float(field.std()), 1e-9)).astype(np.float32)


def smooth(wavelength: float, stretch: float = 1.0) -> Envelope:
    """Low-pass: little finer than `wavelength`, `stretch` times longer along y."""
    return lambda fx, fy: np.exp(-((fx**2 + (stretch * fy) ** 2) * wavelength**2))


def rough(slope: float, largest: float = 1.0) -> Envelope:
    """Power law: amplitude falls as frequency to the `-slope`, from `largest` down."""
    return lambda fx, fy: (fx**2 + fy**2 + largest**-2) ** (-slope / 2)


def warped(
    rng: np.random.Generator, at: Grid, amount: float, wavelength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x, y displaced smoothly, by `amount` units of deviation."""
    low = smooth(wavelength)
    return at.x + amount * noise(rng, at, low), at.y + amount * noise(rng, at, low)


@dataclasses.dataclass(frozen=True)
class Surface:
    """A piece of material.

    Attributes:
      height: `[n, n]` in view widths.
      albedo: `[n, n]` about [0, 1], the share of light that it throws back.
      gloss: 0 (matt) to 1 (metal).
    """

    height: np.ndarray
    albedo: np.ndarray
    gloss: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cellular noise (Worley 1996), `[n, n]` each.

    Attributes:
      nearest: Distance to the nearest centre, in cell widths.
      gap: Distance to the second nearest centre less `nearest`: 0 on a cell's border.
      value: A number in [0, 1) of the cell that the pixel lies in.
    """

    nearest: np.ndarray
    gap: np.ndarray
    value: np.ndarray


def cells(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    frequency: float,
    jitter: float,
) -> Cells:
    """Returns cells around jittered lattice points, `frequency` to a unit.

    A `jitter` of 0 leaves a square lattice; 1 throws each point anywhere in its square.
    """
    x, y = x * frequency, y * frequency
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    first_column, first_row = column.min() - 2, row.min() - 2
    shape = (row.max() - first_row + 3, column.max() - first_column + 3)
    thrown = jitter * (rng.random((2, *shape)) - 0.5)
    points = (np.indices(shape) + 0.5 + thrown).astype(np.float32)
    points_y, points_x = points.reshape(2, -1)
    values = rng.random(points_x.size, dtype=np.float32)
    column, row = column - first_column, row - first_row
    x, y = x - first_column, y - first_row
    nearest, second = np.full_like(x, np.inf), np.full_like(x, np.inf)
    value = np.zeros_like(x)
    for i in range(-2, 3):
        for j in range(-2, 3):
            if abs(i) == 2 and abs(j) == 2:
                continue  # Too far away to be second nearest.
            place = (row + i) * shape[1] + column + j
            squared = (x - points_x[place]) ** 2 + (y - points_y[place]) ** 2
            closer = squared < nearest
            second = np.where(closer, nearest, np.minimum(second, squared))
            value = np.where(closer, values[place], value)
            nearest = np.minimum(nearest, squared)
    nearest, second = np.sqrt(nearest), np.sqrt(second)
    return Cells(nearest, second - nearest, value)


def ramp(low: float, high: float, field: np.ndarray) -> np.ndarray:
    """Smooth step: 0 below `low`, 1 above `high`."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def turing(
    rng: np.random.Generator, at: Grid, frequency: float, bias: float
) -> np.ndarray:
    """A Turing pattern in [-1, 1], of `frequency` stripes to a unit.

    Short-range activation and long-range inhibition, after Young 1984
    (doi:10.1016/0025-5564(84)90060-9): noise, through a difference of Gaussians and a
    saturation, again and again. `bias` moves it from stripes (0) to spots.
    """
    # Solved on a coarse grid: the pattern has nothing fine to lose.
    side = at.step * at.pixels
    n = max(16, int(side * frequency * 8))
    pattern = rng.standard_normal((n, n))
    sigma = 0.21 * n / (side * frequency)
    for _ in range(14):
        near = ndimage.gaussian_filter(pattern, sigma, mode="wrap", truncate=3)
        far = ndimage.gaussian_filter(pattern, 1.8 * sigma, mode="wrap", truncate=3)
        change = near - far
        pattern = np.tanh(3 * change / max(change.std(), 1e-9) + bias)
    place = (np.arange(at.pixels) + 0.5) * n / at.pixels - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    return ndimage.map_coordinates(pattern, [rows, columns], order=1, mode="grid-wrap")
