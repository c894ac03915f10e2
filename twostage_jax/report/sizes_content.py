"""The tables of how scores depend on the size of the target training set."""

import statistics

from twostage_jax.report import findings
from twostage_jax.report.analysis import METRIC, Analysis
from twostage_jax.report.formats import Column, Table, show
from twostage_jax.report.scores_content import how
from twostage_jax.report.tables import number_range


def sizes(analysis: Analysis) -> Table:
    """Returns the score of each arm at each size."""
    arms = list(analysis.full.scores.arms)
    counted = {"patches": [size.patches for size in analysis.sizes]}
    if any(size.patients for size in analysis.sizes):
        counted["patients"] = [size.patients for size in analysis.sizes]
    columns, numbers = [], []
    for what, of_sizes in counted.items():
        title = "training patches" if what == "patches" else what
        differ = any(len(set(one)) > 1 for one in of_sizes)
        columns.append(Column(f"{title} (mean)" if differ else title, "count"))
        numbers.append([statistics.fmean(one) if one else None for one in of_sizes])
        if differ:
            columns.append(Column(f"range of {what}"))
            numbers.append([number_range(one) for one in of_sizes])
    return Table(
        "sizes",
        "Balanced accuracy in per cent by size of the target training set, patch level.",
        [
            Column("fraction", "number"),
            *columns,
            Column("seeds", "count"),
            *(Column(show("arm", arm), "score") for arm in arms),
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
        "Fractions are nested and the same examples for every arm; the test set is the "
        "same at every size, and so is the validation set, whose patches are not "
        f"counted. {_means(analysis)}{how(analysis.full.scores)}",
    )


def _means(analysis: Analysis) -> str:
    if not analysis.sizes_differ:
        return ""
    return "Training sets of seeds and folds differ in size: sizes are means. "


def _patches(analysis: Analysis) -> Column:
    title = "training patches"
    return Column(f"{title} (mean)" if analysis.sizes_differ else title, "count")


def size_pairs(analysis: Analysis) -> Table:
    """Returns each arm minus the baseline at each size."""
    found = findings.size_differences(analysis)
    return Table(
        "size_differences",
        f"Paired differences from {show('arm', analysis.baseline)} in points of balanced "
        "accuracy, by size of the target training set.",
        [
            _patches(analysis),
            Column("arm", "arm"),
            Column("difference", "points"),
            Column("p", "p"),
            Column(f"p (Holm, {len(found)} rows)", "p"),
        ],
        [[size.n, one.first, one, one.p_value, p] for size, one, p in found],
        "Holm's correction is over all rows of this table, so it is stricter than that "
        "of the pairs at the full size.",
    )


def areas(analysis: Analysis) -> Table:
    """Returns the area under the size curve of each arm."""
    found, base = analysis.size_study, analysis.baseline
    corrected = findings.area_p_values(found)
    return Table(
        "areas",
        "Area under the size curve: mean balanced accuracy in per cent over the "
        "logarithm of the number of training patches.",
        [
            Column("arm", "arm"),
            Column("area", "score"),
            Column(f"difference from {show('arm', base)}, points", "points"),
            Column("p", "p"),
            Column("p (Holm)", "p"),
        ],
        [
            [
                arm,
                area,
                *(found.area_gains.get(arm) or (None, None)),
                corrected.get(arm),
            ]
            for arm, area in found.areas.items()
        ],
    )


def matches(analysis: Analysis) -> Table:
    """Returns how many patches the baseline needs to match each arm."""
    found, base = analysis.size_study, show("arm", analysis.baseline)
    return Table(
        "matches",
        f"Target patches that {base} needs to score as well as each arm does at a size.",
        [
            _patches(analysis),
            *(Column(show("arm", arm), "match") for arm in found.matches),
        ],
        [
            [n, *(by_size[i] for by_size in found.matches.values())]
            for i, n in enumerate(found.n)
        ],
        f"Between the sizes studied, read off the curve of {base}, made monotone; "
        "nothing is extrapolated. In brackets 95 % percentile intervals.",
    )
