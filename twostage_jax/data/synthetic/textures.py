"""Procedural textures: sixteen materials with varied light, distance and pose.

The design follows CUReT (Dana et al. 1999) and KTH-TIPS (Hayman et al. 2004): a class is a
material, a material has several samples, a sample has several views. Only the structure
of the surface distinguishes the classes: exposure, colour, direction and distance change
from view to view or from sample to sample.

A material is a function that draws one sample, with its own random parameters, on a grid
of pixels. Lengths are in view widths: an image at zoom 1 shows one unit, whatever its
number of pixels.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import scipy

from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.data.synthetic import Task, check, tasks

# Bump when the same settings give different images.
VERSION = 1
# Width of a piece of material in view widths: a view at the largest distance and tilt,
# rotated by 45 degrees, still fits.
SIDE = 2.5
# Views are drawn at this multiple of their size and averaged down, against aliasing.
OVERSAMPLING = 2
DISTANCES = (0.75, 1.3)
MAX_TILT = np.deg2rad(35)
ELEVATIONS = (np.deg2rad(25), np.deg2rad(65))
TEST_FRACTION = 0.25
IMAGES_PER_TASK = 32
Envelope = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pixel centres of one square piece of material.

    Attributes:
      x: Coordinates that grow with the column, `[n, n]` float32.
      y: Coordinates that grow with the row, `[n, n]` float32.
      step: Distance between neighbouring pixels.
    """

    x: np.ndarray
    y: np.ndarray
    step: float

    @property
    def pixels(self) -> int:
        return len(self.x)


@dataclasses.dataclass(frozen=True)
class Surface:
    """Piece of material.

    Attributes:
      height: Height in view widths, `[n, n]`.
      albedo: Fraction of light that is reflected, `[n, n]`, about 0 to 1.
      gloss: Strength of highlights, 0 (matt) to 1 (metal).
    """

    height: np.ndarray
    albedo: np.ndarray
    gloss: float = 0.0


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cellular noise (Worley 1996), `[n, n]` each.

    Attributes:
      nearest: Distance to the nearest centre, in cell widths.
      gap: Distance to the second nearest centre minus `nearest`: 0 on a cell's border.
      value: Random number in [0, 1) of the pixel's cell.
    """

    nearest: np.ndarray
    gap: np.ndarray
    value: np.ndarray


def recipe(
    *,
    size: int = 32,
    channels: int = 1,
    samples_per_class: int = 32,
    views_per_sample: int = 8,
    seed: int = 0,
) -> Recipe:
    """Returns the recipe of procedural textures in sixteen classes.

    All views of a sample are in the same split; the test split has a quarter of the
    samples (at least one) of each class.

    Args:
      size: Side of the images, pixels, at least 16. The scene is the same at any size.
      channels: 1 (grey) or 3 (colour, drawn per sample, independent of the class).
      samples_per_class: Number of samples per material, at least 2.
      views_per_sample: Number of images per sample.
      seed: Seed of all random draws.

    Returns:
      The recipe; its images are `[size, size, channels]` uint8.

    Raises:
      UserError: A setting is out of its range.
    """
    limits = {
        "size": (size, 16, None),
        "samples_per_class": (samples_per_class, 2, None),
        "views_per_sample": (views_per_sample, 1, None),
        "seed": (seed, 0, None),
    }
    check(channels, limits)
    settings = {
        "size": size,
        "channels": channels,
        "samples_per_class": samples_per_class,
        "views_per_sample": views_per_sample,
        "seed": seed,
    }
    block = max(1, IMAGES_PER_TASK // views_per_sample)
    return Recipe(
        name="textures",
        kind="texture",
        class_names=tuple(MATERIALS),
        key=digest("textures", VERSION, sorted(settings.items())),
        tasks=tasks(len(MATERIALS), samples_per_class, block),
        make=functools.partial(make, **settings),
        synthetic=True,
    )


def make(
    task: Task,
    *,
    size: int,
    channels: int,
    samples_per_class: int,
    views_per_sample: int,
    seed: int,
) -> list[Example]:
    """Returns the views of a task's samples; the settings are those of `recipe`."""
    name = list(MATERIALS)[task.label]
    first_test = samples_per_class - max(1, round(TEST_FRACTION * samples_per_class))
    examples = []
    for sample in range(task.first, task.last):
        rng = np.random.default_rng([seed, task.label, sample])
        pixels = round(SIDE * size * OVERSAMPLING)
        surface = MATERIALS[name](rng, grid(SIDE, pixels))
        colours = _colours(rng, channels)
        group = f"{name}_{sample:04d}"
        for view in range(views_per_sample):
            examples.append(
                Example(
                    id=f"{group}_{view:03d}",
                    image=_view(rng, surface, colours, size),
                    label=task.label,
                    group=group,
                    split="test" if sample >= first_test else "train",
                )
            )
    return examples


def shade(
    surface: Surface, azimuth: float, elevation: float, diffuse: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the light from a surface that is lit from one direction and seen from above.

    Follows Lambert's law plus Blinn-Phong highlights (Blinn 1977), without cast shadows.

    Args:
      surface: Material on a grid that is `SIDE` wide.
      azimuth: Direction that the light comes from, radians from x towards y.
      elevation: Elevation of the light above the surface, radians.
      diffuse: Fraction of light that comes from all directions, 0 to 1.

    Returns:
      Diffuse reflection and highlights, `[n, n]` each.
    """
    step = SIDE / len(surface.height)
    slope_y, slope_x = np.gradient(surface.height, step)
    up = 1 / np.sqrt(1 + slope_x**2 + slope_y**2)
    light = np.array([np.cos(azimuth), np.sin(azimuth)]) * np.cos(elevation)
    towards = -slope_x * light[0] - slope_y * light[1]
    lambert = np.clip((towards + np.sin(elevation)) * up, 0, None) / np.sin(elevation)
    body = surface.albedo * (diffuse + (1 - diffuse) * lambert)
    if not surface.gloss:
        return body, np.zeros_like(body)
    # The eye looks straight down: the half vector is (light + z) / |light + z|.
    middle = np.sqrt(2 + 2 * np.sin(elevation))
    facing = np.clip((towards + np.sin(elevation) + 1) * up / middle, 0, 1)
    return body, surface.gloss * facing ** (10 + 30 * surface.gloss)


def _colours(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Returns the colours `[2, channels]` of the darkest and the brightest parts."""
    if channels == 1:
        return np.ones((2, 1))
    base = rng.uniform(0.4, 1.0, 3)
    both = np.clip(base + rng.normal(0, 0.12, (2, 3)), 0.2, 1.2)
    return both / both.mean(axis=1, keepdims=True)


def _view(
    rng: np.random.Generator, surface: Surface, colours: np.ndarray, size: int
) -> np.ndarray:
    """Returns one photograph, `[size, size, channels]` uint8, of the surface."""
    body, highlight = shade(
        surface,
        azimuth=rng.uniform(0, 2 * np.pi),
        elevation=rng.uniform(*ELEVATIONS),
        diffuse=rng.uniform(0.15, 0.5),
    )
    place = _placement(rng, size)
    body, highlight = (
        _average(scipy.ndimage.map_coordinates(field, place, order=1, mode="reflect"))
        for field in (body, highlight)
    )
    # The camera sets its exposure by the mean, with a random error.
    total = body + highlight
    exposure = rng.uniform(0.3, 0.6) / max(float(total.mean()), 1e-3)
    bright = np.clip(body / 0.8, 0, 1)[..., None]
    dye = colours[0] * (1 - bright) + colours[1] * bright
    image = exposure * (body[..., None] * dye + highlight[..., None])
    image = image + rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _placement(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns the rows and columns `[2, m, m]` of the material at a view's points."""
    m = size * OVERSAMPLING
    line = (np.arange(m) + 0.5) / m - 0.5
    v, u = np.meshgrid(line, line, indexing="ij")
    # A tilted surface is foreshortened: the view shows more of it along one axis.
    u = u / np.cos(rng.uniform(0, MAX_TILT))
    distance = np.exp(rng.uniform(*np.log(DISTANCES)))
    angle = rng.uniform(0, 2 * np.pi)
    x = distance * (np.cos(angle) * u - np.sin(angle) * v)
    y = distance * (np.sin(angle) * u + np.cos(angle) * v)
    centre = SIDE / 2 + rng.uniform(-0.15, 0.15, 2)
    return np.stack([y + centre[1], x + centre[0]]) * m - 0.5


def _average(field: np.ndarray) -> np.ndarray:
    """Returns the means over squares of `OVERSAMPLING` pixels per side."""
    size = len(field) // OVERSAMPLING
    return field.reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3))


def grid(side: float, pixels: int) -> Grid:
    """Returns the grid of a piece of material that is `side` units wide."""
    step = side / pixels
    line = ((np.arange(pixels) + 0.5) * step).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return Grid(x, y, step)


def noise(rng: np.random.Generator, at: Grid, envelope: Envelope) -> np.ndarray:
    """Returns Gaussian noise with a given spectrum.

    Args:
      rng: Random generator.
      at: Pixel coordinates.
      envelope: Function from frequencies `fx`, `fy` (cycles per unit) to amplitudes.

    Returns:
      Periodic field `[n, n]` float32 of mean 0 and standard deviation 1.
    """
    n = at.pixels
    white = rng.standard_normal((n, n), dtype=np.float32)
    fy = scipy.fft.fftfreq(n, at.step).astype(np.float32)[:, None]
    fx = scipy.fft.rfftfreq(n, at.step).astype(np.float32)[None, :]
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * envelope(fx, fy), (n, n))
    field = field - field.mean()
    return (field / max(float(field.std()), 1e-9)).astype(np.float32)


def smooth(wavelength: float, stretch: float = 1.0) -> Envelope:
    """Returns a low-pass at `wavelength`, `stretch` times longer along y."""
    return lambda fx, fy: np.exp(-((fx**2 + (stretch * fy) ** 2) * wavelength**2))


def rough(slope: float, largest: float = 1.0) -> Envelope:
    """Returns a power law of exponent `-slope`, for wavelengths below `largest`."""
    return lambda fx, fy: (fx**2 + fy**2 + largest**-2) ** (-slope / 2)


def warped(
    rng: np.random.Generator, at: Grid, amount: float, wavelength: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y with smooth displacements of standard deviation `amount`."""
    low = smooth(wavelength)
    return at.x + amount * noise(rng, at, low), at.y + amount * noise(rng, at, low)


def cells(
    rng: np.random.Generator,
    x: np.ndarray,
    y: np.ndarray,
    frequency: float,
    jitter: float,
) -> Cells:
    """Returns cells around jittered points of a square lattice.

    Args:
      rng: Random generator.
      x: Coordinates `[n, n]` along the columns.
      y: Coordinates `[n, n]` along the rows.
      frequency: Number of lattice points per unit.
      jitter: Displacement of the points: 0 (none) to 1 (anywhere in their squares).
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
    """Returns a smooth step (cubic Hermite): 0 below `low`, 1 above `high`."""
    t = np.clip((field - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def turing(
    rng: np.random.Generator, at: Grid, frequency: float, bias: float
) -> np.ndarray:
    """Returns a Turing pattern `[n, n]` in [-1, 1].

    Short-range activation and long-range inhibition (Young 1984,
    doi:10.1016/0025-5564(84)90060-9): noise passes repeatedly through a difference of
    Gaussians and a saturation.

    Args:
      rng: Random generator.
      at: Pixel coordinates.
      frequency: Number of stripes per unit.
      bias: Offset of the saturation: 0 gives stripes, larger absolute values spots.
    """
    # Solved on a coarse grid: the pattern does not have fine details.
    side = at.step * at.pixels
    n = max(16, int(side * frequency * 8))
    pattern = rng.standard_normal((n, n))
    sigma = 0.21 * n / (side * frequency)
    for _ in range(14):
        near = scipy.ndimage.gaussian_filter(pattern, sigma, mode="wrap", truncate=3)
        far = scipy.ndimage.gaussian_filter(
            pattern, 1.8 * sigma, mode="wrap", truncate=3
        )
        change = near - far
        pattern = np.tanh(3 * change / max(change.std(), 1e-9) + bias)
    place = (np.arange(at.pixels) + 0.5) * n / at.pixels - 0.5
    rows, columns = np.meshgrid(place, place, indexing="ij")
    return scipy.ndimage.map_coordinates(
        pattern, [rows, columns], order=1, mode="grid-wrap"
    )


def _bulge(u: np.ndarray) -> np.ndarray:
    """Returns the round profile of a thread over u in [-0.5, 0.5]."""
    return np.sqrt(np.clip(1 - (1.9 * u) ** 2, 0, 1))


def _split(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the integer part, and the position within it in [-0.5, 0.5)."""
    whole = np.floor(field)
    return whole.astype(np.int32), field - whole - 0.5


def _per_index(rng, index: np.ndarray) -> np.ndarray:
    """Returns a random number in [-1, 1] per distinct index, at every pixel."""
    index = index - index.min()
    return rng.uniform(-1, 1, index.max() + 1)[index]


def weave(rng, at: Grid) -> Surface:
    """Plain-woven cloth: each thread goes over and under those that it crosses."""
    frequency = rng.uniform(4.5, 7.5)
    x, y = warped(rng, at, 0.012, 0.5)
    i, u = _split(x * frequency)
    j, v = _split(y * frequency * rng.uniform(0.8, 1.25))
    over = (i + j) % 2 == 0
    warp = _bulge(u) * (0.35 + 0.65 * np.cos(np.pi * v))
    weft = _bulge(v) * (0.35 + 0.65 * np.cos(np.pi * u))
    thread = np.where(over, _per_index(rng, i), _per_index(rng, j))
    dye = rng.uniform(-0.2, 0.2)
    height = np.where(over, warp, weft)
    albedo = 0.55 + np.where(over, dye, -dye) + 0.08 * thread
    albedo = albedo * (0.45 + 0.55 * height)
    return Surface(0.35 / frequency * height, albedo, 0.05)


def knit(rng, at: Grid) -> Surface:
    """Stocking stitch: columns of V-shaped loops."""
    columns = rng.uniform(2.6, 4.0)
    stitches = columns * rng.uniform(1.3, 1.8)
    x, y = warped(rng, at, 0.012, 0.4)
    i, u = _split(x * columns)
    leg = np.sin(2 * np.pi * np.abs(u)) ** 0.7
    row, along = _split(y * stitches - 2.2 * np.abs(u))
    height = leg * _bulge(along) ** 0.8
    fuzz = noise(rng, at, smooth(0.05))
    albedo = (0.5 + 0.06 * _per_index(rng, row)) * (0.3 + 0.7 * height) + 0.02 * fuzz
    return Surface(0.3 / stitches * height, albedo)


def corduroy(rng, at: Grid) -> Surface:
    """Straight, rounded ribs of cut pile with narrow grooves between them."""
    frequency = rng.uniform(4.0, 8.0)
    x, _ = warped(rng, at, 0.006, 0.6)
    i, u = _split(x * frequency)
    height = _bulge(u) ** rng.uniform(0.7, 1.5)
    fine = smooth(0.05, 0.5)
    pile = noise(rng, at, lambda fx, fy: fine(fx, fy) * (np.hypot(fx, fy) > 2))
    albedo = 0.55 * (0.5 + 0.5 * height) + 0.035 * pile + 0.03 * _per_index(rng, i)
    return Surface(0.3 / frequency * height + 0.003 * pile, albedo)


def brick(rng, at: Grid) -> Surface:
    """Bricks in running bond with rough faces and recessed mortar."""
    rows = rng.uniform(2.8, 4.6)
    length = rng.uniform(1.8, 2.8)
    x, y = warped(rng, at, 0.006, 0.25)
    j, v = _split(y * rows)
    i, u = _split(x * rows / length + 0.5 * (j % 2))
    joint = rng.uniform(0.06, 0.12)
    edge = np.minimum(0.5 - np.abs(v), (0.5 - np.abs(u)) * length)
    face = ramp(joint * 0.6, joint * 1.5, edge)
    grain = noise(rng, at, rough(1.0, 0.2))
    tone = _per_index(rng, 131 * (j - j.min()) + i - i.min())
    mortar = rng.choice([0.2, 0.85]) + rng.uniform(-0.08, 0.08)
    albedo = mortar + face * (0.5 + 0.13 * tone - mortar) + 0.035 * grain
    return Surface(0.03 * face + 0.002 * grain, albedo)


def honeycomb(rng, at: Grid) -> Surface:
    """Regular hexagonal cells with raised walls and a dark bottom."""
    frequency = rng.uniform(3.6, 5.8)
    x, y = warped(rng, at, 0.008, 0.4)
    x, y, root = x * frequency, y * frequency, np.sqrt(3.0)
    best = np.full(x.shape, np.inf)
    edge = np.zeros(x.shape)
    for shift in (0.0, 0.5):
        u = (x + shift) % 1 - 0.5
        v = (y + shift * root) % root - root / 2
        squared = u**2 + v**2
        # Distance to the hexagon's border, along the nearest of its three normals.
        inside = 0.5 - np.maximum(np.abs(u), np.abs(u) / 2 + np.abs(v) * root / 2)
        edge = np.where(squared < best, inside, edge)
        best = np.minimum(best, squared)
    wall = 1 - ramp(0.05, rng.uniform(0.13, 0.2), edge)
    grain = noise(rng, at, smooth(0.05))
    albedo = rng.uniform(0.1, 0.3) + 0.5 * wall + 0.02 * grain
    return Surface(0.2 / frequency * wall, albedo, 0.1)


def scales(rng, at: Grid) -> Surface:
    """Overlapping round scales in staggered rows, each rising towards its free edge."""
    frequency = rng.uniform(3.2, 5.0)
    overlap = rng.uniform(0.5, 0.62)
    x, y = warped(rng, at, 0.008, 0.4)
    x, y = x * frequency, y * frequency / overlap
    height = np.full(x.shape, -1.0)
    tone = np.zeros(x.shape)
    values = rng.uniform(-1, 1, (128, 128))
    row = np.floor(y)
    # Each row covers the next: the first row that reaches a pixel is on top.
    for back in (2, 1, 0):
        j = row - back
        i = np.floor(x - 0.5 * (j % 2))
        u = x - 0.5 * (j % 2) - i - 0.5
        v = (y - j) * overlap
        radius = np.sqrt(u**2 + v**2)
        covers = (radius < 0.62) & (height < 0)
        height = np.where(covers, 0.2 + v + 0.25 * (1 - (2 * u) ** 2), height)
        rim = ramp(0.48, 0.6, radius)
        value = values[j.astype(int) % 128, i.astype(int) % 128]
        shade = 0.1 * value - 0.3 * rim
        tone = np.where(covers, shade, tone)
    albedo = 0.6 + tone + 0.02 * noise(rng, at, smooth(0.05))
    return Surface(0.35 / frequency * np.clip(height, 0, None), albedo, 0.2)


def wood(rng, at: Grid) -> Surface:
    """Sawn board: growth rings cut lengthwise, bent around a knot, and fine pores."""
    frequency = rng.uniform(4.0, 7.0)
    centre = rng.uniform(0.4, 2.0, 2)
    dx, dy = at.x - centre[0], at.y - centre[1]
    bend = rng.uniform(0.25, 0.6) * np.exp(-((dx / 0.35) ** 2) - (dy / 0.5) ** 2)
    drift = noise(rng, at, smooth(0.7, 3.0))
    ring = frequency * (dx + rng.uniform(-0.2, 0.2) * dy**2 + bend + 0.06 * drift)
    spacing = noise(rng, at, smooth(0.4, 5.0))
    late = (ring + 0.2 * spacing) % 1.0
    late = late**2 * ramp(0, 0.12, 1 - late)
    pores = noise(rng, at, smooth(0.025, 8.0))
    albedo = 0.66 - rng.uniform(0.3, 0.45) * late - 0.07 * np.clip(pores, 0, 3)
    return Surface(0.002 * pores, albedo, 0.1)


def marble(rng, at: Grid) -> Surface:
    """Polished stone: veins where turbulence crosses zero (Perlin 1985), and clouds."""
    turbulence = noise(rng, at, rough(2.0, rng.uniform(0.5, 1.0)))
    cloud = noise(rng, at, rough(2.2, 0.8))
    phase = at.x * rng.uniform(0.5, 1.4) + rng.uniform(0.35, 0.6) * turbulence
    vein = 1 - np.abs(np.sin(np.pi * phase))
    other = 1 - np.abs(np.sin(np.pi * (0.8 * at.y + 0.5 * cloud)))
    albedo = 0.62 + 0.1 * cloud - 0.6 * vein**5 - 0.35 * other**12
    if rng.random() < 0.4:
        albedo = 1.05 - albedo
    return Surface(0 * at.x, albedo, 0.15)


def sponge(rng, at: Grid) -> Surface:
    """Porous body: round pits of many sizes, a few of them large."""
    side = at.step * at.pixels
    height = np.zeros(at.x.shape)
    count = int(rng.uniform(35, 60) * side**2)
    # Sizes follow a power law, as pores do.
    radii = np.minimum(0.026 * (1 - rng.random(count)) ** -0.5, 0.14)
    for radius, x, y in zip(radii, *rng.uniform(0, side, (2, count)), strict=True):
        first = np.maximum(np.array([y, x]) - radius, 0) / at.step
        last = (np.array([y, x]) + radius) / at.step + 1
        part = tuple(slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        squared = radius**2 - (at.x[part] - x) ** 2 - (at.y[part] - y) ** 2
        height[part] = np.minimum(height[part], -np.sqrt(np.clip(squared, 0, None)))
    soft = noise(rng, at, rough(1.2, 0.3))
    albedo = 0.62 + 0.03 * soft - 0.5 * ramp(0.0, 0.06, -height)
    return Surface(0.7 * height + 0.004 * soft, albedo)


def gravel(rng, at: Grid) -> Surface:
    """Heap of rounded stones of different greys: domes with dark gaps."""
    x, y = warped(rng, at, 0.015, 0.2)
    stones = cells(rng, x, y, rng.uniform(4.0, 6.5), rng.uniform(0.6, 0.95))
    dome = np.sqrt(np.clip(stones.gap, 0, 0.7) / 0.7)
    grain = noise(rng, at, smooth(0.04))
    albedo = (0.25 + 0.6 * stones.value) * ramp(0.02, 0.3, stones.gap) + 0.02 * grain
    return Surface(0.07 * dome + 0.03 * stones.value * dome, albedo, 0.1)


def cracked_mud(rng, at: Grid) -> Surface:
    """Dried ground: flat, fine-grained plates with thin, dark cracks between them."""
    x, y = warped(rng, at, 0.035, 0.15)
    plates = cells(rng, x, y, rng.uniform(2.2, 3.6), 0.95)
    plate = ramp(0.02, rng.uniform(0.08, 0.15), plates.gap)
    grain = noise(rng, at, rough(1.2, 0.3))
    albedo = 0.12 + 0.5 * plate + 0.04 * grain + 0.05 * (plates.value - 0.5)
    return Surface(0.02 * plate + 0.012 * plates.nearest**2 + 0.003 * grain, albedo)


def coral(rng, at: Grid) -> Surface:
    """Brain coral: a labyrinth of even, winding ridges from reaction and diffusion."""
    frequency = rng.uniform(4.0, 6.5)
    ridge = 0.5 + 0.5 * turing(rng, at, frequency, rng.uniform(-0.35, 0.35))
    grain = noise(rng, at, smooth(0.04))
    albedo = 0.25 + 0.45 * ridge + 0.02 * grain
    return Surface(0.2 / frequency * ridge, albedo, 0.05)


def fur(rng, at: Grid) -> Surface:
    """Long hairs in locks, all in roughly one direction."""
    length = rng.uniform(6.0, 10.0)
    flow = noise(rng, at, smooth(rng.uniform(0.5, 0.8), 1.5))
    hairs = noise(rng, at, smooth(rng.uniform(0.03, 0.045), length))
    locks = noise(rng, at, smooth(0.12, 4.0))
    columns = (at.x + 0.06 * flow) / at.step
    rows = at.y / at.step
    bent = [_sample(field, rows, columns) for field in (hairs, locks)]
    albedo = 0.5 + 0.15 * bent[0] + 0.1 * bent[1]
    return Surface(0.006 * bent[0] + 0.012 * bent[1], albedo, 0.1)


def _sample(field: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns `field` interpolated linearly along the columns, which wrap around."""
    n = len(field)
    row = rows.astype(np.int32) % n
    left = np.floor(columns).astype(np.int32)
    part = columns - left
    return (1 - part) * field[row, left % n] + part * field[row, (left + 1) % n]


def sandpaper(rng, at: Grid) -> Surface:
    """Fine, dense grit with a few bright grains."""
    size = rng.uniform(0.02, 0.04)
    grit = noise(rng, at, smooth(size))
    glint = noise(rng, at, smooth(size))
    blotch = noise(rng, at, rough(1.5, 0.8))
    spots = 0.3 * (glint > 2.1) - 0.2 * (glint < -2.3)
    albedo = 0.45 + 0.06 * grit + 0.03 * blotch + spots
    return Surface(0.009 * grit, albedo, 0.05)


def foil(rng, at: Grid) -> Surface:
    """Crumpled metal foil: mirror-like flat facets that meet in sharp creases."""
    height = np.zeros_like(at.x)
    x, y = warped(rng, at, 0.03, 0.3)
    for _ in range(15):
        angle = rng.uniform(0, 2 * np.pi)
        dx, dy = float(np.cos(angle)), float(np.sin(angle))
        through = rng.integers(0, at.pixels, 2)
        along = dx * (x - x[*through]) + dy * (y - y[*through])
        height = height + rng.choice([-1, 1]) * rng.uniform(0.1, 0.35) * np.abs(along)
        # Folds the sheet itself: the next crease breaks where it meets this one.
        move = -2 * np.minimum(along, 0)
        x, y = x + dx * move, y + dy * move
    return Surface(height, np.full_like(at.x, 0.35), 1.0)


def terrazzo(rng, at: Grid) -> Surface:
    """Polished floor: light and dark angular stone chips in a plain binder."""
    albedo = np.full(at.x.shape, rng.uniform(0.4, 0.6))
    low, high = rng.uniform(0.05, 0.2), rng.uniform(0.8, 0.95)
    for frequency in (rng.uniform(3.0, 4.0), rng.uniform(5.5, 8.0)):
        chips = cells(rng, at.x, at.y, frequency, 1.0)
        chip = ramp(0.16, 0.24, chips.gap) * (chips.value < 0.55)
        tone = np.where(chips.value < 0.3, low, high) + 0.25 * (chips.value - 0.3)
        albedo = albedo + chip * (tone - albedo)
    return Surface(0 * at.x, albedo + 0.015 * noise(rng, at, smooth(0.04)), 0.1)


MATERIALS: dict[str, Callable[[np.random.Generator, Grid], Surface]] = {
    "weave": weave,
    "knit": knit,
    "corduroy": corduroy,
    "brick": brick,
    "honeycomb": honeycomb,
    "scales": scales,
    "wood": wood,
    "marble": marble,
    "sponge": sponge,
    "gravel": gravel,
    "cracked_mud": cracked_mud,
    "coral": coral,
    "fur": fur,
    "sandpaper": sandpaper,
    "foil": foil,
    "terrazzo": terrazzo,
}
