"""The record that describes a measure wherever its numbers are shown."""

from typing import NamedTuple


class Panel(NamedTuple):
    """A measure along the layers, in the figure 'responses' and the table of means.

    Attributes:
      title: heading of the panel and of the column.
      ylabel: label of the axis.
      bottom: lower end of the axis; None: the axis follows the values, with a line at 0.
      chance: whether the axis goes from 0 to 1, with a line at the chance level.
    """

    title: str
    ylabel: str = "Mean of the channels"
    bottom: float | None = 0
    chance: bool = False


class Sentence(NamedTuple):
    """The words on a measure in `explain.md`.

    Attributes:
      question: title of the paragraph, such as 'Edges.'.
      makes: what a higher value makes an arm, after 'more' or 'less'.
      number: name of the number, with its range.
      shown: whether the paragraph says which textures were shown.
    """

    question: str
    makes: str
    number: str
    shown: bool = False


class Measure(NamedTuple):
    """A number for each layer of each network.

    Attributes:
      name: key in `explain.json`.
      title: name in words.
      panel: panel and column, or None without.
      sentence: words, or None without.
      compared: whether a difference between two networks means something.
      why_none: reason for which a seed has no value, where it is always the same.
    """

    name: str
    title: str
    panel: Panel | None = None
    sentence: Sentence | None = None
    compared: bool = True
    why_none: str = ""
