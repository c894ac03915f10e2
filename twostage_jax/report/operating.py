"""The section on operating points: sensitivity at a specificity fixed on validation."""

import numpy as np

from twostage_jax.report.analysis import Scores, with_names
from twostage_jax.report.artefacts import Artefacts
from twostage_jax.report.parts import Part, Text
from twostage_jax.report.score_tables import how, seed_count
from twostage_jax.report.study_table import Place, Study
from twostage_jax.report.tables import Column, Table
from twostage_jax.stats import operating
from twostage_jax.stats.intervals import Resampler, score_intervals

AIM = f"{100 * operating.SPECIFICITY:.0f} %"
NOT_RECORDED = (
    "Not recorded: thresholds are chosen on validation predictions, which earlier "
    "versions did not store."
)


def section(
    study: Study, scores: Scores, fraction: float, artefacts: Artefacts
) -> list[Part]:
    """Returns the parts of the section, for the scores at one fraction."""
    thresholds = _thresholds(study, scores, fraction, artefacts)
    if thresholds is None:
        return [Text(NOT_RECORDED)]
    return [_table(scores, thresholds)]


def _thresholds(
    study: Study, scores: Scores, fraction: float, artefacts: Artefacts
) -> np.ndarray | None:
    """Returns the thresholds of the runs, `[A, S, F, K]`; None if one is unknown."""
    found = np.empty(
        (len(scores.arms), len(scores.seeds), len(study.folds), len(study.class_names))
    )
    for a, arm in enumerate(scores.arms):
        for s, seed in enumerate(scores.seeds):
            for f, fold in enumerate(study.folds):
                names = study.records[Place(arm, seed, fraction, fold)].stage_runs
                run = artefacts.stages.get(names[-1]) if names else None
                if run is None or run.validation is None:
                    return None
                found[a, s, f] = operating.thresholds(*run.validation)
    return found


def _table(scores: Scores, thresholds: np.ndarray) -> Table:
    paired, rows = scores.paired, []
    folds = paired.folds
    if folds is None:
        folds = np.zeros((len(paired.seeds), len(paired.groups)), int)
    seeds = np.arange(len(paired.seeds))[:, None]
    # The threshold of the model that predicted the example.
    of_examples = thresholds[:, seeds, folds[:, paired.codes]]
    for k, name in enumerate(scores.class_names):
        known = np.isfinite(of_examples[..., k]).all((1, 2))
        intervals = [
            [
                with_names(interval, scores.class_names)
                for interval in score_intervals(Resampler(one, scores.resamples))
            ]
            for one in operating.at_threshold(paired, of_examples[..., k], k)
        ]
        for a, arm in enumerate(scores.arms):
            cells = [None, None, None]
            if known[a]:
                threshold = float(thresholds[a, ..., k].mean())
                cells = [*(by_arm[a] for by_arm in intervals), threshold]
            rows.append([name, arm, *cells])
    given = [cell for row in rows for cell in row[2:4]]
    return Table(
        "operating_points",
        f"Operating point of each class against all others: the threshold for {AIM} "
        f"specificity on validation patients, applied to test patients; in per cent, "
        f"mean of {seed_count(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            Column("sensitivity", "score"),
            Column("specificity", "score"),
            Column("threshold, mean", "number"),
        ],
        rows,
        "Each model has its own threshold, chosen on its validation patients and treated "
        "as fixed in the intervals. A dash: fewer than "
        f"{operating.FEWEST} validation patches of other classes. "
        f"{how(scores, given)}",
    )
