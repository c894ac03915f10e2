"""How values are shown, and stored: CSV, Markdown and LaTeX."""

import csv
import io
import shutil
import subprocess

import numpy as np
import pytest
from study_files import ARMS, HOSTILE

from twostage_jax.report import tables
from twostage_jax.report.tables import Column, Table
from twostage_jax.stats.intervals import Interval
from twostage_jax.stats.learning_curve import Match

# With what the first line of the table's file asks for.
DOCUMENT = r"""\documentclass{article}
\usepackage{booktabs}
\usepackage[T1]{fontenc}
\begin{document}
\input{result}
\input{hostile}
\end{document}
"""


def test_latex_table_is_whole_and_escaped(study_report):
    text = (study_report / "table.tex").read_text()
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\label{tab:result}"):
        assert text.count(part) == 1
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(ARMS)
    assert {line.count("&") for line in lines} == {4}
    assert r"Balanced accuracy (\%)" in text
    assert tables.latex_text(HOSTILE[2]) == (
        r"50 \% \& \$x\_1\$ \textbackslash{}input\{y\}"
    )


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="pdflatex is not installed"
)
def test_latex_sets_the_table_whatever_its_text(study_report, tmp_path):
    shutil.copy(study_report / "table.tex", tmp_path / "result.tex")
    text = " ".join([*HOSTILE, *tables.LATEX])
    table = Table("t", text, [Column(text), Column("n", "count")], [[text, 1]], text)
    (tmp_path / "hostile.tex").write_text(tables.latex(table, "tab:hostile"))
    (tmp_path / "all.tex").write_text(DOCUMENT)
    done = subprocess.run(
        ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error",
         "all"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "all.pdf").is_file()
    assert "Missing character" not in (tmp_path / "all.log").read_text("latin-1")


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
