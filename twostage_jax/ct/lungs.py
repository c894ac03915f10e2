"""Lung masks by threshold and morphology, without any training.

Slice by slice, because high-resolution protocols leave centimetres between sections;
slices that lie close together are joined, so that gas outside the lungs is told by
having no connection to them. The steps are those of the rule-based methods since Hu,
Hoffman and Reinhardt 2001 (doi:10.1109/42.929615): air inside the body, without the
airways, smoothed and filled; dense disease under the chest wall is filled up to the
convex hull of its lung, on the costal side only.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from skimage import measure, morphology

# Between ground-glass opacity (-700 to -300 HU) and fat (-100 HU).
AIR_BELOW_HU = -300
# The inside of trachea and bowel; blur and noise leave normal lung above it.
GAS_BELOW_HU = -930
# Median of bowel gas; even emphysema has vessels and walls among its air. What is
# larger (mm^2 in one slice, mm^3 in several) is no bowel, however dark.
BOWEL_BELOW_HU = -965
LARGEST_BOWEL_MM2, LARGEST_BOWEL_MM3 = 6000.0, 300e3
# Pure gas: no median of a lung is so low.
GAS_HU = -985
# Blur makes the median of small gas pockets (mm^2) say little, their darkest tenth not.
POCKET_MM2, POCKET_BELOW_HU = 1500.0, -975
BONE_ABOVE_HU = 200
# The shapes looked for are centimetres large: they are found on pixels of about this.
WORKING_MM = 1.4
# Slices further apart do not show the same piece of bowel twice.
JOINED_MM = 6.0
CLOSING_MM = 7.0
# A lung section is larger than this, mm^2; a trachea is smaller than that.
SMALLEST_SECTION_MM2 = 60.0
LARGEST_AIRWAY_MM2 = 900.0
# Pieces of less than this share of the largest are no lung.
SMALLEST_SHARE = 0.01


def lung_mask(hu: np.ndarray, spacing: Sequence[float | None]) -> np.ndarray:
    """Returns where the lungs are, `[Z, H, W]` bool.

    Trachea, main bronchi, table and bowel gas are left out; vessels inside the lungs
    and dense disease that lung surrounds, or that lies between lung and chest wall,
    are left in. A lobe without any air in it cannot be told from the chest wall and
    is lost, and so is a lung that the border of the image cuts open.

    Args:
      hu: `[Z, H, W]` Hounsfield units of axial slices, in the order of a series.
      spacing: Millimetres between (slices, rows, columns), or (rows, columns); without
        the first, or with None for it, slices are taken one by one.

    Raises:
      ValueError: The array is not three-dimensional, or a spacing is not positive.
    """
    if hu.ndim != 3:
        raise ValueError(f"slices must be [Z, H, W], not {list(hu.shape)}")
    step = spacing[0] if len(spacing) == 3 else None
    row_mm, column_mm = (float(v) for v in spacing[-2:])
    if not (row_mm > 0 and column_mm > 0) or (step is not None and not step > 0):
        raise ValueError(f"spacing must be positive, not {tuple(spacing)}")
    factor = max(1, round(WORKING_MM / max(row_mm, column_mm)))
    pixel = factor * (row_mm * column_mm) ** 0.5
    if not hu.size:
        return np.zeros(hu.shape, bool)
    small = np.stack([_shrunk(image, factor) for image in hu])
    air = np.stack([_air_in_body(image, pixel) for image in small])
    joined = step is not None and step <= JOINED_MM
    stacks = [slice(None)] if joined else [slice(z, z + 1) for z in range(len(hu))]
    for stack in stacks:
        depth_mm = step if joined else None
        air[stack] = _lung_pieces(air[stack], small[stack], pixel, depth_mm)
    mask = np.zeros(hu.shape, bool)
    for index, (image, inside) in enumerate(zip(small, air, strict=True)):
        if inside.any():
            filled = _filled(image, inside, pixel)
            mask[index] = _refined(hu[index], inside, filled, factor)
    return mask


def _shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Returns `[H, W]` HU averaged over blocks, float32, a little smoothed."""
    rows, columns = (-n % factor for n in image.shape)
    padded = np.pad(image.astype(np.float32), ((0, rows), (0, columns)), mode="edge")
    high, wide = (n // factor for n in padded.shape)
    means = padded.reshape(high, factor, wide, factor).mean((1, 3))
    return ndimage.gaussian_filter(means, 0.6)


def _air_in_body(image: np.ndarray, pixel: float) -> np.ndarray:
    """Returns the air inside the body, without the airways, `[H, W]` bool."""
    tissue = image >= AIR_BELOW_HU
    # Filled first: the chest wall is too thin to be opened. Opened, so that the table
    # and clothes that touch the skin fall off.
    solid, count = ndimage.label(_opened(ndimage.binary_fill_holes(tissue), 5 / pixel))
    if not count:
        return np.zeros(image.shape, bool)
    body = solid == 1 + np.bincount(solid.ravel())[1:].argmax()
    columns = np.flatnonzero(body.any(0))
    middle, width = (columns[0] + columns[-1]) / 2, columns[-1] - columns[0] + 1
    # Where skin and air mix is no lung.
    inside = _eroded(body, 3 / pixel)
    air = ~tissue & inside
    for threshold in (GAS_BELOW_HU, AIR_BELOW_HU):
        _remove_airways(air, image, (image < threshold) & inside, middle, width, pixel)
    return air


def _remove_airways(
    air: np.ndarray,
    image: np.ndarray,
    dark: np.ndarray,
    middle: float,
    width: int,
    pixel: float,
) -> None:
    """Takes trachea and main bronchi, with their walls, out of `air`, in place."""
    pieces, _ = ndimage.label(dark)
    margin = int(np.ceil(4.5 / pixel)) + 1
    for piece in measure.regionprops(pieces):
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
        distance = ndimage.distance_transform_edt(~lumen) * pixel
        ring = (distance > 1.5) & (distance <= 4.5)
        wall = np.mean(image[box][ring] >= AIR_BELOW_HU)
        # Lung that is cut tangentially is flat; an airway's section is compact.
        if wall > 0.6 and piece.solidity > 0.75:
            air[box] &= distance > 2.5


def _lung_pieces(
    air: np.ndarray, hu: np.ndarray, pixel: float, step: float | None
) -> np.ndarray:
    """Returns `air` `[Z, H, W]` without small pieces and bowel gas.

    Args:
      air: `[Z, H, W]` bool.
      hu: `[Z, H, W]`.
      pixel: Millimetres a pixel.
      step: Millimetres between slices; None if this is one slice.
    """
    pieces, count = ndimage.label(air)
    if not count:
        return air
    sizes = np.bincount(pieces.ravel())
    fewest = max(SMALLEST_SECTION_MM2 / pixel**2, SMALLEST_SHARE * sizes[1:].max())
    lung = sizes >= fewest
    lung[0] = False
    for index, box in enumerate(ndimage.find_objects(pieces), start=1):
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
    """Returns one slice's lungs with their vessels and dense disease, `[H, W]` bool."""
    both = morphology.convex_hull_image(air)
    # How far inside of the hull of both lungs, mm: small under the chest wall.
    depth = ndimage.distance_transform_edt(both) * pixel
    filled = np.zeros(air.shape, bool)
    enclosed = np.zeros(air.shape, bool)
    for side in _sides(air):
        lung = ndimage.binary_fill_holes(_closed(side, CLOSING_MM / pixel))
        filled |= lung | _costal_disease(image, lung, depth, pixel)
        enclosed |= ndimage.binary_fill_holes(side)
    # What lung surrounds is no bone, however bright: a vessel with contrast medium.
    return enclosed | (filled & (image < BONE_ABOVE_HU))


def _sides(air: np.ndarray) -> list[np.ndarray]:
    """Returns the sections of the two lungs, or of the one that there is."""
    columns = np.flatnonzero(air.any(0))
    middle = (columns[0] + columns[-1]) / 2
    pieces, count = ndimage.label(air)
    right = np.zeros(air.shape, bool)
    left = np.zeros(air.shape, bool)
    across = np.arange(air.shape[1])[None]
    for piece in range(1, count + 1):
        section = pieces == piece
        found = np.flatnonzero(section.any(0))
        if found[-1] - found[0] > 0.65 * (columns[-1] - columns[0]) and count < 9:
            # The lungs touch before or behind the mediastinum.
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
    """Returns the dents of a lung that the chest wall, not the mediastinum, borders."""
    dents, count = ndimage.label(_opened(_hull(lung) & ~lung, 2 / pixel))
    found = np.zeros(lung.shape, bool)
    near_lung = _dilated(lung, 2.5 / pixel)
    for index in range(1, count + 1):
        dent = dents == index
        rim = dent & ~ndimage.binary_erosion(dent) & ~near_lung
        costal = np.mean(depth[rim] < 8) if rim.any() else 1.0
        bone = np.mean(image[dent] > BONE_ABOVE_HU)
        if costal > 0.6 and bone < 0.05 and dent.sum() < 0.5 * lung.sum():
            found |= dent
    return found


def _hull(mask: np.ndarray) -> np.ndarray:
    return morphology.convex_hull_image(mask)


def _refined(
    image: np.ndarray, air: np.ndarray, filled: np.ndarray, factor: int
) -> np.ndarray:
    """Returns the mask at the slice's own resolution, its edge at the threshold."""
    if factor == 1:
        return filled

    def large(mask: np.ndarray) -> np.ndarray:
        return mask.repeat(factor, 0).repeat(factor, 1)[
            : image.shape[0], : image.shape[1]
        ]

    core = ndimage.binary_erosion(filled)
    edge = large(ndimage.binary_dilation(filled) & ~core)
    dense = large(filled & ~ndimage.binary_dilation(air))
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.7)
    return large(core) | (edge & (smooth < AIR_BELOW_HU)) | dense


def _dilated(mask: np.ndarray, radius: float) -> np.ndarray:
    """Returns the pixels within `radius` pixels of the mask: a disc of any size."""
    if not mask.any():
        return mask.copy()
    return ndimage.distance_transform_edt(~mask) <= radius


def _eroded(mask: np.ndarray, radius: float) -> np.ndarray:
    # What lies beyond the border of the image counts as mask: a cut body is no edge.
    if mask.all():
        return mask.copy()
    return ndimage.distance_transform_edt(mask) > radius


def _opened(mask: np.ndarray, radius: float) -> np.ndarray:
    return _dilated(_eroded(mask, radius), radius)


def _closed(mask: np.ndarray, radius: float) -> np.ndarray:
    pad = int(np.ceil(radius)) + 1
    padded = np.pad(mask, pad)
    return _eroded(_dilated(padded, radius), radius)[pad:-pad, pad:-pad]
