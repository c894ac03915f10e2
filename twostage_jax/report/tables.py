"""Tables of values, and their output as page, Markdown, CSV and LaTeX.

The kind of a column is an entry of `KINDS`: how values are shown, and by which numbers
they are stored and sorted. CSV holds these unrounded, with a separate column for each
end of an interval.
"""

import csv
import dataclasses
import io
import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twostage_jax.errors import plain
from twostage_jax.io import inert
from twostage_jax.stats.intervals import ALPHA, Interval
from twostage_jax.stats.learning_curve import Match
from twostage_jax.stats.metrics import METRICS

NOTHING = "–"
# Largest number of characters of an arm or another name.
LONGEST_NAME = 40
LATEX = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # In the old font encodings these come out as other marks.
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "−": r"$-$",
    "±": r"$\pm$",
}
# Metric -> head of its column in `results.md`, for those of confusion counts.
COLUMNS = {
    name: one.title for name, one in METRICS.items() if one.column and one.counts
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """Rule for the values of a column: how they are shown, stored and sorted.

    Attributes:
      show: Function from a value to displayed text.
      numbers: Function from a value to its CSV cells; None becomes an empty cell. Rows
        are sorted by the first cell.
      heads: Headings of the further CSV cells, after that of the column.
      is_text: Whether values are text, aligned to the left.
    """

    show: Callable[[Any], str]
    numbers: Callable[[Any], Sequence[Any]] = lambda value: (value,)
    heads: tuple[str, ...] = ()
    is_text: bool = False


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading, and the name of its kind in `KINDS`."""

    title: str
    kind: str = "text"

    @property
    def is_text(self) -> bool:
        """Whether the values are text, aligned to the left."""
        return KINDS[self.kind].is_text

    def show(self, value: Any) -> str:
        """Returns a value as displayed."""
        return NOTHING if value in (None, []) else KINDS[self.kind].show(value)

    def csv_heads(self) -> list[str]:
        """Returns the headings of the CSV cells of a value."""
        title = inert(self.title)
        return [title, *(f"{title} {head}" for head in KINDS[self.kind].heads)]

    def csv_cells(self, value: Any) -> list[Any]:
        """Returns the CSV cells of a value, one per heading."""
        kind = KINDS[self.kind]
        cells = [None] * (1 + len(kind.heads))
        if value not in (None, []):
            cells = kind.numbers(value)
        filled = ["" if cell is None else cell for cell in cells]
        return [inert(cell) if isinstance(cell, str) else cell for cell in filled]

    def sort_key(self, value: Any) -> float | str:
        """Returns the number or text that rows are sorted by; '' for an empty cell."""
        if value in (None, []):
            return ""
        key = KINDS[self.kind].numbers(value)[0]
        if isinstance(key, float) and math.isinf(key):
            return 1e300
        return "" if key is None else key


def columns(kind: str, *titles: str) -> list[Column]:
    """Returns columns of one kind."""
    return [Column(title, kind) for title in titles]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: Name of its files, and of its anchor on the page.
      caption: Title, as one sentence.
      columns: Columns.
      rows: One value per column.
      note: Remarks needed to read the table, or ''.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""

    @property
    def shown(self) -> list[list[str]]:
        """The rows as displayed."""
        return [
            [column.show(value) for column, value in self.cells(row)]
            for row in self.rows
        ]

    def cells(self, row: Sequence[Any]) -> Iterable[tuple[Column, Any]]:
        """Returns the values of a row with their columns."""
        return zip(self.columns, row, strict=True)


def csv_text(table: Table) -> str:
    """Returns a table as CSV, numbers unrounded; text cannot become a formula."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow([head for column in table.columns for head in column.csv_heads()])
    for row in table.rows:
        cells = table.cells(row)
        writer.writerow([cell for column, v in cells for cell in column.csv_cells(v)])
    return written.getvalue()


def markdown(table: Table) -> str:
    """Returns a table as Markdown, its caption above and its note below."""
    texts = itertools.takewhile(lambda column: column.is_text, table.columns)
    header = [column.title for column in table.columns]
    parts = [
        f"**{escape(table.caption)}**",
        markdown_table(header, table.shown, left=len(list(texts))),
        escape(table.note),
    ]
    return "\n\n".join(part for part in parts if part)


def latex(table: Table, label: str) -> str:
    """Returns a table as LaTeX for the package booktabs."""
    kinds = "".join("l" if column.is_text else "r" for column in table.columns)
    header = " & ".join(latex_text(column.title) for column in table.columns)
    lines = [f"{' & '.join(map(latex_text, row))} \\\\" for row in table.shown]
    caption = " ".join(part for part in (table.caption, table.note) if part)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            r"\begin{table}",
            r"  \centering",
            r"  \small",
            r"  \setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{latex_text(caption)}}}",
            f"  \\label{{{label}}}",
            f"  \\begin{{tabular}}{{{kinds}}}",
            r"    \toprule",
            f"    {header} \\\\",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def latex_text(text: object) -> str:
    """Returns text that LaTeX sets verbatim, in one line."""
    line = " ".join(str(text).split())
    return "".join(LATEX.get(mark, mark) for mark in line)


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
) -> str:
    """Returns a Markdown table, padded so that it reads as plain text.

    Args:
      header: Column names.
      rows: Cells; text is escaped.
      left: Number of leading columns that are left-aligned; the others are numbers.
    """
    cells = [[escape(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * width if i < left else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join([line(cells[0]), line(rule), *map(line, cells[1:])])


def escape(text: object) -> str:
    """Returns text that Markdown shows verbatim, in one line."""
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for mark in "|`*<[":
        text = text.replace(mark, "\\" + mark)
    return text


def number_range(numbers: Sequence[int]) -> str:
    """Returns '1,200', '1,180–1,200' if the numbers differ, or a dash for none."""
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def file_name(text: str) -> str:
    """Returns text as a part of a file name: letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:60] or "unnamed"


def arm_name(arm: str) -> str:
    """Returns the display name of an arm: 'two-stage' for 'two_stage'."""
    return plain(arm.replace("_", "-"), LONGEST_NAME)


def listed(items: Iterable[str]) -> str:
    """Returns 'a, b and c'."""
    *first, last = list(items) or [""]
    return f"{', '.join(first)} and {last}" if first else last


def plural(count: int, noun: str) -> str:
    """Returns '1 seed' or '3 seeds'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def mean_and_range(numbers: Sequence[int]) -> str:
    """Returns '1,600', or '1,550 (1,500–1,600)' if the numbers differ."""
    mean = f"{statistics.fmean(numbers):,.0f}"
    return f"{mean} ({number_range(numbers)})" if len(set(numbers)) > 1 else mean


def minus(number: str) -> str:
    """Returns a number with a true minus sign, and without one before zero."""
    if number[:1] == "-":
        return number[1:] if not number.strip("-0.,") else f"−{number[1:]}"
    return number


def p_text(value: float) -> str:
    """Returns a p-value: never 0, and with three decimals.

    It has more if it would otherwise be rounded up to `ALPHA`.
    """
    if value < 0.001:
        return "< 0.001"
    texts = (f"{value:.{digits}f}" for digits in itertools.count(3))
    return next(text for text in texts if (float(text) < ALPHA) == (value < ALPHA))


def _of_interval(style: str, scale: float) -> Kind:
    """Returns the kind of an `Interval`, shown as 'estimate (low to high)'."""

    def show(value: Interval) -> str:
        estimate, *ends = (
            None if x is None else minus(style.format(scale * x))
            for x in (value.estimate, value.low, value.high)
        )
        return estimate if None in ends else f"{estimate} ({ends[0]} to {ends[1]})"

    return Kind(show, lambda v: (v.estimate, v.low, v.high), ("low", "high"))


def _match(value: Match) -> str:
    # An interval of one point says no more than the number.
    alone = value.low == value.value == value.high
    return value.text.split(" (")[0] if alone else value.text


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Returns mean and standard deviation; None if not defined."""
    if None in values:
        return None, None
    several = len(values) > 1
    return statistics.fmean(values), statistics.stdev(values) if several else None


def _spread_text(values: Sequence[float | None]) -> str:
    mean, deviation = _spread(values)
    if mean is None:
        return NOTHING
    return f"{mean:.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


KINDS = {
    "text": Kind(str, is_text=True),
    "arm": Kind(arm_name, is_text=True),  # the page adds its colour
    "cells": Kind(str),  # numbers as text, such as '12 (40 %)'
    "count": Kind("{:,.0f}".format),
    "number": Kind(lambda value: minus(f"{value:.4g}")),
    "percent": Kind(lambda value: f"{100 * value:.1f}"),
    "p": Kind(p_text),
    # Intervals: of a score in [0, 1], of anything, of a difference (in hundredths).
    "score": _of_interval("{:.1f}", 100),
    "interval": _of_interval("{:.3f}", 1),
    "points": _of_interval("{:+.1f}", 100),
    "match": Kind(_match, lambda m: (m.value, m.low, m.high), ("low", "high")),
    # Scores of seeds, of which some may be None: mean ± standard deviation.
    "spread": Kind(_spread_text, _spread, ("sd",)),
}
