"""Images with known content, in [0, 1]: gratings, edges, textures and noise like them.

They are float32 `[..., H, W, C]` with mean grey 0.5, to be scaled for a network like its
own images (`networks.scaled`). Angles are in radians from x (columns) towards y (rows),
across the stripes or the edge: 0 means vertical stripes.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax.data import image_folder
from twostage_jax.data.dataset import Example, Recipe
from twostage_jax.data.synthetic import textures
from twostage_jax.errors import UserError

GREY = 0.5
# Michelson contrast: the standard deviation of a grating is then 0.18 of the range, as
# in CT patches.
CONTRAST = 0.5
ORIENTATIONS = np.arange(12) * np.pi / 12
PHASES = np.arange(8) * np.pi / 4
DIRECTIONS = np.arange(24) * np.pi / 12
# Periods per patch: fewer than one are a gradient rather than a grating. Above about
# 0.36 cycles per pixel, a grating beats with the pixel grid.
LEAST_PERIODS, FINEST = 1.0, 0.36
# Gratings of each orientation and frequency for the probe.
REPEATS = 10
# Keeps the embedded textures of the measures out of the training sets: those of the
# default config are made with seed 0.
TEXTURE_SEED = 1001


class Textures(NamedTuple):
    """Images of textures by family.

    Attributes:
      images: `[N, H, W, C]` float32 in [0, 1].
      labels: Index of the family of each image, `[N]`.
      groups: Piece of material of each image, `[N]` strings; None if unknown.
      names: Names of the families.
      path: Folder of the images; empty for the embedded textures.
    """

    images: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None
    names: tuple[str, ...]
    path: str = ""


def frequencies(size: int) -> np.ndarray:
    """Returns spatial frequencies, cycles per pixel, half an octave apart.

    They range from one period in `size` pixels to `FINEST`.
    """
    count = int(np.floor(2 * np.log2(FINEST * size / LEAST_PERIODS))) + 1
    if count < 5:
        raise UserError(
            f"images of {size} pixels are too small for gratings.", where="size"
        )
    return LEAST_PERIODS / size * 2 ** (np.arange(count) / 2)


def gratings(size: int, channels: int = 1) -> np.ndarray:
    """Returns sinusoids `[F, O, P, size, size, channels]` over the whole image.

    F is the number of `frequencies(size)`; the phase is that at the middle pixel.
    """
    cycles = frequencies(size)[:, None, None, None] * _across(size, ORIENTATIONS)
    angle = 2 * np.pi * cycles[:, :, None] + PHASES[:, None, None]
    return _grey_to(channels, GREY * (1 + CONTRAST * np.sin(angle)))


def edges(size: int, channels: int = 1) -> np.ndarray:
    """Returns step edges `[D, P, size, size, channels]`, one pixel wide.

    A direction points from dark to light. The P positions of the edge are 2 pixels apart,
    across the middle pixel.
    """
    places = np.arange(-4, 5, 2.0)
    across = _across(size, DIRECTIONS)
    side = np.clip(across[:, None] - places[:, None, None] + 0.5, 0, 1)
    return _grey_to(channels, GREY * (1 + CONTRAST * (2 * side - 1)))


def oriented(size: int, channels: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns noisy gratings of eight orientations, for a probe.

    They have two periods or more; phase and contrast (0.1 to 0.5) are random, and white
    noise of standard deviation 0.1 is added.

    Returns:
      Images `[N, size, size, channels]`, orientations `[N]` (0 to 7) and frequencies
      `[N]` (index), which serve as groups: a probe is tested on unseen frequencies.
    """
    rng = np.random.default_rng(0)
    fine = frequencies(size)[2:]
    labels, groups, _ = np.indices((8, len(fine), REPEATS)).reshape(3, -1)
    cycles = fine[groups][:, None, None]
    phase = rng.uniform(0, 2 * np.pi, len(labels))[:, None, None]
    contrast = rng.uniform(0.1, 0.5, len(labels))[:, None, None]
    across = _across(size, labels * np.pi / 8)
    wave = contrast * np.sin(2 * np.pi * cycles * across + phase)
    images = GREY * (1 + wave) + rng.normal(0, 0.1, wave.shape)
    return _grey_to(channels, np.clip(images, 0, 1)), labels, groups


def periodic_component(images: np.ndarray) -> np.ndarray:
    """Returns images without the jump between their opposite borders.

    The periodic component of Moisan 2011 (doi:10.1007/s10851-010-0227-1). In an
    unchanged image the jump is a cross in the spectrum, which scrambling would spread
    over the whole image.

    Args:
      images: `[N, H, W, C]`.
    """
    images = np.asarray(images, np.float64)
    rows, columns = images.shape[1:3]
    jump = np.zeros_like(images)
    across = images[:, -1] - images[:, 0]
    jump[:, 0] += across
    jump[:, -1] -= across
    across = images[:, :, -1] - images[:, :, 0]
    jump[:, :, 0] += across
    jump[:, :, -1] -= across
    curve = (
        2 * np.cos(2 * np.pi * np.arange(rows) / rows)[:, None]
        + 2 * np.cos(2 * np.pi * np.arange(columns) / columns)
        - 4
    )
    curve[0, 0] = 1
    smooth = np.fft.fft2(jump, axes=(1, 2)) / curve[:, :, None]
    smooth[:, 0, 0] = 0
    return (images - np.fft.ifft2(smooth, axes=(1, 2)).real).astype(np.float32)


def phase_scrambled(images: np.ndarray) -> np.ndarray:
    """Returns noise with the amplitude spectrum of each image and random phases.

    The phases added are those of white noise, the same in all channels of an image, so
    that their correlation is kept too (Galerne et al. 2011,
    doi:10.1109/TIP.2010.2052822). The mean is kept. Values may leave [0, 1]: clipping
    would change the spectrum.

    Args:
      images: `[N, H, W, C]`; periodic, see `periodic_component`.
    """
    count, rows, columns, _ = images.shape
    white = np.random.default_rng(0).standard_normal((count, rows, columns))
    turn = np.angle(np.fft.fft2(white))
    # Where a phase can only be 0 or pi, white noise has one of them; the mean keeps its.
    turn[:, 0, 0] = 0
    spectrum = np.fft.fft2(np.asarray(images, np.float64), axes=(1, 2))
    turned = spectrum * np.exp(1j * turn)[..., None]
    return np.fft.ifft2(turned, axes=(1, 2)).real.astype(np.float32)


def embedded_textures(
    size: int, channels: int = 1, samples: int = 8, views: int = 4
) -> Textures:
    """Returns procedural textures: 16 families, `samples` pieces, `views` per piece."""
    recipe = textures.recipe(
        size=size,
        channels=channels,
        samples_per_class=samples,
        views_per_sample=views,
        seed=TEXTURE_SEED,
    )
    return _textures(recipe, [e for task in recipe.tasks for e in recipe.make(task)])


def folder_textures(
    path: str,
    size: int,
    channels: int = 1,
    per_family: int = 32,
    group_regex: str = "",
) -> Textures:
    """Returns the textures of a folder of class folders, at most `per_family` of each.

    They are taken evenly from the files of each class, in order of name.

    Args:
      path: Path of the folder.
      size, channels: Side in pixels and number of channels of the returned images.
      per_family: Largest number of images per class.
      group_regex: Pattern for the piece of material; see `data.image_folder.recipe`.

    Raises:
      UserError: The folder or an image in it cannot be read, or the expression does not
        fit the names.
    """
    recipe = image_folder.recipe(
        path=path,
        size=size,
        channels=channels,
        kind="texture",
        group_regex=group_regex,
    )
    files = [file for task in recipe.tasks for file in task]
    chosen = []
    for label in range(len(recipe.class_names)):
        own = [file for file in files if file.label == label]
        take = np.linspace(0, len(own) - 1, min(per_family, len(own))).astype(int)
        chosen += [own[i] for i in take]
    return _textures(recipe, recipe.make(tuple(chosen)), path)


def trained_on(textures: Textures, source: str, path: str) -> bool:
    """Returns whether a stage's images are of the same kinds as the textures.

    The embedded textures are other pieces of the materials of a stage whose source is
    'textures'; those of a folder match a stage of that folder, of one inside or around
    it, or of links to its sub-folders. A copy of a folder elsewhere is not recognised.
    """
    if not textures.path:
        return source == "textures"
    if not path:
        return False
    shown, used = (_real_folders(Path(p).expanduser()) for p in (textures.path, path))
    return any(
        one.is_relative_to(other) or other.is_relative_to(one)
        for one in shown
        for other in used
    )


def _real_folders(root: Path) -> set[Path]:
    """Returns a folder and those of its sub-folders that lie elsewhere, by links."""
    found = {root.resolve()}
    if root.is_dir():
        found |= {below.resolve() for below in root.iterdir() if below.is_symlink()}
    return found


def _textures(recipe: Recipe, examples: list[Example], path: str = "") -> Textures:
    groups = np.array([example.group for example in examples])
    return Textures(
        images=np.stack([e.image for e in examples]).astype(np.float32) / 255,
        labels=np.array([example.label for example in examples]),
        groups=groups if (groups != "").any() else None,
        names=recipe.class_names,
        path=path,
    )


def _across(size: int, angles: np.ndarray) -> np.ndarray:
    """Returns the distance of each pixel from the middle one, along angles `[A]`.

    `[A, size, size]`, in pixels.
    """
    line = np.arange(size) - size // 2
    angles = angles[:, None, None]
    return np.cos(angles) * line + np.sin(angles) * line[:, None]


def _grey_to(channels: int, images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], channels, -1).astype(np.float32)
