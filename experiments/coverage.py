"""How often the intervals cover, and how often the tests reject when nothing differs.

    python experiments/coverage.py --repeats=1000

Simulates studies whose true scores are known: patients of very different sizes, each
with its own difficulty, its own difference between the arms, seeds that differ, patches
that are easy or hard for every arm and seed. Writes the page, and the numbers as
JSON beside it. Minutes on a CPU.
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

from twostage_jax import atomic, resampling, size_study, statistics

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A population of studies; effects are standard deviations in logits.

    Attributes:
      patients, seeds, classes: How many.
      level: Logit of a right prediction, of each of the two arms.
      patient: Difficulty of a (patient, class), for both arms.
      patient_arm: Difference between the arms in a (patient, class).
      seed, seed_arm: Effect of a seed on both arms, and on each.
      cell: Effect of (arm, seed, patient, class).
      patch: Difficulty of a patch.
      folds: How many folds share out the patients; 0 for one test set of one model.
      fold_arm: Effect of the training set of a fold on each arm: what the patients whom
        that model tests have in common.
      anew: Whether each seed shares out the patients in its own way, as the program
        does; otherwise folds and their effects are the same for every seed.
      spread: Deviation of the log of the number of patches of a patient.
      patches: Their median.
      mixed: Patients have patches of all classes, or of one only.
    """

    patients: int = 17
    seeds: int = 5
    classes: int = 2
    level: tuple[float, float] = (2.5, 2.0)
    patient: float = 1.0
    patient_arm: float = 0.5
    seed: float = 0.15
    seed_arm: float = 0.15
    cell: float = 0.3
    patch: float = 0.7
    folds: int = 0
    fold_arm: float = 0.0
    anew: bool = True
    spread: float = 1.0
    patches: float = 30.0
    mixed: bool = True


# Sizes of a study, and the logits of a right prediction at each, of two arms.
SIZES = (100, 300, 900, 2700)
CURVES = ((0.6, 1.2, 1.8, 2.2), (1.0, 1.6, 2.2, 2.6))

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


def simulate(
    scenario: Scenario, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches `[P, K]` and logits `[A, S, P, K]` of one study."""
    p, s, k = scenario.patients, scenario.seeds, scenario.classes
    sizes = scenario.patches * np.exp(scenario.spread * generator.normal(size=p))
    shares = (
        generator.dirichlet(np.full(k, 2.0), p)
        if scenario.mixed
        else np.eye(k)[np.arange(p) % k]
    )
    patches = generator.poisson(sizes[:, None] * shares)
    draw = generator.normal
    logits = (
        np.array(scenario.level)[:, None, None, None]
        + scenario.patient * draw(size=(p, k))
        + scenario.patient_arm * draw(size=(2, 1, p, k))
        + scenario.seed * draw(size=(s, 1, 1))
        + scenario.seed_arm * draw(size=(2, s, 1, 1))
        + scenario.cell * draw(size=(2, s, p, k))
    )
    if scenario.folds:
        drawn = s if scenario.anew else 1
        fold = np.tile(np.arange(p) % scenario.folds, (drawn, 1))  # [S or 1, P]
        fold = generator.permuted(fold, axis=1)
        effects = scenario.fold_arm * draw(size=(2, drawn, scenario.folds, 1))
        logits = logits + np.take_along_axis(effects, fold[None, :, :, None], axis=2)
    return patches, logits


def counts_of(
    scenario: Scenario,
    generator: np.random.Generator,
    patches: np.ndarray,
    logits: np.ndarray,
) -> resampling.Counts:
    """Returns the confusion counts of one simulated study."""
    groups, classes = (np.repeat(axis.ravel(), patches.ravel())
                       for axis in np.indices(patches.shape))  # fmt: skip
    hard = scenario.patch * generator.normal(size=len(groups))
    chance = 1 / (1 + np.exp(-(logits[:, :, groups, classes] + hard)))
    right = generator.random(chance.shape) < chance
    predicted = np.where(right, classes, (classes + 1) % scenario.classes)
    cells = np.zeros((*logits.shape, scenario.classes))
    arms, seeds = np.ogrid[: logits.shape[0], : logits.shape[1]]
    where = (arms[..., None], seeds[..., None], groups, classes, predicted)
    np.add.at(cells, where, 1)
    names = [tuple(map(str, range(length))) for length in logits.shape[:3]]
    return resampling.Counts(
        names[0], tuple(range(scenario.seeds)), names[2], cells, right
    )


def truth(scenario: Scenario, metric: str) -> np.ndarray:
    """Returns the scores `[A]` over all patients and seeds, to about 0.001."""
    generator = np.random.default_rng(99)
    matrix = np.zeros((2, scenario.classes, scenario.classes))
    many = dataclasses.replace(
        scenario,
        patients=3000,
        seeds=100 if scenario.seeds > 1 else 1,
        folds=3000 if scenario.folds else 0,  # Over all training sets, too.
    )
    for _ in range(10):
        patches, logits = simulate(many, generator)
        chance = sum(
            weight / (1 + np.exp(-(logits + scenario.patch * node)))
            for node, weight in zip(NODES, NODE_WEIGHTS, strict=True)
        )
        right = (patches * chance.mean(1)).sum(1)
        for k in range(scenario.classes):
            matrix[:, k, k] += right[:, k]
            matrix[:, k, (k + 1) % scenario.classes] += (
                patches[:, k].sum() - right[:, k]
            )
    return resampling.METRICS[metric](matrix)


def measure(
    scenario: Scenario,
    metric: str,
    repeats: int,
    resamples: int,
    seed: int = 0,
) -> dict[str, float]:
    """Returns shares: what intervals cover, and how often p is at most 0.05."""
    true = truth(scenario, metric)
    gap = true[0] - true[1] if scenario.level[0] != scenario.level[1] else 0.0
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        counts = counts_of(scenario, generator, *simulate(scenario, generator))
        sampler = resampling.Resampler(counts, metric, resamples, seed=repeat)
        one = statistics.score_interval(sampler, np.array([1.0, 0.0]))
        two, p_value = statistics.difference_interval(sampler, np.array([1.0, -1.0]))
        plain = np.quantile(sampler.resampled @ [1, -1], [0.025, 0.975])
        note = found.setdefault
        if one.low is not None:
            note("score", []).append(one.low <= true[0] <= one.high)
        if two.low is not None:
            note("difference", []).append(two.low <= gap <= two.high)
            note("width", []).append(two.high - two.low)
        if p_value is not None:
            note("rejected", []).append(p_value <= 0.05)
        note("percentile", []).append(plain[0] <= gap <= plain[1])
        mcnemar = statistics.mcnemar(counts.right[0], counts.right[1])
        note("mcnemar", []).append(mcnemar <= 0.05)
    shares = {name: float(np.mean(values)) for name, values in found.items()}
    return shares | {"gap": float(gap), "given": len(found["difference"]) / repeats}


def simulate_sizes(
    scenario: Scenario, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches `[P, K]` and logits `[A * F, S, P, K]` of one size study."""
    patches, logits = simulate(scenario, generator)
    p, s, k = scenario.patients, scenario.seeds, scenario.classes
    f, draw = len(SIZES), generator.normal
    # The same arm at another size has effects of its own, too.
    return patches, (
        np.reshape(CURVES, (-1, 1, 1, 1))
        + np.repeat(logits, f, axis=0)
        + 0.3 * draw(size=(2 * f, 1, p, k))
        + scenario.seed_arm * draw(size=(2 * f, s, 1, 1))
        + scenario.cell * draw(size=(2 * f, s, p, k))
    )


def measure_sizes(repeats: int, resamples: int, seed: int = 0) -> list[float]:
    """Returns what intervals of the area gained and of the matching sizes cover."""
    scenario = Scenario(level=(0.0, 0.0), patch=0.0)
    many = dataclasses.replace(scenario, patients=3000, seeds=20)
    generator = np.random.default_rng(99)
    right, total = 0.0, 0.0
    for _ in range(10):
        patches, logits = simulate_sizes(many, generator)
        right = right + (patches / (1 + np.exp(-logits))).mean(1).sum(1)
        total = total + patches.sum(0)
    true = (right / total).mean(1).reshape(2, -1)
    needed = size_study.patches_to_match(true[0], true[1], SIZES)
    areas = size_study.area_under_curve(SIZES, np.eye(len(SIZES)))
    gain, hits = areas @ (true[1] - true[0]), []
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        counts = counts_of(scenario, generator, *simulate_sizes(scenario, generator))
        sampler = resampling.Resampler(counts, "balanced_accuracy", resamples, repeat)
        weights = np.concatenate([-areas, areas])
        area, _ = statistics.difference_interval(sampler, weights)
        matches = size_study.matches(sampler, SIZES, 0, 1)
        hits.append([area.low <= gain <= area.high])
        hits[-1] += [
            match.low <= value <= match.high
            for match, value in zip(matches, needed, strict=True)
        ]
    return [float(share) for share in np.mean(hits, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("experiments/coverage.md"))
    arguments = parser.parse_args()
    options, began = (arguments.repeats, arguments.resamples), time.monotonic()
    rows = []
    cases = [(name, "balanced_accuracy") for name in SCENARIOS]
    cases += [("17 patients, 5 seeds", m) for m in ("accuracy", "macro_f1")]
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
    atomic.write_json(arguments.out.with_suffix(".json"), found)
    atomic.write_text(arguments.out, page(found))
    print(page(found))


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

    python experiments/coverage.py --repeats={repeats} --resamples={resamples}

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
