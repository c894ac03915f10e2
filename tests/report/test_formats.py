"""How values are shown, and stored: CSV and Markdown."""

import csv
import io

import numpy as np

from twostage_jax.report import tables
from twostage_jax.report.tables import Column, Table
from twostage_jax.stats.intervals import Interval
from twostage_jax.stats.learning_curve import Match


def test_values_are_shown_rounded_and_stored_whole():
    columns = [
        Column("arm", "arm"), Column("score", "score"), Column("gain", "points"),
        Column("p", "p"), Column("n", "count"), Column("seeds", "spread"),
        Column("match", "match"),
    ]  # fmt: skip
    row = [
        "two_stage", Interval(0.51234, 0.4, 0.6), Interval(-0.02, None, None), 0.0004,
        1234.0, [0.5, 0.7], Match(10, 20.5, 0.0, np.inf, "20 (a to b)"),
    ]  # fmt: skip
    table = Table("t", "Caption", columns, [row, [None] * 7])
    shown = [c.show(v) for c, v in zip(columns, row, strict=True)]
    assert shown == [
        "two-stage", "51.2 (40.0 to 60.0)", "−2.0", "< 0.001", "1,234",
        "0.600 ± 0.141", "20 (a to b)",
    ]  # fmt: skip
    header, line, empty = csv.reader(io.StringIO(tables.csv_text(table)))
    assert line == [
        "two_stage", "0.51234", "0.4", "0.6", "-0.02", "", "", "0.0004", "1234.0",
        "0.6", str(np.std([0.5, 0.7], ddof=1)), "20.5", "0.0", "inf",
    ]  # fmt: skip
    assert len(header) == len(line) == len(empty) and set(empty) == {""}
    assert "| –" in tables.markdown(table)
