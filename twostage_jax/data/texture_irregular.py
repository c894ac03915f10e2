"""Materials without a lattice: stone, wood, sponge, earth, fur, foil.

Each function draws one sample, with numbers of its own, on the given pixels.
"""

import numpy as np

from twostage_jax.data.texture_fields import (
    Grid,
    Surface,
    cells,
    noise,
    ramp,
    rough,
    smooth,
    turing,
    warped,
)


def wood(rng, at: Grid) -> Surface:
    """A sawn board: growth rings cut lengthwise, bent round a knot, and fine pores."""
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
    """Polished stone: veins where turbulence crosses zero (Perlin 1985), clouds."""
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
    """A porous body: round pits of many sizes, a few of them large."""
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
    """Rounded stones of different greys, heaped: domes with dark gaps."""
    x, y = warped(rng, at, 0.015, 0.2)
    stones = cells(rng, x, y, rng.uniform(4.0, 6.5), rng.uniform(0.6, 0.95))
    dome = np.sqrt(np.clip(stones.gap, 0, 0.7) / 0.7)
    grain = noise(rng, at, smooth(0.04))
    albedo = (0.25 + 0.6 * stones.value) * ramp(0.02, 0.3, stones.gap) + 0.02 * grain
    return Surface(0.07 * dome + 0.03 * stones.value * dome, albedo, 0.1)


def cracked_mud(rng, at: Grid) -> Surface:
    """Dried ground: flat, fine-grained plates parted by thin, dark cracks."""
    x, y = warped(rng, at, 0.035, 0.15)
    plates = cells(rng, x, y, rng.uniform(2.2, 3.6), 0.95)
    plate = ramp(0.02, rng.uniform(0.08, 0.15), plates.gap)
    grain = noise(rng, at, rough(1.2, 0.3))
    albedo = 0.12 + 0.5 * plate + 0.04 * grain + 0.05 * (plates.value - 0.5)
    return Surface(0.02 * plate + 0.012 * plates.nearest**2 + 0.003 * grain, albedo)


def coral(rng, at: Grid) -> Surface:
    """Brain coral: a labyrinth of even, winding ridges, from reaction and diffusion."""
    frequency = rng.uniform(4.0, 6.5)
    ridge = 0.5 + 0.5 * turing(rng, at, frequency, rng.uniform(-0.35, 0.35))
    grain = noise(rng, at, smooth(0.04))
    albedo = 0.25 + 0.45 * ridge + 0.02 * grain
    return Surface(0.2 / frequency * ridge, albedo, 0.05)


def fur(rng, at: Grid) -> Surface:
    """Long hairs that lie in locks, all roughly one way."""
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
    """Linear interpolation along the columns, which wrap around."""
    n = len(field)
    row = rows.astype(np.int32) % n
    left = np.floor(columns).astype(np.int32)
    share = columns - left
    return (1 - share) * field[row, left % n] + share * field[row, (left + 1) % n]


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
    """Crumpled metal foil: flat facets that meet in sharp creases, mirror-like."""
    height = np.zeros_like(at.x)
    x, y = warped(rng, at, 0.03, 0.3)
    for _ in range(15):
        angle = rng.uniform(0, 2 * np.pi)
        dx, dy = float(np.cos(angle)), float(np.sin(angle))
        through = rng.integers(0, at.pixels, 2)
        along = dx * (x - x[*through]) + dy * (y - y[*through])
        height = height + rng.choice([-1, 1]) * rng.uniform(0.1, 0.35) * np.abs(along)
        # Fold the sheet itself: the next crease breaks off where it meets this one.
        move = -2 * np.minimum(along, 0)
        x, y = x + dx * move, y + dy * move
    return Surface(height, np.full_like(at.x, 0.35), 1.0)


def terrazzo(rng, at: Grid) -> Surface:
    """Polished floor: angular stone chips, light and dark, in a plain binder."""
    albedo = np.full(at.x.shape, rng.uniform(0.4, 0.6))
    low, high = rng.uniform(0.05, 0.2), rng.uniform(0.8, 0.95)
    for frequency in (rng.uniform(3.0, 4.0), rng.uniform(5.5, 8.0)):
        chips = cells(rng, at.x, at.y, frequency, 1.0)
        chip = ramp(0.16, 0.24, chips.gap) * (chips.value < 0.55)
        tone = np.where(chips.value < 0.3, low, high) + 0.25 * (chips.value - 0.3)
        albedo = albedo + chip * (tone - albedo)
    return Surface(0 * at.x, albedo + 0.015 * noise(rng, at, smooth(0.04)), 0.1)
