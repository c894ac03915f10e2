"""Parts of a report; the page and the Markdown are two ways to write them."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from twostage_jax.report.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Name of the page in the folder of a report.
PAGE = "report.html"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """A figure drawn for the report.

    Attributes:
      name: Name of its files, `figures/NAME.png` and `.pdf`.
      figure: The figure.
      alt: Alternative text: the content, with the numbers that matter.
      caption: Caption.
    """

    name: str
    figure: "Figure"
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Saved:
    """A figure that was made elsewhere, as the bytes of its PNG and PDF file."""

    name: str
    png: bytes
    pdf: bytes
    alt: str


@dataclasses.dataclass(frozen=True)
class Card:
    """A small image and the lines below it."""

    png: bytes
    alt: str
    lines: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Cards:
    """Small images under one title."""

    title: str
    cards: Sequence[Card]


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the tree of stages, with its description and children."""

    title: str
    text: str
    children: Sequence["Node"]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The tree of stages."""

    nodes: Sequence[Node]


@dataclasses.dataclass(frozen=True)
class Details:
    """Parts that are folded by default.

    Attributes:
      title: Heading of the parts.
      parts: The parts.
      printed: Whether they are unfolded on paper; otherwise paper lists their files.
    """

    title: str
    parts: Sequence["Part"]
    printed: bool = False

    @property
    def files(self) -> list[str]:
        """The files of the tables and figures, in the folder of the report."""
        return [file for part in walk(self.parts) if (file := file_of(part))]


Part = Text | Table | Picture | Saved | Cards | Tree | Details


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: its heading, its anchor, its parts."""

    title: str
    anchor: str
    parts: Sequence[Part]


def file_of(part: Part) -> str | None:
    """Returns the file of a table or figure in the folder of the report, or None."""
    if isinstance(part, Table):
        return f"tables/{part.name}.csv"
    return f"figures/{part.name}.png" if isinstance(part, Picture | Saved) else None


def walk(parts: Sequence[Part]) -> list[Part]:
    """Returns all parts in order, including folded ones."""
    found: list[Part] = []
    for part in parts:
        found += walk(part.parts) if isinstance(part, Details) else [part]
    return found
