"""Lung masks by threshold and morphology, without training.

Slices are processed one by one, because high-resolution protocols leave centimetres
between sections. Slices at small distances are joined, so that a piece is classified
together with its continuation. The steps are those of rule-based methods since Hu,
Hoffman and Reinhardt 2001 (doi:10.1109/42.929615): air inside the body, without the
airways, is smoothed and filled. Dense disease under the chest wall is filled up to the
convex hull of its lung, on the costal side only.

Gas in stomach and bowel is distinguished from lung by the ribs: lung reaches the chest
wall, so that in every section a rib is close to part of its outline, whereas the abdominal
wall, fat, the liver or the diaphragm separates gas in the abdomen from the ribs. Darkness
alone is not enough: blur makes small gas pockets as bright as lung, and emphysema makes
lung nearly as dark as gas. The thresholds were chosen on some patients and tested on
others: see experiments/lung_masks.md.
"""

import dataclasses
import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import scipy
import skimage

# Between ground-glass opacity (-700 to -300 HU) and fat (-100 HU).
AIR_BELOW_HU = -300
# Lumen of trachea and bowel; normal lung stays above this despite blur and noise.
GAS_BELOW_HU = -930
# Largest median of bowel gas; even emphysema contains vessels and walls. Larger pieces
# (mm^2 in one slice, mm^3 in several) are not bowel, even if they are dark.
BOWEL_BELOW_HU = -965
LARGEST_BOWEL_MM2, LARGEST_BOWEL_MM3 = 6000.0, 300e3
# Pure gas: the median of a lung is higher.
GAS_HU = -985
# Blur raises the median of small gas pockets (mm^2), but not their darkest tenth.
POCKET_MM2, POCKET_BELOW_HU = 1500.0, -975
BONE_ABOVE_HU = 200
# Threshold for ribs, which averaging over pixels blurs. Pixels brighter than any bone are
# metal, whose streaks look like air.
RIB_ABOVE_HU, METAL_ABOVE_HU = 180, 2500
# A rib within this distance, mm, lies next to lung.
RIB_MM = 12.0
# Smallest fraction of the outline of lung that is next to ribs: in general, and for lung
# as dark as gas (by its median away from its edge, HU).
NEAR_RIBS, DARK_NEAR_RIBS, DARK_BELOW_HU = 0.02, 0.10, -900
# The same for pieces as dark and as small as bowel: colon lies under ribs, too.
BOWEL_NEAR_RIBS = 0.30
# Distance from the edge, mm, beyond which pixels count for that median.
CORE_MM = 3.0
# Lung away from all ribs is an island between consolidations. It is at most this much
# darker (HU) than the darkest piece next to ribs, of at least this area (mm^2), in its
# slice.
ISLAND_HU, ISLAND_LIKE_MM2 = 40.0, 500.0
# An island lies within this distance (mm) of the convex hull of such lung, and not outside
# the chest, between trunk and arm.
ISLAND_MM = 8.0
# Larger pieces (mm^2) that are not dark are not bowel.
LARGEST_GREY_BOWEL_MM2 = 3000.0
# Less lung than this in a section (mm^2) or volume (mm^3) could be something else.
LITTLE_MM2, LITTLE_MM3 = 1000.0, 20e3
# The mask is uncertain if a larger fraction of it is dark or away from ribs.
DOUBTFUL_FRACTION = 2 / 3
# Approximate pixel size for the search: the structures are centimetres large.
WORKING_MM = 1.4
# Slices at larger distances do not show the same piece of bowel.
JOINED_MM = 6.0
CLOSING_MM = 7.0
# Smallest section of a lung, and largest of the trachea, mm^2.
SMALLEST_SECTION_MM2 = 60.0
LARGEST_AIRWAY_MM2 = 900.0
# Pieces smaller than this fraction of the largest are not lung.
SMALLEST_FRACTION = 0.01


class Lungs(NamedTuple):
    """Lungs of some slices.

    Attributes:
      mask: Lung mask, `[Z, H, W]` bool.
      doubts: Reason why the mask is uncertain, or '', by slice.
      gas: Fraction of the air inside the body that was classified as gas in stomach or
        bowel, by slice.
    """

    mask: np.ndarray
    doubts: tuple[str, ...]
    gas: tuple[float, ...]


@dataclasses.dataclass
class _Piece:
    """Connected component of air in one slice.

    Attributes:
      label: Number of the piece in the slice.
      at: (row, column) of a pixel of the piece.
      area: Area, mm^2.
      median: Median HU.
      core: Median HU away from the edge.
      rim: Number of pixels of the outline.
      ribs: Number of these pixels with a rib close outside; `rim` in a slice without
        bone.
      lung: Whether the piece is classified as lung.
    """

    label: int
    at: tuple[int, int]
    area: float
    median: float
    core: float
    rim: int
    ribs: int
    lung: bool = True

    @property
    def dark(self) -> bool:
        return self.core < DARK_BELOW_HU

    @property
    def near_ribs(self) -> float:
        return self.ribs / self.rim


def lung_mask(hu: np.ndarray, spacing: Sequence[float | None]) -> np.ndarray:
    """Returns the lung mask of `find_lungs`, `[Z, H, W]` bool."""
    return find_lungs(hu, spacing).mask


def find_lungs(hu: np.ndarray, spacing: Sequence[float | None]) -> Lungs:
    """Returns the lungs, and the slices in which they are uncertain.

    Excludes trachea, main bronchi, table, and gas in stomach and bowel. Includes vessels
    inside the lungs, and dense disease that is surrounded by lung or lies between lung
    and chest wall. Lobes without air, which look like the chest wall, are not found, and
    neither is a lung that is cut by the border of the image.

    Args:
      hu: Hounsfield units of axial slices in the order of a series, `[Z, H, W]`.
      spacing: Millimetres between (slices, rows, columns), or (rows, columns). If the
        distance between slices is missing or None, slices are not joined.

    Raises:
      ValueError: The array is not three-dimensional, or a spacing is not positive.
    """
    if hu.ndim != 3:
        raise ValueError(f"slices must be [Z, H, W], not {list(hu.shape)}")
    for module in ("scipy.ndimage", "skimage.measure", "skimage.morphology"):
        # Not at their first use, where several threads would import them at once.
        importlib.import_module(module)
    step = spacing[0] if len(spacing) == 3 else None
    row_mm, column_mm = (float(v) for v in spacing[-2:])
    if not (row_mm > 0 and column_mm > 0) or (step is not None and not step > 0):
        raise ValueError(f"spacing must be positive, not {tuple(spacing)}")
    factor = max(1, round(WORKING_MM / max(row_mm, column_mm)))
    pixel = factor * (row_mm * column_mm) ** 0.5
    if not hu.size:
        return Lungs(np.zeros(hu.shape, bool), ("",) * len(hu), (0.0,) * len(hu))

    def searched(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, Any]:
        shrunk = _shrunk(image, factor)
        found, body = _air_in_body(shrunk, pixel)
        return shrunk, found, _ribs(shrunk, body, pixel)

    with ThreadPoolExecutor() as pool:
        small, air, ribs = zip(*pool.map(searched, hu), strict=True)
    small, air = np.stack(small), np.stack(air)
    gas = np.zeros(len(hu))
    doubts = [""] * len(hu)
    joined = step is not None and step <= JOINED_MM
    stacks = [slice(None)] if joined else [slice(z, z + 1) for z in range(len(hu))]
    for stack in stacks:
        whole = air[stack].sum((1, 2))
        air[stack], doubts[stack] = _lungs_of(
            air[stack], small[stack], ribs[stack], pixel, step if joined else None
        )
        gas[stack] = 1 - air[stack].sum((1, 2)) / np.maximum(whole, 1)

    def completed(image: np.ndarray, whole: np.ndarray, lung: np.ndarray) -> np.ndarray:
        if not lung.any():
            return np.zeros(whole.shape, bool)
        return _refined(whole, lung, _filled(image, lung, pixel), factor)

    with ThreadPoolExecutor() as pool:
        mask = np.stack(list(pool.map(completed, small, hu, air)))
    return Lungs(mask, tuple(doubts), tuple(gas.tolist()))


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Returns HU averaged over blocks of `factor` pixels and smoothed, float32."""
    rows, columns = (-n % factor for n in image.shape)
    padded = np.pad(image.astype(np.float32), ((0, rows), (0, columns)), mode="edge")
    high, wide = (n // factor for n in padded.shape)
    means = padded.reshape(high, factor, wide, factor).mean((1, 3))
    return scipy.ndimage.gaussian_filter(means, 0.6)


def _air_in_body(image: np.ndarray, pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the air inside the body, without the airways, and the body, `[H, W]`."""
    tissue = image >= AIR_BELOW_HU
    # Opening removes the table, and clothes that touch the skin. Holes are filled first,
    # because the chest wall is too thin for opening.
    solid, count = scipy.ndimage.label(
        _opened(scipy.ndimage.binary_fill_holes(tissue), 5 / pixel)
    )
    if not count:
        return np.zeros(image.shape, bool), np.zeros(image.shape, bool)
    body = solid == 1 + np.bincount(solid.ravel())[1:].argmax()
    columns = np.flatnonzero(body.any(0))
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
    # Pixels in which skin and air mix are not lung.
    inside = _eroded(body, 3 / pixel)
    air = ~tissue & inside
    for threshold in (GAS_BELOW_HU, AIR_BELOW_HU):
        _remove_airways(air, image, (image < threshold) & inside, middle, width, pixel)
    return air, body


def _remove_airways(
    air: np.ndarray,
    image: np.ndarray,
    dark: np.ndarray,
    middle: float,
    width: int,
    pixel: float,
) -> None:
    """Removes trachea and main bronchi, with their walls, from `air` in place."""
    pieces, _ = scipy.ndimage.label(dark)
    margin = int(np.ceil(4.5 / pixel)) + 1
    for piece in skimage.measure.regionprops(pieces):
        area = piece.num_pixels * pixel**2
        off_centre = abs(piece.centroid[1] - middle) / width
        if not 30 < area < LARGEST_AIRWAY_MM2 or off_centre > 0.17:
            continue
        top, left, bottom, right = piece.bbox
        box = np.s_[
            max(0, top - margin) : bottom + margin,
            max(0, left - margin) : right + margin,
        ]
        lumen = pieces[box] == piece.label
        distance = scipy.ndimage.distance_transform_edt(~lumen) * pixel
        ring = (distance > 1.5) & (distance <= 4.5)
        wall = np.mean(image[box][ring] >= AIR_BELOW_HU)
        # Lung in tangential section is flat, whereas an airway is compact.
        if wall > 0.6 and piece.solidity > 0.75:
            air[box] &= distance > 2.5


def _ribs(image: np.ndarray, body: np.ndarray, pixel: float) -> np.ndarray | None:
    """Returns the pixels with a rib close outside, `[H, W]` bool; None without bone.

    Outside means nearer to the skin, so that ribs and other bones of the chest wall
    count, but not the spine, in front of which bowel lies.

    Args:
      image: Hounsfield units, `[H, W]`.
      body: Mask of the body, `[H, W]` bool.
      pixel: Pixel size, mm.
    """
    pieces, count = scipy.ndimage.label((image > RIB_ABOVE_HU) & body)
    if not count:
        return None
    # Single pixels are noise.
    bone = np.bincount(pieces.ravel()) > 1
    bone[0] = False
    bone[np.unique(pieces[image > METAL_ABOVE_HU])] = False
    bone = bone[pieces]
    if not bone.any():
        return None
    depth = scipy.ndimage.distance_transform_edt(body)
    away, nearest = scipy.ndimage.distance_transform_edt(~bone, return_indices=True)
    return (away * pixel < RIB_MM) & (depth[tuple(nearest)] < depth)


def _lungs_of(
    air: np.ndarray,
    hu: np.ndarray,
    ribs: Sequence[np.ndarray | None],
    pixel: float,
    step: float | None,
) -> tuple[np.ndarray, list[str]]:
    """Returns the lungs in `air`, `[Z, H, W]` bool, and the doubts about each slice.

    Args:
      air: Air inside the body, `[Z, H, W]` bool.
      hu: Hounsfield units, `[Z, H, W]`.
      ribs: Result of `_ribs` for each slice.
      pixel: Pixel size, mm.
      step: Distance between slices, mm; None for a single slice.
    """
    sections, pieces = [], []
    for image, inside, near in zip(hu, air, ribs, strict=True):
        labels, _ = scipy.ndimage.label(inside)
        # A section of a volume may be small: `_lung_pieces` examines the whole volume.
        fewest = SMALLEST_SECTION_MM2 if step is None else 0.0
        found = _measured(labels, image, near, pixel, fewest)
        _judge(labels, found, pixel)
        sections.append(labels)
        pieces.append(found)
    # Dark gas is removed first, because it would connect bowel to lung through thin walls.
    lung = np.stack(
        [
            _chosen(labels, [p for p in found if p.lung or not p.dark])
            for labels, found in zip(sections, pieces, strict=True)
        ]
    )
    lung = _lung_pieces(lung, hu, pixel, step)
    volumes, count = scipy.ndimage.label(lung)
    total, next_to_ribs = np.zeros(count + 1), np.zeros(count + 1)
    members = []
    for z, found in enumerate(pieces):
        for piece in found:
            number = int(volumes[z][piece.at])
            if number:
                total[number] += piece.area
                next_to_ribs[number] += piece.area * piece.lung
                members.append((z, piece, number))
    # Pieces that continue lung from slice to slice are lung.
    kept = next_to_ribs > 0.5 * total
    areas = [sum(piece.area for piece in found) for found in pieces]
    return kept[volumes], _doubts(members, kept, ribs, areas, step)


def _measured(
    labels: np.ndarray,
    image: np.ndarray,
    ribs: np.ndarray | None,
    pixel: float,
    fewest: float,
) -> list[_Piece]:
    """Returns the pieces of one slice that have at least `fewest` mm^2."""
    found = []
    for index, box in enumerate(scipy.ndimage.find_objects(labels), start=1):
        piece = np.pad(labels[box] == index, 1)
        area = np.count_nonzero(piece) * pixel**2
        if area < fewest:
            continue
        depth = scipy.ndimage.distance_transform_edt(piece)[1:-1, 1:-1]
        rim = depth == 1
        core = depth * pixel > min(CORE_MM, 0.7 * pixel * depth.max())
        count = np.count_nonzero(rim)
        near = count if ribs is None else np.count_nonzero(rim & ribs[box])
        values, inside = image[box], piece[1:-1, 1:-1]
        median = float(np.median(values[inside]))
        middle = float(np.median(values[core]))
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        at = (box[0].start + int(row), box[1].start + int(column))
        found.append(_Piece(index, at, area, median, middle, count, near))
    return found


def _judge(labels: np.ndarray, pieces: list[_Piece], pixel: float) -> None:
    """Sets which pieces of a slice are lung, first individually, then by comparison."""
    for piece in pieces:
        least = DARK_NEAR_RIBS if piece.dark else NEAR_RIBS
        if piece.core < BOWEL_BELOW_HU and piece.area < LARGEST_BOWEL_MM2:
            least = BOWEL_NEAR_RIBS
        large = not piece.dark and piece.area >= LARGEST_GREY_BOWEL_MM2
        piece.lung = large or piece.near_ribs >= least
        piece.lung &= piece.median >= GAS_HU
    sure = [piece for piece in pieces if piece.lung and not piece.dark]
    if not sure or len(sure) == len(pieces):
        return
    largest = max(piece.area for piece in sure)
    alike = min(largest, ISLAND_LIKE_MM2)
    darkest = min(piece.core for piece in sure if piece.area >= alike)
    hull = skimage.morphology.convex_hull_image(_chosen(labels, sure))
    hull = _dilated(hull, ISLAND_MM / pixel)
    for piece in pieces:
        island = not piece.dark and piece.core > darkest - ISLAND_HU
        piece.lung |= island and bool(hull[piece.at])


def _chosen(labels: np.ndarray, pieces: list[_Piece]) -> np.ndarray:
    return np.isin(labels, [piece.label for piece in pieces])


def _doubts(
    members: list[tuple[int, _Piece, int]],
    kept: np.ndarray,
    ribs: Sequence[np.ndarray | None],
    areas: Sequence[float],
    step: float | None,
) -> list[str]:
    """Returns the reason why the lungs of each slice are uncertain, or ''.

    Args:
      members: (slice, piece, number of its volume) of each piece.
      kept: Whether each volume is lung.
      ribs: Result of `_ribs` for each slice.
      areas: Area of all pieces of each slice, mm^2.
      step: Distance between slices, mm; None for a single slice.
    """
    volume = step and step * sum(p.area for _, p, number in members if kept[number])
    doubts = []
    for z, near in enumerate(ribs):
        own = [piece for at, piece, number in members if at == z and kept[number]]
        area = sum(piece.area for piece in own)
        dark = sum(piece.area for piece in own if piece.dark)
        away = sum(piece.area for piece in own if piece.near_ribs < NEAR_RIBS)
        reasons = []
        if near is not None and away > DOUBTFUL_FRACTION * area > 0:
            reasons.append("it is not next to a rib")
        if dark > DOUBTFUL_FRACTION * area > 0:
            reasons.append("it is nearly as dark as gas")
        if step is None and 0 < area < LITTLE_MM2:
            reasons.append(f"it covers only {area / 100:.1f} cm2")
        elif step is not None and area > 0 and volume < LITTLE_MM3:
            reasons.append(f"the series contains only {volume / 1000:.1f} ml of it")
        elif step is None and 0 < area < areas[z] / 2:
            reasons.append("most air next to it looks like gas in stomach or bowel")
        doubts.append(" and ".join(reasons))
    return doubts


def _lung_pieces(
    air: np.ndarray, hu: np.ndarray, pixel: float, step: float | None
) -> np.ndarray:
    """Returns `air` `[Z, H, W]` without small pieces and bowel gas.

    Args:
      air: Air inside the body, `[Z, H, W]` bool.
      hu: Hounsfield units, `[Z, H, W]`.
      pixel: Pixel size, mm.
      step: Distance between slices, mm; None for a single slice.
    """
    pieces, count = scipy.ndimage.label(air)
    if not count:
        return air
    sizes = np.bincount(pieces.ravel())
    fewest = max(SMALLEST_SECTION_MM2 / pixel**2, SMALLEST_FRACTION * sizes[1:].max())
    lung = sizes >= fewest
    lung[0] = False
    for index, box in enumerate(scipy.ndimage.find_objects(pieces), start=1):
        if not lung[index]:
            continue
        values = hu[box][pieces[box] == index]
        area = sizes[index] * pixel**2
        if step is None:
            bowel = area < LARGEST_BOWEL_MM2
        else:
            bowel = area * step < LARGEST_BOWEL_MM3
        pocket = area < POCKET_MM2 * (1 if step is None else JOINED_MM / step)
        median = np.median(values)
        if median < GAS_HU or (bowel and median < BOWEL_BELOW_HU):
            lung[index] = False
        elif pocket and np.quantile(values, 0.1) < POCKET_BELOW_HU:
            lung[index] = False
    return lung[pieces]


def _filled(image: np.ndarray, air: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the lungs of a slice with vessels and dense disease, `[H, W]` bool."""
    both = skimage.morphology.convex_hull_image(air)
    # Depth inside the hull of both lungs, mm: small under the chest wall.
    depth = scipy.ndimage.distance_transform_edt(both) * pixel
    filled = np.zeros(air.shape, bool)
    enclosed = np.zeros(air.shape, bool)
    for side in _sides(air):
        lung = scipy.ndimage.binary_fill_holes(_closed(side, CLOSING_MM / pixel))
        filled |= lung | _costal_disease(image, lung, depth, pixel)
        enclosed |= scipy.ndimage.binary_fill_holes(side)
    # Bright pixels surrounded by lung are not bone but vessels with contrast medium.
    return enclosed | (filled & (image < BONE_ABOVE_HU))


def _sides(air: np.ndarray) -> list[np.ndarray]:
    """Returns the masks of the right and the left lung, without empty ones."""
    columns = np.flatnonzero(air.any(0))
    middle = (columns[0] + columns[-1]) / 2
    pieces, count = scipy.ndimage.label(air)
    right = np.zeros(air.shape, bool)
    left = np.zeros(air.shape, bool)
    across = np.arange(air.shape[1])[None]
    for piece in range(1, count + 1):
        section = pieces == piece
        found = np.flatnonzero(section.any(0))
        if found[-1] - found[0] > 0.65 * (columns[-1] - columns[0]) and count < 9:
            # The lungs touch in front of or behind the mediastinum.
            right |= section & (across < middle)
            left |= section & (across >= middle)
        elif found.mean() < middle:
            right |= section
        else:
            left |= section
    return [side for side in (right, left) if side.any()]


def _costal_disease(
    image: np.ndarray, lung: np.ndarray, depth: np.ndarray, pixel: float
) -> np.ndarray:
    """Returns the concavities of a lung at the chest wall, not at the mediastinum."""
    dents, count = scipy.ndimage.label(
        _opened(skimage.morphology.convex_hull_image(lung) & ~lung, 2 / pixel)
    )
    found = np.zeros(lung.shape, bool)
    near_lung = _dilated(lung, 2.5 / pixel)
    for index in range(1, count + 1):
        dent = dents == index
        rim = dent & ~scipy.ndimage.binary_erosion(dent) & ~near_lung
        costal = np.mean(depth[rim] < 8) if rim.any() else 1.0
        bone = np.mean(image[dent] > BONE_ABOVE_HU)
        if costal > 0.6 and bone < 0.05 and dent.sum() < 0.5 * lung.sum():
            found |= dent
    return found


def _refined(
    image: np.ndarray, air: np.ndarray, filled: np.ndarray, factor: int
) -> np.ndarray:
    """Returns the mask at full resolution, with its edge at the threshold."""
    if factor == 1:
        return filled

    def large(mask: np.ndarray) -> np.ndarray:
        return mask.repeat(factor, 0).repeat(factor, 1)[
            : image.shape[0], : image.shape[1]
        ]

    core = scipy.ndimage.binary_erosion(filled)
    edge = large(scipy.ndimage.binary_dilation(filled) & ~core)
    dense = large(filled & ~scipy.ndimage.binary_dilation(air))
    smooth = scipy.ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    return large(core) | (edge & (smooth < AIR_BELOW_HU)) | dense


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    """Returns the pixels within `radius` pixels of the mask."""
    # The distance to an empty mask is undefined.
    return (
        skimage.morphology.isotropic_dilation(mask, radius)
        if mask.any()
        else mask.copy()
    )


def _eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    # The border of the image is not an edge, because it may cut the body.
    return (
        mask.copy()
        if mask.all()
        else skimage.morphology.isotropic_erosion(mask, radius)
    )


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    return _dilated(_eroded(mask, radius), radius)


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    pad = int(np.ceil(radius)) + 1
    padded = np.pad(mask, pad)
    return _eroded(_dilated(padded, radius), radius)[pad:-pad, pad:-pad]
