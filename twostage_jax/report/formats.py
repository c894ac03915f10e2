"""A table once, written four ways: for the page, Markdown, CSV and LaTeX.

A column has a kind that says what its values are and how they are shown. CSV holds
them unrounded, with a column of its own for each end of an interval.
"""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from twostage_jax.io import inert
from twostage_jax.report import tables
from twostage_jax.report.figures import arm_label
from twostage_jax.stats.intervals import Interval
from twostage_jax.stats.learning_curve import Match

NOTHING = "–"
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

Kind = Literal[
    "text",  # str
    "arm",  # str; shown with its colour
    "count",  # int or float, or None
    "number",  # float, or None: four significant digits
    "percent",  # float in [0, 1], or None
    "score",  # Interval of a score in [0, 1], shown in per cent
    "interval",  # Interval of anything, shown as it is
    "points",  # Interval of a difference, shown in points (hundredths)
    "p",  # p-value, or None
    "spread",  # scores of seeds, or None among them: mean and deviation
    "match",  # size_study.Match
]
TEXT_KINDS = ("text", "arm")
INTERVAL_KINDS = ("score", "interval", "points")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column: its heading and what its values are."""

    title: str
    kind: Kind = "text"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      name: Of its files and its anchor.
      caption: One sentence: what it shows, of what.
      columns: The columns.
      rows: A value a column.
      note: What a reader must know to read it, or ''.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    note: str = ""


def listed(items: Iterable[str]) -> str:
    """Returns 'a, b and c'."""
    items = list(items)
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def show(kind: Kind, value: Any) -> str:
    """Returns a value as it is read by people."""
    if value is None or value == []:
        return NOTHING
    if kind == "arm":
        return arm_label(value).replace(r"\$", "$")
    if kind == "count":
        return f"{value:,.0f}"
    if kind == "number":
        return minus(f"{value:.4g}")
    if kind == "percent":
        return f"{100 * value:.1f}"
    if kind == "score":
        return _interval(value, "{:.1f}", 100)
    if kind == "interval":
        return _interval(value, "{:.3f}", 1)
    if kind == "points":
        return _interval(value, "{:+.1f}", 100)
    if kind == "p":
        return p_text(value)
    if kind == "spread":
        return _spread(value)
    if kind == "match":
        # An interval of one point says no more than the number.
        alone = value.low == value.value == value.high
        return value.text.split(" (")[0] if alone else value.text
    return str(value)


def mean_and_range(numbers: Sequence[int]) -> str:
    """Returns '1,600', or '1,550 (1,500–1,600)' where the numbers differ."""
    mean = f"{statistics.fmean(numbers):,.0f}"
    differ = len(set(numbers)) > 1
    return f"{mean} ({tables.number_range(numbers)})" if differ else mean


def minus(number: str) -> str:
    """Returns a number with a true minus sign, and no minus before zero."""
    if number[:1] == "-":
        return number[1:] if not number.strip("-0.,") else f"−{number[1:]}"
    return number


def p_text(value: float) -> str:
    """Returns a p-value: three decimals, and never 0."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def sort_key(kind: Kind, value: Any) -> float | str:
    """Returns what a value is sorted by: a number, or text; '' where there is none."""
    if isinstance(value, Interval):
        return value.estimate
    if isinstance(value, Match):
        return value.value if math.isfinite(value.value) else 1e300
    if kind == "spread":
        return "" if not value or None in value else statistics.fmean(value)
    if value is None:
        return ""
    return value


def csv_text(table: Table) -> str:
    """Returns a table as CSV, numbers unrounded; text cannot become a formula."""
    lines = [_csv_header(table.columns)]
    for row in table.rows:
        cells = zip(table.columns, row, strict=True)
        lines.append([cell for column, v in cells for cell in _csv(column.kind, v)])
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(lines)
    return written.getvalue()


def markdown(table: Table) -> str:
    """Returns a table as Markdown, its caption above and its note below."""
    rows = [
        [
            show(column.kind, value)
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in table.rows
    ]
    header = [column.title for column in table.columns]
    left = next(
        (i for i, c in enumerate(table.columns) if c.kind not in TEXT_KINDS),
        len(header),
    )
    parts = [
        f"**{tables.escape(table.caption)}**",
        tables.markdown_table(header, rows, left),
        tables.escape(table.note),
    ]
    return "\n\n".join(part for part in parts if part)


def latex(table: Table, label: str) -> str:
    """Returns a table as LaTeX for the package booktabs."""
    kinds = "".join("l" if c.kind in TEXT_KINDS else "r" for c in table.columns)
    header = " & ".join(latex_text(column.title) for column in table.columns)
    lines = [
        " & ".join(
            latex_text(show(column.kind, value))
            for column, value in zip(table.columns, row, strict=True)
        )
        + r" \\"
        for row in table.rows
    ]
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
    """Returns text that LaTeX sets as it is, in one line."""
    line = " ".join(str(text).split())
    return "".join(LATEX.get(mark, mark) for mark in line)


def _interval(value: Interval, style: str, scale: float) -> str:
    estimate, *ends = (
        None if x is None else minus(style.format(scale * x))
        for x in (value.estimate, value.low, value.high)
    )
    return estimate if None in ends else f"{estimate} ({ends[0]} to {ends[1]})"


def _spread(values: Sequence[float | None]) -> str:
    if None in values:
        return NOTHING
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def _csv_header(columns: Sequence[Column]) -> list[str]:
    titles = []
    for column in columns:
        titles.append(inert(column.title))
        if column.kind in (*INTERVAL_KINDS, "match"):
            titles += [f"{inert(column.title)} {end}" for end in ("low", "high")]
        if column.kind == "spread":
            titles += [f"{inert(column.title)} sd"]
    return titles


def _csv(kind: Kind, value: Any) -> list[Any]:
    """Returns the cells of a value: as many as it has titles."""
    if kind in INTERVAL_KINDS:
        ends = (value.estimate, value.low, value.high) if value else (None,) * 3
        return ["" if end is None else end for end in ends]
    if kind == "match":
        ends = (value.value, value.low, value.high) if value else (None,) * 3
        return ["" if end is None else end for end in ends]
    if kind == "spread":
        if not value or None in value:
            return ["", ""]
        deviation = statistics.stdev(value) if len(value) > 1 else ""
        return [statistics.fmean(value), deviation]
    if value is None:
        return [""]
    return [inert(value)] if isinstance(value, str) else [value]
