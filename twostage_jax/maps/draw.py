"""Colour overlays of a slice and of a series.

Slices are drawn as they are stored, on a dark ground, in grey, with a scale bar of five
centimetres, a legend and the notices. Scanners store axial slices in radiological
convention, as seen from the feet. Slices stored otherwise are not turned: the letters at
the edges name the sides of the patient. Normal lung stays grey.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from twostage_jax.ct.dicom import LUNG_WINDOW
from twostage_jax.ct.dicom import window as windowed
from twostage_jax.ct.patches import resample_mask
from twostage_jax.errors import plain
from twostage_jax.maps.extent import UNCLASSIFIED, UNLIKE
from twostage_jax.notices import NOTICE

NORMAL_WORDS = ("normal", "healthy")
# Okabe and Ito 2008, "Color Universal Design": distinguishable with all forms of colour
# blindness. Neighbours in this order differ strongly.
COLOURS = (
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
GROUND, INK, DIM = (16, 16, 18), (235, 235, 235), (150, 150, 150)
WARNING, OUTLINE = (255, 190, 60), (255, 255, 255)
# Pixels: width of the legend and of margins, height of lines, width of a stripe,
# distance between the lines of the hatch.
LEGEND, MARGIN, LINE, STRIPE, HATCH = 330, 16, 30, 5, 11
SHORT_NAME = 30
# Opacity of a class's colour over the grey of the slice.
TINT = 0.42
# Pixels: longer side of a slice, above it; sheet and its slices.
PANEL, HEAD = 560, 44
SHEET_WIDTH, LARGEST_THUMB, SMALLEST_THUMB = 2400, 380, 150


@dataclasses.dataclass(frozen=True)
class Style:
    """Settings that all pictures of a series share.

    Attributes:
      class_names: Names of the K classes.
      pixel_mm: Distance between rows and between columns, mm.
      sides: Letters at the left, right, top and bottom, such as 'RLAP'; see `sides`.
      title: Name of the series, without anything that identifies the patient.
      made_by: Lines on the program and model that made the picture.
      notices: Lines in the colour of a warning.
    """

    class_names: tuple[str, ...]
    pixel_mm: tuple[float, float]
    sides: str
    title: str
    made_by: tuple[str, ...]
    notices: tuple[str, ...] = (NOTICE,)

    @property
    def legend_height(self) -> int:
        """Height of the legend in pixels, including unclassified lung and the hatch."""
        return LINE * (len(self.class_names) + 3)

    @property
    def foot(self) -> int:
        """Pixels below a picture, for the notices and its origin, with margins."""
        return 22 + 24 * len(self.notices) + 18 * len(self.made_by)


def is_normal(name: str) -> bool:
    """Returns whether a class is lung without disease: it has one of `NORMAL_WORDS`."""
    words = re.findall(r"[a-z]+", name.lower())
    return any(word in words for word in NORMAL_WORDS) and not {"not", "non"} & {*words}


def colour(index: int, class_names: Sequence[str]) -> tuple[int, int, int] | None:
    """Returns the RGB colour of a class, 0 to 255; None for normal lung, drawn in grey."""
    if is_normal(class_names[index]):
        return None
    return COLOURS[_diseases_before(index, class_names) % len(COLOURS)]


def is_striped(index: int, class_names: Sequence[str]) -> bool:
    """Returns whether a class repeats an earlier colour, and is drawn in stripes."""
    return _diseases_before(index, class_names) >= len(COLOURS)


def draw_slice(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    name: str,
    unlike: np.ndarray | None = None,
) -> Image.Image:
    """Returns the slice plain, next to it with its classes in colour, and the legend.

    Args:
      hu: `[H, W]` int16.
      labels: `[H, W]`: 1 + class index, 0 = no class.
      lungs: `[H, W]` bool.
      style: Settings of the series.
      name: Name of the slice.
      unlike: `[H, W]` bool, pixels unlike the training images, which are hatched; None
        if that was not judged.
    """
    high, wide = _shown(hu.shape, style.pixel_mm, PANEL)
    plain = _grey(hu, (high, wide))
    coloured = _coloured(plain, labels, lungs, style, unlike)
    tall = max(high, style.legend_height)
    title = f"{style.title}, {name}"
    canvas, pen = _canvas(2 * wide + LEGEND + 4 * MARGIN, tall, title, style)
    for left, panel in ((MARGIN, plain), (2 * MARGIN + wide, coloured)):
        canvas.paste(Image.fromarray(panel), (left, HEAD))
        draw_sides(pen, (left, HEAD), (high, wide), style.sides)
    mm = hu.shape[1] * style.pixel_mm[1] / wide
    bar(pen, MARGIN + 14, HEAD + high - 16, mm, wide // 2)
    centre, width_hu = LUNG_WINDOW
    note = f"W {width_hu:.0f}, L {centre:.0f} HU"
    write(pen, (MARGIN + wide - 10, HEAD + high - 10), note, 13, DIM, "rs")
    left, whole = 3 * MARGIN + 2 * wide, "of the lung in this slice"
    legend(pen, (left, HEAD + 4), style, labels, lungs, unlike, whole)
    return canvas


def draw_sheet(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    unlike: np.ndarray | None = None,
) -> Image.Image:
    """Returns all slices of a series on one sheet, the head first, cut to the lungs.

    Args:
      hu: `[Z, H, W]` int16, from feet to head.
      labels: `[Z, H, W]`: 1 + class index, 0 = no class.
      lungs: `[Z, H, W]` bool.
      style: Settings of the series.
      unlike: `[Z, H, W]` bool, see `draw_slice`, or None.
    """
    rows, columns = _around(lungs, style.pixel_mm)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    count = len(hu)
    thumb, across = _tiling(count, shape, style.pixel_mm)
    high, wide = _shown(shape, style.pixel_mm, thumb)
    down = -(-count // across)
    beside = across * (wide + 4) + 3 * MARGIN
    # The bar lies below the legend: on the pictures it would cover white tissue.
    below_legend = style.legend_height
    tall = max(down * (high + 4), below_legend + 60)
    numbers = f"{count} slices from the head" if count > 1 else "1 slice"
    canvas, pen = _canvas(beside + LEGEND, tall, f"{style.title}, {numbers}", style)
    for place, z in enumerate(range(count - 1, -1, -1)):
        part = z, rows, columns
        plain = _grey(hu[part], (high, wide))
        hatched = None if unlike is None else unlike[part]
        picture = _coloured(plain, labels[part], lungs[part], style, hatched)
        left = MARGIN + place % across * (wide + 4)
        top = HEAD + place // across * (high + 4)
        canvas.paste(Image.fromarray(picture), (left, top))
        write(pen, (left + 5, top + 4), str(place + 1), 13)
    draw_sides(pen, (MARGIN, HEAD), (high, wide), style.sides)
    mm = shape[1] * style.pixel_mm[1] / wide
    bar(pen, beside, HEAD + below_legend + 50, mm, LEGEND // 2)
    corner = beside, HEAD + 4
    legend(pen, corner, style, labels, lungs, unlike, "of the lungs")
    return canvas


def sides(orientation: Sequence[float] | None) -> str:
    """Returns the letters at the left, right, top and bottom of a slice.

    'R' and 'L', 'A' and 'P', 'H' and 'F' stand for the patient's right and left,
    front (anterior) and back, head and feet. Four spaces if that is unknown.

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


def _coloured(
    plain: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    unlike: np.ndarray | None,
) -> np.ndarray:
    """Returns `[H, W, 3]` uint8: tinted classes in their own outline, lungs in white.

    Lung that differs from the training images is outlined and hatched in white on black,
    visible on any colour. Masks have the pixels of the slice.
    """
    picture = plain.astype(np.float32)
    shape = plain.shape[:2]
    labels, lungs = resample_mask(labels, shape), resample_mask(lungs, shape)
    stripes, lines, hatching = _patterns(shape)
    picture[lungs & (labels == 0) & lines] = DIM
    picture[lungs & _borders(lungs)] = OUTLINE
    # By label, 0 for no class: its colour, and whether it has one and is striped.
    names = style.class_names
    colours = [None, *(colour(index, names) for index in range(len(names)))]
    striped = [False, *(is_striped(index, names) for index in range(len(names)))]
    tinted = np.array([rgb is not None for rgb in colours])[labels]
    own = np.array([rgb or (0, 0, 0) for rgb in colours], np.float32)[labels]
    outlined = tinted & _borders(labels)
    tinted &= stripes | ~np.array(striped)[labels]
    picture = np.where(tinted[..., None], (1 - TINT) * picture + TINT * own, picture)
    picture[outlined] = own[outlined]
    if unlike is not None:
        region = resample_mask(unlike, shape)
        beside = np.roll(hatching, 1, 1) | np.roll(hatching, -1, 1)
        picture[region & beside] = GROUND
        picture[region & (hatching | _borders(region))] = OUTLINE
    return np.rint(picture).astype(np.uint8)


def _borders(values: np.ndarray) -> np.ndarray:
    """Returns the pixels of `[H, W]` next to another value, or to the picture's border."""
    there = np.pad(values.astype(np.int16), 1, constant_values=-1)
    here = there[1:-1, 1:-1]
    return (
        (there[:-2, 1:-1] != here)
        | (there[2:, 1:-1] != here)
        | (there[1:-1, :-2] != here)
        | (there[1:-1, 2:] != here)
    )


def _grey(hu: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns HU `[H, W]` in the lung window as `[*shape, 3]` uint8."""
    unit = np.rint(255 * windowed(hu, *LUNG_WINDOW)).astype(np.uint8)
    scaled = Image.fromarray(unit).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(scaled)[..., None], 3, axis=2)


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
    """Returns the longer side of a thumbnail and the number side by side."""
    thumb = LARGEST_THUMB
    while True:
        high, wide = _shown(shape, pixel_mm, thumb)
        across = max(1, min(count, (SHEET_WIDTH - LEGEND) // (wide + 4)))
        if thumb <= SMALLEST_THUMB or -(-count // across) * high <= SHEET_WIDTH:
            return thumb, across
        thumb = max(SMALLEST_THUMB, int(thumb * 0.9))


def _canvas(
    width: int, tall: int, title: str, style: Style
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Returns a picture and its pen.

    `tall` pixels are free between the title and, at the bottom, the notices in the
    colour of a warning and the origin of the picture.
    """
    canvas = Image.new("RGB", (width, HEAD + tall + style.foot), GROUND)
    pen, top = ImageDraw.Draw(canvas), HEAD + tall + 10
    write(pen, (MARGIN, 14), title, 17, room=width)
    for line, text in enumerate(style.notices):
        write(pen, (MARGIN, top + 24 * line), text, 16, WARNING)
    top += 24 * len(style.notices)
    for line, text in enumerate(style.made_by):
        write(pen, (MARGIN, top + 18 * line), text, 12, DIM, room=width)
    return canvas, pen


def legend(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    style: Style,
    labels: np.ndarray,
    lungs: np.ndarray,
    unlike: np.ndarray | None,
    of_what: str,
) -> None:
    """Draws the colours of the classes, the hatch, and their fractions of the lungs.

    `corner` is left and top, `of_what` a text that names the whole of the fractions.
    """
    (left, top), class_names = corner, style.class_names
    counts = np.bincount(labels[lungs], minlength=1 + len(class_names))
    hatched = None if unlike is None else np.count_nonzero(unlike[lungs])
    right, total = left + LEGEND - MARGIN, max(1, counts.sum())
    write(pen, (right, top), of_what, 13, DIM, "ra")

    def entry(line: int, name: str, count: int | None) -> tuple[int, int, int, int]:
        y = top + LINE * line - 4
        text = plain(name.replace("_", " "), SHORT_NAME)
        write(pen, (left + 32, y), text, 15 if len(text) <= 18 else 12)
        share = "not judged" if count is None else f"{100 * count / total:.1f} %"
        write(pen, (right, y), share, 15 if count is not None else 12, INK, "ra")
        return left, y, left + 22, y + 18

    for line, index in enumerate((*range(1, len(counts)), 0), start=1):
        name = class_names[index - 1] if index else UNCLASSIFIED
        box = entry(line, name, counts[index])
        _sample(pen, box, index, class_names)
    box = entry(len(counts) + 1, UNLIKE, hatched)
    pen.rectangle(box, fill=(70, 70, 70), outline=OUTLINE)
    *_, hatching = _patterns((box[3] - box[1] - 1, box[2] - box[0] - 1))
    lines = np.argwhere(hatching)
    points = [(box[0] + 1 + x, box[1] + 1 + y) for y, x in lines.tolist()]
    pen.point(points, fill=OUTLINE)


@functools.lru_cache(maxsize=8)
def _patterns(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns stripes, thin lines and hatching, `[H, W]` bool.

    They mark striped classes, unclassified lung, and lung that differs from the training
    images. All slices of a series share them.
    """
    rows, columns = np.indices(shape, np.int32)
    up, down = rows + columns, rows - columns
    stripes = up // STRIPE % 2 == 0
    return stripes, down % (2 * STRIPE) < 2, (up % HATCH == 0) | (down % HATCH == 0)


def _sample(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    index: int,
    class_names: Sequence[str],
) -> None:
    """Draws a sample of a class; index 0 is unclassified lung."""
    left, top, right, bottom = box
    rgb = colour(index - 1, class_names) if index else None
    if index == 0:
        pen.rectangle(box, outline=DIM)
        for x in range(left + 2, right - 10, 6):
            pen.line((x, top, x + 16, bottom), fill=DIM)
    elif rgb is None:
        pen.rectangle(box, fill=(70, 70, 70), outline=OUTLINE)
    elif is_striped(index - 1, class_names):
        pen.rectangle(box, outline=rgb, width=2)
        for x in range(left, right - STRIPE, 2 * STRIPE):
            pen.line((x, bottom, x + STRIPE, top), fill=rgb, width=3)
    else:
        pen.rectangle(box, fill=rgb)


def bar(pen: ImageDraw.ImageDraw, left: int, bottom: int, mm: float, room: int) -> None:
    """Draws a scale bar of five centimetres, or of one if `room` pixels are too few.

    `mm` is the pixel size of the picture.
    """
    centimetres = 5 if 50 / mm < room else 1
    right = left + round(10 * centimetres / mm)
    for fill, more in (((0, 0, 0), 2), (INK, 0)):
        pen.line((left, bottom, right, bottom), fill=fill, width=3 + more)
        for x in (left, right):
            pen.line((x, bottom - 5, x, bottom + 5), fill=fill, width=2 + more)
    text = f"{centimetres} cm"
    write(pen, ((left + right) // 2, bottom - 8), text, 14, INK, "ms")


def draw_sides(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    letters: str,
) -> None:
    """Writes four letters (see `sides`) at the edges of a picture.

    `corner` is its left and top, `size` its height and width.
    """
    (left, top), (high, wide) = corner, size
    places = (
        (left + 6, top + high // 2, "lm"),
        (left + wide - 6, top + high // 2, "rm"),
        (left + wide // 2, top + 6, "ma"),
        (left + wide // 2, top + high - 8, "ms"),
    )
    for letter, (x, y, anchor) in zip(letters, places, strict=True):
        write(pen, (x, y), letter, 15, INK, anchor)


def write(
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    size: int,
    rgb: tuple[int, int, int] = INK,
    anchor: str = "la",
    room: int = 0,
) -> None:
    """Writes one line, truncated to `room`, the width of the picture, if given."""
    font, longest = _font(size), 300
    text = plain(text, longest)
    while room and longest > 9 and place[0] + font.getlength(text) > room - MARGIN:
        longest = len(text) - 1
        text = plain(text, longest)
    halo = {"stroke_width": 1, "stroke_fill": (0, 0, 0)}
    pen.text(place, text, fill=rgb, font=font, anchor=anchor, **halo)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # This font comes with matplotlib, so it is the same on every machine.
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)


def _diseases_before(index: int, class_names: Sequence[str]) -> int:
    return sum(not is_normal(name) for name in class_names[:index])
