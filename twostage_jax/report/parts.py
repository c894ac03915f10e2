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
    """A figure of ours.

    Attributes:
      name: Name of its files, `figures/NAME.png` and `.pdf`.
      figure: The figure.
      alt: What it shows, with the numbers that matter, for who cannot see it.
      caption: What is drawn, of what.
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
    """A node of the tree of stages: what it is, and what follows from it."""

    title: str
    text: str
    children: Sequence["Node"]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The tree of stages."""

    nodes: Sequence[Node]


@dataclasses.dataclass(frozen=True)
class Details:
    """Parts that are folded away until asked for.

    Attributes:
      title: What they are.
      parts: The parts.
      printed: Whether they are unfolded on paper, which else says where their files are.
    """

    title: str
    parts: Sequence["Part"]
    printed: bool = False

    @property
    def files(self) -> list[str]:
        """The files of the tables and figures, in the folder of the report."""
        return [
            f"tables/{one.name}.csv"
            if isinstance(one, Table)
            else f"figures/{one.name}.png"
            for one in walk(self.parts)
            if isinstance(one, Table | Picture | Saved)
        ]


Part = Text | Table | Picture | Saved | Cards | Tree | Details


@dataclasses.dataclass(frozen=True)
class Section:
    """A section: its heading, its anchor, its parts."""

    title: str
    anchor: str
    parts: Sequence[Part]


def walk(parts: Sequence[Part]) -> list[Part]:
    """Returns all parts, those folded away too, in order."""
    found: list[Part] = []
    for part in parts:
        found += walk(part.parts) if isinstance(part, Details) else [part]
    return found
