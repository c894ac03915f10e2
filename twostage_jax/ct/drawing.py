"""What pictures of slices are drawn with: text, legend, scale bar, side letters."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import ImageDraw, ImageFont

from twostage_jax.ct.palette import NOTICE, colour, is_striped, printable
from twostage_jax.ct.volumes import UNCLASSIFIED

GROUND, INK, DIM = (16, 16, 18), (235, 235, 235), (150, 150, 150)
WARNING, OUTLINE = (255, 190, 60), (255, 255, 255)
# Pixels: width of the legend, of margins, height of its lines, width of a stripe.
LEGEND, MARGIN, LINE, STRIPE = 330, 16, 30, 5
SHORT_NAME = 30


def legend_height(class_names: Sequence[str]) -> int:
    """Returns the pixels that `legend` takes: its head, the classes, and no class."""
    return LINE * (len(class_names) + 2)


def legend(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    class_names: Sequence[str],
    counts: np.ndarray,
    of_what: str,
) -> None:
    """Draws the colours of the classes and their shares.

    Args:
      pen: Draws.
      corner: Left and top.
      class_names: Of the K classes.
      counts: `[1 + K]` pixels without a class and of each class.
      of_what: What the shares are shares of.
    """
    left, top = corner
    right, total = left + LEGEND - MARGIN, max(1, counts.sum())
    write(pen, (right, top), of_what, 13, DIM, "ra")
    for line, index in enumerate((*range(1, len(counts)), 0), start=1):
        y = top + LINE * line - 4
        _sample(pen, (left, y, left + 22, y + 18), index, class_names)
        name = class_names[index - 1] if index else UNCLASSIFIED
        text = printable(name.replace("_", " "), SHORT_NAME)
        write(pen, (left + 32, y), text, 15 if len(text) <= 18 else 12)
        share = f"{100 * counts[index] / total:.1f} %"
        write(pen, (right, y), share, 15, INK, "ra")


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


def foot(
    pen: ImageDraw.ImageDraw, top: int, width: int, made_by: Sequence[str]
) -> None:
    """Writes the notice and what made the picture, a text a line; `width`: its own."""
    write(pen, (MARGIN, top), NOTICE, 16, WARNING)
    for line, text in enumerate(made_by):
        write(pen, (MARGIN, top + 24 + 18 * line), text, 12, DIM, room=width)


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
