"""Procedural textures: sixteen materials under varied light, distance and pose.

Built like CUReT (Dana et al. 1999) and KTH-TIPS (Hayman et al. 2004): a class is a
material, a material has several samples, a sample is seen in several views. What tells
the classes apart is the structure of the surface: exposure, colour, direction and
distance change from view to view or from sample to sample.
"""

import functools
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from twostage_jax.data import texture_irregular, texture_regular
from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.data.generated import Task, check, tasks
from twostage_jax.data.texture_fields import Grid, Surface, grid

MATERIALS: dict[str, Callable[[np.random.Generator, Grid], Surface]] = {
    "weave": texture_regular.weave,
    "knit": texture_regular.knit,
    "corduroy": texture_regular.corduroy,
    "brick": texture_regular.brick,
    "honeycomb": texture_regular.honeycomb,
    "scales": texture_regular.scales,
    "wood": texture_irregular.wood,
    "marble": texture_irregular.marble,
    "sponge": texture_irregular.sponge,
    "gravel": texture_irregular.gravel,
    "cracked_mud": texture_irregular.cracked_mud,
    "coral": texture_irregular.coral,
    "fur": texture_irregular.fur,
    "sandpaper": texture_irregular.sandpaper,
    "foil": texture_irregular.foil,
    "terrazzo": texture_irregular.terrazzo,
}

# Raised whenever the same settings give other images.
VERSION = 1
# A piece of material is this many view widths wide: a view at the largest distance and
# tilt, turned by 45 degrees, still fits in.
SIDE = 2.5
# Views are drawn at this multiple of their size and averaged down, against aliasing.
OVERSAMPLING = 2
DISTANCES = (0.75, 1.3)
MAX_TILT = np.deg2rad(35)
ELEVATIONS = (np.deg2rad(25), np.deg2rad(65))
TEST_SHARE = 0.25
IMAGES_A_TASK = 32


def recipe(
    *,
    size: int = 32,
    channels: int = 1,
    samples_per_class: int = 32,
    views_per_sample: int = 8,
    seed: int = 0,
) -> Recipe:
    """Procedural textures in sixteen classes.

    A sample is the unit that is not split; of each class, a quarter of the samples (at
    least one) is the test split.

    Args:
      size: Side of the images in pixels, at least 16. The same scene at any size.
      channels: 1 (grey) or 3 (colour, drawn for each sample whatever its class).
      samples_per_class: Pieces of each material, at least 2.
      views_per_sample: Images of each piece.
      seed: Whole number that decides all randomness.

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
    check("textures", channels, limits)
    settings = {
        "size": size,
        "channels": channels,
        "samples_per_class": samples_per_class,
        "views_per_sample": views_per_sample,
        "seed": seed,
    }
    block = max(1, IMAGES_A_TASK // views_per_sample)
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
    first_test = samples_per_class - max(1, round(TEST_SHARE * samples_per_class))
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


def _colours(rng: np.random.Generator, channels: int) -> np.ndarray:
    """Returns `[2, channels]`: what the darkest and the brightest parts are dyed."""
    if channels == 1:
        return np.ones((2, 1))
    base = rng.uniform(0.4, 1.0, 3)
    both = np.clip(base + rng.normal(0, 0.12, (2, 3)), 0.2, 1.2)
    return both / both.mean(axis=1, keepdims=True)


def shade(
    surface: Surface, azimuth: float, elevation: float, diffuse: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lights a surface from one direction, seen from above.

    Lambert's law plus Blinn-Phong highlights (Blinn 1977), without cast shadows.

    Args:
      surface: The material, on a grid `SIDE` wide.
      azimuth: Direction that the light comes from, radians from x towards y.
      elevation: Of the light over the surface, in radians.
      diffuse: Share of light that comes from everywhere, 0 to 1.

    Returns:
      The light thrown back by the body and the highlights, `[n, n]` each.
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
    # The eye looks straight down, so half-way is (light + z) / |light + z|.
    middle = np.sqrt(2 + 2 * np.sin(elevation))
    facing = np.clip((towards + np.sin(elevation) + 1) * up / middle, 0, 1)
    return body, surface.gloss * facing ** (10 + 30 * surface.gloss)


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
        _average(ndimage.map_coordinates(field, place, order=1, mode="reflect"))
        for field in (body, highlight)
    )
    # The camera sets its exposure by the mean; how well it does so is chance.
    total = body + highlight
    exposure = rng.uniform(0.3, 0.6) / max(float(total.mean()), 1e-3)
    share = np.clip(body / 0.8, 0, 1)[..., None]
    dye = colours[0] * (1 - share) + colours[1] * share
    image = exposure * (body[..., None] * dye + highlight[..., None])
    image = image + rng.normal(0, rng.uniform(0.005, 0.02), image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _placement(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns `[2, m, m]` rows and columns of the material that a view's points see."""
    m = size * OVERSAMPLING
    line = (np.arange(m) + 0.5) / m - 0.5
    v, u = np.meshgrid(line, line, indexing="ij")
    # A tilted surface is foreshortened: the view takes in more of it along one axis.
    u = u / np.cos(rng.uniform(0, MAX_TILT))
    distance = np.exp(rng.uniform(*np.log(DISTANCES)))
    angle = rng.uniform(0, 2 * np.pi)
    x = distance * (np.cos(angle) * u - np.sin(angle) * v)
    y = distance * (np.sin(angle) * u + np.cos(angle) * v)
    centre = SIDE / 2 + rng.uniform(-0.15, 0.15, 2)
    return np.stack([y + centre[1], x + centre[0]]) * m - 0.5


def _average(field: np.ndarray) -> np.ndarray:
    """Returns the means of squares of `OVERSAMPLING` pixels."""
    size = len(field) // OVERSAMPLING
    return field.reshape(size, OVERSAMPLING, size, OVERSAMPLING).mean(axis=(1, 3))
