"""The tables of scores and differences."""

from collections.abc import Iterable

from twostage_jax.report import findings
from twostage_jax.report.analysis import METRIC, Analysis, Size
from twostage_jax.report.formats import Column, Table, mean_and_range, show
from twostage_jax.report.joining import Study
from twostage_jax.report.scores import Scores
from twostage_jax.statistics import Difference, Interval

SCORED = (METRIC, "accuracy", "macro_f1")
HOW = "In brackets 95 % confidence intervals, over test {units} and seeds (see Method)."
# The patches of one patient may be of several classes, as the regions drawn in it are.
PATIENT_LEVEL = (
    "The true class of a region says which patches are averaged, so this weighs patients "
    "alike; it is no diagnosis of a patient, which would have to do without it."
)
ONE_PREDICTION = (
    " The mean probabilities of a patient's patches of one true class count as one "
    "prediction."
)
POOLED_AUROC = (
    " It ranks the predictions of all folds together, by probabilities of different "
    "models: models that are calibrated differently lower it."
)
MCNEMAR = (
    "McNemar's exact test pools the patches of all seeds and takes them for "
    "independent, which patches of one patient are not: its p is far too small as a "
    "rule, and given for comparison with papers only."
)


def how(scores: Scores, intervals: Iterable[Interval | None] | None = None) -> str:
    """Returns how intervals were made, and why there is none where there is none.

    Args:
      scores: The scores.
      intervals: The intervals that are told of; None for those of `scores.intervals`.
    """
    text = HOW.format(units=units(scores))
    if intervals is None:
        by_arms = scores.intervals.values()
        intervals = (one for by_arm in by_arms for one in by_arm.values())
    why = {one.reason for one in intervals if one and one.reason}
    for reason in sorted(why):
        text += f" There is none where {reason}."
    if len(scores.seeds) == 1:
        text += " With one seed they know nothing of other seeds."
    return text


def main(study: Study, analysis: Analysis, scores: Scores) -> Table:
    """Returns the scores of each arm on the full target set, at either level."""
    by_patient = scores.level == "patient"
    return Table(
        scores.named("scores"),
        f"Test scores of each arm in per cent, {scores.level} level, trained on "
        f"{_trained(analysis.full)}; mean of {seed_count(scores)}."
        f"{ONE_PREDICTION if by_patient else ''}",
        [
            Column("arm", "arm"),
            Column("chain of stages"),
            Column("balanced accuracy", "score"),
            Column("accuracy", "score"),
            Column("macro-F1", "score"),
            Column("AUROC", "interval"),
        ],
        [
            [
                arm,
                " > ".join(study.arms[arm]),
                *(scores.intervals[name][arm] for name in SCORED),
                scores.intervals.get("auroc", {}).get(arm),
            ]
            for arm in scores.arms
        ],
        f"{_predictions(scores) if by_patient else ''}{how(scores)} "
        f"{auroc_note(study, 'every class, averaged')}",
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
        f"{seed_count(scores)}, trained on {_trained(analysis.full)}, with 95 % confidence "
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


def pairs(scores: Scores) -> Table:
    """Returns the paired difference of every pair of arms, at either level."""
    found = scores.differences[METRIC]
    with_mcnemar = scores.level == "patch"
    return Table(
        scores.named("differences"),
        f"Paired differences of balanced accuracy in points, {scores.level} level: first "
        "arm less second, on the same test examples and seeds.",
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


def seed_count(scores: Scores) -> str:
    """Returns '1 seed' or '3 seeds'."""
    count = len(scores.seeds)
    return f"{count} seed{'s' if count > 1 else ''}"


def units(scores: Scores) -> str:
    """Returns what is drawn anew for an interval."""
    return "patients" if scores.groups else "patches"


def auroc_note(study: Study, what: str) -> str:
    """Returns what the AUROC is, one-vs-rest of `what`."""
    folds = POOLED_AUROC if len(study.folds) > 1 else ""
    return f"AUROC: one-vs-rest of {what}, from 0 to 1.{folds}"


def _predictions(scores: Scores) -> str:
    """Returns what is counted at patient level."""
    return (
        f"{scores.examples:,} predictions for {scores.groups:,} patients: one whose "
        f"patches are of several classes has one for each. {PATIENT_LEVEL} "
    )


def as_interval(one: Difference | None) -> Interval | None:
    """Returns a difference as an interval."""
    return one and Interval(one.estimate, one.low, one.high, one.reason)


def _trained(size: Size) -> str:
    mean = " on average" if len(set(size.patches)) > 1 else ""
    return f"{mean_and_range(size.patches)} target patches{mean}"


def _tests(scores: Scores) -> str:
    patches = f"{scores.examples:,} test patches"
    return f"{patches} of {scores.groups:,} patients" if scores.groups else patches
