"""Settings and positions of square patches in labelled slices; resampling of slices."""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import scipy

from twostage_jax.ct import lung_files
from twostage_jax.ct.decode import MAX_SIDE
from twostage_jax.errors import UserError, require


@dataclasses.dataclass(frozen=True)
class Cut:
    """Settings of the patches.

    Attributes:
      size: Height and width of a patch, pixels.
      stride: Distance between neighbouring patches, pixels.
      coverage: Smallest fraction of a patch that its region covers.
      lungs: Part of the slices that counts. 'given': inside the lung masks, or everything
        without masks. 'found': inside the masks, or without one, inside the lung found by
        `ct.lungs`. 'off': everything.
      spacing: Millimetres per pixel to which slices are resampled; None = do not
        resample.
      overlap: Largest fraction of a patch that another patch of its slice may cover; if
        patches overlap more, the better covered one is kept.
      per_roi: Largest number of patches per region and slice, drawn at random; 0 = all.
      per_class: Largest number of patches per class and patient, drawn at random; 0 = all.
      per_patient: Largest number of patches per patient, drawn at random; 0 = all.
      seed: Seed of the random draws.
    """

    size: int
    stride: int
    coverage: float
    lungs: Literal["given", "found", "off"] = "given"
    spacing: float | None = None
    overlap: float = 1.0
    per_roi: int = 0
    per_class: int = 0
    per_patient: int = 0
    seed: int = 0


def check(cut: Cut) -> None:
    """Raises a UserError for impossible settings of patches."""
    spacing, number = cut.spacing, "a number of patches, or 0 for all"
    lung_words = lung_files.WORDS
    for name, possible, needed in (
        ("size", cut.size >= 1, "at least 1 pixel"),
        ("stride", cut.stride >= 1, "at least 1 pixel"),
        ("coverage", 0 < cut.coverage <= 1, "above 0 and at most 1"),
        ("overlap", 0 <= cut.overlap <= 1, "a fraction from 0 to 1"),
        ("per_roi", cut.per_roi >= 0, number),
        ("per_class", cut.per_class >= 0, number),
        ("per_patient", cut.per_patient >= 0, number),
        ("lungs", cut.lungs in lung_words, f"one of {', '.join(lung_words)}"),
        ("seed", cut.seed >= 0, "0 or more"),
        (
            "spacing",
            spacing is None or (math.isfinite(spacing) and spacing > 0),
            "positive (mm per pixel)",
        ),
    ):
        require(possible, name, getattr(cut, name), needed)


class Place(NamedTuple):
    """Position of a patch.

    Attributes:
      slice: Index of its slice.
      row: First row of pixels, in the (resampled) slice.
      column: First column of pixels.
      label: Class index.
      coverage: Fraction of the patch that its region covers.
      region: Number of its region, unique in the slice.
    """

    slice: int
    row: int
    column: int
    label: int
    coverage: float
    region: int


def covered(
    labels: np.ndarray,
    *,
    size: int,
    stride: int,
    coverage: Sequence[float],
    pure: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patches of a slice, `[N, 3]` int, and their coverage, `[N]` float.

    A patch is (row, column, class index); its coverage is the fraction of its pixels
    that have this class. Patches lie on a grid that starts at pixel (0, 0). A patch
    belongs to the class with the largest coverage, and is dropped if two are equal.

    Args:
      labels: Label mask `[H, W]` int: 0 outside all regions, 1 + class index inside.
      size: Height and width of a patch, pixels; see `check_size`.
      stride: Distance between neighbouring patches, pixels.
      coverage: Smallest coverage for each class, 0 to 1.
      pure: Classes whose patches must not contain any pixel of another class.
    """
    fractions = np.stack(
        [_fraction(labels == index + 1, size, stride) for index in range(len(coverage))]
    )
    for index in pure:
        others = _fraction((labels != 0) & (labels != index + 1), size, stride)
        fractions[index][others > 0] = 0
    best = fractions.argmax(axis=0)
    top = fractions.max(axis=0)
    # Fractions are multiples of 1 / size**2; the tolerance only guards against rounding.
    enough = (top > 0) & (top >= np.asarray(coverage)[best] - 1e-9)
    enough &= (fractions == top).sum(axis=0) == 1
    rows, columns = np.nonzero(enough)
    found = np.stack([rows * stride, columns * stride, best[enough]], axis=1)
    return found, top[enough]


def apart(
    corners: np.ndarray, coverage: np.ndarray, *, size: int, overlap: float
) -> np.ndarray:
    """Returns the sorted indices `[M]` of patches that do not overlap too much.

    Patches are taken by decreasing coverage, ties in the given order, unless they overlap
    an earlier patch by more than `overlap` of their area.

    Args:
      corners: First row and column of each patch, `[N, 2]` int.
      coverage: Coverage of each patch, `[N]`.
      size: Height and width of a patch, pixels.
      overlap: Largest fraction of a patch that another may cover; 1 takes all patches.
    """
    if overlap >= 1:
        return np.arange(len(corners))
    taken: list[int] = []
    for index in np.argsort(-coverage, kind="stable"):
        sides = size - abs(corners[taken] - corners[index])
        shared = np.maximum(sides, 0).prod(axis=1) / size**2
        # The tolerance only guards against rounding.
        if not (shared > overlap + 1e-9).any():
            taken.append(int(index))
    return np.sort(np.array(taken, int))


def regions_of(labels: np.ndarray, cuts: np.ndarray, *, size: int) -> np.ndarray:
    """Returns the number of the region that fills most of each patch, `[N]`.

    A region is a connected component of one class; its number is unique in the slice.

    Args:
      labels: Label mask `[H, W]` int: 0 outside all regions, 1 + class index inside.
      cuts: Row, column and class index of each patch, `[N, 3]` int.
      size: Height and width of a patch, pixels.
    """
    numbers = np.zeros(labels.shape, np.int64)
    for index in np.unique(cuts[:, 2]):
        parts, _ = scipy.ndimage.label(labels == index + 1)
        numbers += np.where(parts > 0, parts + numbers.max(), 0)
    found = np.zeros(len(cuts), np.int64)
    for i, (row, column, index) in enumerate(cuts):
        patch = np.s_[row : row + size, column : column + size]
        own = numbers[patch][labels[patch] == index + 1]
        found[i] = np.bincount(own).argmax()
    return found


def check_size(shape: tuple[int, int], size: int, path: Path) -> None:
    """Raises a UserError if a patch is larger than the slice."""
    if size > min(shape):
        raise UserError.at(
            path,
            f"a patch of {size} x {size} pixels does not fit into a slice of "
            f"{shape[0]} x {shape[1]}: choose a smaller size.",
        )


def choose(
    classes: np.ndarray, *, per_class: int, seed: int, patient: str
) -> np.ndarray:
    """Returns the sorted indices `[M]` of at most `per_class` random examples per class.

    The choice depends only on the arguments.

    Args:
      classes: Class indices of one patient's patches, `[N]`.
      per_class: Largest number of patches per class; 0 takes all of them.
      seed: Seed of the choice.
      patient: Name of the patient, so that the choice differs between patients.
    """
    if not per_class:
        return np.arange(len(classes))
    number = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big")
    generator = np.random.default_rng([seed, number])
    chosen = []
    for index in np.unique(classes):
        members = np.flatnonzero(classes == index)
        if len(members) > per_class:
            members = generator.choice(members, per_class, replace=False)
        chosen.append(members)
    return np.sort(np.concatenate(chosen)) if chosen else np.arange(0)


def chosen(
    places: Sequence[Place], cut: Cut, patient: str, dropped: Counter
) -> list[Place]:
    """Returns the patches within the caps, in order.

    Adds the others to `dropped`, by reason and class.
    """
    kept = list(places)
    caps = (
        (cut.per_roi, lambda place: (place.slice, place.region), "roi", "region"),
        (cut.per_class, lambda place: place.label, "", "class and patient"),
        (cut.per_patient, lambda place: 0, "patient", "patient"),
    )
    for most, group_of, name, unit in caps:
        groups = [group_of(place) for place in kept]
        numbers = {value: i for i, value in enumerate(sorted(set(groups)))}
        picked = choose(
            np.array([numbers[value] for value in groups], int),
            per_class=most,
            seed=cut.seed,
            patient=f"{patient} {name}".strip(),
        )
        for index in np.delete(np.arange(len(kept)), picked):
            dropped[f"more than {most} of a {unit}", kept[index].label] += 1
        kept = [kept[index] for index in picked]
    return kept


def resampled_shape(
    shape: tuple[int, int], from_mm: tuple[float, float], to_mm: float, path: Path
) -> tuple[int, int]:
    """Returns the shape of a slice resampled from `from_mm` to `to_mm` mm per pixel.

    Raises:
      UserError: The slice would be empty or larger than `MAX_SIDE`.
    """
    rows, columns = (
        round(n * mm / to_mm) for n, mm in zip(shape, from_mm, strict=True)
    )
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise UserError(
            f"{path}: resampled from {from_mm} to {to_mm} mm per pixel it would have "
            f"{rows} x {columns} pixels: check the setting 'spacing' (mm).",
            where="spacing",
        )
    return rows, columns


def resample_image(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns an image `[H, W]` resampled to `[*shape]` float32 with equal field of view.

    Interpolates linearly, after a Gaussian blur if the image shrinks, because fine
    texture would otherwise alias to false coarse texture.
    """
    factors = [old / new for old, new in zip(image.shape, shape, strict=True)]
    # Standard deviation of the anti-aliasing filter of `skimage.transform.resize`.
    sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
    smooth = scipy.ndimage.gaussian_filter(
        image.astype(np.float32), sigma, mode="nearest"
    )
    zoom = [1 / factor for factor in factors]
    return scipy.ndimage.zoom(smooth, zoom, order=1, mode="nearest", grid_mode=True)


def resample_mask(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a mask `[H, W]` resampled to `[*shape]` by the nearest neighbour."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.int64), old - 1)
        for old, new in zip(mask.shape, shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


def _fraction(mask: np.ndarray, size: int, stride: int) -> np.ndarray:
    """Returns the fraction of each patch of the grid that `mask` covers."""
    sums = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    low, high = sums[:-size], sums[size:]
    counts = high[:, size:] - high[:, :-size] - low[:, size:] + low[:, :-size]
    return counts[::stride, ::stride] / size**2
