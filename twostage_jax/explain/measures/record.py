"""The record that describes a measure wherever its numbers are shown."""

from typing import NamedTuple


class Panel(NamedTuple):
    """A measure along the layers, in the figure 'responses' and the table of means.

    Attributes:
      title: Heading of the panel and of the column.
      ylabel: Label of the axis.
      bottom: Lower end of the axis; None: the axis follows the values, with a line at 0.
      chance: Whether the axis goes from 0 to 1, with a line at the chance level.
    """

    title: str
    ylabel: str = "Mean over channels"
    bottom: float | None = 0
    chance: bool = False


class Sentence(NamedTuple):
    """Wording of a measure in `explain.md`.

    Attributes:
      question: Title of the paragraph, such as 'Edges.'.
      makes: Property of an arm with a higher value, to follow 'more' or 'less'.
      number: Name of the number, with its range.
      shown: Whether the paragraph says which textures were shown.
    """

    question: str
    makes: str
    number: str
    shown: bool = False


class Measure(NamedTuple):
    """A number for each layer of each network.

    Attributes:
      name: Key in `explain.json`.
      title: Name in words.
      panel: Panel and column, if any.
      sentence: Wording, if any.
      compared: Whether a difference between two networks is meaningful.
      why_none: The only reason why a seed may lack a value, if there is just one.
    """

    name: str
    title: str
    panel: Panel | None = None
    sentence: Sentence | None = None
    compared: bool = True
    why_none: str = ""
