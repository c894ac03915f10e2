"""The tables of scores, differences, classes and calibration."""

import statistics
from collections.abc import Sequence

from twostage_jax import metrics
from twostage_jax.report import findings
from twostage_jax.report.analysis import METRIC, Analysis, Scores, Size
from twostage_jax.report.formats import Column, Table, mean_and_range, show
from twostage_jax.report.joining import Study
from twostage_jax.statistics import Difference, Interval

SCORED = (METRIC, "accuracy", "macro_f1")
HOW = "In brackets 95 % confidence intervals, over test {units} and seeds (see Method)."
# The patches of one patient may be of several classes, as the regions drawn in it are.
PATIENT_LEVEL = (
    "The true class of a region says which patches are averaged, so this weighs patients "
    "alike; it is no diagnosis of a patient, which would have to do without it."
)
POOLED_AUROC = (
    "It ranks the patches of all folds together, by probabilities of different models: "
    "models that are calibrated differently lower it."
)
MCNEMAR = (
    "McNemar's exact test pools the patches of all seeds and takes them for "
    "independent, which patches of one patient are not: its p is far too small as a "
    "rule, and given for comparison with papers only."
)


def how(scores: Scores) -> str:
    """Returns how the intervals were made, and why there is none where there is none."""
    text = HOW.format(units="patients" if scores.groups else "patches")
    why = {
        one.reason
        for by_arm in scores.intervals.values()
        for one in by_arm.values()
        if one.reason
    }
    for reason in sorted(why):
        text += f" None is given where {reason}."
    if len(scores.seeds) == 1:
        text += " With one seed they know nothing of other seeds."
    return text


def main(study: Study, analysis: Analysis) -> Table:
    """Returns the scores of each arm on the full target set."""
    full = analysis.full
    scores = full.scores
    folds = f" {POOLED_AUROC}" if len(study.folds) > 1 else ""
    return Table(
        "scores",
        f"Test scores of each arm in per cent, patch level, trained on {_trained(full)}; "
        f"mean of {_seeds(scores)}.",
        [
            Column("arm", "arm"),
            Column("chain of stages"),
            Column("balanced accuracy", "score"),
            Column("accuracy", "score"),
            Column("macro-F1", "score"),
            Column("AUROC", "spread"),
        ],
        [
            [
                arm,
                " > ".join(study.arms[arm]),
                *(scores.intervals[name][arm] for name in SCORED),
                [one["auroc"] for one in scores.of_seeds[arm]],
            ]
            for arm in scores.arms
        ],
        f"{how(scores)} AUROC: one-vs-rest, mean over classes, ± standard deviation "
        f"over seeds.{folds}",
    )


def result(analysis: Analysis) -> Table:
    """Returns the main result as a paper prints it: scores, and gain over baseline."""
    scores, base = analysis.full.scores, analysis.baseline
    several = len(scores.arms) > 1
    paired = (
        f" Differences from {show('arm', base)} are paired, in points; p is corrected "
        "over all pairs of arms (Holm)."
    )
    against = {
        one.first: one
        for pair in scores.differences[METRIC]
        for one in (pair, findings.turned(pair))
        if one.second == base
    }
    return Table(
        "result",
        f"Balanced accuracy (%) of each arm on {_tests(scores)}, mean of "
        f"{_seeds(scores)}, trained on {_trained(analysis.full)}, with 95 % confidence "
        f"intervals.{paired if several else ''}",
        [
            Column("Arm", "arm"),
            Column("Balanced accuracy", "score"),
            *([Column("Difference", "points")] if several else []),
            *([Column("p (Holm)", "p")] if several else []),
            Column("Macro-F1", "score"),
        ],
        [
            [
                arm,
                scores.intervals[METRIC][arm],
                *([as_interval(against.get(arm))] if several else []),
                *([getattr(against.get(arm), "p_holm", None)] if several else []),
                scores.intervals["macro_f1"][arm],
            ]
            for arm in scores.arms
        ],
    )


def pairs(scores: Scores, name: str, level: str) -> Table:
    """Returns the paired difference of every pair of arms."""
    found = scores.differences[METRIC]
    with_mcnemar = level == "patch"
    return Table(
        name,
        f"Paired differences of balanced accuracy in points, {level} level: first arm "
        "less second, on the same test examples and seeds.",
        [
            Column("first", "arm"),
            Column("second", "arm"),
            Column("difference", "points"),
            Column("p", "p"),
            Column(f"p (Holm, {len(found)} pairs)", "p"),
            *([Column("p (McNemar)", "p")] if with_mcnemar else []),
        ],
        [
            [
                one.first,
                one.second,
                as_interval(one),
                one.p_value,
                one.p_holm,
                *([one.mcnemar] if with_mcnemar else []),
            ]
            for one in found
        ],
        f"{how(scores)} p: two-sided, from the same resamples."
        f"{' ' + MCNEMAR if with_mcnemar else ''}",
    )


def patients(scores: Scores) -> Table:
    """Returns the scores at patient level."""
    return Table(
        "patients",
        "Test scores of each arm in per cent, patient level: the mean probabilities of "
        "a patient's patches of one true class count as one prediction.",
        [
            Column("arm", "arm"),
            Column("balanced accuracy", "score"),
            Column("accuracy", "score"),
        ],
        [
            [arm, scores.intervals[METRIC][arm], scores.intervals["accuracy"][arm]]
            for arm in scores.arms
        ],
        f"{scores.examples:,} predictions for {scores.groups:,} patients: one whose "
        f"patches are of several classes has one for each. {PATIENT_LEVEL} {how(scores)}",
    )


def per_class(study: Study, scores: Scores) -> Table:
    """Returns precision, recall, F1 and AUROC of each class and arm."""
    rows = []
    by_arm = {
        arm: [
            metrics.per_class(one.labels, one.probabilities, study.class_names)
            for one in seeds
        ]
        for arm, seeds in scores.arms.items()
    }
    for k, name in enumerate(study.class_names):
        for arm, seeds in by_arm.items():
            values = [[one[k][key] for one in seeds]
                      for key in ("precision", "recall", "f1", "auroc")]  # fmt: skip
            rows.append([name, arm, *map(_mean, values), seeds[0][k]["support"]])
    return Table(
        "per_class",
        f"Scores of each class in per cent, patch level, mean of {_seeds(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            Column("precision", "percent"),
            Column("recall", "percent"),
            Column("F1", "percent"),
            Column("AUROC", "percent"),
            Column("test patches", "count"),
        ],
        rows,
        "A dash stands for what a seed does not define, such as the precision of a class "
        f"never predicted.{f' AUROC: {POOLED_AUROC}' if len(study.folds) > 1 else ''}",
    )


def calibration(scores: Scores) -> Table:
    """Returns calibration error and Brier score of each arm."""
    return Table(
        "calibration",
        "Calibration, patch level: expected calibration error (15 bins) and Brier score "
        "(0 to 2); lower is better.",
        [Column("arm", "arm"), Column("ECE", "spread"), Column("Brier", "spread")],
        [
            [arm, *([one[key] for one in seeds] for key in ("ece", "brier"))]
            for arm, seeds in scores.of_seeds.items()
        ],
        "Mean ± standard deviation over seeds. In the figure the seeds are pooled.",
    )


def rows(study: Study) -> Table:
    """Returns every row of the results."""
    found = []
    for place, record in study.records.items():
        one = record.scores
        found.append(
            [
                place.arm, place.seed, place.fraction, place.fold, record.n_train,
                len(record.predictions.labels),
                *(one[key] for key in ("balanced_accuracy", "accuracy", "macro_f1",
                                       "auroc")),
                one["ece"], one["brier"],
            ]
        )  # fmt: skip
    return Table(
        "rows",
        "Every row of the results, patch level: scores in per cent, ECE and Brier as "
        "they are.",
        [
            Column("arm", "arm"),
            *(Column(name, "number") for name in ("seed", "fraction", "fold")),
            *(Column(name, "count") for name in ("training patches", "test patches")),
            *(
                Column(name, "percent")
                for name in ("balanced accuracy", "accuracy", "macro-F1", "AUROC")
            ),
            *(Column(name, "number") for name in ("ECE", "Brier")),
        ],
        found,
    )


def as_interval(one: Difference | None) -> Interval | None:
    """Returns a difference as an interval."""
    return one and Interval(one.estimate, one.low, one.high, one.reason)


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)


def _trained(size: Size) -> str:
    mean = " on average" if len(set(size.patches)) > 1 else ""
    return f"{mean_and_range(size.patches)} target patches{mean}"


def _seeds(scores: Scores) -> str:
    count = len(scores.seeds)
    return f"{count} seed{'s' if count > 1 else ''}"


def _tests(scores: Scores) -> str:
    patches = f"{scores.examples:,} test patches"
    return f"{patches} of {scores.groups:,} patients" if scores.groups else patches
