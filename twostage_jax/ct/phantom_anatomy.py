"""A chest in axial section: the healthy organs around and inside the lungs, in HU.

The picture follows the radiological convention: the patient's right is at the left,
the spine at the bottom. Lengths are millimetres. Attenuations are textbook values
(Hounsfield scale: air -1000, fat -100, muscle and blood 30 to 60, bone above 200).
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

AIR, FAT, MUSCLE, BLOOD, MARROW, CORTEX = -1000, -100, 50, 42, 220, 750


@dataclasses.dataclass(frozen=True)
class Grid:
    """Square pixel grid, its origin in the centre.

    Attributes:
      matrix: Pixels a side.
      spacing: Millimetres a pixel.
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
        """Gaussian blur, `sigma_mm` its standard deviation; float32 out."""
        return ndimage.gaussian_filter(
            np.asarray(image, np.float32), sigma_mm / self.spacing, truncate=3.0
        )

    def noise(self, rng: np.random.Generator, scale_mm: float) -> np.ndarray:
        """Smooth random field `[H, W]`, zero mean, unit deviation.

        `scale_mm` is about the distance over which it changes sign. Made by cubic
        interpolation of white noise on a coarser grid, which costs little.
        """
        coarse = max(4, round(self.matrix * self.spacing / scale_mm) + 3)
        white = rng.standard_normal((coarse, coarse), dtype=np.float32)
        field = Image.fromarray(white).resize(self.shape, Image.Resampling.BICUBIC)
        field = np.asarray(field)
        return (field - field.mean()) / (field.std() + 1e-6)


@dataclasses.dataclass(frozen=True)
class Body:
    """The build of one patient; half axes and thicknesses in mm."""

    half_width: float
    half_depth: float
    fat: float
    heart: float
    tilt: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Body":
        half_width = rng.uniform(148, 182)
        return cls(
            half_width=half_width,
            half_depth=half_width * rng.uniform(0.64, 0.74),
            fat=rng.uniform(8, 22),
            heart=rng.uniform(0.85, 1.15),
            tilt=rng.uniform(-0.05, 0.05),
        )


def _ellipse(x, y, cx, cy, rx, ry, power=2.0):
    """Superellipse value: below 1 inside, 1 on the outline."""
    across, down = (x - cx) / rx, (y - cy) / ry
    if power == 2:  # much faster than raising to a power
        return across * across + down * down
    return np.abs(across) ** power + np.abs(down) ** power


def _mediastinum(body: Body, level: float, x, y, width: float, depth: float):
    """Heart, great vessels, spine and what lies between the lungs: `[H, W]` bool."""
    stations = [-1, -0.6, -0.25, 0.25, 0.7, 1]
    half = np.interp(y / depth, stations, [9, 11, 26, 28, 22, 24]).astype(np.float32)
    organs = np.abs(x - 3) < half
    low = min(max((level - 0.35) / 0.3, 0.0), 1.0)
    rx, ry = (26 + 24 * low) * body.heart, (30 + 14 * low) * body.heart
    organs |= _ellipse(x - 0.25 * y, y, 10 + 14 * low, -0.22 * depth, rx, ry) < 1
    organs |= _ellipse(x, y, 0, 0.82 * depth, 28, 31) < 1
    organs |= _ellipse(x, y, 26, 0.5 * depth, 14, 14) < 1
    if level > 0.7:  # the dome of the liver, on the patient's right
        dome = (level - 0.7) / 0.3
        organs |= _ellipse(x, y, -0.5 * width, -0.1 * depth, 62 * dome, 58 * dome) < 1
    return organs


def chest(
    body: Body, level: float, grid: Grid, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws one section without the insides of the lungs.

    Args:
      body: The patient.
      level: 0 at the apex of the lungs to 1 at the base; 0.2 to 0.9 make sense.
      grid: The pixel grid; a field narrower than the body cuts it, as in practice.
      rng: Source of what differs between sections of one patient.

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
    """Adds the trachea, below its branching the main bronchi, to `hu`, in place."""
    tubes = [(0, 0, 9)] if level < 0.45 else [(-19, 4, 6.5), (22, 8, 6)]
    for cx, cy, radius in tubes if level < 0.7 else []:
        hu[_ellipse(x, y, cx, cy, radius + 1.5, radius + 1.5) < 1] = 0
        hu[_ellipse(x, y, cx, cy, radius, radius) < 1] = -990


def tree(
    rng: np.random.Generator, tips: np.ndarray, root: np.ndarray, tip_radius: float
) -> np.ndarray:
    """Grows a branching tree from `root` to all `tips`.

    Points join, nearest to the root first, where the new branch plus part of the path
    back to the root is shortest (the minimum spanning tree with a path cost of Cuntz
    et al. 2010, doi:10.1371/journal.pcbi.1000877). Radii add up towards the root as
    r^2.7, between Murray's exponent 3 and what lung arteries show.

    Args:
      rng: Source of the bends.
      tips: `[N, 2]` points in mm.
      root: `[2]` in mm.
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
    share = np.linspace(0, 1, 5)[:, None, None]
    curve = start + share * (end - start) + 4 * share * (1 - share) * across
    pieces = np.concatenate([curve[:-1], curve[1:]], axis=2)  # [4, N, 4]
    width = np.broadcast_to(radius[1:, None], (4, len(start), 1))
    return np.concatenate([pieces, width], axis=2).reshape(-1, 5)


def draw(grid: Grid, segments: np.ndarray, extra: float = 0.0) -> np.ndarray:
    """Draws segments as `[H, W]` float32, the share of each pixel that they cover.

    Args:
      grid: The pixel grid.
      segments: `[M, 5]`: x0, y0, x1, y1, radius in mm; a dot has both ends alike.
      extra: Added to every radius, mm.
    """
    factor = 3  # finer pixels, averaged below, so that thin branches come out faint
    scale = factor / grid.spacing
    fine = Image.new("L", (grid.matrix * factor, grid.matrix * factor))
    pen = ImageDraw.Draw(fine)
    ends = (segments[:, :4] * scale + grid.matrix * factor / 2).tolist()
    radii = ((segments[:, 4] + extra) * scale).tolist()
    for (x0, y0, x1, y1), r in zip(ends, radii, strict=True):
        shade = min(255, int(510 * r))  # less than one fine pixel wide
        if abs(x1 - x0) + abs(y1 - y0) > 0.5:
            pen.line((x0, y0, x1, y1), fill=shade, width=max(1, round(2 * r)))
        if r > 0.8:
            pen.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=shade)
    return np.asarray(fine.reduce(factor), np.float32) / 255
