"""The section on operating points: sensitivity at a specificity fixed on validation.

Each class is tested against all others: an example counts as positive if the probability
of the class is above the threshold. The threshold is chosen on validation examples, which
were not used for fitting. The specificity on test examples therefore differs from the
target, and is given with the sensitivity.
"""

import numpy as np

from twostage_jax.report.analysis import Scores, Size
from twostage_jax.report.artefacts import Artefacts
from twostage_jax.report.parts import Part, Text
from twostage_jax.report.score_tables import balance_note, how, over_seeds
from twostage_jax.report.study_table import Place, Study
from twostage_jax.report.tables import Column, Table, columns
from twostage_jax.stats.arms import Paired
from twostage_jax.stats.intervals import Resampler, score_intervals
from twostage_jax.stats.metrics import Additive, fraction_of_class

SPECIFICITY = 0.9
# Fewer examples of the other classes do not reach the specificity to within 5 %.
FEWEST = 20
NOT_RECORDED = (
    "Not recorded: thresholds are chosen on validation predictions, which earlier "
    "versions did not store."
)


def section(study: Study, size: Size, artefacts: Artefacts) -> list[Part]:
    """Returns the parts of the section, for the scores at one size."""
    chosen = _thresholds(study, size, artefacts)
    if chosen is None:
        return [Text(NOT_RECORDED)]
    return [_table(study, size.scores, chosen)]


def thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the threshold `[K]` of each class for `SPECIFICITY`.

    It is the smallest threshold with this specificity on examples of the other classes;
    NaN if there are fewer than `FEWEST` of them.

    Args:
      labels, probabilities: `[N]` and `[N, K]`, of validation examples.
    """
    found = np.full(probabilities.shape[1], np.nan)
    for k in range(len(found)):
        others = probabilities[labels != k, k]
        if len(others) >= FEWEST:
            found[k] = np.quantile(others, SPECIFICITY, method="inverted_cdf")
    return found


def at_threshold(
    paired: Paired, threshold: np.ndarray, k: int
) -> tuple[Additive, Additive]:
    """Returns sensitivity and specificity of class `k`.

    Args:
      paired: Arms.
      threshold: `[A, S, N]`, for the model that predicted each example.
      k: Class.
    """
    above = paired.probabilities[..., k] > threshold
    own, name = paired.labels == k, paired.name(k)
    return (
        fraction_of_class(paired, above, own, f"{name} occurs"),
        fraction_of_class(paired, ~above, ~own, f"classes other than {name} occur"),
    )


def _thresholds(study: Study, size: Size, artefacts: Artefacts) -> np.ndarray | None:
    """Returns the thresholds of the runs, `[A, S, F, K]`; None if one is unknown."""
    scores = size.scores
    found = np.empty(
        (len(scores.arms), len(scores.seeds), len(study.folds), len(study.class_names))
    )
    for a, arm in enumerate(scores.arms):
        for s, seed in enumerate(scores.seeds):
            for f, fold in enumerate(study.folds):
                place = Place(arm, seed, size.fraction, fold)
                run = artefacts.last_stage(study.records[place])
                if run is None or run.validation is None:
                    return None
                found[a, s, f] = thresholds(*run.validation)
    return found


def _table(study: Study, scores: Scores, chosen: np.ndarray) -> Table:
    paired, rows = scores.paired, []
    seeds = np.arange(len(paired.seeds))[:, None]
    # The threshold of the model that predicted the example.
    of_examples = chosen[:, seeds, paired.folds[:, paired.codes]]
    for k, name in enumerate(scores.class_names):
        known = np.isfinite(of_examples[..., k]).all((1, 2))
        intervals = [
            score_intervals(Resampler(one, scores.resamples))
            for one in at_threshold(paired, of_examples[..., k], k)
        ]
        for a, arm in enumerate(scores.arms):
            cells = [None, None, None]
            if known[a]:
                threshold = float(chosen[a, ..., k].mean())
                cells = [*(by_arm[a] for by_arm in intervals), threshold]
            rows.append([name, arm, *cells])
    given = [cell for row in rows for cell in row[2:4]]
    return Table(
        "operating_points",
        f"Operating point of each class against all others: the threshold for "
        f"{100 * SPECIFICITY:.0f} % specificity on validation patients, applied to test "
        f"patients; in per cent, {over_seeds(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            *columns("score", "sensitivity", "specificity"),
            Column("threshold, mean", "number"),
        ],
        rows,
        "Each model has its own threshold, chosen on its validation patients and treated "
        "as fixed in the intervals. A dash: fewer than "
        f"{FEWEST} validation patches of other classes. "
        f"{how(scores, given)}{balance_note(study)}",
    )
