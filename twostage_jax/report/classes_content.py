"""The tables of classes, of confusion and of calibration, at either level."""

import statistics
from collections.abc import Sequence

import numpy as np

from twostage_jax import metrics
from twostage_jax.report.formats import Column, Table
from twostage_jax.report.joining import Study
from twostage_jax.report.scores import Scores
from twostage_jax.report.scores_content import (
    SPREAD,
    auroc_note,
    how,
    seed_count,
    units,
)


def per_class(study: Study, scores: Scores) -> Table:
    """Returns precision, recall, F1 and AUROC of each class and arm."""
    rows = []
    by_arm = {
        arm: [
            metrics.per_class(one.labels, one.probabilities, scores.class_names)
            for one in seeds
        ]
        for arm, seeds in scores.arms.items()
    }
    for k, name in enumerate(scores.class_names):
        for arm, seeds in by_arm.items():
            precision, f1, auroc = ([one[k][key] for one in seeds]
                                    for key in ("precision", "f1", "auroc"))  # fmt: skip
            recall, support = scores.recalls[arm][k], seeds[0][k]["support"]
            rows.append(
                [name, arm, _mean(precision), recall, _mean(f1), auroc, support]
            )
    recalls = [one for by_class in scores.recalls.values() for one in by_class]
    return Table(
        scores.named("per_class"),
        f"Scores of each class in per cent, {scores.level} level, mean of "
        f"{seed_count(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            Column("precision", "percent"),
            Column("recall", "score"),
            Column("F1", "percent"),
            Column("AUROC", "spread"),
            Column(
                "test patches" if scores.level == "patch" else "test patients", "count"
            ),
        ],
        rows,
        "A dash stands for what a seed does not define, such as the precision of a class "
        f"never predicted. {how(scores, recalls)} "
        f"{auroc_note(study, scores, 'the class')}",
    )


def confusion(scores: Scores) -> Table:
    """Returns the confusion counts of each arm, a row a cell."""
    names = scores.class_names
    return Table(
        scores.named("confusion"),
        f"Counts of the confusion matrices, {scores.level} level, seeds added up.",
        [
            Column("arm", "arm"),
            Column("true class"),
            Column("predicted class"),
            Column("count", "count"),
        ],
        [
            [arm, names[true], names[predicted], int(cell)]
            for arm, matrix in scores.confusion.items()
            for (true, predicted), cell in np.ndenumerate(matrix)
        ],
    )


def calibration(scores: Scores) -> Table:
    """Returns calibration error and Brier score of each arm."""
    few = " The seeds are pooled in the figure."
    if scores.level == "patient":
        few = " With predictions as few as these, chance alone makes the ECE larger."
    return Table(
        scores.named("calibration"),
        f"Calibration, {scores.level} level: expected calibration error (15 bins) and "
        "Brier score (0 to 2); lower is better.",
        [Column("arm", "arm"), Column("ECE", "spread"), Column("Brier", "spread")],
        [
            [arm, *([one[key] for one in seeds] for key in ("ece", "brier"))]
            for arm, seeds in scores.of_seeds.items()
        ],
        f"ECE and Brier: {SPREAD.format(units=units(scores))}{few}",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    return None if None in values else statistics.fmean(values)
