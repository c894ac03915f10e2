"""How often the intervals cover, and how often the tests reject when nothing differs.

    python experiments/interval_coverage.py --out=experiments/coverage.md

Simulates studies whose true scores are known (`simulated_studies`). Minutes on a CPU.
"""

import argparse
import dataclasses
import os
import platform
import time
from pathlib import Path
from typing import Any

# The products are small: threads cost them more than they give.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pages
from simulated_studies import Scenario, measure, measure_sizes

SCENARIOS = {
    "17 patients, 5 seeds": Scenario(),
    "equal sizes": Scenario(spread=0.0),
    "8 patients": Scenario(patients=8),
    "40 patients": Scenario(patients=40),
    "one seed": Scenario(seeds=1, seed=0.0, seed_arm=0.0),
    "3 seeds": Scenario(seeds=3),
    "seeds differ much": Scenario(seed=0.3, seed_arm=0.5, patient=0.7),
    "one class a patient": Scenario(patients=18, mixed=False),
    "4 classes, harder": Scenario(classes=4, level=(1.5, 1.0)),
    "few patches": Scenario(patches=8.0),
    "5 folds that differ by 0.3": Scenario(folds=5, fold_arm=0.3),
    "5 folds that differ by 0.5": Scenario(folds=5, fold_arm=0.5),
    "2 folds that differ by 0.5": Scenario(folds=2, fold_arm=0.5),
    "the same 5 folds each seed": Scenario(folds=5, fold_arm=0.5, anew=False),
    "the same 2 folds each seed": Scenario(folds=2, fold_arm=0.5, anew=False),
}

# What a 95 % interval should cover, give or take the error of the simulation.
WANTED = (0.93, 0.97)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes beside it")
    arguments = parser.parse_args()
    options, began = (arguments.repeats, arguments.resamples), time.monotonic()
    rows = []
    cases = [(name, "balanced_accuracy") for name in SCENARIOS]
    cases += [
        ("17 patients, 5 seeds", m) for m in ("accuracy", "macro_f1", "auroc", "brier")
    ]
    for name, metric in cases:
        scenario = SCENARIOS[name]
        same = dataclasses.replace(scenario, level=(scenario.level[0],) * 2)
        rows.append(
            {
                "scenario": name,
                "metric": metric,
                "differing": measure(scenario, metric, *options),
                "equal": measure(same, metric, *options),
            }
        )
        print(line(rows[-1]), flush=True)
    sizes = measure_sizes(*options)
    found = {
        "repeats": arguments.repeats,
        "resamples": arguments.resamples,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "rows": rows,
        "area_gained": sizes[0],
        "patches_to_match": sizes[1:],
    }
    pages.leave(arguments.out, found, page(found))


def line(row: dict[str, Any]) -> str:
    """Returns a row of the table, in per cent."""
    known, equal = row["differing"], row["equal"]
    cells = [known[key] for key in ("score", "difference", "percentile")]
    cells += [equal[key] for key in ("difference", "rejected", "mcnemar")]
    return (
        f"| {row['scenario']} | {row['metric']} | {100 * known['gap']:.1f} | "
        + " | ".join(f"{100 * value:.1f}" for value in cells)
        + f" | {100 * known['rejected']:.0f} |"
    )


def outside(rows: list[dict[str, Any]], low: float, high: float) -> list[str]:
    """Returns the intervals whose coverage is not within `low` to `high`."""
    cells = [
        (row, what, row[which][key])
        for row in rows
        for what, which, key in (
            ("score", "differing", "score"),
            ("difference", "differing", "difference"),
            ("no difference", "equal", "difference"),
        )
    ]
    return [
        f"{row['scenario']} ({row['metric']}), {what} {100 * share:.1f}"
        for row, what, share in cells
        if not low <= share <= high
    ]


def page(found: dict[str, Any]) -> str:
    """Returns the Markdown page of what `main` found."""
    wide = outside(found["rows"], 0, WANTED[1])
    narrow = outside(found["rows"], WANTED[0], 1)
    return PAGE.format(
        **found,
        table="\n".join(map(line, found["rows"])),
        sizes=", ".join(f"{100 * share:.1f}" for share in found["patches_to_match"]),
        area=f"{100 * found['area_gained']:.1f}",
        wide="; ".join(wide) or "none",
        narrow="; ".join(narrow) or "none",
        error=100 * (0.95 * 0.05 / found["repeats"]) ** 0.5,
    )


PAGE = """# What the intervals cover

    python experiments/interval_coverage.py --repeats={repeats} --resamples={resamples}

{repeats} simulated studies a row, {resamples} resamples each (Monte Carlo error of a
coverage {error:.1f} points); {minutes:.0f} min on one core, Python {python}, NumPy {numpy};
every share, and the widths of the intervals, in [coverage.json](coverage.json).
Unless the name says otherwise: 17 patients whose numbers of patches differ by a
log-deviation of 1 (the 90th percentile is 13 times the 10th), 5 seeds, 2 classes. All
numbers in per cent; the difference in points. Folds that differ: the patients are shared
out to 2 or 5 models of each arm, and the training set of each model has an effect of its
own (its standard deviation, in logits) on all patients that the model tests. The program
draws the folds anew for each seed; where they are the same for every seed (and differ by
0.5), patients of one fold are taken for independent and are not: the intervals are too
narrow.

- *score*, *difference*: how often the 95 % interval holds the true score of an arm, the
  true difference of two arms.
- *percentile*: the same of the difference, with a plain percentile interval from the
  same resamples, for comparison.
- *no difference*: coverage of zero, and how often p <= 0.05, when the arms are equal.
- *McNemar*: how often the exact test on pooled patches rejects when the arms are equal:
  it takes the patches of a patient for independent, and is reported for comparison with
  the literature only.
- *power*: how often p <= 0.05 at the true difference.

| scenario | metric | true difference | score | difference | percentile | no difference | level | McNemar | power |
|---|---|---|---|---|---|---|---|---|---|
{table}

Outside 93 to 97 %, too wide (few patients, seeds or patches: the t quantiles that guard
against intervals that are too narrow cost width): {wide}.

Outside 93 to 97 %, too narrow: {narrow}.

Size study, 17 patients, 5 seeds, sizes 100, 300, 900 and 2700: the interval of the area
gained covers {area} %; that of the patches needed to match the better arm at each size
{sizes} % (at the last one the truth is "more than the largest").
"""  # noqa: E501

if __name__ == "__main__":
    main()
