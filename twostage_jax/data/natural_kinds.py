"""What the natural surrogate shows: outlines of shapes, and fractals by iteration.

An outline is a function of a point's place relative to the shape's centre, in units of
its radius; it returns a signed measure, positive inside. A fractal is an iterated
function system (IFS): affine maps `[k, 2, 3]`, whose attractor the chaos game draws
(Barnsley 1988).
"""

from collections.abc import Callable

import numpy as np

Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _polar_star(points: int, depth: float) -> Outline:
    """A star of straight edges; `depth` is the inner over the outer radius."""

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
    """Maps that shrink the whole by `scale` towards each place."""
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
    # Barnsley's fern, without change (Barnsley 1988).
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

# The first so many are used: shapes and fractals by turns.
KINDS = tuple(name for pair in zip(OUTLINES, FRACTALS, strict=True) for name in pair)

# Each number of the maps is changed by up to this share, so that no two instances are
# alike: as FractalDB varies its categories (Kataoka et al. 2020), but all at once.
PERTURBATION = 0.12
# A map must shrink, or the points run away.
LARGEST_STRETCH = 0.93
# Steps until a walker has come to the attractor.
START = 16


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
    """Plays the chaos game.

    Args:
      rng: Where the randomness comes from.
      maps: `[k, 2, 3]` contractive affine maps.
      walkers: Points that walk side by side.
      steps: Places of each that are kept, after a start that is not.

    Returns:
      `[2, steps * walkers]` float32, x and y of points on the attractor.
    """
    # Maps are chosen by the area that they fill, and never hardly at all.
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
