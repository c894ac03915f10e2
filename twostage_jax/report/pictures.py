"""The figures of the report, each with what it shows in words."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from twostage_jax.report import figures, montages
from twostage_jax.report.analysis import Analysis, patients_of_curve
from twostage_jax.report.artefacts import Artefacts, Examples, Mistakes, StageRecord
from twostage_jax.report.formats import show
from twostage_jax.report.joining import Study
from twostage_jax.report.parts import Card, Cards, Picture
from twostage_jax.report.scores import Scores
from twostage_jax.stats import metrics

MISTAKES_SHOWN = 8


def size_curve(study: Study, analysis: Analysis) -> Picture:
    """Draws the score against the size of the target set."""
    found = analysis.size_study
    curves = {
        arm: {
            "n": list(found.n),
            "score": [100 * one.estimate for one in intervals],
            "low": [_percent(one.low) for one in intervals],
            "high": [_percent(one.high) for one in intervals],
        }
        for arm, intervals in found.scores.items()
    }
    smallest, largest = found.n[0], found.n[-1]
    ends = "; ".join(
        f"{show('arm', arm)} from {one[0].estimate * 100:.1f} to "
        f"{one[-1].estimate * 100:.1f} %"
        for arm, one in found.scores.items()
    )
    unit, means, seeds, drawn = "target training patches", "", "", ""
    patients = patients_of_curve(study, analysis)
    if patients:
        unit += " (patients)"
        drawn = " In brackets: the training patients, by whom the sizes are drawn."
    if analysis.sizes_differ:
        unit += ", mean"
        means = " The size is a mean over seeds and folds, whose training sets differ."
    if any(size.scores.seeds != analysis.common_seeds for size in analysis.sizes):
        listed = ", ".join(map(str, analysis.common_seeds))
        seeds = f" Only seeds that are whole at every size are drawn: {listed}."
    return Picture(
        "size_curve",
        figures.size_curve(
            curves, unit=unit, score="balanced accuracy (%)", patients=patients
        ),
        f"Balanced accuracy against the number of target training patches, from "
        f"{smallest:,.0f} to {largest:,.0f}: {ends}.",
        "Balanced accuracy against the size of the target training set (logarithmic); "
        "bands and bars are 95 % confidence intervals of each arm alone. Bands "
        "of two arms may overlap though their paired difference is shown."
        f"{drawn}{means}{seeds}",
    )


def confusion(scores: Scores) -> Picture:
    """Draws the confusion matrices, seeds added up."""
    worst = "; ".join(
        f"{show('arm', arm)}: {_worst(matrix, scores.class_names)}"
        for arm, matrix in scores.confusion.items()
    )
    level = f"{scores.level} level"
    return Picture(
        scores.named("confusion_matrices"),
        figures.confusion_matrices(scores.confusion, scores.class_names),
        f"Confusion matrix of each arm, {level}. Most frequent confusion: {worst}.",
        f"Confusion matrices of the test set, {level}, seeds added up: shares of each "
        "true class, counts below.",
    )


def calibration(scores: Scores) -> Picture:
    """Draws the reliability of each arm, seeds pooled."""
    bins = {
        arm: metrics.reliability(
            np.concatenate([one.labels for one in seeds]),
            np.concatenate([one.probabilities for one in seeds]),
        )
        for arm, seeds in scores.arms.items()
    }
    leaning = "; ".join(
        f"{show('arm', arm)} {_leaning(*found)}" for arm, found in bins.items()
    )
    return Picture(
        "calibration",
        figures.calibration(bins),
        f"Accuracy against confidence of each arm: {leaning}.",
        "Reliability, patch level: accuracy against mean confidence in 15 bins; on the "
        "dashed line a network is right as often as it says. Bins with less than 1 % of "
        "the examples are left out. Below: where the confidences lie.",
    )


def learning_curves(
    study: Study, stages: Mapping[str, StageRecord], fraction: float
) -> Picture | None:
    """Draws the learning curves of the runs behind the rows at one fraction."""
    arms: dict[str, set[str]] = {}
    for place, record in study.records.items():
        if place.fraction == fraction:
            for name in record.stage_runs:
                arms.setdefault(name, set()).add(place.arm)
    curves: dict[str, dict] = {}
    order = sorted(study.arms.values(), key=len)
    for stage in dict.fromkeys(name for chain in reversed(order) for name in chain):
        for name, users in arms.items():
            record = stages.get(name)
            if record and record.lineage["stage"] == stage:
                arm = next(iter(users)) if len(users) == 1 else ""
                history = record.lineage["history"]
                curves.setdefault(stage, {})[name] = (arm, history)
    if not curves:
        return None
    runs = ", ".join(f"{stage} ({len(found)} runs)" for stage, found in curves.items())
    return Picture(
        "learning_curves",
        figures.learning_curves(curves),
        f"Balanced accuracy and loss on validation against the training step, for each "
        f"stage: {runs}.",
        "Learning curves on validation. Thin: single runs; thick: the mean of an arm's "
        "runs. Runs that several arms share are grey.",
    )


def examples(stage: str, found: Examples) -> Picture:
    """Draws example patches of each class of a stage's data."""
    names = [str(name) for name in found.class_names]
    return Picture(
        f"examples_{figures.file_name(stage)}",
        montages.montage(found.images, found.labels, names, stage),
        f"Example images of the {len(names)} classes of stage {stage}: "
        f"{', '.join(names)}.",
        f"Example images of each class of stage {stage}.",
    )


def mistakes(arm: str, found: Mistakes, class_names: Sequence[str]) -> Picture:
    """Draws the worst mistakes of an arm."""
    shown = _worst_first(found)
    return Picture(
        f"mistakes_{figures.file_name(arm)}",
        montages.labelled(
            found.images[shown],
            [mistake_lines(found, i, class_names)[:2] for i in shown],
            f"{figures.arm_label(arm)}: worst mistakes",
        ),
        f"The {len(shown)} worst mistakes of {show('arm', arm)}; the cards list them.",
        f"Worst mistakes of {show('arm', arm)}: true class above, predicted below.",
    )


def mistake_cards(arm: str, found: Mistakes, class_names: Sequence[str]) -> Cards:
    """Returns the worst mistakes of an arm as cards."""
    cards = [
        Card(
            png(found.images[i]),
            f"Test patch {found.ids[i]}",
            mistake_lines(found, i, class_names),
        )
        for i in _worst_first(found)
    ]
    return Cards(show("arm", arm), cards)


def mistake_lines(found: Mistakes, i: int, class_names: Sequence[str]) -> list[str]:
    """Returns what a mistake was, what was predicted, and of whom it is."""
    predicted = int(found.probabilities[i].argmax())
    label = int(found.labels[i])
    lines = [
        f"true: {class_names[label]} ({found.probabilities[i, label]:.2f})",
        f"predicted: {class_names[predicted]} ({found.probabilities[i, predicted]:.2f})",
    ]
    if found.groups[i]:
        group = str(found.groups[i])
        lines.append(group if group.startswith("patient") else f"patient {group}")
    return lines


def png(image: np.ndarray) -> bytes:
    """Returns a `[H, W, 1 or 3]` uint8 image as PNG."""
    written = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        written, "PNG"
    )
    return written.getvalue()


def of_artefacts(study: Study, found: Artefacts) -> list[Picture]:
    """Returns the example figures, in the order of the longest chain."""
    order = max(study.arms.values(), key=len)
    names = sorted(
        found.examples, key=lambda n: order.index(n) if n in order else len(order)
    )
    return [examples(name, found.examples[name]) for name in names]


def _worst_first(found: Mistakes) -> np.ndarray:
    """Returns the mistakes to show: those surest of a wrong class first."""
    true = np.take_along_axis(found.probabilities, found.labels[:, None], 1)[:, 0]
    wrong = found.probabilities.argmax(1) != found.labels
    order = np.argsort(true - found.probabilities.max(1), kind="stable")
    return order[wrong[order]][:MISTAKES_SHOWN]


def _worst(matrix: np.ndarray, names: Sequence[str]) -> str:
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    true, predicted = np.unravel_index(shares.argmax(), shares.shape)
    if not shares[true, predicted]:
        return "none"
    share = 100 * shares[true, predicted]
    return f"{share:.0f} % of {names[true]} taken for {names[predicted]}"


def _leaning(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> str:
    some = count > 0
    gap = np.average((confidence - accuracy)[some], weights=count[some])
    if abs(gap) < 0.01:
        return "is neither over- nor under-confident on average"
    return (
        f"is {'over' if gap > 0 else 'under'}-confident by {abs(100 * gap):.0f} points"
    )


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value
