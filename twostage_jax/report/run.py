"""A finished study in its run folder: results.md, its table, figures and the report."""

import itertools
import shutil
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage_jax import io
from twostage_jax.errors import UserError
from twostage_jax.report.parts import PAGE
from twostage_jax.report.study_table import some
from twostage_jax.report.tables import (
    COLUMNS,
    escape,
    markdown_table,
    number_range,
    plural,
)
from twostage_jax.stats import arms, metrics
from twostage_jax.stats.arms import Predictions

# Figures of the report that are copied to the run folder.
RUN_FIGURES = ("learning_curves.*", "confusion_matrices.*", "examples_*")


def write_run(workdir: Path) -> None:
    """Writes `results.md`, figures and the report of a study, and prints its table.

    Figures and report are written only if the report is missing: training removes it
    when the results change.

    Args:
      workdir: Run folder with `results.json`; the report goes into its `report/`.
    """
    results = io.read_json(workdir / "results.json")
    study = results["config"]["study"]
    folds = study["folds"]
    rows, others = (
        pool_folds(workdir, results[name], folds) for name in ("rows", "baselines")
    )
    table = results_table(rows)
    if others:
        table += f"\n\n{results_table(others, first='baseline')}"
    seeds = len({row["seed"] for row in rows})
    tested = max(row["n_test"] for row in rows)  # Rows that lack a fold have fewer.
    together = f"; the predictions of all {folds} folds are pooled"
    unused, chosen = "training or selection", ""
    if folds and study.get("grid"):
        # One setting for the whole study is chosen on the validation groups of all folds.
        unused = "training"
        chosen = (
            " Settings were chosen on validation groups, which other folds test; baselines "
            "choose theirs within training groups."
        )
    words = (
        f"Scores on test groups that were not used for {unused}"
        f"{together if folds else ''}; {tested:,} test examples, "
        f"{plural(seeds, 'seed')}.{chosen}"
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


def pool_folds(
    workdir: Path, rows: Sequence[Mapping[str, Any]], folds: int
) -> list[dict[str, Any]]:
    """Returns a row for each (arm, fraction, seed), for `results_table`.

    Scores are over the test examples of all folds together, as in the report. The mean
    of the scores of folds would differ: a class may be absent in a fold.

    Args:
      workdir: Run folder with the predictions of the rows.
      rows: Rows of `results.json`.
      folds: Number of folds; with 0 or 1, predictions are not read.

    Returns:
      Rows with 'arm', 'fraction', 'seed', 'n_train' (a list, one per fold), 'n_test'
      (over all folds), 'metrics', and 'lacks' (the missing folds). If folds are
      missing, 'metrics' is empty.

    Raises:
      UserError: Predictions are missing or damaged, or folds do not belong together.
    """
    if folds < 2:
        return [{**row, "n_train": [row["n_train"]], "lacks": []} for row in rows]
    places: dict[tuple, dict[int, Mapping[str, Any]]] = defaultdict(dict)
    for row in rows:
        places[row["arm"], row["fraction"], row["seed"]][row["fold"]] = row
    pooled = []
    for (arm, fraction, seed), there in places.items():
        lacks, of_folds = sorted(set(range(folds)) - set(there)), list(there.values())
        pooled.append(
            {
                "arm": arm,
                "fraction": fraction,
                "seed": seed,
                "n_train": [row["n_train"] for row in of_folds],
                "n_test": sum(row["n_test"] for row in of_folds),
                "metrics": {} if lacks else _pooled_scores(workdir, of_folds),
                "lacks": lacks,
            }
        )
    return pooled


def results_table(rows: Sequence[Mapping[str, Any]], first: str = "arm") -> str:
    """Returns the scores of each arm, at each fraction, as a Markdown table.

    Mean ± sample standard deviation over seeds, in per cent. Missing runs are listed
    below the table; the number of seeds counts complete seeds only.

    Args:
      rows: One per arm, fraction and seed; see `pool_folds`.
      first: Heading of the first column.
    """
    names = list(dict.fromkeys(row["arm"] for row in rows))
    fractions = sorted({row["fraction"] for row in rows}, reverse=True)
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    by_place = {(row["arm"], row["fraction"], row["seed"]): row for row in rows}
    several = len(fractions) > 1
    lines = []
    for fraction, arm in itertools.product(fractions, names):
        whole = [
            row
            for (a, f, _), row in by_place.items()
            if (a, f) == (arm, fraction) and not row["lacks"]
        ]
        cells = [arm, *[f"{fraction:g}"] * several]
        cells += [number_range([n for row in whole for n in row["n_train"]])]
        cells += [_cell(whole, metric) for metric in COLUMNS]
        lines.append([*cells, str(len(whole))])
    missing = []
    for place in itertools.product(names, fractions, seeds):
        if place not in by_place:
            missing.append(_place(*place))
        else:
            lacks = by_place[place]["lacks"]
            missing += [_place(*place, f", fold {fold}") for fold in lacks]
    header = [first, *["fraction"] * several, "training patches"]
    table = markdown_table([*header, *COLUMNS.values(), "seeds"], lines)
    if not missing:
        return table
    return (
        f"{table}\n\nMissing: {some(missing)}. A seed counts only if all of its folds are "
        "present."
    )


def _pooled_scores(
    workdir: Path, rows: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    parts = []
    for row in rows:
        names = ("ids", "labels", "probabilities")
        saved = io.read_arrays(workdir / row["predictions"], names)
        parts.append(Predictions(groups=None, seed=row["seed"], **saved))
    try:
        whole = arms.joined(parts)
        matrix = metrics.confusion(whole.labels, whole.probabilities)
    except UserError as error:
        path = workdir / rows[0]["predictions"]
        raise UserError.at(path, str(error)) from None
    return {
        name: float(one.counts(matrix))
        for name, one in metrics.METRICS.items()
        if one.counts
    }


def _cell(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    scores = [row["metrics"].get(metric) for row in rows]
    if not scores or None in scores:
        return "–"
    values = [100 * score for score in scores]
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _place(arm: str, fraction: float, seed: int, fold: str = "") -> str:
    return f"{escape(arm)} (fraction {fraction:g}, seed {seed}{fold})"
