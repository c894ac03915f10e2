"""The tables of how scores depend on the size of the target training set."""

from twostage_jax.report import findings
from twostage_jax.report.analysis import METRIC, Analysis
from twostage_jax.report.formats import Column, Table, show
from twostage_jax.report.scores_content import as_interval, how


def sizes(analysis: Analysis) -> Table:
    """Returns the score of each arm at each size."""
    arms = list(analysis.full.scores.arms)
    patients_known = any(size.groups is not None for size in analysis.sizes)
    return Table(
        "sizes",
        "Balanced accuracy in per cent by size of the target training set, patch level.",
        [
            Column("fraction", "number"),
            Column("training patches", "count"),
            *([Column("patients", "count")] if patients_known else []),
            Column("seeds", "count"),
            *(Column(show("arm", arm), "score") for arm in arms),
        ],
        [
            [
                size.fraction,
                size.n,
                *([size.groups] if patients_known else []),
                len(size.scores.seeds),
                *(size.scores.intervals[METRIC].get(arm) for arm in arms),
            ]
            for size in analysis.sizes
        ],
        "Fractions are nested and the same examples for every arm; the test set is the "
        "same at every size, and so is the validation set, whose patches are not "
        f"counted. {how(analysis.full.scores)}",
    )


def size_pairs(analysis: Analysis) -> Table:
    """Returns each arm less the baseline at each size."""
    found = findings.size_differences(analysis)
    return Table(
        "size_differences",
        f"Paired differences from {show('arm', analysis.baseline)} in points of balanced "
        "accuracy, by size of the target training set.",
        [
            Column("training patches", "count"),
            Column("arm", "arm"),
            Column("difference", "points"),
            Column("p", "p"),
            Column(f"p (Holm, {len(found)} rows)", "p"),
        ],
        [
            [size.n, one.first, as_interval(one), one.p_value, p]
            for size, one, p in found
        ],
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
            Column("training patches", "count"),
            *(Column(show("arm", arm), "match") for arm in found.matches),
        ],
        [
            [n, *(by_size[i] for by_size in found.matches.values())]
            for i, n in enumerate(found.n)
        ],
        f"Between the sizes studied, read off the curve of {base}, made monotone; "
        "nothing is extrapolated. In brackets 95 % percentile intervals.",
    )
