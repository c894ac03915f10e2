"""Colour overlays of a slice and of a series, as a radiologist reads them.

Slices are seen from the feet, on a dark ground, in grey, with a bar of five centimetres.
Colours are those of Okabe and Ito 2008, "Color Universal Design", which are told apart
in all forms of colour blindness. Normal lung is left grey.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from twostage_jax.ct.dicom import window as windowed
from twostage_jax.ct.volumes import UNCLASSIFIED

NOTICE = "Research use only, not for diagnosis"
NORMAL_NAMES = ("normal", "healthy")
# Neighbours in this order are far apart; from the eighth class on, with stripes.
COLOURS = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
GROUND, INK, DIM, WARNING = (
    (16, 16, 18),
    (235, 235, 235),
    (150, 150, 150),
    (255, 190, 60),
)
OUTLINE = (255, 255, 255)
TINT = 0.42
STRIPE = 5
LUNG_WINDOW = (-600.0, 1500.0)
BAR_MM = 50
PANEL, LEGEND, MARGIN, HEAD, FOOT = 560, 330, 16, 44, 60
SHEET_WIDTH, LARGEST_THUMB, SMALLEST_THUMB = 2400, 380, 150
SHORT_NAME = 30


@dataclasses.dataclass(frozen=True)
class Style:
    """What all pictures of a series share.

    Attributes:
      class_names: Of the K classes.
      pixel_mm: Distance between rows and between columns.
      sides: Letters at the left, right, top and bottom, such as 'RLAP'; see `sides`.
      title: What the series is, without anything that identifies the patient.
      model: What made the picture.
    """

    class_names: tuple[str, ...]
    pixel_mm: tuple[float, float]
    sides: str
    title: str
    model: str


def draw_slice(
    hu: np.ndarray, labels: np.ndarray, lungs: np.ndarray, style: Style, name: str
) -> Image.Image:
    """Returns the slice twice, plain and with its classes in colour, and the legend.

    Args:
      hu: `[H, W]` int16.
      labels: `[H, W]`: 1 + class index, 0 = no class.
      lungs: `[H, W]` bool.
      style: Of the series.
      name: Of the slice.
    """
    high, wide = _shown(hu.shape, style.pixel_mm, PANEL)
    plain = _grey(hu, (high, wide))
    coloured = _coloured(plain, _nearest(labels, plain), _nearest(lungs, plain), style)
    width = 2 * wide + LEGEND + 4 * MARGIN
    canvas = Image.new("RGB", (width, high + HEAD + FOOT), GROUND)
    pen = ImageDraw.Draw(canvas)
    for left, panel in ((MARGIN, plain), (2 * MARGIN + wide, coloured)):
        canvas.paste(Image.fromarray(panel), (left, HEAD))
        _sides(pen, left, HEAD, (high, wide), style.sides)
    mm = hu.shape[1] * style.pixel_mm[1] / wide
    _bar(pen, MARGIN + 14, HEAD + high - 16, mm)
    centre, width_hu = LUNG_WINDOW
    note = f"W {width_hu:.0f}  L {centre:.0f} HU"
    _write(pen, (MARGIN + wide - 10, HEAD + high - 10), note, 13, DIM, "rs")
    _write(pen, (MARGIN, 14), f"{style.title}    {name}", 17)
    counts = np.bincount(labels[lungs], minlength=1 + len(style.class_names))
    left = 3 * MARGIN + 2 * wide
    _legend(pen, (left, HEAD + 4), style.class_names, counts, "of the lung here")
    _foot(pen, HEAD + high + 10, style)
    return canvas


def draw_sheet(
    hu: np.ndarray, labels: np.ndarray, lungs: np.ndarray, style: Style
) -> Image.Image:
    """Returns all slices of a series on one sheet, the head first, cut to the lungs.

    Args:
      hu: `[Z, H, W]` int16, from feet to head.
      labels: `[Z, H, W]`: 1 + class index, 0 = no class.
      lungs: `[Z, H, W]` bool.
      style: Of the series.
    """
    rows, columns = _around(lungs, style.pixel_mm)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    count = len(hu)
    thumb, across = _tiling(count, shape, style.pixel_mm)
    high, wide = _shown(shape, style.pixel_mm, thumb)
    down = -(-count // across)
    beside = across * (wide + 4) + 3 * MARGIN
    tall = max(down * (high + 4), 30 * (len(style.class_names) + 4))
    canvas = Image.new("RGB", (beside + LEGEND, tall + HEAD + FOOT), GROUND)
    pen = ImageDraw.Draw(canvas)
    for place, z in enumerate(range(count - 1, -1, -1)):
        part = z, rows, columns
        plain = _grey(hu[part], (high, wide))
        picture = _coloured(
            plain, _nearest(labels[part], plain), _nearest(lungs[part], plain), style
        )
        left = MARGIN + place % across * (wide + 4)
        top = HEAD + place // across * (high + 4)
        canvas.paste(Image.fromarray(picture), (left, top))
        _write(pen, (left + 5, top + 4), str(place + 1), 13)
    if count:
        _sides(pen, MARGIN, HEAD, (high, wide), style.sides)
        mm = shape[1] * style.pixel_mm[1] / wide
        _bar(pen, MARGIN + 8, HEAD + high - 10, mm)
    numbers = f"{count} slices from the head" if count > 1 else "1 slice"
    _write(pen, (MARGIN, 14), f"{style.title}    {numbers}", 17)
    counts = np.bincount(labels[lungs], minlength=1 + len(style.class_names))
    _legend(pen, (beside, HEAD + 4), style.class_names, counts, "of the lungs")
    _foot(pen, HEAD + tall + 10, style)
    return canvas


def sides(orientation: Sequence[float] | None) -> str:
    """Returns the letters at the left, right, top and bottom of a slice.

    'R' and 'L', 'A' and 'P', 'H' and 'F' stand for the patient's right and left,
    front (anterior) and back, head and feet. Unknown: four spaces.

    Args:
      orientation: Direction cosines of a row, then of a column, as DICOM has them.
    """
    if orientation is None:
        return "    "
    letters = ""
    for direction in np.reshape(orientation, (2, 3)):
        axis = int(np.abs(direction).argmax())
        pair = ("RL", "AP", "FH")[axis]
        letters += pair if direction[axis] > 0 else pair[::-1]
    return letters


def colour(index: int, class_names: Sequence[str]) -> tuple[int, int, int] | None:
    """Returns the RGB colour of a class; None for normal lung, which stays grey."""
    names = [name.strip().lower() for name in class_names]
    if names[index] in NORMAL_NAMES:
        return None
    diseases = [i for i, name in enumerate(names) if name not in NORMAL_NAMES]
    return COLOURS[diseases.index(index) % len(COLOURS)]


def printable(text: str, longest: int) -> str:
    """Returns a text in one line of at most `longest` characters, none of control."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def _striped(index: int, class_names: Sequence[str]) -> bool:
    before = sum(colour(i, class_names) is not None for i in range(index))
    return before >= len(COLOURS)


def _coloured(
    plain: np.ndarray, labels: np.ndarray, lungs: np.ndarray, style: Style
) -> np.ndarray:
    """Returns `[H, W, 3]` uint8: tinted classes in their own outline, lungs in white."""
    picture = plain.astype(np.float32)
    rows, columns = np.indices(labels.shape)
    stripes = (rows + columns) // STRIPE % 2 == 0
    unknown = lungs & (labels == 0) & ((rows - columns) % (2 * STRIPE) < 2)
    picture[unknown] = DIM
    picture[_edge(lungs)] = OUTLINE
    for index in range(len(style.class_names)):
        rgb = colour(index, style.class_names)
        region = labels == 1 + index
        if rgb is None or not region.any():
            continue
        tinted = region & stripes if _striped(index, style.class_names) else region
        picture[tinted] = (1 - TINT) * picture[tinted] + TINT * np.array(rgb)
        picture[_edge(region)] = rgb
    return np.rint(picture).astype(np.uint8)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels of `mask` `[H, W]` beside others."""
    inner = np.pad(mask, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~inner


def _grey(hu: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns HU `[H, W]` in the lung window as `[*shape, 3]` uint8."""
    unit = np.rint(255 * windowed(hu, *LUNG_WINDOW)).astype(np.uint8)
    scaled = Image.fromarray(unit).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(scaled)[..., None], 3, axis=2)


def _nearest(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Returns a mask `[H, W]` in the size of the picture `like`."""
    rows, columns = (
        (np.arange(new) + 0.5) * old // new
        for old, new in zip(mask.shape, like.shape[:2], strict=True)
    )
    return mask[np.ix_(rows.astype(int), columns.astype(int))]


def _shown(
    shape: tuple[int, int], pixel_mm: tuple[float, float], longest: int
) -> tuple[int, int]:
    """Returns (height, width) in square pixels, the longer side `longest`."""
    high, wide = (n * mm for n, mm in zip(shape, pixel_mm, strict=True))
    scale = longest / max(high, wide)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _around(lungs: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[slice, slice]:
    """Returns the rows and columns of the lungs of a series and 12 mm around them."""
    cut = []
    for axis, mm in ((1, pixel_mm[0]), (2, pixel_mm[1])):
        length, margin = lungs.shape[axis], round(12 / mm)
        found = np.flatnonzero(lungs.any((0, 3 - axis)))
        found = found if len(found) else np.array([0, length - 1])
        cut.append(
            slice(max(0, found[0] - margin), min(length, found[-1] + margin + 1))
        )
    return cut[0], cut[1]


def _tiling(
    count: int, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> tuple[int, int]:
    """Returns the longer side of a thumbnail and how many lie side by side."""
    thumb = LARGEST_THUMB
    while True:
        high, wide = _shown(shape, pixel_mm, thumb)
        across = max(1, min(count, (SHEET_WIDTH - LEGEND) // (wide + 4)))
        if thumb <= SMALLEST_THUMB or -(-count // across) * high <= SHEET_WIDTH:
            return thumb, across
        thumb = max(SMALLEST_THUMB, int(thumb * 0.9))


def _legend(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    class_names: Sequence[str],
    counts: np.ndarray,
    of_what: str,
) -> None:
    left, top = corner
    total = max(1, counts.sum())
    _write(pen, (left + LEGEND - MARGIN, top), of_what, 13, DIM, "ra")
    for line, index in enumerate((*range(1, len(counts)), 0), start=1):
        box = (left, top + 30 * line - 4, left + 22, top + 30 * line + 14)
        name = class_names[index - 1] if index else UNCLASSIFIED
        rgb = colour(index - 1, class_names) if index else None
        if index and rgb and _striped(index - 1, class_names):
            pen.rectangle(box, outline=rgb, width=2)
            for x in range(box[0], box[2] - STRIPE, 2 * STRIPE):
                pen.line((x, box[3], x + STRIPE, box[1]), fill=rgb, width=3)
        elif rgb:
            pen.rectangle(box, fill=rgb)
        elif index:
            pen.rectangle(box, fill=(70, 70, 70), outline=OUTLINE)
        else:
            pen.rectangle(box, outline=DIM)
            for x in range(box[0] + 2, box[2] - 10, 6):
                pen.line((x, box[1], x + 16, box[3]), fill=DIM)
        text = printable(name.replace("_", " "), SHORT_NAME)
        size = 15 if len(text) <= 18 else 12
        _write(pen, (left + 32, top + 30 * line - 4), text, size)
        share = f"{100 * counts[index] / total:.1f} %"
        _write(pen, (left + LEGEND - MARGIN, top + 30 * line - 4), share, 15, INK, "ra")


def _foot(pen: ImageDraw.ImageDraw, top: int, style: Style) -> None:
    _write(pen, (MARGIN, top), NOTICE, 16, WARNING)
    _write(pen, (MARGIN, top + 24), printable(style.model, 140), 12, DIM)


def _bar(pen: ImageDraw.ImageDraw, left: int, bottom: int, mm: float) -> None:
    """Draws a bar of `BAR_MM`; `mm` is the size of a picture's pixel."""
    right = left + round(BAR_MM / mm)
    pen.line((left, bottom, right, bottom), fill=INK, width=3)
    for x in (left, right):
        pen.line((x, bottom - 5, x, bottom + 5), fill=INK, width=2)
    text = f"{BAR_MM // 10} cm"
    _write(pen, ((left + right) // 2, bottom - 8), text, 14, INK, "ms")


def _sides(
    pen: ImageDraw.ImageDraw, left: int, top: int, size: tuple[int, int], letters: str
) -> None:
    high, wide = size
    places = (
        (left + 6, top + high // 2, "lm"),
        (left + wide - 6, top + high // 2, "rm"),
        (left + wide // 2, top + 6, "ma"),
        (left + wide // 2, top + high - 8, "ms"),
    )
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        _write(pen, (x, y), letter, 15, INK, anchor)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    rgb: tuple[int, int, int] = INK,
    anchor: str = "la",
) -> None:
    halo = {"stroke_width": 1, "stroke_fill": (0, 0, 0)}
    pen.text(place, text, fill=rgb, font=_font(size), anchor=anchor, **halo)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it along: the same letters on every machine.
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)
