"""What pictures of slices are drawn with: text, legend, scale bar, side letters."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import ImageDraw, ImageFont

from twostage_jax.ct.palette import UNLIKE, colour, is_striped, printable
from twostage_jax.ct.volumes import UNCLASSIFIED

GROUND, INK, DIM = (16, 16, 18), (235, 235, 235), (150, 150, 150)
WARNING, OUTLINE = (255, 190, 60), (255, 255, 255)
# Pixels: width of the legend, of margins, height of its lines, width of a stripe,
# distance between the lines of the hatch.
LEGEND, MARGIN, LINE, STRIPE, HATCH = 330, 16, 30, 5, 11
SHORT_NAME = 30


def legend_height(class_names: Sequence[str]) -> int:
    """Returns the pixels that `legend` takes: its head, classes, no class, the hatch."""
    return LINE * (len(class_names) + 3)


def legend(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    class_names: Sequence[str],
    counts: np.ndarray,
    of_what: str,
    unlike: int | None,
) -> None:
    """Draws the colours of the classes, the hatch, and their shares.

    Args:
      pen: Draws.
      corner: Left and top.
      class_names: Of the K classes.
      counts: `[1 + K]` pixels without a class and of each class.
      of_what: What the shares are shares of.
      unlike: Pixels that are hatched; `None` if that was not judged.
    """
    left, top = corner
    right, total = left + LEGEND - MARGIN, max(1, counts.sum())
    write(pen, (right, top), of_what, 13, DIM, "ra")

    def entry(line: int, name: str, count: int | None) -> tuple[int, int, int, int]:
        y = top + LINE * line - 4
        text = printable(name.replace("_", " "), SHORT_NAME)
        write(pen, (left + 32, y), text, 15 if len(text) <= 18 else 12)
        share = "not judged" if count is None else f"{100 * count / total:.1f} %"
        write(pen, (right, y), share, 15 if count is not None else 12, INK, "ra")
        return left, y, left + 22, y + 18

    for line, index in enumerate((*range(1, len(counts)), 0), start=1):
        name = class_names[index - 1] if index else UNCLASSIFIED
        box = entry(line, name, counts[index])
        _sample(pen, box, index, class_names)
    box = entry(len(counts) + 1, UNLIKE, unlike)
    pen.rectangle(box, fill=(70, 70, 70), outline=OUTLINE)
    lines = np.argwhere(hatch((box[3] - box[1] - 1, box[2] - box[0] - 1)))
    points = [(box[0] + 1 + x, box[1] + 1 + y) for y, x in lines.tolist()]
    pen.point(points, fill=OUTLINE)


def hatch(shape: tuple[int, int]) -> np.ndarray:
    """Returns the lines, `[H, W]` bool, that mark what is unlike the training images."""
    rows, columns = np.indices(shape)
    return ((rows + columns) % HATCH == 0) | ((rows - columns) % HATCH == 0)


def _sample(
    pen: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    index: int,
    class_names: Sequence[str],
) -> None:
    """Draws how a class looks; index 0 is lung without a class."""
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


def foot_height(notices: Sequence[str], made_by: Sequence[str]) -> int:
    """Returns the pixels that `foot` takes, with a margin above and below it."""
    return 22 + 24 * len(notices) + 18 * len(made_by)


def foot(
    pen: ImageDraw.ImageDraw,
    top: int,
    width: int,
    notices: Sequence[str],
    made_by: Sequence[str],
) -> None:
    """Writes the notices and what made the picture, each on its own line.

    Args:
      pen: Draws.
      top: Upper edge of the first line.
      width: Width of the picture.
      notices: Texts in the colour of a warning.
      made_by: Texts in small grey letters, cut to the width.
    """
    for line, text in enumerate(notices):
        write(pen, (MARGIN, top + 24 * line), text, 16, WARNING)
    top += 24 * len(notices)
    for line, text in enumerate(made_by):
        write(pen, (MARGIN, top + 18 * line), text, 12, DIM, room=width)


def bar(pen: ImageDraw.ImageDraw, left: int, bottom: int, mm: float, room: int) -> None:
    """Draws a bar of five centimetres, or of one where `room` pixels are too few.

    `mm` is the size of a picture's pixel.
    """
    centimetres = 5 if 50 / mm < room else 1
    right = left + round(10 * centimetres / mm)
    for fill, more in (((0, 0, 0), 2), (INK, 0)):
        pen.line((left, bottom, right, bottom), fill=fill, width=3 + more)
        for x in (left, right):
            pen.line((x, bottom - 5, x, bottom + 5), fill=fill, width=2 + more)
    text = f"{centimetres} cm"
    write(pen, ((left + right) // 2, bottom - 8), text, 14, INK, "ms")


def sides(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    size: tuple[int, int],
    letters: str,
) -> None:
    """Writes the letters at the left, right, top and bottom of a picture.

    Args:
      pen: Draws.
      corner: Left and top.
      size: Height and width.
      letters: Four of them.
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
    """Writes one line; with `room`, the picture's width, cut to what fits into it."""
    font, longest = _font(size), 300
    text = printable(text, longest)
    while room and longest > 9 and place[0] + font.getlength(text) > room - MARGIN:
        longest = len(text) - 1
        text = printable(text, longest)
    halo = {"stroke_width": 1, "stroke_fill": (0, 0, 0)}
    pen.text(place, text, fill=rgb, font=font, anchor=anchor, **halo)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings it along: the same letters on every machine.
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)
