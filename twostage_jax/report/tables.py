"""Tables of results, as Markdown that is also aligned on a terminal."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

COLUMNS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
}
MISSING_NAMED = 5


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the scores of each arm, at each fraction, as a Markdown table.

    The folds of a seed are averaged; then mean ± standard deviation over seeds (of the
    sample, n - 1), in per cent. Rows that other arms have and an arm lacks are named
    below the table, and its number of seeds counts complete seeds only.

    Args:
      rows: As in `results.json`: 'arm', 'seed', 'fraction', 'fold', 'n_train' and
        'metrics' (name -> score, or None).
    """
    if not rows:
        return "No results yet."
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    fractions = sorted({row["fraction"] for row in rows}, reverse=True)
    places = list(dict.fromkeys((row["seed"], row["fold"]) for row in rows))
    by_place = {
        (row["arm"], row["fraction"], row["seed"], row["fold"]): row for row in rows
    }
    missing = [
        key
        for arm, fraction, place in itertools.product(arms, fractions, places)
        if (key := (arm, fraction, *place)) not in by_place
    ]
    incomplete = {key[:3] for key in missing}
    lines = []
    for fraction, arm in itertools.product(fractions, arms):
        seeds = defaultdict(list)
        for (a, f, seed, _), row in by_place.items():
            if (a, f) == (arm, fraction) and (a, f, seed) not in incomplete:
                seeds[seed].append(row)
        patches = [row["n_train"] for group in seeds.values() for row in group]
        cells = [arm] + ([f"{fraction:g}"] if len(fractions) > 1 else [])
        cells += [_range(patches)]
        cells += [_cell(seeds.values(), metric) for metric in COLUMNS]
        lines.append([*cells, str(len(seeds))])
    header = ["arm"] + (["fraction"] if len(fractions) > 1 else [])
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


def _cell(seeds: Iterable[Sequence[Mapping[str, Any]]], metric: str) -> str:
    values = []
    for folds in seeds:
        scores = [row["metrics"].get(metric) for row in folds]
        if None in scores:
            return "–"
        values.append(100 * statistics.fmean(scores))
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "–"
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _missing(keys: Sequence[tuple[Any, ...]]) -> str:
    named = [
        f"{escape(arm)} (fraction {fraction:g}, seed {seed}, fold {fold})"
        for arm, fraction, seed, fold in keys[:MISSING_NAMED]
    ]
    more = len(keys) - len(named)
    return (
        f"\n\nMissing: {', '.join(named)}{f' and {more} more' if more else ''}. "
        "A seed counts where all its folds are there."
    )
