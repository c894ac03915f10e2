"""Tables of results, as Markdown that is also aligned on a terminal."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
}
MISSING_NAMED = 5


def results_table(rows: Sequence[Mapping[str, Any]], first: str = "arm") -> str:
    """Returns the scores of each arm, at each fraction, as a Markdown table.

    Mean ± standard deviation over seeds (of the sample, n - 1), in per cent. What other
    arms have and an arm lacks is named below the table, and its number of seeds counts
    complete seeds only.

    Args:
      rows: One for each arm, fraction and seed (see `folds.by_seed`): 'arm', 'fraction',
        'seed', 'n_train' (list of int), 'metrics' (name -> score, or None) and, if
        some folds are not there, 'lacks' (list of int).
      first: Head of the first column.
    """
    if not rows:
        return "No results yet."
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    fractions = sorted({row["fraction"] for row in rows}, reverse=True)
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    by_place = {(row["arm"], row["fraction"], row["seed"]): row for row in rows}
    lines = []
    for fraction, arm in itertools.product(fractions, arms):
        whole = [
            row
            for (a, f, _), row in by_place.items()
            if (a, f) == (arm, fraction) and not row.get("lacks")
        ]
        cells = [arm] + ([f"{fraction:g}"] if len(fractions) > 1 else [])
        cells += [number_range([n for row in whole for n in row["n_train"]])]
        cells += [_cell(whole, metric) for metric in COLUMNS]
        lines.append([*cells, str(len(whole))])
    missing = []
    for place in itertools.product(arms, fractions, seeds):
        if place not in by_place:
            missing.append(_place(*place))
        else:
            lacks = by_place[place].get("lacks", ())
            missing += [_place(*place, f", fold {fold}") for fold in lacks]
    header = [first] + (["fraction"] if len(fractions) > 1 else [])
    header += ["training patches", *COLUMNS.values(), "seeds"]
    table = markdown_table(header, lines, left=1)
    return table + _missing(missing) if missing else table


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1
) -> str:
    """Returns a Markdown table, padded so that it reads as plain text.

    Args:
      header: Column names.
      rows: Cells; text is escaped.
      left: How many columns, from the first, are left-aligned; the others are numbers.
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
    """Returns text that Markdown shows as it is, in one line."""
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for mark in "|`*<[":
        text = text.replace(mark, "\\" + mark)
    return text


def number_range(numbers: Sequence[int]) -> str:
    """Returns '1,200', '1,180–1,200' where the numbers differ, or a dash for none."""
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _cell(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    scores = [row["metrics"].get(metric) for row in rows]
    if not scores or None in scores:
        return "–"
    values = [100 * score for score in scores]
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _place(arm: str, fraction: float, seed: int, fold: str = "") -> str:
    return f"{escape(arm)} (fraction {fraction:g}, seed {seed}{fold})"


def _missing(places: Sequence[str]) -> str:
    named = places[:MISSING_NAMED]
    more = len(places) - len(named)
    return (
        f"\n\nMissing: {', '.join(named)}{f' and {more} more' if more else ''}. "
        "A seed counts where all its folds are there."
    )
