"""Surrogate for natural images: scenes with shapes and fractals, drawn from formulas.

Formula-driven images can replace photographs in pre-training: fractals (Kataoka et al.
2020, arXiv 2101.08515) and dead-leaves scenes (Baradad et al. 2021, arXiv 2106.05963).
Here a class is an outline or a family of fractals. Its object lies on a dead-leaves
background. Position, size, rotation, colour and light vary, and the object may be partly
hidden: only its form identifies the class.

An outline is a function of a point's position relative to the shape's centre, in units of
its radius, and returns a signed measure that is positive inside. A fractal is an iterated
function system (IFS): affine maps `[k, 2, 3]`, whose attractor is drawn by the chaos game
(Barnsley 1988).
"""

import functools
from collections.abc import Callable

import numpy as np

from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.data.synthetic import Task, check, tasks

# Bump when the same settings give different images.
VERSION = 1
TEST_EVERY = 6
IMAGES_PER_TASK = 50
# Scenes are drawn at this multiple of their size and averaged down, against aliasing.
OVERSAMPLING = 2
BACKGROUND_LEAVES = 11
OCCLUDED_FRACTION = 0.3
# Number of a fractal's points per drawn pixel.
POINTS_PER_PIXEL = 3
# Each number of the maps is changed by up to this fraction, so that all instances
# differ. FractalDB (Kataoka et al. 2020) varies its categories like this, but one number
# at a time.
PERTURBATION = 0.12
# Maps must shrink, or the points would diverge.
LARGEST_STRETCH = 0.93
# Number of steps after which a walker has reached the attractor.
START = 16
Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def recipe(
    *,
    size: int = 32,
    channels: int = 1,
    classes: int = 12,
    per_class: int = 500,
    seed: int = 0,
) -> Recipe:
    """Returns the recipe of shapes and fractals; every sixth image is for the test.

    Args:
      size: Side of the images, pixels, at least 16. The scene is the same at any size.
      channels: 1 (grey) or 3 (colour, random and independent of the class).
      classes: Number of classes, 2 to 16; outlines and fractal families alternate.
      per_class: Number of images per class, at least 6.
      seed: Seed of all random draws.

    Returns:
      The recipe; its images are `[size, size, channels]` uint8.

    Raises:
      UserError: A setting is out of its range.
    """
    limits = {
        "size": (size, 16, None),
        "classes": (classes, 2, len(KINDS)),
        "per_class": (per_class, TEST_EVERY, None),
        "seed": (seed, 0, None),
    }
    check(channels, limits)
    settings = {"size": size, "channels": channels, "seed": seed}
    return Recipe(
        name="natural_surrogate",
        kind="natural",
        class_names=KINDS[:classes],
        key=digest(
            "natural_surrogate", VERSION, classes, per_class, sorted(settings.items())
        ),
        tasks=tasks(classes, per_class, IMAGES_PER_TASK),
        make=functools.partial(make, **settings),
        synthetic=True,
    )


def make(task: Task, *, size: int, channels: int, seed: int) -> list[Example]:
    """Returns the images of a task; the settings are those of `recipe`."""
    name = KINDS[task.label]

    def seeded(index):
        return np.random.default_rng([seed, task.label, index])

    return [
        Example(
            id=f"{name}_{index:05d}",
            image=scene(seeded(index), name, size, channels),
            label=task.label,
            split="test" if index % TEST_EVERY == TEST_EVERY - 1 else "train",
        )
        for index in range(task.first, task.last)
    ]


def scene(rng: np.random.Generator, name: str, size: int, channels: int) -> np.ndarray:
    """Returns an image `[size, size, channels]` uint8 with one object of class `name`."""
    m = size * OVERSAMPLING
    line = ((np.arange(m) + 0.5) / m * 2 - 1).astype(np.float32)
    x, y = np.meshgrid(line, line)
    canvas = _background(rng, x, y, channels)
    radius = rng.uniform(0.5, 0.85)
    place = rng.uniform(-1, 1, 2) * (1 - radius) * 0.9
    cover = _shape if name in OUTLINES else _fractal
    alpha = cover(rng, name, x, y, place, radius)[..., None]
    canvas = canvas + alpha * (_paint(rng, x, y, canvas, channels) - canvas)
    if rng.random() < OCCLUDED_FRACTION:
        _add_leaves(rng, canvas, x, y, radii=rng.uniform(0.15, 0.3, 1))
    light = 1 + rng.uniform(0, 0.3) * _gradient(rng, x, y)
    canvas = canvas * light[..., None]
    blocks = canvas.reshape(size, OVERSAMPLING, size, OVERSAMPLING, channels)
    image = blocks.mean(axis=(1, 3))
    image = image + rng.normal(0, rng.uniform(0.005, 0.03), image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _background(rng, x: np.ndarray, y: np.ndarray, channels: int) -> np.ndarray:
    """Returns a dead-leaves scene of irregular polygons, `[m, m, channels]`."""
    canvas = np.empty((*x.shape, channels), np.float32)
    canvas[:] = _colour(rng, channels)
    # Radii follow a power law of exponent -3, as in natural scenes (Lee et al. 2001).
    radii = np.minimum(0.19 * (1 - rng.random(BACKGROUND_LEAVES)) ** -0.5, 1.2)
    _add_leaves(rng, canvas, x, y, radii)
    # Low contrast makes the object stand out from its background.
    haze = rng.uniform(0.2, 0.8)
    return canvas + haze * (canvas.mean(axis=(0, 1)) - canvas)


def _add_leaves(rng, canvas: np.ndarray, x, y, radii: np.ndarray) -> None:
    """Draws irregular convex polygons, each in one shaded colour, onto the canvas.

    Later polygons cover earlier ones. `radii` `[L]` are in half image widths.
    """
    count, sides = len(radii), 5
    centre = rng.uniform(-1, 1, (2, count, 1))
    angle = rng.uniform(-0.4, 0.4, (count, sides)) + np.arange(sides)
    angle = (angle + rng.uniform(0, sides, (count, 1))) * (2 * np.pi / sides)
    reach = radii[:, None] * rng.uniform(0.4, 1.0, (count, sides))
    # A side is where cos x + sin y = limit.
    cos, sin = np.cos(angle), np.sin(angle)
    limit = reach + cos * centre[0] + sin * centre[1]
    cos, sin, limit = (v.astype(np.float32)[..., None, None] for v in (cos, sin, limit))
    # x changes along columns only, and y along rows.
    inside = np.ones((count, *x.shape), bool)
    for k in range(sides):
        inside &= cos[:, k] * x[:1] - limit[:, k] < -sin[:, k] * y[:, :1]
    top = count - 1 - inside[::-1].argmax(axis=0)
    tint = np.stack([_colour(rng, canvas.shape[-1]) for _ in radii])
    direction = rng.uniform(0, 2 * np.pi, count)
    steep = rng.uniform(0, 0.3, count) / np.maximum(radii, 0.2)
    fall = np.stack([steep * np.cos(direction), steep * np.sin(direction)])
    flat = 1 - (fall * centre[..., 0]).sum(axis=0)
    fall, flat = fall.astype(np.float32), flat.astype(np.float32)
    shade = flat[top] + fall[0][top] * x + fall[1][top] * y
    np.copyto(canvas, tint[top] * shade[..., None], where=inside.any(axis=0)[..., None])


def _colour(rng: np.random.Generator, channels: int) -> np.ndarray:
    grey = rng.uniform(0.1, 0.9)
    if channels == 1:
        return np.array([grey], np.float32)
    return np.clip(grey + rng.normal(0, 0.18, 3), 0.02, 1).astype(np.float32)


def _gradient(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    angle = rng.uniform(0, 2 * np.pi)
    return np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y


def _paint(rng, x, y, canvas: np.ndarray, channels: int) -> np.ndarray:
    """Returns the object's surface: a contrasting colour, shading, sometimes stripes."""
    mean = float(canvas.mean())
    tint = _colour(rng, channels)
    # Brighter or darker than the background, at random.
    offset = rng.uniform(0.25, 0.5) * (1 if rng.random() < 0.5 else -1)
    if not 0.05 < mean + offset < 0.95:
        offset = -offset
    tint = tint - tint.mean() + np.float32(mean + offset)
    shade = 1 + rng.uniform(0, 0.25) * _gradient(rng, x, y)
    if rng.random() < 0.4:
        waves = np.sin(rng.uniform(8, 25) * _gradient(rng, x, y) + rng.uniform(0, 6))
        shade = shade + rng.uniform(0.05, 0.2) * waves
    return tint * shade[..., None]


def _shape(rng, name: str, x, y, place, radius: float) -> np.ndarray:
    """Returns coverage `[m, m]` of an outline, rotated, squeezed and sheared a little."""
    turn = rng.uniform(0, 2 * np.pi)
    squeeze, shear = rng.uniform(0.8, 1.0), rng.uniform(-0.2, 0.2)
    c, s = np.cos(turn), np.sin(turn)
    to_shape = np.array([[c, s], [-s, c]])
    to_shape = np.array([[1, shear], [0, 1 / squeeze]]) @ to_shape / radius
    dx, dy = x - np.float32(place[0]), y - np.float32(place[1])
    u, v = (np.float32(row[0]) * dx + np.float32(row[1]) * dy for row in to_shape)
    inside = OUTLINES[name](u, v)
    # The border is one drawn pixel wide.
    return np.clip(0.5 + inside * radius * len(x) / 2, 0, 1)


def _fractal(rng, name: str, x, y, place, radius: float) -> np.ndarray:
    """Returns coverage `[m, m]` of a fractal instance, rotated at most 40 degrees."""
    m = len(x)
    steps = max(8, POINTS_PER_PIXEL * m * m // 512)
    points = attractor(rng, perturbed(rng, FRACTALS[name]), walkers=512, steps=steps)
    low, high = points.min(axis=1), points.max(axis=1)
    span = max(float((high - low).max()), 1e-6)
    turn = rng.uniform(-1, 1) * np.deg2rad(40)
    c, s = np.cos(turn), np.sin(turn)
    # Upwards means towards smaller rows; half of the instances are mirrored.
    to_image = np.array([[c, s], [s, -c]]) * [rng.choice([-1, 1]), 1]
    to_image = to_image * (1.15 * radius * 2 / span)
    shift = place - to_image @ ((low + high) / 2)
    column, row = (
        ((a * points[0] + b * points[1] + o + 1) * (m / 2)).astype(np.int32)
        for (a, b), o in zip(to_image.tolist(), shift.tolist(), strict=True)
    )
    seen = (column >= 0) & (column < m) & (row >= 0) & (row < m)
    counts = np.bincount((row * m + column)[seen], minlength=m * m)
    return np.minimum(counts.reshape(m, m) / 2, 1).astype(np.float32)


def perturbed(rng: np.random.Generator, maps: np.ndarray) -> np.ndarray:
    """Returns `[k, 2, 3]` maps, changed a little and still contractive."""
    factor = 1 + rng.uniform(-PERTURBATION, PERTURBATION, maps.shape)
    changed = factor * maps
    stretch = np.linalg.norm(changed[:, :, :2], ord=2, axis=(1, 2))
    shrink = np.minimum(1, LARGEST_STRETCH / np.maximum(stretch, 1e-6))
    changed[:, :, :2] *= shrink[:, None, None]
    return changed


def attractor(
    rng: np.random.Generator, maps: np.ndarray, walkers: int, steps: int
) -> np.ndarray:
    """Returns points on the attractor of an IFS, drawn by the chaos game.

    Args:
      rng: Random generator.
      maps: `[k, 2, 3]` contractive affine maps.
      walkers: Number of points that walk in parallel.
      steps: Number of positions kept per walker, after the first `START`.

    Returns:
      x and y of the points, `[2, steps * walkers]` float32.
    """
    # Maps are drawn in proportion to the area they fill, with a minimum probability.
    area = np.abs(np.linalg.det(maps[:, :, :2])) ** 0.5
    weight = np.maximum(area, 0.02 * area.sum())
    ends = np.cumsum(weight / weight.sum())[:-1].astype(np.float32)
    chance = rng.random((START + steps, walkers), dtype=np.float32)
    which = np.searchsorted(ends, chance)
    a, b, e, c, d, f = maps.reshape(-1, 6).T.astype(np.float32)[:, which]
    x, y = np.zeros(walkers, np.float32), np.zeros(walkers, np.float32)
    path = np.empty((2, steps, walkers), np.float32)
    for step in range(START + steps):
        x, y = a[step] * x + b[step] * y + e[step], c[step] * x + d[step] * y + f[step]
        if step >= START:
            path[0, step - START], path[1, step - START] = x, y
    return path.reshape(2, -1)


def _polar_star(points: int, depth: float) -> Outline:
    """Returns a star with straight edges; `depth` is the ratio of inner to outer radius."""

    def outline(u, v):
        half = np.pi / points
        angle = np.abs((np.arctan2(u, -v) + half) % (2 * half) - half)
        radius = np.hypot(u, v)
        # The edge from the tip (1, 0) to the notch at `half`.
        notch_x, notch_y = depth * np.cos(half), depth * np.sin(half)
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        return (notch_y * (1 - x) - (1 - notch_x) * y) / np.hypot(notch_y, 1 - notch_x)

    return outline


def _disc(u, v):
    return 0.85 - np.hypot(u, v)


def _triangle(u, v):
    return 0.5 - np.maximum(v, np.abs(u) * np.sqrt(0.75) - v / 2)


def _rectangle(u, v):
    return np.minimum(0.95 - np.abs(u), 0.55 - np.abs(v))


def _ring(u, v):
    radius = np.hypot(u, v)
    return np.minimum(0.9 - radius, radius - 0.5)


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(0.95 - np.maximum(u, v), 0.3 - np.minimum(u, v))


def _crescent(u, v):
    return np.minimum(0.9 - np.hypot(u, v), np.hypot(u - 0.45, v) - 0.7)


def _heart(u, v):
    # A square on its tip, and a disc over each of its upper edges.
    square = (0.8 - np.abs(u) - np.abs(v - 0.1)) * np.sqrt(0.5)
    return np.maximum(square, 0.8 * np.sqrt(0.5) - np.hypot(np.abs(u) - 0.4, v + 0.3))


OUTLINES: dict[str, Outline] = {
    "disc": _disc,
    "triangle": _triangle,
    "star": _polar_star(5, 0.42),
    "rectangle": _rectangle,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
    "heart": _heart,
}


def _copies(scale: float, places: list[tuple[float, float]]) -> np.ndarray:
    """Returns maps that shrink the whole by `scale` towards each position."""
    return np.array([[[scale, 0, x], [0, scale, y]] for x, y in places])


def _turned(scale: float, degrees: float, x: float, y: float) -> list[list[float]]:
    c, s = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return [[c, -s, x], [s, c, y]]


def _around(count: int) -> list[tuple[float, float]]:
    angles = 2 * np.pi * np.arange(count) / count
    return [(float(np.sin(a)), float(-np.cos(a))) for a in angles]


_HALF = np.sqrt(0.5)
_GRID = [(float(x), float(y)) for x in (-1, 0, 1) for y in (-1, 0, 1)]
FRACTALS: dict[str, np.ndarray] = {
    # Barnsley's fern (Barnsley 1988).
    "fern": np.array(
        [
            [[0.0, 0.0, 0.0], [0.0, 0.16, 0.0]],
            [[0.85, 0.04, 0.0], [-0.04, 0.85, 1.6]],
            [[0.2, -0.26, 0.0], [0.23, 0.22, 1.6]],
            [[-0.15, 0.28, 0.0], [0.26, 0.24, 0.44]],
        ]
    ),
    "gasket": _copies(0.5, _around(3)),
    "dragon": np.array([_turned(_HALF, 45, 0, 0), _turned(_HALF, 135, 1, 0)]),
    "carpet": _copies(1 / 3, [p for p in _GRID if p != (0.0, 0.0)]),
    "tree": np.array(
        [
            [[0.04, 0.0, 0.0], [0.0, 0.45, 0.0]],
            _turned(0.62, 38, 0, 0.9),
            _turned(0.62, -38, 0, 0.9),
            _turned(0.45, 4, 0, 0.9),
        ]
    ),
    "snowflake": np.concatenate(
        [_copies(1 / 3, _around(6)), [_turned(1 / np.sqrt(3), 30, 0, 0)]]
    ),
    "c_curve": np.array([_turned(_HALF, 45, 0, 0), _turned(_HALF, -45, 0.5, 0.5)]),
    "pentagons": _copies(0.382, _around(5)),
}
# Outlines and fractals alternate; a set uses the first `classes` of them.
KINDS = tuple(name for pair in zip(OUTLINES, FRACTALS, strict=True) for name in pair)
