"""The tables of scores and differences."""

from collections.abc import Iterable

from twostage_jax.report.analysis import METRIC, Analysis, Size
from twostage_jax.report.formats import Column, Table, mean_and_range, show
from twostage_jax.report.joining import Study
from twostage_jax.report.scores import OF_PATIENTS, Scores
from twostage_jax.stats.intervals import Interval, holm

SCORED = (METRIC, "accuracy", "macro_f1")
HOW = "In brackets 95 % confidence intervals, over test {units} and seeds{new}."
# The patches of one patient may be of several classes, as the regions drawn in it are.
REGION_LEVEL = (
    "The true class of a region selects the patches that are averaged: this scores "
    "regions that somebody has outlined, and is not a diagnosis of a patient."
)
FOLDS_AUROC = (
    " Patches are ranked within their fold, and the areas averaged over the folds: "
    "probabilities of different models have no common scale."
)
BOTH = (
    " The interval for the training patients of this study holds for models trained on "
    "these patients; p is that of the interval for new ones."
)
MCNEMAR = (
    "McNemar's exact test pools the patches of all seeds and takes them for "
    "independent, which patches of one patient are not: its p is usually far too small, "
    "and given for comparison with papers only."
)


def how(scores: Scores, intervals: Iterable[Interval | None] | None = None) -> str:
    """Returns how intervals were made, and why some are missing.

    Args:
      scores: The scores.
      intervals: The intervals of the table; None for those of `scores.intervals`.
    """
    if intervals is None:
        by_arms = scores.intervals.values()
        intervals = (one for by_arm in by_arms for one in by_arm.values())
    given = [one for one in intervals if one]
    new = ", and over new training patients" if any(o.these for o in given) else ""
    text = HOW.format(units=units(scores), new=new)
    for reason in sorted({one.reason for one in given if one.reason}):
        text += f" No interval is available where {reason}."
    if len(scores.seeds) == 1:
        text += " With one seed they hold for that seed only."
    return text


def main(study: Study, analysis: Analysis, scores: Scores) -> Table:
    """Returns the scores of each arm on the full target set, at either level."""
    of_regions = scores.level == "region"
    counted = (
        f"{scores.examples:,} regions of {scores.groups:,} patients. {REGION_LEVEL} "
        if of_regions
        else ""
    )
    mean = " The probabilities of the patches of a region are averaged." * of_regions
    return Table(
        scores.named("scores"),
        f"Test scores of each arm in per cent, {scores.level} level, trained on "
        f"{_trained(analysis.full)}; mean of {seed_count(scores)}.{mean}",
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
        f"{counted}{how(scores)} {auroc_note(study, 'every class, averaged')}",
    )


def baselines(analysis: Analysis) -> list[Table]:
    """Returns the baselines at every size, each against the champion."""
    pairs = [(size, one) for size in analysis.sizes for one in size.baselines]
    if not pairs:
        return []
    corrected = holm([one.difference.p_value for _, one in pairs])
    champion = show("arm", analysis.champion)
    several = len(analysis.sizes) > 1
    table = Table(
        "baselines",
        "Baselines on the same splits: balanced accuracy in per cent, and how much more "
        f"{champion} reaches; mean of {seed_count(analysis.full.scores)}.",
        [
            *([Column("fraction", "number")] if several else []),
            Column("baseline", "arm"),
            Column("balanced accuracy", "score"),
            Column(f"{champion} minus baseline", "points"),
            Column("p", "p"),
            Column("p, corrected", "p"),
        ],
        [
            [
                *([size.fraction] if several else []),
                one.name,
                one.score,
                one.difference,
                one.difference.p_value,
                p_value,
            ]
            for (size, one), p_value in zip(pairs, corrected, strict=True)
        ],
        "Texture descriptors (local binary patterns, co-occurrence, histogram), the mean "
        "grey level and the features of frozen networks, each with a logistic regression "
        "tuned on training groups; frozen networks are named by the stages that trained "
        f"them. Corrected p-values are Holm's over {len(pairs)} comparisons.",
    )
    return [table]


def patients(scores: Scores) -> list[Table]:
    """Returns the scores per patient, and how well class shares are predicted.

    Empty if the set names no patients.
    """
    if not all(name in scores.intervals for name in OF_PATIENTS):
        return []
    of_patients = Table(
        "patient_scores",
        f"Test scores per patient in per cent, mean over {scores.groups:,} patients and "
        f"{seed_count(scores)}.",
        [
            Column("arm", "arm"),
            Column("accuracy", "score"),
            Column("balanced accuracy", "score"),
        ],
        [
            [arm, *(scores.intervals[name][arm] for name in OF_PATIENTS)]
            for arm in scores.arms
        ],
        "The score of a patient is that of all its patches, and every patient counts "
        "once; balanced accuracy is over the classes that the patient has. "
        f"{how(scores)}",
    )
    sizes = scores.paired.supports.sum(1, keepdims=True)
    true = (scores.paired.supports / sizes).mean(0)
    rows = [
        [name, arm, float(true[k]), found["error"][arm], found["agreement"][arm]]
        for k, (name, found) in enumerate(
            zip(scores.class_names, scores.of_shares, strict=True)
        )
        for arm in scores.arms
    ]
    of_shares = Table(
        "patient_shares",
        "Share of each class in the patches of a patient, predicted against true: mean "
        "absolute error in points, and intraclass correlation.",
        [
            Column("class"),
            Column("arm", "arm"),
            Column("true share, mean (%)", "percent"),
            Column("mean absolute error", "score"),
            Column("ICC", "interval"),
        ],
        rows,
        "All patches of a patient are counted, by predicted class and by label. "
        "ICC(A,1): absolute agreement over patients, 1 at best (McGraw & Wong 1996). "
        f"{how(scores, [cell for row in rows for cell in row[3:]])}",
    )
    return [of_patients, of_shares]


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
        for one in (pair, pair.turned())
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
                *([against.get(arm)] if several else []),
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
    both = any(one.these for one in found)
    first = "for new training patients" if both else "difference"
    return Table(
        scores.named("differences"),
        f"Paired differences of balanced accuracy in points, {scores.level} level: first "
        "arm minus second, on the same test examples and seeds.",
        [
            Column("first", "arm"),
            Column("second", "arm"),
            Column(first, "points"),
            *([Column("for those of this study", "points")] if both else []),
            Column("least detectable", "percent"),
            Column("p", "p"),
            Column(f"p (Holm, {len(found)} pairs)", "p"),
            *([Column("p (McNemar)", "p")] if with_mcnemar else []),
        ],
        [
            [
                one.first,
                one.second,
                one,
                *([_of_these(one)] if both else []),
                one.detectable,
                one.p_value,
                one.p_holm,
                *([one.mcnemar] if with_mcnemar else []),
            ]
            for one in found
        ],
        f"{how(scores, found)} p: two-sided. Least detectable: true difference, in "
        f"points, that such a study finds with power 80 %.{BOTH if both else ''}"
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
        "Every row of the results, patch level: scores in per cent, ECE and Brier score.",
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
    """Returns the units that are resampled for an interval."""
    return "patients" if scores.groups else "patches"


def auroc_note(study: Study, classes: str) -> str:
    """Returns the definition of the AUROC, one-vs-rest of `classes`."""
    folds = FOLDS_AUROC if len(study.folds) > 1 else ""
    return f"AUROC: one-vs-rest of {classes}, from 0 to 1.{folds}"


def _of_these(one: Interval) -> Interval:
    """Returns the reading for the training patients of the study."""
    if one.these is None:
        return one
    return Interval(one.estimate, *one.these)


def _trained(size: Size) -> str:
    mean = " on average" if len(set(size.patches)) > 1 else ""
    return f"{mean_and_range(size.patches)} target patches{mean}"


def _tests(scores: Scores) -> str:
    patches = f"{scores.examples:,} test patches"
    return f"{patches} of {scores.groups:,} patients" if scores.groups else patches
