"""Lung textures of diffuse disease, drawn in HU at their true size in millimetres.

Each texture function takes the healthy lung and returns the lung as if the disease
were everywhere; `ct/phantom.py` blends it in where the disease is. What is drawn
follows the definitions of the Fleischner Society's glossary (Hansell et al. 2008,
doi:10.1148/radiol.2462070712).
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy.spatial import cKDTree

from twostage_jax.ct.phantom_anatomy import Grid, draw, tree


@dataclasses.dataclass(frozen=True)
class Lung:
    """The lungs of one section.

    Attributes:
      grid: The pixel grid.
      air: `[H, W]` HU of the parenchyma without vessels.
      vessels: `[H, W]` share of vessel in each pixel.
      hila: `[2, 2]` x, y in mm.
    """

    grid: Grid
    air: np.ndarray
    vessels: np.ndarray
    hila: np.ndarray

    def filled(self, air: np.ndarray, vessels: np.ndarray | None = None) -> np.ndarray:
        """Returns HU of vessels (the healthy ones, unless given) amid `air`."""
        vessels = self.vessels if vessels is None else vessels
        return air + vessels * (35 - air)


def points_mm(rng, grid: Grid, mask: np.ndarray, count: int) -> np.ndarray:
    """Returns `[count, 2]` x, y in mm of random places inside `mask`."""
    rows, columns = np.nonzero(mask)
    pick = rng.integers(0, len(rows), count)
    pixels = np.column_stack([columns[pick], rows[pick]])
    pixels = pixels + rng.uniform(0, 1, (count, 2))
    return (pixels - grid.matrix / 2) * grid.spacing


def _cells(rng, grid: Grid, near: np.ndarray, size: float, ragged: float, warp: float):
    """Random polygons of about `size` mm across.

    Returns, for the pixels of `near` in row order: distance to the nearest and to the
    second nearest wall in mm, the nearest wall's random number (the same all along
    the wall) and the cell's centre `[P, 2]` and random number, in [0, 1].
    """
    half = grid.matrix * grid.spacing / 2 + 2 * size
    lattice = np.arange(-half, half, size)
    xs, ys = np.meshgrid(lattice, lattice)
    xs = xs + np.where(np.arange(len(lattice)) % 2, 0, size / 2)[:, None]
    centres = np.column_stack([xs.ravel(), ys.ravel()])
    rows, columns = np.nonzero(near)
    reach = (np.array([columns, rows]).T + 0.5 - grid.matrix / 2) * grid.spacing
    low, high = reach.min(0) - 2 * size, reach.max(0) + 2 * size
    centres = centres[np.all((centres > low) & (centres < high), axis=1)]
    centres = centres + rng.normal(0, ragged * size, centres.shape)
    centres = centres[rng.uniform(size=len(centres)) > 0.18]
    bend = np.column_stack([grid.noise(rng, 6)[near], grid.noise(rng, 6)[near]])
    place = reach + warp * bend
    distance, index = cKDTree(centres).query(place, k=3)
    apart = [np.hypot(*(centres[index[:, 0]] - centres[index[:, k]]).T) for k in (1, 2)]
    walls = [
        (distance[:, k] ** 2 - distance[:, 0] ** 2) / (2 * apart[k - 1] + 1e-6)
        for k in (1, 2)
    ]
    chance = rng.uniform(size=len(centres))
    shared = (chance[index[:, 0]] + chance[index[:, 1]]) * 7919 % 1
    return walls[0], walls[1], shared, centres[index[:, 0]], chance[index[:, 0]]


def ground_glass(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Hazy density through which the vessels stay visible: +110 to +330 HU."""
    mottle = 0.7 * lung.grid.noise(rng, 9) + 0.5 * lung.grid.noise(rng, 4)
    haze = (110 + 220 * severity) * (1 + 0.22 * mottle)
    return lung.filled(np.minimum(lung.air + haze, -250))


def consolidation(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Airless lung, -50 to 40 HU, that hides vessels; bronchi stay dark in it."""
    grid = lung.grid
    fluid = -90 + 120 * severity + 22 * grid.noise(rng, 10)
    # Lobules that still hold air, fewer the more severe the disease.
    spared = grid.noise(rng, 9) + 0.4 * grid.noise(rng, 4) - 0.5 - severity
    spared = np.clip(spared, 0, 1)
    hu = fluid + spared * (-520 - fluid)
    x = points_mm(rng, grid, where, 6 + where.sum() // 350)
    for side, hilum in enumerate(lung.hila):
        tips = x[(x[:, 0] > 0) == bool(side)]
        if len(tips):
            branches = tree(rng, tips, hilum, rng.uniform(0.5, 0.75))
            branches = branches[rng.uniform(size=len(branches)) < 0.75]
            branches[:, 4] = np.minimum(branches[:, 4], 1.9)
            lumen = draw(grid, branches)
            hu = hu + lumen * (-900 - hu)
    return hu


def honeycombing(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Clustered air cysts of 3 to 10 mm that share thick fibrous walls."""
    grid = lung.grid
    size = rng.uniform(4.2, 7.8)
    near = grid.blur(where, 2.5) > 0.05
    first, second, _, centre, chance = _cells(rng, grid, near, size, 0.27, 0.4)
    # A soft minimum of the two walls rounds the corners of a cyst.
    round_off = 0.1 * size
    wall = -round_off * np.log(np.exp(-first / round_off) + np.exp(-second / round_off))
    half = size * (0.07 + 0.08 * severity) * (1 + 0.25 * grid.noise(rng, 10)[near])
    tissue = 1 / (1 + np.exp((wall - half) / 0.22))
    column, row = ((centre / grid.spacing) + grid.matrix / 2).astype(int).T
    limit = grid.matrix - 1
    inside = where[np.clip(row, 0, limit), np.clip(column, 0, limit)]
    fibrous = -40 - 160 * (1 - severity)
    air = np.where(chance < 0.04, -300, -945)
    hu = lung.filled(lung.air + 60)
    cysts = air + tissue * (fibrous - air)
    hu[near] = np.where(inside, cysts, hu[near])
    return hu


def reticular(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Thickened septa, about 1 mm: polygons of 6 to 14 mm, finer lines inside them."""
    grid = lung.grid
    near = grid.blur(where, 2.5) > 0.05
    lines = np.zeros(near.sum())
    coarse = rng.uniform(6, 11)
    patterns = [(coarse, 0.42, 0.95), (rng.uniform(2.6, 4.2), 0.3, 0.6)]
    for size, thick, strength in patterns:
        wall, _, chance, _, _ = _cells(rng, grid, near, size, 0.3, 0.12 * size)
        width = thick * (0.7 + 0.6 * chance)
        line = strength * np.exp(-((wall / width) ** 2))
        lines = np.maximum(lines, line * (chance < 0.5 + 0.4 * severity))
    patchy = np.clip(0.8 + 0.35 * grid.noise(rng, 15)[near], 0.2, 1)
    haze = lung.air + 30 + 90 * severity
    hu = lung.filled(haze)
    amount = lines * patchy * (0.45 + 0.5 * severity)
    hu[near] = hu[near] + amount * (30 - hu[near])
    return hu


def emphysema(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Holes near -960 HU without walls, 3 to 15 mm across; vessels are thinned out."""
    grid = lung.grid
    holes = grid.noise(rng, rng.uniform(6, 11)) + 0.45 * grid.noise(rng, 4)
    share = np.clip(0.5 + (holes - 0.75 + 1.35 * severity) * 1.6, 0, 1)
    floor = -965 + 8 * grid.noise(rng, 12)
    air = lung.air - 20 * severity
    air = air + share * (np.minimum(floor, air) - air)
    return lung.filled(air, lung.vessels * (1 - 0.85 * share) * (1 - 0.35 * severity))


def nodular(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Roundish nodules of 2 to 5 mm, well defined or hazy, strewn over the lung."""
    grid = lung.grid
    area = where.sum() * grid.spacing**2
    count = int(area / 100 * rng.uniform(1.0, 1.5) * (0.8 + 1.4 * severity)) + 1
    centre = points_mm(rng, grid, where, count)
    radius = np.clip(rng.lognormal(np.log(1.15 + 0.35 * severity), 0.28, count), 0.9, 3)
    offset = rng.normal(0, 0.35, (count, 2)) * radius[:, None]
    discs = np.column_stack([centre, centre, radius])
    lobes = np.column_stack([centre + offset, centre + offset, 0.8 * radius])
    shape = draw(grid, np.concatenate([discs, lobes]))
    solid = rng.uniform(0.45, 1.0)
    if solid < 0.65:  # centrilobular nodules are hazy
        shape = grid.blur(shape, 0.8)
    hu = lung.filled(lung.air + 25 * severity)
    return hu + shape * solid * (20 - hu)


TEXTURES: dict[str, Callable[..., np.ndarray]] = {
    "consolidation": consolidation,
    "ground_glass": ground_glass,
    "honeycombing": honeycombing,
    "reticular": reticular,
    "emphysema": emphysema,
    "nodular": nodular,
}
