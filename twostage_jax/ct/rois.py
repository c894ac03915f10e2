"""Label masks of annotated regions: mask files, and MedGIFT contour files.

A label mask is `[H, W]` int: 0 outside all regions, 1 + class index inside.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from twostage_jax import tables
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.pixels import MAX_SIDE
from twostage_jax.ct.series import sort_series
from twostage_jax.errors import UserError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
Load = Callable[[], np.ndarray]
# A slice: SOPInstanceUID and frame; see `Header.key`.
Key = tuple[str, int]


def clean_label(text: str) -> str:
    """Returns a region's label as classes are named: one line, lower case, NFC."""
    return " ".join(tables.composed(text).split()).lower()


def read_mask(path: Path) -> np.ndarray:
    """Returns the integers of a PNG, TIFF or NumPy mask, `[H, W]` or `[D, H, W]`.

    A TIFF of several pages and a NumPy array may hold all slices of a series.

    Raises:
      UserError: The file cannot be read, or is no mask of whole numbers.
    """
    try:
        mask = _read_numpy(path) if path.suffix.lower() == ".npy" else _read_pages(path)
    except UserError:
        raise
    # Broken images raise nearly everything in the decoders.
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a mask: {error}") from error
    if mask.dtype.kind not in "bui" or mask.ndim not in (2, 3):
        raise UserError(
            f"{path}: a mask must be [H, W] or [D, H, W] whole numbers, not "
            f"{list(mask.shape)} {mask.dtype}."
        )
    if max(mask.shape[-2:]) > MAX_SIDE:
        raise UserError(f"{path}: {list(mask.shape)} is larger than any CT slice.")
    return mask


def mask_of(path: Path, headers: Sequence[Header]) -> dict[Key, Load]:
    """Returns what reads the masks `[H, W]` of a PNG, TIFF or NumPy file.

    A file is named after the SOPInstanceUID of its slice, or ends with the number of
    the slice (from 1, in the order of `series.sort_series`: from the feet to the head),
    or holds one mask for every slice in that order. The last two need slices of one
    series, or the file to be in a folder named after the SeriesInstanceUID, or, if it
    holds all masks, to be named after it; and evenly spaced slices.

    Args:
      path: Of the mask file.
      headers: Of the slices that it may belong to.

    Raises:
      UserError: The mask belongs to no slice, or could belong to several; or it goes
        by the order of slices of which some are missing, doubled or unevenly spaced.
    """
    single = [h for h in headers if h.sop_uid == path.stem]
    if len(single) == 1:
        return {single[0].key: _reader(path, None, single[0])}
    if single:
        headers = single
    else:
        of_series = [
            h for h in headers if h.series_uid in (path.stem, path.parent.name)
        ]
        headers = of_series or headers
    return dict(_by_order(path, headers))


def add_masks(found: dict[Key, Load], new: dict[Key, Load], path: Path) -> None:
    """Adds masks that `path` gives to `found`.

    Raises:
      UserError: A slice has a mask already.
    """
    for key in new:
        if key in found:
            raise UserError(f"{path}: slice {key[0]} has two masks.")
    found |= new


def read_medgift(path: Path) -> tuple[tuple[float, float], list[tuple]]:
    """Returns ((x, y) spacing in mm, regions) of a MedGIFT contour file.

    A region is (label, slice number from 1, contour `[n, 2]` in pixels: x, y).
    Format: Depeursinge et al. 2012, "Building a reference multimedia database for
    interstitial lung diseases".

    Raises:
      UserError: The file does not follow the format.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return _parse_medgift(lines)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{path}: not a MedGIFT contour file: {error}") from error


def is_medgift(path: Path) -> bool:
    """Whether a text file begins as MedGIFT contour files do."""
    with path.open("rb") as file:
        return file.read(200).lstrip().lower().startswith(b"spacing")


def fill_contour(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns the pixels `[H, W]` bool whose centres lie inside a closed contour.

    Even-odd rule; a pixel's centre has whole-numbered coordinates.

    Args:
      points: `[n, 2]` x (column) and y (row), pixels.
      shape: (H, W).
    """
    filled = np.zeros(shape, bool)
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    for row in range(max(0, int(np.ceil(low.min()))), shape[0]):
        if row >= high.max():
            break
        edge = (low <= row) & (row < high)
        part = (row - y0[edge]) / (y1[edge] - y0[edge])
        crossings = np.sort(x0[edge] + part * (x1[edge] - x0[edge]))
        ends = np.clip(np.ceil(crossings), 0, shape[1]).astype(int)
        for start, stop in zip(ends[::2], ends[1::2], strict=True):
            filled[row, start:stop] = True
    return filled


def draw_regions(
    regions: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int]
) -> np.ndarray:
    """Returns the label mask of (class index, contour) pairs.

    Pixels that regions of two classes claim are left out: they show neither for sure.
    """
    return merge([(k, fill_contour(points, shape)) for k, points in regions], shape)


def merge(
    masks: Sequence[tuple[int, np.ndarray]], shape: tuple[int, int]
) -> np.ndarray:
    """Returns the label mask of (class index, mask `[H, W]` bool) pairs.

    Pixels that masks of two classes claim are left out: they show neither for sure.
    """
    labels = np.zeros(shape, np.int64)
    claimed_twice = np.zeros(shape, bool)
    for index, inside in masks:
        claimed_twice |= inside & (labels != 0) & (labels != index + 1)
        labels[inside] = index + 1
    labels[claimed_twice] = 0
    return labels


def _read_numpy(path: Path) -> np.ndarray:
    # Mapped, so that a file that claims more than it holds takes no memory.
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_pages(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG", "TIFF")) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            if max(image.size) > MAX_SIDE:
                raise UserError(f"{path}: {image.size} is larger than any CT slice.")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise UserError(
                    f"{path}: has mode {image.mode}; a mask has one channel of whole "
                    "numbers."
                )
            pages.append(np.array(image))
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _reader(path: Path, page: int | None, header: Header) -> Load:
    def load() -> np.ndarray:
        mask = read_mask(path)
        mask = mask if page is None else mask[page]
        if mask.shape != header.shape:
            raise UserError(
                f"{path}: the mask is {list(mask.shape)}, its slice {header.path} is "
                f"{list(header.shape)}."
            )
        return np.asarray(mask)

    return load


def _by_order(path: Path, headers: Sequence[Header]) -> Iterator[tuple[Key, Load]]:
    if len({header.series_uid for header in headers}) > 1:
        raise UserError(
            f"{path}: is not named after a SOPInstanceUID, and the folder has several "
            "series: by order it could belong to any of them."
        )
    series = sort_series(headers)
    if series.notes:
        # The number that a mask was given need not be the one that its slice has now.
        raise UserError(
            f"{path}: goes by the order of its slices, which is not certain: "
            f"{series.plain_notes[0]}. Name masks after their SOPInstanceUIDs."
        )
    ordered = series.headers
    mask = read_mask(path)
    if mask.ndim == 3:
        if len(mask) != len(ordered):
            raise UserError(
                f"{path}: holds {len(mask)} masks for {len(ordered)} slices."
            )
        for page, header in enumerate(ordered):
            yield header.key, _reader(path, page, header)
        return
    number = re.fullmatch(r"[^0-9.]*(\d{1,6})", path.stem)
    if number is None or not 1 <= int(number[1]) <= len(ordered):
        raise UserError(
            f"{path}: belongs to no slice: name it after the SOPInstanceUID or the "
            f"number of its slice (1 to {len(ordered)}, from the feet to the head)."
        )
    header = ordered[int(number[1]) - 1]
    yield header.key, _reader(path, None, header)


def _parse_medgift(lines: list[str]) -> tuple[tuple[float, float], list[tuple]]:
    spacing: dict[str, float] = {}
    regions, label, number, at = [], "", 0, 0
    while at < len(lines):
        key, colon, value = (part.strip() for part in lines[at].partition(":"))
        at += 1
        if not colon:
            raise ValueError(f"line '{lines[at - 1]}' was not expected")
        match key.lower():
            case "spacingx" | "spacingy" | "spacingz":
                spacing[key.lower()[-1]] = float(value)
            case "label":
                label = clean_label(value)
            case "slice_number":
                number = int(value)
            case "nb_points_on_contour":
                count = int(value)
                rows = [line.split() for line in lines[at : at + count]]
                if len(rows) != count or any(len(row) != 2 for row in rows):
                    raise ValueError(f"a contour of slice {number} lacks points")
                points = np.array(rows, float).reshape(-1, 2)
                points /= (spacing["x"], spacing["y"])
                if not label or not np.isfinite(points).all():
                    raise ValueError(f"a contour of slice {number} is not valid")
                if count > 2:
                    regions.append((label, number, points))
                at += count
    if not (spacing.get("x", 0) > 0 and spacing.get("y", 0) > 0):
        raise ValueError("SpacingX and SpacingY must be given and positive")
    return (spacing["x"], spacing["y"]), regions
