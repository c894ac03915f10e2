"""What all figures share: sizes, colours, markers, plain text, and how they are saved.

A column is 3.5 inches wide, a page 7. Nothing here touches pyplot's global state, so
figures may be drawn in threads.
"""

import functools
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

COLUMN, PAGE = 3.5, 7.0  # inches
LABEL_ROOM = 1.2  # inches beside or below panels, for class names of 18 letters
# Okabe and Ito 2008, "Color Universal Design"; told apart in all forms of colour
# blindness. Their yellow is left out: too faint on white paper.
ARM_COLOURS = {
    "scratch": "#000000",
    "natural": "#0072B2",
    "texture": "#009E73",
    "two_stage": "#D55E00",
}
ARM_MARKERS = {"scratch": "o", "natural": "s", "texture": "^", "two_stage": "D"}
OTHER_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7")
OTHER_MARKERS = ("v", "P", "X", "<", ">")
SHARED = "#6B6B6B"  # runs that several arms share
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    # TrueType outlines: text in a PDF stays text, and journals accept it.
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Returns a drawing function that draws in this style."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def plain(text: object, limit: int = 40) -> str:
    """Returns text as it is to be read: no mathematics, one line, not too long."""
    text = " ".join(str(text).split())
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c for c in text if c.isprintable()).replace("$", r"\$")


def arm_label(arm: str) -> str:
    """Returns the name of an arm as it is printed: 'two-stage' for 'two_stage'."""
    return plain(arm.replace("_", "-"))


def arm_style(arm: str) -> dict[str, str]:
    """Returns colour and marker of an arm: the same in every figure, whatever is drawn.

    The four arms of the paper have their own; others take theirs from their name.
    """
    number = zlib.crc32(arm.encode())
    return {
        "color": ARM_COLOURS.get(arm, OTHER_COLOURS[number % len(OTHER_COLOURS)]),
        "marker": ARM_MARKERS.get(arm, OTHER_MARKERS[number % len(OTHER_MARKERS)]),
    }


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Writes `path`.png (200 dpi) and `path`.pdf (vector text); returns both paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(written[0])
        # No date: the same figure is the same file.
        figure.savefig(written[1], metadata={"CreationDate": None})
    return written


def svg(figure: Figure) -> bytes:
    """Returns a figure as SVG; text becomes outlines, so every browser draws it alike."""
    written = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "twostage_jax"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def file_name(text: str) -> str:
    """Returns text as a part of a file name: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60] or "unnamed"
