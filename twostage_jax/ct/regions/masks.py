"""Mask files: PNG, TIFF and NumPy.

A mask of lungs or of one class holds 0 and one other value, or a few labels. JPEG
compression and resizing add values in between, on both sides of every edge: see
`foreground`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy
from PIL import Image

from twostage_jax import io
from twostage_jax.ct.decode import MAX_SIDE, refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.geometry import height_text
from twostage_jax.ct.regions.base import Contents, Format, Key, Load, Numbered, Query
from twostage_jax.ct.series import sort_series
from twostage_jax.errors import Notes, UserError

FORM = "a mask"
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
# Extension of a file; the last number of a UID is not an extension.
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,5}$")
_RESOLVE = (
    "Name masks after the SOPInstanceUIDs of their slices or after the slices' files "
    "(im001.png for im001.dcm)"
)
# If all values are at most this, they are labels.
MOST_LABEL = 15
# Larger values are labels if they are few and at least this far apart.
MOST_LABELS, LEAST_GAP = 8, 16
# Reach in pixels of blurred edges, and of the ringing of JPEG: its blocks of 8 pixels,
# doubled in case the mask was enlarged afterwards.
BLUR, RINGING = 4, 16
# Stray values away from edges, as a fraction of the marked pixels.
STRAY = 0.01
# Largest fraction of pixels between the two values: noise has edges everywhere.
MOST_MIDDLE = 0.25
CUT = (
    "have values between 0 and the largest along their edges, as JPEG and resizing "
    "leave them: they are cut at half."
)
SEVERAL = "have several values above 0: all of them count as one."


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a mask file, which is recognised by its extension."""
    return Contents() if path.suffix.lower() in MASK_SUFFIXES else None


def read_mask(path: Path) -> np.ndarray:
    """Returns the integers or booleans of a mask file, `[H, W]` or `[D, H, W]`.

    A TIFF of several pages and a NumPy array may contain all slices of a series.

    Raises:
      UserError: The file cannot be read, or does not contain integers.
    """
    with refusing(path, FORM):
        if path.suffix.lower() == ".npy":
            # Mapped, so that a file with a wrong size in its header does not take memory.
            mask = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            mask = _read_pages(path)
        if mask.dtype.kind not in "bui" or mask.ndim not in (2, 3):
            raise UserError(
                "a mask must be [H, W] or [D, H, W] integers, not "
                f"{list(mask.shape)} {mask.dtype}."
            )
        if max(mask.shape[-2:]) > MAX_SIDE:
            raise UserError(f"{list(mask.shape)} is larger than any CT slice.")
        return mask


def load(query: Query) -> tuple[dict[Key, Load], Numbered | None]:
    """Returns a function per slice that reads its mask, and the position of the file.

    A mask belongs to the slice whose SOPInstanceUID or file name is part of its name,
    possibly with further words ('im001.png' or 'im001_mask.png' for 'im001.dcm').
    Otherwise, the number in its name or the order of its pages determines the slice
    (pages follow the frames if the mask is named after a multi-frame file). Numbers may
    follow InstanceNumber, the numbers in the names of the slices' files, or, as in many
    programs, the positions of the slices from the feet to the head. All possible
    numberings must agree, and the slices must be evenly spaced and of one series. A mask
    that is named after a SeriesInstanceUID, or lies in a folder of that name, belongs to
    that series.

    Numbers count from 0 if one of the masks in `query.together` has the number 0.

    Raises:
      UserError: The mask does not belong to exactly one of the slices, or it depends on
        the order of slices of which some are missing, doubled or unevenly spaced.
    """
    path, headers = query.path, query.headers
    with refusing(path, FORM):
        stem = file_stem(path)
        named = _named_after(stem, headers)
        if len(named) == 1 and not (stem.isdigit() and named[0].sop_uid != stem):
            number = None if named[0].sop_uid in stem else file_number(path)
            placed = (
                None if number is None else Numbered(number, named[0], ("file names",))
            )
            return {named[0].key: _reader(path, None, named[0])}, placed
        of_series = [h for h in headers if h.series_uid in (stem, path.parent.name)]
        everything, headers = headers, named or of_series or headers
        if len({header.series_uid for header in headers}) > 1:
            raise UserError(
                "is not named after a single slice, and could belong to any of several "
                f"series. {_RESOLVE}, or put them into a folder named after the "
                "SeriesInstanceUID."
            )
        if len(named) == 1:
            uid = named[0].series_uid
            of_series = [header for header in everything if header.series_uid == uid]
            return _by_number(path, of_series, named, [path])
        mask = read_mask(path)
        if mask.ndim == 3:
            return _by_page(path, headers, len(mask), of_one_file=bool(named))
        others = [p for p in query.together if not _named_after(file_stem(p), headers)]
        return _by_number(path, headers, [], others or [path])


def file_stem(path: Path) -> str:
    """Returns a file name in lower case without its extension; UIDs are kept whole."""
    return io.composed(_SUFFIX.sub("", path.name)).casefold()


def file_number(path: Path) -> int | None:
    """Returns the number at the end of a file name; None without one, and for UIDs."""
    found = re.search(r"(?<![\d.])(\d{1,6})[^\d.]*$", file_stem(path))
    return int(found[1]) if found else None


def _numbers_of(headers: Sequence[Header]) -> dict[str, dict[int, Header]]:
    """Returns the slices by number, by source: 'InstanceNumber' and 'file names'.

    Omits a source that does not give each slice a distinct number.
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


def foreground(
    mask: np.ndarray, path: Path, notes: Notes, subject: str = "masks"
) -> np.ndarray:
    """Returns the pixels that a mask of one class marks, `[..., H, W]` bool.

    All values except 0 count if there is one such value, or if the values are labels:
    integers up to 15, or a few distant values that fill areas. If values between 0 and
    the largest occur only next to edges, as after JPEG compression and resizing, pixels
    count from half the most frequent large value.

    Args:
      mask: Integers or booleans, `[..., H, W]`.
      path: Path of the mask, for errors.
      notes: Counts to which the mask is added.
      subject: Plural noun for `notes`.

    Raises:
      UserError: The values are neither labels nor those of a blurred mask of 0 and
        another value, or some are negative.
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


FORMAT = Format(recognise, load=load, named_like_slices=True)


def _read_pages(path: Path) -> np.ndarray:
    with Image.open(path, formats=("PNG", "TIFF")) as image:
        pages = []
        for page in range(getattr(image, "n_frames", 1)):
            image.seek(page)
            if max(image.size) > MAX_SIDE:
                raise UserError(f"{image.size} is larger than any CT slice.")
            if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B"):
                raise UserError(
                    f"has mode {image.mode}; a mask has one channel of integers."
                )
            pages.append(_indexed(image) if image.mode == "P" else np.array(image))
    return pages[0] if len(pages) == 1 else np.stack(pages)


def _indexed(image: Image.Image) -> np.ndarray:
    """Returns the labels of an image with a palette.

    Programs that number labels keep 0 black, and give the others any colours or growing
    grey levels: their indices are the labels. Programs that only save space number the
    colours as they come, often from the lightest: the levels shown are the labels.

    Raises:
      UserError: The palette is in colour, and 0 is not black.
    """
    indices = np.array(image)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(indices)
    colours = palette[np.minimum(used, len(palette) - 1)]
    black_is_zero = np.array_equal(colours.any(1), used > 0)
    levels = colours[:, 0].astype(int)
    if (colours != levels[:, None]).any():
        if black_is_zero:
            return indices
        raise UserError(
            "has a palette of colours in which 0 is not black, so it is unknown which "
            "colours mean what. Save it again as grey PNG with 0 outside and 1, 2, ... "
            "inside."
        )
    are_labels = len(used) <= MOST_LABEL + 1 and (np.diff(levels) > 0).all()
    return indices if black_is_zero and are_labels else palette[indices][..., 0]


def _reader(path: Path, page: int | None, header: Header) -> Load:
    def load() -> np.ndarray:
        mask = read_mask(path)
        mask = mask if page is None else mask[page]
        if mask.shape != header.shape:
            raise UserError.at(
                path,
                f"the mask is {list(mask.shape)}, its slice {header.path} is "
                f"{list(header.shape)}.",
            )
        return np.asarray(mask)

    return load


def _named_after(stem: str, headers: Sequence[Header]) -> list[Header]:
    """Returns the slices whose UID or file name is equal to, or part of, a mask's name.

    The rest of the name must consist of separate words without digits.
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
    headers: Sequence[Header],
) -> dict[str, tuple[Header, ...] | list[Header]]:
    """Returns the slices in every order in which they may have been counted, by name.

    Raises:
      UserError: The order is uncertain because slices are missing or doubled.
    """
    series = sort_series(headers)
    if series.notes:
        # Slices may have been missing, or not, when the masks were numbered.
        raise UserError(
            "depends on the order of its slices, which is uncertain: "
            f"{series.plain_notes[0]}. {_RESOLVE}."
        )
    orders = {"position from the feet": series.headers}
    for source, numbers in _numbers_of(headers).items():
        orders[f"order of {source}"] = [numbers[number] for number in sorted(numbers)]
    return orders


def _by_number(
    path: Path,
    headers: Sequence[Header],
    named: Sequence[Header],
    together: Sequence[Path],
) -> tuple[dict[Key, Load], Numbered]:
    number = file_number(path)
    used = {file_number(p) for p in together} - {None}
    readings = [
        (source, numbers)
        for source, numbers in _numbers_of(headers).items()
        if used <= numbers.keys()
    ]
    if named:
        # A bare number that is also the name of a slice's file needs no counting.
        readings = [r for r in readings if r[0] != "file names"]
        readings.append(("file names", {number: named[0]}))
    else:
        orders = _orders(headers)
        first = 0 if 0 in used else 1
        for source, ordered in orders.items():
            counted = dict(enumerate(ordered, start=first))
            known = any(counted == numbers for _, numbers in readings)
            if used <= counted.keys() and not known:
                readings.append((source, counted))
    if number is None or not readings:
        raise UserError(
            f"does not belong to any slice. {_RESOLVE}, or give them the numbers of the "
            f"slices (1 to {len(headers)})."
        )
    _check_agreed(used if not named else {number}, readings)
    header = readings[0][1][number]
    clues = tuple(source for source, _ in readings)
    return {header.key: _reader(path, None, header)}, Numbered(number, header, clues)


def _by_page(
    path: Path, headers: Sequence[Header], pages: int, *, of_one_file: bool
) -> tuple[dict[Key, Load], Numbered]:
    if of_one_file:  # The mask is named after it: pages follow its frames.
        orders = {"frames": sorted(headers, key=lambda header: header.frame)}
    else:
        orders = _orders(headers)
    if pages != len(headers):
        raise UserError(f"contains {pages} masks for {len(headers)} slices.")
    readings = [
        (source, dict(enumerate(ordered, start=1)))
        for source, ordered in orders.items()
    ]
    _check_agreed(set(range(1, pages + 1)), readings)
    (_, ordered), *_ = readings
    found = {
        header.key: _reader(path, number - 1, header)
        for number, header in ordered.items()
    }
    clues = tuple(source for source, _ in readings)
    return found, Numbered(1, ordered[1], clues, pages)


def _check_agreed(
    numbers: set[int], readings: Sequence[tuple[str, dict[int, Header]]]
) -> None:
    """Raises a UserError if two readings assign a number to different slices."""
    (first, by_first), *others = readings
    for number in sorted(numbers):
        for other, by_other in others:
            one, two = by_first[number], by_other[number]
            if one.key != two.key:
                raise UserError(
                    f"number {number} could mean either of two slices. By {first} it is "
                    f"{_slice_text(one)}, by {other} it is {_slice_text(two)}. "
                    f"{_RESOLVE}; instead of one file for all slices, give a NIfTI "
                    "volume, which states its position."
                )


def _slice_text(header: Header) -> str:
    number = "" if header.number is None else f", InstanceNumber {header.number}"
    return f"{header.path} ({height_text(header)}{number})"


def _are_labels(mask: np.ndarray, values: np.ndarray) -> bool:
    """Returns whether values are few, distant, and each fills a square of 3 x 3."""
    apart = np.diff(values, prepend=0).min() >= LEAST_GAP
    if len(values) > MOST_LABELS or not apart:
        return False
    size = (1,) * (mask.ndim - 2) + (3, 3)
    low = scipy.ndimage.minimum_filter(mask, size)
    flat = mask[low == scipy.ndimage.maximum_filter(mask, size)]
    return bool(np.isin(values, flat).all())


def _are_edges(mask: np.ndarray, marked: np.ndarray, top: float) -> bool:
    """Returns whether all values but 0 and `top` lie along edges of the marked area."""
    middle = (mask > top / 4) & (mask < 3 * top / 4)
    if np.count_nonzero(middle) > MOST_MIDDLE * mask.size:
        return False
    other = (mask > 0) & (mask != top)
    stray = (middle & ~_near_edges(marked, BLUR)) | (
        other & ~_near_edges(marked, RINGING)
    )
    return np.count_nonzero(stray) <= STRAY * np.count_nonzero(marked)


def _near_edges(marked: np.ndarray, reach: int) -> np.ndarray:
    """Returns the pixels within `reach` rows and columns of an edge, bool."""
    size = (1,) * (marked.ndim - 2) + (2 * reach + 1,) * 2
    low = scipy.ndimage.minimum_filter(marked.view(np.uint8), size)
    return low != scipy.ndimage.maximum_filter(marked.view(np.uint8), size)


def _refuse(path: Path, values: np.ndarray) -> None:
    listed = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
    raise UserError.at(
        path,
        f"a mask of 0 and one other value is needed, but this one has {len(values)} "
        f"values ({listed}), not all of them at its edges. Save it again as PNG with "
        "0 outside and 1 inside.",
    )
