"""The tables of classes, of confusion and of calibration, at either level."""

import numpy as np

from twostage_jax.report.formats import Column, Table
from twostage_jax.report.joining import Study
from twostage_jax.report.scores import Scores
from twostage_jax.report.scores_content import auroc_note, how, seed_count

# Metric of `additive.of_class` -> title and kind of its column.
OF_CLASS = {
    "precision": ("precision", "score"),
    "recall": ("recall", "score"),
    "f1": ("F1", "score"),
    "auroc": ("AUROC", "interval"),
}


def per_class(study: Study, scores: Scores) -> Table:
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
        f"Scores of each class in per cent, {scores.level} level, mean of "
        f"{seed_count(scores)}.",
        [
            Column("class"),
            Column("arm", "arm"),
            *(Column(title, kind) for title, kind in OF_CLASS.values()),
            Column(counted, "count"),
        ],
        rows,
        "A dash stands for what a seed does not define, such as the precision of a class "
        f"never predicted. {how(scores, intervals)} "
        f"{auroc_note(study, 'the class')}",
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
    if scores.level == "region":
        few = " With so few predictions, chance alone makes the ECE larger."
    brier = scores.intervals["brier"]
    return Table(
        scores.named("calibration"),
        f"Calibration, {scores.level} level: expected calibration error (15 bins) and "
        "Brier score (0 to 2); lower is better.",
        [Column("arm", "arm"), Column("ECE", "spread"), Column("Brier", "interval")],
        [
            [arm, [one["ece"] for one in seeds], brier[arm]]
            for arm, seeds in scores.of_seeds.items()
        ],
        f"Brier: {how(scores, brier.values())} ECE: mean ± standard deviation over seeds; "
        "no interval, as it is biased by the number of patches, and more so in "
        f"resamples.{few}",
    )
