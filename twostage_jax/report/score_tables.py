"""The tables of scores and differences."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from twostage_jax.config import TARGET
from twostage_jax.report import text
from twostage_jax.report.analysis import (
    METRIC,
    OF_PATIENTS,
    Analysis,
    Baseline,
    ByPatient,
    Scores,
    Size,
)
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import (
    Column,
    Table,
    arm_name,
    columns,
    mean_and_range,
    number_range,
    plural,
)
from twostage_jax.stats.intervals import Interval
from twostage_jax.stats.metrics import METRICS, OF_PATCHES

# Metrics of the tables of scores, that of the comparisons first.
SCORED = tuple(
    sorted(
        (name for name in OF_PATCHES if METRICS[name].column),
        key=lambda name: name != METRIC,
    )
)
# Metric of `metrics.of_class` -> title and kind of its column.
OF_CLASS = {
    "precision": ("precision", "score"),
    "recall": ("recall", "score"),
    "f1": ("F1", "score"),
    "auroc": ("AUROC", "interval"),
}
HOW = "Brackets give 95 % confidence intervals over test {units} and seeds{new}."
# Most reasons for a missing interval in a note, such as those of a few classes.
REASONS = 2
# A patient may have patches of several classes, as its regions do.
REGION_LEVEL = (
    "A region is all patches of one patient and one true class, which are averaged: the "
    "true class selects them, so this is not a diagnosis of a patient."
)
FOLDS_AUROC = " Patches are ranked within their fold."
BOTH = (
    " The interval for the training patients of this study holds for models trained on "
    "these patients; p belongs to the interval for new ones."
)
SLOPE = (
    "It is the common slope of a multinomial logistic regression of the class on the "
    "logarithms of the predicted probabilities, with free intercepts (Cox 1958 for two "
    "classes, Van Hoorde et al. 2014 for more). "
)
OTHER_PATIENTS = (
    " Each seed draws its own folds: the networks that predict an example together were "
    "trained on different patients, but none of them on its own."
)
NO_SLOPE = (
    "A dash: no finite slope fits, because the predictions separate the classes or are "
    "all alike."
)
BALANCED = (
    " Probabilities refer to equally frequent classes (train.balance): if the test "
    "classes are not equally frequent, this alone shifts intercepts and thresholds, and "
    "worsens ECE and Brier score."
)
MCNEMAR = (
    "McNemar's exact test pools the patches of all seeds and treats them as "
    "independent, which patches of one patient are not: its p is usually far too small, "
    "and given only for comparison with other papers."
)


def how(scores: Scores, intervals: Iterable[Interval | None] | None = None) -> str:
    """Returns how intervals were computed, and why some are missing.

    Args:
      scores: Scores of the table.
      intervals: Intervals of the table; None for those of `scores.intervals`.
    """
    if intervals is None:
        by_arms = scores.intervals.values()
        intervals = (one for by_arm in by_arms for one in by_arm.values())
    given = [one for one in intervals if one]
    text, lead = "", "Intervals are unavailable:"
    if any(one.low is not None for one in given):
        new = ", and over new training patients" if any(o.these for o in given) else ""
        text = HOW.format(units="patients" if scores.groups else "patches", new=new)
        lead = " An interval is unavailable where"
    reasons = sorted({one.reason for one in given if one.reason})
    if reasons:
        others = len(reasons) - REASONS
        more = f"; {others} further reasons are similar" if others > 0 else ""
        text += f"{lead} {', or '.join(reasons[:REASONS])}{more}."
    return text


def score_columns() -> list[Column]:
    """Returns a column for each metric of `SCORED`."""
    return [
        Column(METRICS[name].title, "score" if METRICS[name].percent else "interval")
        for name in SCORED
    ]


def score_cells(scores: Scores, arm: str) -> list[Interval | None]:
    """Returns the cells of an arm in these columns; None if undefined."""
    return [scores.intervals.get(name, {}).get(arm) for name in SCORED]


def gain_columns(
    scores: Scores, base: str, title: str
) -> tuple[list[Column], dict[str, list[Any]]]:
    """Returns columns of gains over an arm, and their cells by arm; none for one arm."""
    if len(scores.arms) < 2:
        return [], {arm: [] for arm in scores.arms}
    gains = scores.minus(base)
    cells = {arm: [one, one.p_holm] for arm, one in gains.items()}
    head = [Column(title, "points"), Column("p (Holm)", "p")]
    return head, {base: [None, None], **cells}


def scores_table(study: Study, analysis: Analysis, scores: Scores) -> Table:
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
        f"{_trained(analysis.full)}; {over_seeds(scores)}.{mean}",
        [
            Column("arm", "arm"),
            Column("chain of stages"),
            *score_columns(),
        ],
        [
            [arm, " > ".join(study.arms[arm]), *score_cells(scores, arm)]
            for arm in scores.arms
        ],
        f"{counted}{how(scores)} {auroc_note(study, 'every class, averaged')}",
    )


def ensemble_tables(study: Study, scores: Scores) -> list[Table]:
    """Returns the scores of all seeds' networks together; none with one seed."""
    found = scores.ensembles
    if not found:
        return []
    table = Table(
        "ensembles",
        "Ensembles: balanced accuracy in per cent of the mean of the probabilities of "
        f"the networks of {len(scores.seeds)} seeds.",
        [
            Column("arm", "arm"),
            *columns("score", "one network", "ensemble"),
            Column("ensemble minus one network", "points"),
            *columns("p", "p", "p, corrected"),
        ],
        [
            [arm, scores.intervals[METRIC][arm], one, gain, gain.p_value, gain.p_holm]
            for arm, (one, gain) in found.items()
        ],
        f"{how(scores, [one for one, _ in found.values()])} Intervals and p of this table "
        "hold for the training patients of this study, except the intervals of one network."
        f"{OTHER_PATIENTS * study.folds_anew} Corrected p-values are Holm's over "
        f"{len(found)} arms.",
    )
    return [table]


def baseline_tables(analysis: Analysis) -> list[Table]:
    """Returns the baselines at every size, each against the champion."""
    pairs = [(size.fraction, one) for size in analysis.sizes for one in size.baselines]
    if not pairs:
        return []
    champion = arm_name(analysis.champion)
    caption = (
        "Baselines on the same splits: balanced accuracy in per cent, and "
        f"{champion} minus baseline; {over_seeds(analysis.full.scores)}."
    )
    several = len(analysis.sizes) > 1
    return [baseline_table("baselines", caption, champion, pairs, several)]


def baseline_table(
    name: str,
    caption: str,
    champion: str,
    pairs: Sequence[tuple[float, Baseline]],
    several: bool = False,
) -> Table:
    """Returns (fraction, baseline) pairs, each against the champion.

    Args:
      name, caption: Those of the table.
      champion: Name of the champion.
      pairs: At least one.
      several: Whether to show the fractions.
    """
    return Table(
        name,
        caption,
        [
            *[Column("fraction", "number")] * several,
            Column("baseline", "arm"),
            Column("balanced accuracy", "score"),
            Column(f"{champion} minus baseline", "points"),
            *columns("p", "p", "p, corrected"),
        ],
        [
            [
                *[fraction] * several,
                one.name,
                one.score,
                one.difference,
                one.difference.p_value,
                one.difference.p_holm,
            ]
            for fraction, one in pairs
        ],
        "Texture descriptors (local binary patterns, co-occurrence, histogram), the mean "
        "grey level and the features of frozen networks, each with a logistic regression "
        "tuned on training groups; frozen networks are named by the stages that trained "
        f"them. Corrected p-values are Holm's over {len(pairs)} comparisons.",
    )


def patient_tables(scores: Scores) -> list[Table]:
    """Returns the scores per patient, and those of predicted class fractions.

    The list is empty if patients are unknown.
    """
    if not all(name in scores.intervals for name in OF_PATIENTS):
        return []
    of_patients = Table(
        "patient_scores",
        f"Test scores per patient in per cent, mean over {scores.groups:,} patients and "
        f"{plural(len(scores.seeds), 'seed')}.",
        [Column("arm", "arm"), *columns("score", "accuracy", "balanced accuracy")],
        [
            [arm, *(scores.intervals[name][arm] for name in OF_PATIENTS)]
            for arm in scores.arms
        ],
        "The score of a patient is over all its patches, and every patient counts once; "
        "balanced accuracy is over the classes present in the patient. "
        f"{how(scores)}",
    )
    true = scores.paired.supports / scores.paired.sizes[:, None]
    vary = np.ptp(true, axis=0) > 0
    rows = [
        [
            name,
            arm,
            share,
            found["error"][arm],
            found["agreement"][arm] if varies else None,
        ]
        for name, share, varies, found in zip(
            scores.class_names,
            true.mean(0).tolist(),
            vary,
            scores.of_shares,
            strict=True,
        )
        for arm in scores.arms
    ]
    dash = "" if vary.all() else " A dash: all patients have the same true fraction."
    of_shares = Table(
        "patient_shares",
        "Fraction of each class in the patches of a patient, predicted against true: "
        "mean absolute error in points, and intraclass correlation.",
        [
            Column("class"),
            Column("arm", "arm"),
            Column("true fraction, mean (%)", "percent"),
            Column("mean absolute error", "score"),
            Column("ICC", "interval"),
        ],
        rows,
        "All patches of a patient are counted, by predicted class and by label. "
        "ICC(A,1): absolute agreement over patients, 1 at best (McGraw & Wong 1996)."
        f"{dash} {how(scores, [cell for row in rows for cell in row[3:]])}",
    )
    return [of_patients, of_shares]


def influence_table(found: ByPatient) -> Table:
    """Returns the main difference without each patient, the most influential first."""
    one = found.difference
    order = np.argsort(-np.abs(found.without - one.estimate), kind="stable")
    return Table(
        "influence",
        f"{arm_name(one.first)} minus {arm_name(one.second)} in points, patient by "
        "patient.",
        [
            Column("patient"),
            Column("test patches", "count"),
            *columns("percent", *map(arm_name, (one.first, one.second))),
            Column("difference without the patient", "percent"),
        ],
        [
            [
                found.patients[p],
                int(found.patches[p]),
                *found.scores[:, p].tolist(),
                float(found.without[p]),
            ]
            for p in order.tolist()
        ],
        "Scores of a patient's own patches in per cent, mean over seeds and sizes.",
    )


def result_table(analysis: Analysis) -> Table:
    """Returns the main result for a paper: scores, and gain over the baseline."""
    scores, base = analysis.full.scores, analysis.baseline
    gains, cells = gain_columns(scores, base, "Difference")
    paired = (
        f" Differences from {arm_name(base)} are paired, in points; p is corrected "
        "over all pairs of arms (Holm)."
    )
    return Table(
        "result",
        f"Balanced accuracy (%) of each arm on {_tests(scores)}, "
        f"{over_seeds(scores)}, trained on {_trained(analysis.full)}, with 95 % confidence "
        f"intervals.{paired if gains else ''}",
        [
            Column("Arm", "arm"),
            Column("Balanced accuracy", "score"),
            *gains,
            Column("Macro-F1", "score"),
        ],
        [
            [
                arm,
                scores.intervals[METRIC][arm],
                *cells[arm],
                scores.intervals["macro_f1"][arm],
            ]
            for arm in scores.arms
        ],
    )


def pairs_table(scores: Scores) -> Table:
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
            *columns("arm", "first", "second"),
            Column(first, "points"),
            *[Column("for those of this study", "points")] * both,
            Column("least detectable", "percent"),
            *columns("p", "p", f"p (Holm, {plural(len(found), 'pair')})"),
            *[Column("p (McNemar)", "p")] * with_mcnemar,
        ],
        [
            [
                one.first,
                one.second,
                one,
                *[_of_these(one)] * both,
                one.detectable,
                one.p_value,
                one.p_holm,
                *[one.mcnemar] * with_mcnemar,
            ]
            for one in found
        ],
        f"{how(scores, found)} p: two-sided. Least detectable: true difference, in "
        f"points, that such a study detects with 80 % power.{BOTH if both else ''}"
        f"{' ' + MCNEMAR if with_mcnemar else ''}",
    )


def rows_table(study: Study) -> Table:
    """Returns every row of the results."""
    shown = {name: one for name, one in METRICS.items() if one.score}
    return Table(
        "rows",
        "Every row of the results, patch level: scores in per cent; AUROC, ECE and Brier "
        "score.",
        [
            Column("arm", "arm"),
            *columns("number", "seed", "fraction", "fold"),
            *columns("count", "training patches", "test patches"),
            *(
                Column(one.title, "percent" if one.percent else "number")
                for one in shown.values()
            ),
        ],
        [
            [
                *place,
                record.n_train,
                len(record.predictions.labels),
                *(record.scores[name] for name in shown),
            ]
            for place, record in study.records.items()
        ],
    )


def over_seeds(scores: Scores) -> str:
    """Returns '1 seed' or 'mean of 3 seeds'."""
    count = len(scores.seeds)
    return f"{'mean of ' * (count > 1)}{plural(count, 'seed')}"


def auroc_note(study: Study, classes: str) -> str:
    """Returns the definition of the AUROC, one-vs-rest of `classes`."""
    folds = FOLDS_AUROC if len(study.folds) > 1 else ""
    return f"AUROC: one-vs-rest of {classes}, from 0 to 1.{folds}"


def class_table(study: Study, scores: Scores) -> Table:
    """Returns precision, recall, F1 and AUROC of each class and arm."""
    support = scores.paired.supports.sum(0).astype(int).tolist()
    rows = [
        [name, arm, *(of_class.get(key, {}).get(arm) for key in OF_CLASS), count]
        for name, of_class, count in zip(
            scores.class_names, scores.of_classes, support, strict=True
        )
        for arm in scores.arms
    ]
    intervals = [cell for row in rows for cell in row[2:-1]]
    counted = "test patches" if scores.level == "patch" else "test regions"
    return Table(
        scores.named("per_class"),
        f"Scores of each class in per cent, {scores.level} level, "
        f"{over_seeds(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            *(Column(title, kind) for title, kind in OF_CLASS.values()),
            Column(counted, "count"),
        ],
        rows,
        "A dash: undefined in at least one seed, such as the precision of a class that "
        f"is never predicted. {how(scores, intervals)} "
        f"{auroc_note(study, 'the class')}",
    )


def confusion_table(scores: Scores) -> Table:
    """Returns the confusion counts of each arm, one row per cell."""
    names = scores.class_names
    return Table(
        scores.named("confusion"),
        f"Counts of the confusion matrices, {scores.level} level, summed over seeds.",
        [
            Column("arm", "arm"),
            *columns("text", "true class", "predicted class"),
            Column("count", "count"),
        ],
        [
            [arm, names[true], names[predicted], int(cell)]
            for arm, matrix in scores.confusion.items()
            for (true, predicted), cell in np.ndenumerate(matrix)
        ],
    )


def balance_note(study: Study) -> str:
    """Returns the caveat of probabilities for equally frequent classes, or ''."""
    settings = study.config["stages"][TARGET].get("train", {})
    return BALANCED if settings.get("balance") else ""


def calibration_table(study: Study, scores: Scores) -> Table:
    """Returns calibration slope, calibration error and Brier score of each arm."""
    few, definition = " The seeds are pooled in the figure.", SLOPE
    if scores.level == "region":
        few, definition = " With so few predictions, chance inflates the ECE.", ""
    brier, slope = scores.intervals["brier"], scores.slopes
    return Table(
        scores.named("calibration"),
        f"Calibration, {scores.level} level: slope, expected calibration error (15 bins) "
        "and Brier score (0 to 2); the latter two are better if lower.",
        [
            Column("arm", "arm"),
            Column("slope", "interval"),
            Column("ECE", "spread"),
            Column("Brier", "interval"),
        ],
        [
            [arm, slope[arm], [one["ece"] for one in seeds], brier[arm]]
            for arm, seeds in scores.of_seeds.items()
        ],
        f"Slope: 1 is ideal; below 1, probabilities are too extreme. {definition}"
        f"{NO_SLOPE} {how(scores, [*slope.values(), *brier.values()])} ECE: mean ± "
        "standard deviation over seeds; no interval, because the ECE is biased by the "
        f"number of patches, and more so in resamples.{few}{balance_note(study)}",
    )


def intercepts_table(study: Study, scores: Scores) -> Table:
    """Returns the calibration intercept of each class and arm."""
    found = scores.intercepts
    return Table(
        scores.named("calibration_intercepts"),
        f"Calibration in the large, {scores.level} level: intercept of each class, in "
        "logits; 0 is ideal.",
        [Column("class"), Column("arm", "arm"), Column("intercept", "interval")],
        [
            [name, arm, interval]
            for name, by_arm in zip(scores.class_names, found, strict=True)
            for arm, interval in by_arm.items()
        ],
        "Logit of the class frequency relative to that of its predicted probability, one "
        "class against all others, at slope 1. Above 0, the class is more frequent than "
        f"predicted. {how(scores, [x for one in found for x in one.values()])}"
        f"{balance_note(study)}",
    )


def sizes_table(analysis: Analysis) -> Table:
    """Returns the score of each arm at each size."""
    arms = list(analysis.full.scores.arms)
    counted = {"patches": [size.patches for size in analysis.sizes]}
    if any(size.patients for size in analysis.sizes):
        counted["patients"] = [size.patients for size in analysis.sizes]
    of_counts, numbers = [], []
    for what, of_sizes in counted.items():
        title = "training patches" if what == "patches" else what
        differ = any(len(set(one)) > 1 for one in of_sizes)
        of_counts.append(Column(f"{title} (mean)" if differ else title, "count"))
        numbers.append([statistics.fmean(one) if one else None for one in of_sizes])
        if differ:
            of_counts.append(Column(f"range of {what}"))
            numbers.append([number_range(one) for one in of_sizes])
    return Table(
        "sizes",
        "Balanced accuracy in per cent by size of the target training set, patch level.",
        [
            Column("fraction", "number"),
            *of_counts,
            Column("seeds", "count"),
            *columns("score", *map(arm_name, arms)),
        ],
        [
            [
                size.fraction,
                *(of_sizes[i] for of_sizes in numbers),
                len(size.scores.seeds),
                *(size.scores.intervals[METRIC].get(arm) for arm in arms),
            ]
            for i, size in enumerate(analysis.sizes)
        ],
        "Fractions are nested and the same for every arm. Test and validation sets are "
        "the same at every size; validation patches are not counted. "
        f"{_means(analysis)}{how(analysis.full.scores)}",
    )


def size_pairs_table(analysis: Analysis) -> Table:
    """Returns each arm minus the baseline at each size."""
    found = text.size_differences(analysis)
    return Table(
        "size_differences",
        f"Paired differences from {arm_name(analysis.baseline)} in points of balanced "
        "accuracy, by size of the target training set.",
        [
            _patches(analysis),
            Column("arm", "arm"),
            Column("difference", "points"),
            *columns("p", "p", f"p (Holm, {plural(len(found), 'row')})"),
        ],
        [[size.n, one.first, one, one.p_value, one.p_holm] for size, one in found],
        "Holm's correction is over all rows of this table, so it is stricter than in the "
        "table of pairs at the full size.",
    )


def areas_table(analysis: Analysis) -> Table:
    """Returns the area under the learning curve of each arm."""
    found, base = analysis.size_study, analysis.baseline
    gains = {
        arm: [one, one.p_value, one.p_holm] for arm, one in found.area_gains.items()
    }
    return Table(
        "areas",
        "Area under the learning curve: mean balanced accuracy in per cent over the "
        "logarithm of the number of training patches.",
        [
            Column("arm", "arm"),
            Column("area", "score"),
            Column(f"difference from {arm_name(base)}, points", "points"),
            *columns("p", "p", "p (Holm)"),
        ],
        [[arm, area, *gains.get(arm, [None] * 3)] for arm, area in found.areas.items()],
    )


def matches_table(analysis: Analysis) -> Table:
    """Returns the number of patches that the baseline needs to match each arm."""
    found, base = analysis.size_study, arm_name(analysis.baseline)
    return Table(
        "matches",
        f"Equivalent sample size: target patches that {base} needs to match each arm.",
        [_patches(analysis), *columns("match", *map(arm_name, found.matches))],
        list(zip(found.n, *found.matches.values(), strict=True)),
        f"Interpolated on the learning curve of {base}, made monotone, without "
        "extrapolation. Brackets give 95 % percentile intervals.",
    )


def _of_these(one: Interval) -> Interval:
    """Returns the interval for the training patients of the study."""
    if one.these is None:
        return one
    return Interval(one.estimate, *one.these)


def _trained(size: Size) -> str:
    mean = " on average" if len(set(size.patches)) > 1 else ""
    return f"{mean_and_range(size.patches)} target patches{mean}"


def _tests(scores: Scores) -> str:
    patches = f"{scores.examples:,} test patches"
    return f"{patches} of {scores.groups:,} patients" if scores.groups else patches


def _means(analysis: Analysis) -> str:
    if not analysis.sizes_differ:
        return ""
    return "Training sets of seeds and folds differ in size: sizes are means. "


def _patches(analysis: Analysis) -> Column:
    title = "training patches"
    return Column(f"{title} (mean)" if analysis.sizes_differ else title, "count")
