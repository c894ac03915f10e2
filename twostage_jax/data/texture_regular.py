"""Materials that repeat, made or grown: cloth, masonry, honeycomb, scales.

Each function draws one sample, with numbers of its own, on the given pixels.
"""

import numpy as np

from twostage_jax.data.texture_fields import (
    Grid,
    Surface,
    noise,
    ramp,
    rough,
    smooth,
    warped,
)


def _bulge(u: np.ndarray) -> np.ndarray:
    """A thread's round profile over u in [-0.5, 0.5]."""
    return np.sqrt(np.clip(1 - (1.9 * u) ** 2, 0, 1))


def _split(field: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the whole part and the place within it, in [-0.5, 0.5)."""
    whole = np.floor(field)
    return whole.astype(np.int32), field - whole - 0.5


def _of_each(rng, index: np.ndarray) -> np.ndarray:
    """Returns a random number in [-1, 1] for each different index, at every pixel."""
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
    thread = np.where(over, _of_each(rng, i), _of_each(rng, j))
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
    albedo = (0.5 + 0.06 * _of_each(rng, row)) * (0.3 + 0.7 * height) + 0.02 * fuzz
    return Surface(0.3 / stitches * height, albedo)


def corduroy(rng, at: Grid) -> Surface:
    """Straight, rounded ribs of cut pile with narrow grooves between them."""
    frequency = rng.uniform(4.0, 8.0)
    x, _ = warped(rng, at, 0.006, 0.6)
    i, u = _split(x * frequency)
    height = _bulge(u) ** rng.uniform(0.7, 1.5)
    fine = smooth(0.05, 0.5)
    pile = noise(rng, at, lambda fx, fy: fine(fx, fy) * (np.hypot(fx, fy) > 2))
    albedo = 0.55 * (0.5 + 0.5 * height) + 0.035 * pile + 0.03 * _of_each(rng, i)
    return Surface(0.3 / frequency * height + 0.003 * pile, albedo)


def brick(rng, at: Grid) -> Surface:
    """Bricks in running bond, with rough faces and recessed mortar."""
    rows = rng.uniform(2.8, 4.6)
    length = rng.uniform(1.8, 2.8)
    x, y = warped(rng, at, 0.006, 0.25)
    j, v = _split(y * rows)
    i, u = _split(x * rows / length + 0.5 * (j % 2))
    joint = rng.uniform(0.06, 0.12)
    edge = np.minimum(0.5 - np.abs(v), (0.5 - np.abs(u)) * length)
    face = ramp(joint * 0.6, joint * 1.5, edge)
    grain = noise(rng, at, rough(1.0, 0.2))
    tone = _of_each(rng, 131 * (j - j.min()) + i - i.min())
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
    # Each row lies on the one after it: the earliest that covers a pixel is on top.
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
