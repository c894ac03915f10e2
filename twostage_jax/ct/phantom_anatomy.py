"""Axial sections of a chest in HU: healthy organs, and lung textures of diffuse disease.

Images follow the radiological convention: the patient's right is on the left, the spine
at the bottom. Lengths are in millimetres. Attenuations are textbook values (Hounsfield
scale: air -1000, fat -100, muscle and blood 30 to 60, bone above 200).

A texture function returns the lung as if the disease were everywhere; `phantom` blends it
into the diseased regions. Textures follow the definitions in the glossary of the
Fleischner Society (Hansell et al. 2008, doi:10.1148/radiol.2462070712).
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import scipy
from PIL import Image, ImageDraw

AIR, FAT, MUSCLE, BLOOD, MARROW, CORTEX = -1000, -100, 50, 42, 220, 750


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square pixel grid with its origin in the centre.

    Attributes:
      matrix: Pixels per side.
      spacing: Pixel size, mm.
    """

    matrix: int
    spacing: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix, self.matrix

    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns x `[1, W]` and y `[H, 1]` in mm, float32."""
        axis = (np.arange(self.matrix, dtype=np.float32) + 0.5) - self.matrix / 2
        axis *= np.float32(self.spacing)
        return axis[None, :], axis[:, None]

    def blur(self, image: np.ndarray, sigma_mm: float) -> np.ndarray:
        """Returns a Gaussian blur of standard deviation `sigma_mm`, float32."""
        return scipy.ndimage.gaussian_filter(
            np.asarray(image, np.float32), sigma_mm / self.spacing, truncate=3.0
        )

    def noise(self, rng: np.random.Generator, scale_mm: float) -> np.ndarray:
        """Returns a smooth random field `[H, W]` of mean 0 and standard deviation 1.

        `scale_mm` is about the distance over which the field changes sign. The field is
        white noise on a coarser grid with bicubic interpolation, which is fast.
        """
        coarse = max(4, round(self.matrix * self.spacing / scale_mm) + 3)
        white = rng.standard_normal((coarse, coarse), dtype=np.float32)
        field = Image.fromarray(white).resize(self.shape, Image.Resampling.BICUBIC)
        field = np.asarray(field)
        return (field - field.mean()) / (field.std() + 1e-6)


@dataclasses.dataclass(frozen=True)
class Body:
    """Build of a patient.

    Attributes:
      half_width: Half of the width of the trunk, mm.
      half_depth: Half of the depth of the trunk, mm.
      fat: Thickness of the subcutaneous fat, mm.
      heart: Size of the heart, relative to the average.
      tilt: Small rotation of the body, radians.
    """

    half_width: float
    half_depth: float
    fat: float
    heart: float
    tilt: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Body":
        """Returns a random build."""
        half_width = rng.uniform(148, 182)
        return cls(
            half_width=half_width,
            half_depth=half_width * rng.uniform(0.64, 0.74),
            fat=rng.uniform(8, 22),
            heart=rng.uniform(0.85, 1.15),
            tilt=rng.uniform(-0.05, 0.05),
        )


def _ellipse(x, y, cx, cy, rx, ry, power=2.0):
    """Returns the value of a superellipse: 1 on the outline, smaller inside."""
    across, down = (x - cx) / rx, (y - cy) / ry
    if power == 2:  # Much faster than raising to a power.
        return across * across + down * down
    return np.abs(across) ** power + np.abs(down) ** power


def _mediastinum(body: Body, level: float, x, y, width: float, depth: float):
    """Returns heart, great vessels, spine and mediastinum, `[H, W]` bool."""
    stations = [-1, -0.6, -0.25, 0.25, 0.7, 1]
    half = np.interp(y / depth, stations, [9, 11, 26, 28, 22, 24]).astype(np.float32)
    organs = np.abs(x - 3) < half
    low = min(max((level - 0.35) / 0.3, 0.0), 1.0)
    rx, ry = (26 + 24 * low) * body.heart, (30 + 14 * low) * body.heart
    organs |= _ellipse(x - 0.25 * y, y, 10 + 14 * low, -0.22 * depth, rx, ry) < 1
    organs |= _ellipse(x, y, 0, 0.82 * depth, 28, 31) < 1
    organs |= _ellipse(x, y, 26, 0.5 * depth, 14, 14) < 1
    if level > 0.7:  # The dome of the liver, on the patient's right.
        dome = (level - 0.7) / 0.3
        organs |= _ellipse(x, y, -0.5 * width, -0.1 * depth, 62 * dome, 58 * dome) < 1
    return organs


def chest(
    body: Body, level: float, grid: Grid, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns one section with empty lungs.

    Args:
      body: Build of the patient.
      level: Height from 0 at the apex of the lungs to 1 at the base; realistic from 0.2
        to 0.9.
      grid: Pixel grid; a field narrower than the body cuts it, as in practice.
      rng: Random generator for the differences between sections of one patient.

    Returns:
      HU `[H, W]` float32 with air in the lungs, the lung mask `[H, W]` bool, and the
      hila `[2, 2]`: x, y in mm where the vessels enter the patient's right and left
      lung.
    """
    x, y = grid.coordinates()
    wobble = 0.6 * grid.noise(rng, 60), 0.6 * grid.noise(rng, 60)
    x, y = x + body.tilt * y + 2.5 * wobble[0], y - body.tilt * x + 2.5 * wobble[1]
    a, b, fat = body.half_width, body.half_depth, body.fat
    shrink = 0.8 + 0.2 * math.sin(math.pi * (0.1 + 0.75 * level))
    width, depth = (a - fat - 20) * shrink, (b - fat - 17) * shrink

    hu = np.full(grid.shape, AIR, np.float32)
    hu[_ellipse(x, y, 0, 0, a, b, 2.4) < 1] = FAT
    inside = _ellipse(x, y, 0, 0, a - fat, b - fat, 2.4) < 1
    strands = grid.noise(rng, 7) + 0.8 * grid.noise(rng, 20)
    hu[inside] = np.where(strands > 1.4, FAT, MUSCLE)[inside]

    rho = _ellipse(x, y, 0, 0, width, depth, 2.5) ** (1 / 2.5)
    cavity = rho < 1
    organs = _mediastinum(body, level, x, y, width, depth)
    lungs = grid.blur(cavity & ~organs, 3.0) > 0.5
    between = cavity & ~lungs
    hu[between] = np.where(organs, BLOOD, 10)[between]
    fatty = between & (grid.noise(rng, 14) > 0.9) & (np.abs(x - 3) < 30) & (y < 0)
    hu[fatty] = FAT
    _bones(hu, rng, x, y, rho, width, depth)
    _airways(hu, level, x, y)
    hu[lungs] = AIR
    hila = np.array([[-34, 0.08 * depth], [38, 0.12 * depth]])
    return hu, lungs, hila


def _bones(hu, rng, x, y, rho, width, depth):
    """Adds ribs, spine and sternum to `hu`, in place."""
    inner, thick = 1 + 3 / depth, 9 / depth
    ring = (rho > inner) & (rho < inner + thick)
    radial = (rho[ring] - inner) / thick * 2 - 1
    angle, bone = np.arctan2(y[ring] / depth, x[ring] / width), hu[ring]
    for centre in np.concatenate([np.linspace(-2.1, 2.1, 9), [2.9, 3.5, -2.7]]):
        along = (angle - centre - rng.normal(0, 0.05) + np.pi) % (2 * np.pi) - np.pi
        rib = (along / rng.uniform(0.06, 0.15)) ** 2 + radial**2
        bone[rib < 1] = CORTEX
        bone[rib < 0.45] = MARROW
    hu[ring] = bone
    vertebra = _ellipse(x, y, 0, 0.88 * depth, 19, 15)
    arch = _ellipse(x, y, 0, 0.88 * depth + 24, 22, 14)
    process = _ellipse(x, y, 0, 0.88 * depth + 40, 4, 16)
    sternum = _ellipse(x, y, 0, -depth - 8, 18, 6)
    for bone in (arch, process, vertebra, sternum):
        hu[bone < 1] = CORTEX
        hu[bone < 0.7] = MARROW
    hu[_ellipse(x, y, 0, 0.88 * depth + 22, 9, 8) < 1] = 30


def _airways(hu, level, x, y):
    """Adds the trachea or, below its bifurcation, the main bronchi to `hu`, in place."""
    tubes = [(0, 0, 9)] if level < 0.45 else [(-19, 4, 6.5), (22, 8, 6)]
    for cx, cy, radius in tubes if level < 0.7 else []:
        hu[_ellipse(x, y, cx, cy, radius + 1.5, radius + 1.5) < 1] = 0
        hu[_ellipse(x, y, cx, cy, radius, radius) < 1] = -990


def tree(
    rng: np.random.Generator, tips: np.ndarray, root: np.ndarray, tip_radius: float
) -> np.ndarray:
    """Returns a tree that branches from `root` to all `tips`.

    Tips are connected, nearest to the root first, where the new branch plus part of the
    path back to the root is shortest (the minimum spanning tree with a path cost of Cuntz
    et al. 2010, doi:10.1371/journal.pcbi.1000877). Powers r^2.7 of the radii add up
    towards the root; the exponent is between Murray's 3 and that of lung arteries.

    Args:
      rng: Random generator for the bends.
      tips: Ends of the branches, `[N, 2]` in mm.
      root: Root of the tree, `[2]` in mm.
      tip_radius: Radius of the last branches, mm.

    Returns:
      Segments `[4 N, 5]` float64: x0, y0, x1, y1, radius, all in mm.
    """
    order = np.argsort(((tips - root) ** 2).sum(1))
    nodes = np.concatenate([root[None], tips[order]])
    path, parent = np.zeros(len(nodes)), np.zeros(len(nodes), int)
    for i in range(1, len(nodes)):
        gap = np.hypot(*(nodes[:i] - nodes[i]).T)
        parent[i] = np.argmin(gap + 0.4 * path[:i])
        path[i] = path[parent[i]] + gap[parent[i]]
    flow = np.full(len(nodes), tip_radius**2.7)
    for i in range(len(nodes) - 1, 0, -1):
        flow[parent[i]] += flow[i]
    radius = flow ** (1 / 2.7)
    start, end = nodes[parent[1:]], nodes[1:]
    across = (end - start)[:, ::-1] * [1, -1] * rng.normal(0, 0.15, (len(start), 1))
    fraction = np.linspace(0, 1, 5)[:, None, None]
    curve = start + fraction * (end - start) + 4 * fraction * (1 - fraction) * across
    pieces = np.concatenate([curve[:-1], curve[1:]], axis=2)  # [4, N, 4]
    width = np.broadcast_to(radius[1:, None], (4, len(start), 1))
    return np.concatenate([pieces, width], axis=2).reshape(-1, 5)


def draw(grid: Grid, segments: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """Returns the fraction of each pixel covered by segments, `[H, W]` float32.

    Args:
      grid: Pixel grid.
      segments: x0, y0, x1, y1, radius in mm, `[M, 5]`; both ends of a dot are equal.
      extra: Addition to every radius, mm.
    """
    factor = 3  # Finer pixels, averaged below, so that thin branches are faint.
    scale = factor / grid.spacing
    fine = Image.new("L", (grid.matrix * factor, grid.matrix * factor))
    pen = ImageDraw.Draw(fine)
    ends = (segments[:, :4] * scale + grid.matrix * factor / 2).tolist()
    radii = ((segments[:, 4] + extra) * scale).tolist()
    for (x0, y0, x1, y1), r in zip(ends, radii, strict=True):
        shade = min(255, int(510 * r))  # For branches thinner than one fine pixel.
        if abs(x1 - x0) + abs(y1 - y0) > 0.5:
            pen.line((x0, y0, x1, y1), fill=shade, width=max(1, round(2 * r)))
        if r > 0.8:
            pen.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=shade)
    return np.asarray(fine.reduce(factor), np.float32) / 255


@dataclasses.dataclass(frozen=True)
class Lung:
    """Lungs of one section.

    Attributes:
      grid: Pixel grid.
      air: HU of the parenchyma without vessels, `[H, W]`.
      vessels: Fraction of vessel in each pixel, `[H, W]`.
      hila: Positions (x, y) of both hila, mm, `[2, 2]`.
    """

    grid: Grid
    air: np.ndarray
    vessels: np.ndarray
    hila: np.ndarray

    def filled(self, air: np.ndarray, vessels: np.ndarray | None = None) -> np.ndarray:
        """Returns HU of the parenchyma `air` with vessels, by default `self.vessels`."""
        vessels = self.vessels if vessels is None else vessels
        return air + vessels * (35 - air)


def points_mm(rng, grid: Grid, mask: np.ndarray, count: int) -> np.ndarray:
    """Returns x, y in mm of random points inside `mask`, `[count, 2]`."""
    rows, columns = np.nonzero(mask)
    pick = rng.integers(0, len(rows), count)
    pixels = np.column_stack([columns[pick], rows[pick]])
    pixels = pixels + rng.uniform(0, 1, (count, 2))
    return (pixels - grid.matrix / 2) * grid.spacing


def _cells(rng, grid: Grid, near: np.ndarray, size: float, ragged: float, warp: float):
    """Returns random polygonal cells of about `size` mm.

    The values are, at the P pixels of `near` in row order: the distances to the nearest
    and the second nearest wall in mm, a random number in [0, 1] of the nearest wall, and
    the centre `[P, 2]` and a random number in [0, 1] of the cell.
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
    position = reach + warp * bend
    distance, index = scipy.spatial.cKDTree(centres).query(position, k=3)
    apart = [np.hypot(*(centres[index[:, 0]] - centres[index[:, k]]).T) for k in (1, 2)]
    walls = [
        (distance[:, k] ** 2 - distance[:, 0] ** 2) / (2 * apart[k - 1] + 1e-6)
        for k in (1, 2)
    ]
    chance = rng.uniform(size=len(centres))
    shared = (chance[index[:, 0]] + chance[index[:, 1]]) * 7919 % 1
    return walls[0], walls[1], shared, centres[index[:, 0]], chance[index[:, 0]]


def ground_glass(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Hazy density, +110 to +330 HU, in which vessels remain visible."""
    mottle = 0.7 * lung.grid.noise(rng, 9) + 0.5 * lung.grid.noise(rng, 4)
    haze = (110 + 220 * severity) * (1 + 0.22 * mottle)
    return lung.filled(np.minimum(lung.air + haze, -250))


def consolidation(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Airless lung, -50 to 40 HU, that hides vessels but not air-filled bronchi."""
    grid = lung.grid
    fluid = -90 + 120 * severity + 22 * grid.noise(rng, 10)
    # Some lobules still contain air; the more severe the disease, the fewer.
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
    """Clustered air cysts of 3 to 10 mm with common, thick, fibrous walls."""
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
    """Thickened septa of about 1 mm: polygons of 6 to 14 mm with finer lines inside."""
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
    """Holes of 3 to 15 mm near -960 HU without walls; vessels are rarefied."""
    grid = lung.grid
    holes = grid.noise(rng, rng.uniform(6, 11)) + 0.45 * grid.noise(rng, 4)
    fraction = np.clip(0.5 + (holes - 0.75 + 1.35 * severity) * 1.6, 0, 1)
    floor = -965 + 8 * grid.noise(rng, 12)
    air = lung.air - 20 * severity
    air = air + fraction * (np.minimum(floor, air) - air)
    return lung.filled(
        air, lung.vessels * (1 - 0.85 * fraction) * (1 - 0.35 * severity)
    )


def nodular(rng, lung: Lung, severity: float, where: np.ndarray) -> np.ndarray:
    """Scattered round nodules of 2 to 5 mm, well defined or hazy."""
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
    if solid < 0.65:  # Centrilobular nodules are hazy.
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
