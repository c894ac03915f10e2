"""A finished study in its run folder: results.md, its table, figures and the report."""

import shutil
from pathlib import Path

from twostage_jax import io
from twostage_jax.errors import UserError
from twostage_jax.report import study_table, tables
from twostage_jax.report.parts import PAGE

# Figures of the report that are copied to the run folder.
RUN_FIGURES = ("learning_curves.*", "confusion_matrices.*", "examples_*")


def write_run(workdir: Path) -> None:
    """Writes `results.md`, figures and the report of a study, and prints its table.

    Figures and report are written only if the report is missing: training removes it
    when the results change.

    Args:
      workdir: Run folder with `results.json`; the report goes into its `report/`.
    """
    results = study_table.read_json(workdir / "results.json")
    folds = results["config"]["study"]["folds"]
    rows, others = (
        study_table.pool_folds(workdir, results[name], folds)
        for name in ("rows", "baselines")
    )
    table = tables.results_table(rows)
    if others:
        table += f"\n\n{tables.results_table(others, first='baseline')}"
    seeds = len({row["seed"] for row in rows})
    tested = max(row["n_test"] for row in rows)  # Rows that lack a fold have fewer.
    together = f"; the predictions of all {folds} folds are pooled"
    words = (
        "Scores on test groups that were not used for training or selection"
        f"{together if folds else ''}; {tested:,} test examples, {seeds} "
        f"seed{'s' if seeds > 1 else ''}."
    )
    page = f"# {results['config']['name']}\n\n{table}\n\n{words}\n"
    io.write_text(workdir / "results.md", page)
    report = workdir / "report" / PAGE
    if not report.is_file():
        # Only now: a finished run needs neither matplotlib nor Jinja2.
        from twostage_jax.report.write import write_report

        try:
            write_report([workdir], report.parent)
            (workdir / "figures").mkdir(exist_ok=True)
            for pattern in RUN_FIGURES:
                for figure in (report.parent / "figures").glob(pattern):
                    shutil.copy(figure, workdir / "figures")
        except UserError as error:
            print(f"The report is missing: {error}")
    print(f"\n{table}\n")
    print(f"Results: {workdir / 'results.json'}")
    if report.is_file():
        print(f"Report: {report}")
