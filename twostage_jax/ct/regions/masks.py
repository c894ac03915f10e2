"""The pixels that a mask of one thing marks, whatever its values went through.

A mask of lungs or of one class holds 0 and one other value, or a few labels. Saved as
JPEG or resized, one of 0 and 255 gets values in between: ringing on both sides of every
edge, of which the part outside must not count.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from twostage_jax import io
from twostage_jax.ct.decode import MAX_SIDE
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.geometry import height_text
from twostage_jax.ct.series import sort_series
from twostage_jax.errors import Notes, UserError

# Values up to it are labels: no mask of 0 and 255.
MOST_LABEL = 15
# Larger labels: at most as many, each as far from the others.
MOST_LABELS, LEAST_GAP = 8, 16
# Pixels that blurred edges reach to either side, and that the ringing of JPEG does: its
# blocks of 8, doubled where the mask was enlarged afterwards.
BLUR, RINGING = 4, 16
# Fraction of the marked pixels that may have stray values elsewhere.
STRAY = 0.01
# Fraction of all pixels that may be between the two values: noise has edges everywhere.
MOST_MIDDLE = 0.25
CUT = (
    "have values between 0 and the largest along their edges, as JPEG and resizing "
    "leave them: they are cut at half."
)
SEVERAL = "have several values above 0: all of them count as one."


def foreground(
    mask: np.ndarray, path: Path, notes: Notes, subject: str = "masks"
) -> np.ndarray:
    """Returns what a mask of one thing marks.

    All values but 0 count if there is one, or if they are labels: whole numbers up to
    15, or a few that lie apart and fill areas. If values between 0 and the largest are
    found next to the edges only, as JPEG and resizing leave them, what reaches half the
    commonest large value counts.

    Args:
      mask: `[...]` integers or booleans.
      path: Its file, for errors.
      notes: Counts to which the mask is added.
      subject: Plural noun for `notes`.

    Returns:
      `[...]` bool.

    Raises:
      UserError: The values are neither labels nor those of a mask of 0 and another
        value; or some are negative.
    """
    notes.add(subject)
    mask = np.asarray(mask)
    if mask.dtype == bool:
        return mask
    values = np.unique(mask)
    if values.size and values[0] < 0:
        _refuse(path, values)
    values = values[values > 0]
    if len(values) <= 1:
        return mask > 0
    if values[-1] <= MOST_LABEL or _are_labels(mask, values):
        notes.add(subject, SEVERAL)
        return mask > 0
    large = mask[mask > values[-1] / 2]
    found, counts = np.unique(large, return_counts=True)
    top = found[counts.argmax()]
    marked = mask >= top / 2
    if not _are_edges(mask, marked, float(top)):
        _refuse(path, values)
    notes.add(subject, CUT)
    return marked


def _are_labels(mask: np.ndarray, values: np.ndarray) -> bool:
    """Whether values are few, far apart, and each fills a square of 3 x 3 pixels."""
    apart = np.diff(values, prepend=0).min() >= LEAST_GAP
    if len(values) > MOST_LABELS or not apart:
        return False
    size = (1,) * (mask.ndim - 2) + (3, 3)
    low = ndimage.minimum_filter(mask, size)
    flat = mask[low == ndimage.maximum_filter(mask, size)]
    return bool(np.isin(values, flat).all())


def _are_edges(mask: np.ndarray, marked: np.ndarray, top: float) -> bool:
    """Whether all values but 0 and `top` lie along the edges of what is marked."""
    middle = (mask > top / 4) & (mask < 3 * top / 4)
    if np.count_nonzero(middle) > MOST_MIDDLE * mask.size:
        return False
    other = (mask > 0) & (mask != top)
    stray = (middle & ~_near_edges(marked, BLUR)) | (
        other & ~_near_edges(marked, RINGING)
    )
    return np.count_nonzero(stray) <= STRAY * np.count_nonzero(marked)


def _near_edges(marked: np.ndarray, reach: int) -> np.ndarray:
    """Returns the pixels at most `reach` rows and columns from the other kind."""
    size = (1,) * (marked.ndim - 2) + (2 * reach + 1,) * 2
    low = ndimage.minimum_filter(marked.view(np.uint8), size)
    return low != ndimage.maximum_filter(marked.view(np.uint8), size)


def _refuse(path: Path, values: np.ndarray) -> None:
    listed = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    raise UserError(
        f"{path}: a mask of 0 and one other value is needed, but this one has "
        f"{len(values)} values ({listed}), and they do not only blur its edges: save it "
        "again with 0 outside and 1 inside, as PNG.",
        where=path,
    )


# Label masks of annotated regions: mask files, and MedGIFT contour files.
#
# A label mask is `[H, W]` int: 0 outside all regions, 1 + class index inside.


MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
# A slice; see `Header.key`.
Key = tuple
# Reads the mask `[H, W]` of a slice.
Load = Callable[[], np.ndarray]
# Class index, and the pixels `[H, W]` bool that a region of this class marks.
Claim = tuple[int, np.ndarray]
# Draws the regions of a slice.
Draw = Callable[[], list[Claim]]
# Suffixes of DICOM files that are not part of the file's name.
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,5}$")
_RESOLVE = (
    "Name masks after the SOPInstanceUIDs of their slices or after the slices' files "
    "(im001.png for im001.dcm)"
)


class Labels(NamedTuple):
    """The label mask of a slice.

    Attributes:
      mask: `[H, W]` int.
      marked: Class index -> number of pixels that its regions mark.
      overlaps: Two class indices, the smaller first -> number of pixels that regions of
        both mark, and which are 0 in the mask.
    """

    mask: np.ndarray
    marked: dict[int, int]
    overlaps: dict[tuple[int, int], int]


class Numbered(NamedTuple):
    """How a mask was placed that is not named after the UID of its slice.

    Attributes:
      number: Number in the mask's name, or of a page, from 1.
      header: Its slice.
      clues: Names of what agrees about that, such as 'InstanceNumber'.
      masks: Number of masks in the file.
    """

    number: int
    header: Header
    clues: tuple[str, ...]
    masks: int = 1


def clean_label(text: str) -> str:
    """Returns a region's label as classes are named: one line, lower case, NFC."""
    return " ".join(io.composed(text).split()).lower()


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
        raise UserError(
            f"{path}: cannot be read as a mask: {error}", where=path
        ) from error
    if mask.dtype.kind not in "bui" or mask.ndim not in (2, 3):
        raise UserError(
            f"{path}: a mask must be [H, W] or [D, H, W] whole numbers, not "
            f"{list(mask.shape)} {mask.dtype}.",
            where=path,
        )
    if max(mask.shape[-2:]) > MAX_SIDE:
        raise UserError(
            f"{path}: {list(mask.shape)} is larger than any CT slice.", where=path
        )
    return mask


def mask_of(
    path: Path, headers: Sequence[Header], beside: Sequence[Path] = ()
) -> tuple[dict[Key, Load], Numbered | None]:
    """Returns the readers of the masks of a PNG, TIFF or NumPy file, and how it was placed.

    A mask belongs to the slice whose SOPInstanceUID or file name it bears, with or
    without further words ('im001.png', 'im001_mask.png' for 'im001.dcm'). Otherwise it
    goes by the number in its name, or by the order of its pages (of a file with frames
    whose name the mask bears, that of the frames). Numbers may follow
    InstanceNumber, the numbers in the names of the slices' files, or the slices' positions
    from the feet to the head, which many programs go by. Those that are possible must
    agree; and the slices must be of one series (or the mask be named after its
    SeriesInstanceUID, or lie in a folder named so), evenly spaced.

    Args:
      path: The mask file.
      headers: The slices that it may belong to.
      beside: All mask files that are numbered together with this one. A 0 among their
        numbers means that they count from 0.

    Raises:
      UserError: The mask belongs to no slice, or could belong to several; or it goes
        by the order of slices of which some are missing, doubled or unevenly spaced.
    """
    stem = file_stem(path)
    named = _named_after(stem, headers)
    if len(named) == 1 and not (stem.isdigit() and named[0].sop_uid != stem):
        number = None if named[0].sop_uid in stem else file_number(path)
        placed = None if number is None else Numbered(number, named[0], ("file names",))
        return {named[0].key: _reader(path, None, named[0])}, placed
    of_series = [h for h in headers if h.series_uid in (stem, path.parent.name)]
    everything, headers = headers, named or of_series or headers
    if len({header.series_uid for header in headers}) > 1:
        raise UserError(
            f"{path}: is not named after a single slice, and could belong to any of "
            f"several series. {_RESOLVE}, or put them into a folder named after the "
            "SeriesInstanceUID.",
            where=path,
        )
    if len(named) == 1:
        uid = named[0].series_uid
        of_series = [header for header in everything if header.series_uid == uid]
        return _by_number(path, of_series, named, [path])
    mask = read_mask(path)
    if mask.ndim == 3:
        return _by_page(path, headers, len(mask), of_one_file=bool(named))
    others = [p for p in beside if not _named_after(file_stem(p), headers)]
    return _by_number(path, headers, [], others or [path])


def file_stem(path: Path) -> str:
    """Returns a file's name, in lower case, without suffix; a part of a UID is none."""
    return io.composed(_SUFFIX.sub("", path.name)).casefold()


def file_number(path: Path) -> int | None:
    """Returns the number at the end of a file's name; None for a UID or without one."""
    found = re.search(r"(?<![\d.])(\d{1,6})[^\d.]*$", file_stem(path))
    return int(found[1]) if found else None


def numbers_of(headers: Sequence[Header]) -> dict[str, dict[int, Header]]:
    """Returns the numbers that slices bear, by their source.

    'InstanceNumber' and 'file names'; each only if all slices have one of their own.
    """
    found = {
        "InstanceNumber": {header.number: header for header in headers},
        "file names": {file_number(header.path): header for header in headers},
    }
    return {
        source: by_number
        for source, by_number in found.items()
        if None not in by_number and len(by_number) == len(headers)
    }


def add_masks(found: dict[Key, Load], new: dict[Key, Load], path: Path) -> None:
    """Adds masks that `path` gives to `found`.

    Raises:
      UserError: A slice has a mask already.
    """
    for key in new:
        if key in found:
            raise UserError(
                f"{path}: its slice has a second mask, in another file.", where=path
            )
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
        raise UserError(
            f"{path}: not a MedGIFT contour file: {error}", where=path
        ) from error


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
) -> list[Claim]:
    """Returns the pixels of each of some (class index, contour `[n, 2]`) pairs."""
    return [(index, fill_contour(points, shape)) for index, points in regions]


def merge(claims: Sequence[Claim], shape: tuple[int, int]) -> Labels:
    """Returns the label mask of the regions of a slice.

    Pixels that regions of two classes claim are 0: they show neither for sure.
    """
    by_class: dict[int, np.ndarray] = {}
    for index, inside in claims:
        by_class[index] = by_class.get(index, False) | inside
    labels = np.zeros(shape, np.int64)
    times = np.zeros(shape, np.int64)
    for index, inside in by_class.items():
        labels[inside] = index + 1
        times += inside
    labels[times > 1] = 0
    overlaps = {
        (a, b): int(np.sum(by_class[a] & by_class[b]))
        for a, b in itertools.combinations(sorted(by_class), 2)
    }
    return Labels(
        labels,
        {index: int(inside.sum()) for index, inside in by_class.items()},
        {pair: pixels for pair, pixels in overlaps.items() if pixels},
    )


def _read_numpy(path: Path) -> np.ndarray:
    # Mapped, so that a file that claims more than it holds takes no memory.
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _read_pages(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG", "TIFF")) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            if max(image.size) > MAX_SIDE:
                raise UserError(
                    f"{path}: {image.size} is larger than any CT slice.", where=path
                )
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise UserError(
                    f"{path}: has mode {image.mode}; a mask has one channel of whole "
                    "numbers.",
                    where=path,
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
                f"{list(header.shape)}.",
                where=path,
            )
        return np.asarray(mask)

    return load


def _named_after(stem: str, headers: Sequence[Header]) -> list[Header]:
    """Returns the slices whose UID or file name a mask's name is, or contains.

    What the name has in addition must be words of its own, without a digit.
    """
    for exact in (True, False):
        for name_of in (lambda h: h.sop_uid, lambda h: file_stem(h.path)):
            found = [h for h in headers if _bears(stem, name_of(h), exact)]
            if found:
                return found
    return []


def _bears(stem: str, name: str, exact: bool) -> bool:
    if exact or not name or name not in stem:
        return stem == name
    before, _, after = stem.partition(name)
    apart = not before[-1:].isalnum() and not after[:1].isalnum()
    return apart and not re.search(r"\d", before + after)


def _orders(
    path: Path, headers: Sequence[Header]
) -> dict[str, tuple[Header, ...] | list[Header]]:
    """Returns the orders in which slices may have been counted, by their names.

    Raises:
      UserError: The order is not certain, as slices are missing or doubled.
    """
    series = sort_series(headers)
    if series.notes:
        # The number that a mask was given need not be the one that its slice has now.
        raise UserError(
            f"{path}: goes by the order of its slices, which is not certain: "
            f"{series.plain_notes[0]}. {_RESOLVE}.",
            where=path,
        )
    orders = {"position from the feet": series.headers}
    for source, numbers in numbers_of(headers).items():
        orders[f"order of {source}"] = [numbers[number] for number in sorted(numbers)]
    return orders


def _by_number(
    path: Path,
    headers: Sequence[Header],
    named: Sequence[Header],
    beside: Sequence[Path],
) -> tuple[dict[Key, Load], Numbered]:
    number = file_number(path)
    used = {file_number(p) for p in beside} - {None}
    readings = [
        (source, numbers)
        for source, numbers in numbers_of(headers).items()
        if used <= numbers.keys()
    ]
    if named:
        # A bare number that is also the name of a slice's file: no need to count.
        readings = [r for r in readings if r[0] != "file names"]
        readings.append(("file names", {number: named[0]}))
    else:
        orders = _orders(path, headers)
        first = 0 if 0 in used else 1
        for source, ordered in orders.items():
            counted = dict(enumerate(ordered, start=first))
            known = any(counted == numbers for _, numbers in readings)
            if used <= counted.keys() and not known:
                readings.append((source, counted))
    if number is None or not readings:
        raise UserError(
            f"{path}: belongs to no slice. {_RESOLVE}, or give them the numbers of the "
            f"slices (1 to {len(headers)}).",
            where=path,
        )
    _check_agreed(path, used if not named else {number}, readings)
    header = readings[0][1][number]
    clues = tuple(source for source, _ in readings)
    return {header.key: _reader(path, None, header)}, Numbered(number, header, clues)


def _by_page(
    path: Path, headers: Sequence[Header], pages: int, *, of_one_file: bool
) -> tuple[dict[Key, Load], Numbered]:
    if of_one_file:  # which the mask is named after: pages follow its frames
        orders = {"frames": sorted(headers, key=lambda header: header.frame)}
    else:
        orders = _orders(path, headers)
    if pages != len(headers):
        raise UserError(
            f"{path}: holds {pages} masks for {len(headers)} slices.", where=path
        )
    readings = [
        (source, dict(enumerate(ordered, start=1)))
        for source, ordered in orders.items()
    ]
    _check_agreed(path, set(range(1, pages + 1)), readings)
    (_, ordered), *_ = readings
    found = {
        header.key: _reader(path, number - 1, header)
        for number, header in ordered.items()
    }
    clues = tuple(source for source, _ in readings)
    return found, Numbered(1, ordered[1], clues, pages)


def _check_agreed(
    path: Path, numbers: set[int], readings: Sequence[tuple[str, dict[int, Header]]]
) -> None:
    """Raises a UserError if two readings put a number on different slices."""
    (first, by_first), *others = readings
    for number in sorted(numbers):
        for other, by_other in others:
            one, two = by_first[number], by_other[number]
            if one.key != two.key:
                raise UserError(
                    f"{path}: number {number} could mean either of two slices. By "
                    f"{first} it is {_slice_text(one)}, by {other} it is "
                    f"{_slice_text(two)}. {_RESOLVE}; instead of one file for all "
                    "slices, give a NIfTI volume, which says where it lies.",
                    where=path,
                )


def _slice_text(header: Header) -> str:
    number = "" if header.number is None else f", InstanceNumber {header.number}"
    return f"{header.path} ({height_text(header)}{number})"


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
