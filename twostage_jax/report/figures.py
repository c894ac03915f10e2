"""Figures for print, and their captions for the report.

Each arm has one colour; text is 7 to 8 pt at the printed width, 3.5 inches for a column
and 7 for a page. Functions named after a figure return a `Figure`, which `save` writes;
those named `..._picture` add the caption and the alternative text. pyplot's global
state is never touched, so figures may be drawn in threads.
"""

import functools
import io
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from PIL import Image

from twostage_jax import errors
from twostage_jax.report.analysis import (
    Analysis,
    ByPatient,
    Scores,
    patients_of_curve,
)
from twostage_jax.report.artefacts import Artefacts, Mistakes, StageRecord
from twostage_jax.report.parts import Card, Cards, Picture
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import LONGEST_NAME, arm_name, file_name
from twostage_jax.stats import metrics
from twostage_jax.stats.intervals import Interval

COLUMN, PAGE = 3.5, 7.0  # inches
LABEL_ROOM = 1.2  # inches next to or below panels, for class names of 18 letters
# Okabe and Ito 2008, "Color Universal Design"; distinct in all forms of colour
# blindness, except their yellow, which is too faint on white paper.
ARM_COLOURS = {
    "scratch": "#000000",
    "natural": "#0072B2",
    "texture": "#009E73",
    "two_stage": "#D55E00",
}
ARM_MARKERS = {"scratch": "o", "natural": "s", "texture": "^", "two_stage": "D"}
OTHER_COLOURS = ("#56B4E9", "#E69F00", "#CC79A7")
OTHER_MARKERS = ("v", "P", "X", "<", ">")
SHARED = "#6B6B6B"  # runs that several arms share
STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    # TrueType outlines: text in a PDF stays text, and journals accept it.
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
# Of a stage run; an entry has 'step', 'loss' and others, see `learning_curves`.
History = Sequence[Mapping[str, float]]
# Bins with a smaller share of the examples are not drawn.
MIN_SHARE = 0.01
EXAMPLES_SHOWN = 8  # per class
MISTAKES_SHOWN = 8


def arm_style(arm: str) -> dict[str, str]:
    """Returns colour and marker of an arm, the same in every figure.

    The four arms of the paper have their own; others take theirs from their name.
    """
    number = zlib.crc32(arm.encode())
    return {
        "color": ARM_COLOURS.get(arm, OTHER_COLOURS[number % len(OTHER_COLOURS)]),
        "marker": ARM_MARKERS.get(arm, OTHER_MARKERS[number % len(OTHER_MARKERS)]),
    }


def arm_label(arm: str) -> str:
    """Returns the name of an arm in a figure: 'two-stage' for 'two_stage'."""
    return arm_name(arm).replace("$", r"\$")


def plain(text: object, limit: int = LONGEST_NAME) -> str:
    """Returns text for a figure: one short line, without mathematics."""
    return errors.plain(str(text), limit).replace("$", r"\$")


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Returns a drawing function that uses this style."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, path: Path | str) -> list[Path]:
    """Writes `path`.png (200 dpi) and `path`.pdf (vector text); returns both paths."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    with matplotlib.rc_context(STYLE):
        figure.savefig(written[0])
        # Without a date, equal figures give equal files.
        figure.savefig(written[1], metadata={"CreationDate": None})
    return written


def svg(figure: Figure) -> bytes:
    """Returns a figure as SVG, with text as outlines to look the same in all browsers."""
    written = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "twostage_jax"}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def png(image: np.ndarray) -> bytes:
    """Returns a `[H, W, 1 or 3]` uint8 image as PNG."""
    written = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
        written, "PNG"
    )
    return written.getvalue()


def picture(
    figure: Figure,
    box: tuple[float, float, float, float],
    image: np.ndarray,
    cmap: str = "gray",
    vmin: float = 0,
    vmax: float = 1,
) -> Axes:
    """Draws an image into a box in inches: left, bottom, width, height."""
    size = np.tile(figure.get_size_inches(), 2)
    axes = figure.add_axes(tuple(np.array(box) / size))
    axes.imshow(image, cmap=cmap, vmin=vmin, vmax=vmax, interpolation="nearest")
    axes.set_axis_off()
    return axes


def writer(figure: Figure) -> Callable[..., Any]:
    """Returns `figure.text` for places in inches, vertically centred."""
    return functools.partial(figure.text, transform=figure.dpi_scale_trans, va="center")


def legend_above(figure: Figure, lines: Mapping[str, Any]) -> None:
    """Draws a legend above the panels, in one row, of label -> line."""
    figure.legend(
        lines.values(), lines, loc="outside upper center", ncols=max(len(lines), 1)
    )


@styled
def learning_curves(
    stages: Mapping[str, Mapping[str, tuple[str, History]]],
) -> Figure:
    """Draws loss and validation score against the step, one column per stage.

    Thin lines are runs, thick lines the means of an arm's runs.

    Args:
      stages: Stage name -> stage run -> (arm, history). The arm is '' for a run that
        several arms share. An entry of a history has 'step', 'loss' (training),
        'validation_loss' and 'validation_balanced_accuracy'.
    """
    panels = (
        ("validation_balanced_accuracy", "balanced accuracy"),
        ("validation_loss", "loss"),
    )
    width = COLUMN if len(stages) == 1 else PAGE
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots(2, max(len(stages), 1), sharex="col", squeeze=False)
    arms = {}
    for column, (stage, runs) in enumerate(stages.items()):
        axes[0, column].set_title(plain(stage))
        axes[1, column].set_xlabel("step")
        for row, (key, _) in enumerate(panels):
            arms |= _curves(axes[row, column], runs, key)
            axes[row, column].margins(x=0.02)
            axes[row, column].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for row, (_, label) in enumerate(panels):
        axes[row, 0].set_ylabel(f"validation\n{label}")
    # In the order of the tables.
    order = [arm for arm in dict.fromkeys([*ARM_COLOURS, *arms]) if arm in arms]
    legend_above(
        figure,
        {arm_label(arm) if arm else "shared by arms": arms[arm] for arm in order},
    )
    return figure


@styled
def confusion_matrices(
    matrices: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Figure:
    """Draws one panel per arm: fractions of each true class, with counts below.

    If cells are too small for both (ten classes or more), they hold per cent.

    Args:
      matrices: Arm -> counts `[K, K]`, true class by row.
      class_names: Names of the K classes.
    """
    count = len(class_names)
    # A cell needs about 0.3 inch to hold a legible fraction.
    per_row = max(1, min(len(matrices), 4 if count <= 4 else 2))
    rows = -(-len(matrices) // per_row)
    width = COLUMN if per_row * count <= 6 and rows == 1 else PAGE
    side = min((width - LABEL_ROOM) / per_row - 0.1, 0.75 * count)
    size = (per_row * (side + 0.1) + LABEL_ROOM, rows * (side + 0.25) + LABEL_ROOM)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, per_row, sharex=True, sharey=True, squeeze=False)
    for panel, (arm, matrix) in zip(axes.flat, matrices.items(), strict=False):
        _matrix(panel, np.asarray(matrix), side / count)
        panel.set_title(arm_label(arm), color=arm_style(arm)["color"], weight="bold")
    names = [plain(name, 18) for name in class_names]
    for panel in axes.flat[len(matrices) :]:
        panel.set_visible(False)
    turned = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    for panel in axes.flat:
        panel.set_xticks(range(count), names, **turned)
        panel.set_yticks(range(count), names)
        panel.tick_params(length=0)
    figure.supxlabel("predicted class", fontsize=8)
    figure.supylabel("true class", fontsize=8)
    return figure


@styled
def size_curve(
    n: Sequence[float],
    curves: Mapping[str, Sequence[Interval]],
    *,
    unit: str = "target training patches",
    patients: Mapping[float, float] | None = None,
) -> Figure:
    """Draws the score against the size of the target training set, one band per arm.

    Args:
      n: Sizes, ascending.
      curves: Arm -> balanced accuracy at each size.
      unit: Label of the sizes.
      patients: Size -> number of patients, shown in brackets below the size; or None.
    """
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (arm, curve) in enumerate(curves.items()):
        # A missing end is drawn as NaN.
        value, low, high = (
            100
            * np.array([(one.estimate, one.low, one.high) for one in curve], float).T
        )
        style = arm_style(arm)
        axes.fill_between(n, low, high, color=style["color"], alpha=0.1, linewidth=0)
        # Bars are slightly offset, because bands of several arms overlap.
        apart = np.array(n) * 1.02 ** (place - (len(curves) - 1) / 2)
        axes.vlines(apart, low, high, color=style["color"], linewidth=0.7)
        axes.plot(apart, value, label=arm_label(arm), **style)
    axes.set_xscale("log")
    ticks = _apart(n)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    labels = [f"{size:,.0f}" for size in ticks]
    if patients:
        # A mean over seeds and folds need not be an integer.
        numbers = [f"{patients[size]:,.1f}".removesuffix(".0") for size in ticks]
        labels = [f"{size}\n({p})" for size, p in zip(labels, numbers, strict=True)]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(plain(unit))
    axes.set_ylabel("balanced accuracy (%)")
    axes.legend(loc="best")
    return figure


@styled
def calibration(
    bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Draws reliability diagrams, with histograms of the confidences below.

    Args:
      bins: Arm -> confidence, accuracy and count of each bin (`metrics.reliability`).
        The legend gives the expected calibration error of all bins; those with less
        than 1 % of the examples are not drawn.
    """
    figure = Figure(figsize=(COLUMN, 3.9), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=SHARED, linewidth=0.7, linestyle=(0, (4, 3)))
    for arm, (confidence, accuracy, count) in bins.items():
        gap = np.abs(confidence - accuracy)[count > 0]
        error = np.average(gap, weights=count[count > 0])
        # The accuracy of a handful of examples is noise that hides the rest.
        some = count >= MIN_SHARE * count.sum()
        style = arm_style(arm)
        label = f"{arm_label(arm)} (ECE {error:.3f})"
        above.plot(confidence[some], accuracy[some], label=label, **style)
        edges = np.linspace(0, 1, len(count) + 1)
        below.stairs(count / count.sum(), edges, color=style["color"])
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="accuracy")
    figure.legend(*above.get_legend_handles_labels(), loc="outside upper center",
                  ncols=2)  # fmt: skip
    below.set(xlabel="confidence", ylabel="fraction", ylim=(0, None))
    return figure


@styled
def by_patient(found: ByPatient) -> Figure:
    """Draws the scores of each patient for two arms, and the difference without each."""
    figure = Figure(figsize=(PAGE, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    first, second = found.difference.first, found.difference.second
    colour = arm_style(first)["color"]
    ours, theirs = 100 * found.scores
    low = min(ours.min(), theirs.min())
    ends = [low - 0.05 * (101 - low), 101]
    left.plot(ends, ends, color=SHARED, linewidth=0.7, linestyle=(0, (4, 3)))
    area = 12 + 60 * found.patches / found.patches.max()
    left.scatter(theirs, ours, s=area, color=colour, alpha=0.5, linewidth=0)
    left.set(xlim=ends, ylim=ends, aspect="equal")
    left.set_xlabel(f"{arm_label(second)}, score of a patient (%)")
    left.set_ylabel(f"{arm_label(first)}, score of a patient (%)")
    order = np.argsort(found.without, kind="stable")
    without, whole = 100 * found.without[order], 100 * found.difference.estimate
    rank = np.arange(len(order))
    right.axvline(0, color=SHARED, linewidth=0.7, linestyle=(0, (4, 3)))
    right.axvline(whole, color=colour, linewidth=0.7)
    right.hlines(rank, whole, without, color=SHARED, linewidth=0.5)
    right.scatter(without, rank, s=12, color=colour, zorder=3)
    right.set_xlabel(f"{arm_label(first)} minus {arm_label(second)} (points)")
    right.set_ylabel("one patient excluded per row")
    right.set_yticks([])
    return figure


@styled
def montage(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> Figure:
    """Draws examples, one row per class, in the order given.

    Args:
      images: `[N, H, W, C]`, uint8; C is 1 or 3.
      labels: `[N]` indices into `class_names`.
      class_names: Names of the classes; a class without images has no row.
      title: Title of the figure.
    """
    present = np.unique(labels)
    # Beyond a dozen classes, two blocks side by side keep the figure on one page.
    blocks = 1 if len(present) <= 12 else 2
    width, gutter = (COLUMN if blocks == 1 else PAGE), LABEL_ROOM - 0.1
    columns = min(EXAMPLES_SHOWN, np.bincount(labels).max())
    cell = min((width / blocks - gutter - 0.1) / columns, 0.6)
    rows = -(-len(present) // blocks)
    height = rows * cell + 0.35
    figure = Figure(figsize=(width, height))
    write = writer(figure)
    write(width / 2, height - 0.16, plain(title, 60), ha="center")
    for place, label in enumerate(present):
        block, row = divmod(place, rows)
        left = block * width / blocks + gutter
        bottom = height - 0.3 - (row + 1) * cell
        name = plain(class_names[label], 18)
        write(left - 0.06, bottom + cell / 2, name, ha="right", fontsize=7)
        chosen = images[labels == label][:columns]
        box = (left, bottom, cell * len(chosen), cell)
        picture(figure, box, _strip(chosen), vmax=255)
    return figure


@styled
def labelled(images: np.ndarray, lines: Sequence[Sequence[str]], title: str) -> Figure:
    """Draws images four per row, each above its lines of text.

    Args:
      images: `[N, H, W, C]`, uint8; C is 1 or 3.
      lines: Lines of text per image.
      title: Title of the figure.
    """
    cell, side = PAGE / 4, 1.2
    deep = 0.15 * max(map(len, lines)) + 0.1
    width = cell * min(4, len(images))
    height = -(-len(images) // 4) * (side + deep) + 0.3
    figure = Figure(figsize=(width, height))
    write = writer(figure)
    write(width / 2, height - 0.16, plain(title, 60), ha="center")
    for place, (image, below) in enumerate(zip(images, lines, strict=True)):
        row, column = divmod(place, 4)
        left = column * cell + (cell - side) / 2
        bottom = height - 0.3 - row * (side + deep) - side
        picture(figure, (left, bottom, side, side), image.squeeze(), vmax=255)
        text = "\n".join(plain(line, 30) for line in below)
        write(left + side / 2, bottom - 0.04, text, ha="center", va="top", fontsize=6.5)
    return figure


def size_picture(study: Study, analysis: Analysis) -> Picture:
    """Draws the score against the size of the target set."""
    found = analysis.size_study
    smallest, largest = found.n[0], found.n[-1]
    ends = "; ".join(
        f"{arm_name(arm)} from {one[0].estimate * 100:.1f} to "
        f"{one[-1].estimate * 100:.1f} %"
        for arm, one in found.scores.items()
    )
    unit, means, seeds, drawn = "target training patches", "", "", ""
    patients = patients_of_curve(study, analysis)
    if patients:
        unit += " (patients)"
        drawn = " Brackets give the training patients, by whom the subsets are drawn."
    if analysis.sizes_differ:
        unit += ", mean"
        means = " Sizes are means over seeds and folds, whose training sets differ."
    if any(size.scores.seeds != analysis.common_seeds for size in analysis.sizes):
        listed = ", ".join(map(str, analysis.common_seeds))
        seeds = f" Only seeds that are complete at every size are drawn: {listed}."
    return Picture(
        "size_curve",
        size_curve(found.n, found.scores, unit=unit, patients=patients),
        f"Balanced accuracy against the number of target training patches, from "
        f"{smallest:,.0f} to {largest:,.0f}: {ends}.",
        "Balanced accuracy against the size of the target training set (logarithmic); "
        "bands and bars are 95 % confidence intervals of each arm alone. Bands of two "
        "arms may overlap although their paired difference is significant."
        f"{drawn}{means}{seeds}",
    )


def confusion_picture(scores: Scores) -> Picture:
    """Draws the confusion matrices, summed over seeds."""
    worst = "; ".join(
        f"{arm_name(arm)}: {_worst(matrix, scores.class_names)}"
        for arm, matrix in scores.confusion.items()
    )
    level = f"{scores.level} level"
    return Picture(
        scores.named("confusion_matrices"),
        confusion_matrices(scores.confusion, scores.class_names),
        f"Confusion matrix of each arm, {level}. Most frequent confusion: {worst}.",
        f"Confusion matrices of the test set, {level}, summed over seeds: fractions of "
        "each true class, with counts below.",
    )


def patients_picture(found: ByPatient) -> Picture:
    """Draws the main difference by patient."""
    first, second = (
        arm_name(a) for a in (found.difference.first, found.difference.second)
    )
    return Picture(
        "by_patient",
        by_patient(found),
        f"Scores of {first} are higher than those of {second} in {found.ahead} of "
        f"{len(found.patients)} patients, lower in {found.behind}. If any one patient is "
        f"excluded, the difference is {100 * found.without.min():.1f} to "
        f"{100 * found.without.max():.1f} points.",
        f"Left: score of each patient's patches, {first} against {second}; above the "
        "dashed line the former is better, and larger points have more patches. Right: "
        "difference of the arms if one patient is excluded; the line includes all.",
    )


def calibration_picture(scores: Scores) -> Picture:
    """Draws the reliability of each arm, seeds pooled."""
    bins = {
        arm: metrics.reliability(
            np.concatenate([one.labels for one in seeds]),
            np.concatenate([one.probabilities for one in seeds]),
        )
        for arm, seeds in scores.arms.items()
    }
    leaning = "; ".join(
        f"{arm_name(arm)} {_leaning(*found)}" for arm, found in bins.items()
    )
    return Picture(
        "calibration",
        calibration(bins),
        f"Accuracy against confidence of each arm: {leaning}.",
        "Reliability, patch level: accuracy against mean confidence in 15 bins; the "
        "dashed line is perfect calibration. Bins with less than 1 % of the examples are "
        "not drawn. Below: histogram of the confidences.",
    )


def curves_picture(
    study: Study, stages: Mapping[str, StageRecord], fraction: float
) -> Picture | None:
    """Draws the training curves of the runs behind the rows at one fraction."""
    arms: dict[str, set[str]] = {}
    for place, record in study.records.items():
        if place.fraction == fraction:
            for name in record.stage_runs:
                arms.setdefault(name, set()).add(place.arm)
    order = sorted(study.arms.values(), key=len)
    curves: dict[str, dict] = {n: {} for chain in reversed(order) for n in chain}
    for name, users in arms.items():
        # An imported stage has an empty history.
        if name in stages and (history := stages[name].lineage["history"]):
            arm = next(iter(users)) if len(users) == 1 else ""
            of_stage = curves.setdefault(stages[name].lineage["stage"], {})
            of_stage[name] = (arm, history)
    curves = {stage: runs for stage, runs in curves.items() if runs}
    if not curves:
        return None
    runs = ", ".join(f"{stage} ({len(found)} runs)" for stage, found in curves.items())
    return Picture(
        "learning_curves",
        learning_curves(curves),
        f"Balanced accuracy and loss on validation against the training step, for each "
        f"stage: {runs}.",
        "Training curves on validation examples. Thin: single runs; thick: the mean of "
        "an arm's runs. Runs that several arms share are grey.",
    )


def example_pictures(study: Study, found: Artefacts) -> list[Picture]:
    """Draws example patches of each class of the data sets, in order of stages."""
    order = max(study.arms.values(), key=len)
    stages = sorted(
        found.examples, key=lambda n: order.index(n) if n in order else len(order)
    )
    data = {
        record.lineage["stage"]: record.lineage["data"].get("name")
        for record in found.stages.values()
    }
    pictures = []
    for stage in stages:
        kept = found.examples[stage]
        title = f"{stage}: {data[stage]}" if data.get(stage) else stage
        pictures.append(
            Picture(
                f"examples_{file_name(stage)}",
                montage(kept.images, kept.labels, kept.class_names, title),
                f"Example images of the {len(kept.class_names)} classes of stage "
                f"{stage}: {', '.join(kept.class_names)}.",
                f"Example images of each class of stage {stage}.",
            )
        )
    return pictures


def mistakes_picture(arm: str, found: Mistakes, class_names: Sequence[str]) -> Picture:
    """Draws the worst mistakes of an arm."""
    shown = _worst_first(found)
    return Picture(
        f"mistakes_{file_name(arm)}",
        labelled(
            found.images[shown],
            [mistake_lines(found, i, class_names)[:2] for i in shown],
            f"{arm_label(arm)}: worst mistakes",
        ),
        f"The {len(shown)} worst mistakes of {arm_name(arm)}; the cards list them.",
        f"Worst mistakes of {arm_name(arm)}: true class above, predicted below.",
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
    return Cards(arm_name(arm), cards)


def mistake_lines(found: Mistakes, i: int, class_names: Sequence[str]) -> list[str]:
    """Returns the true class, the predicted class and the patient of a mistake."""
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


def _curves(
    axes: Axes, runs: Mapping[str, tuple[str, History]], key: str
) -> dict[str, Any]:
    """Draws one panel and returns a line per arm."""
    by_arm: dict[str, list[np.ndarray]] = {}
    for arm, history in runs.values():
        points = [(entry["step"], entry[key]) for entry in history if key in entry]
        if points:
            by_arm.setdefault(arm, []).append(np.array(points, float))
    lines = {}
    for arm, curves in by_arm.items():
        colour = arm_style(arm)["color"] if arm else SHARED
        for curve in curves if len(curves) > 1 else ():
            axes.plot(*curve.T, color=colour, linewidth=0.5, alpha=0.35)
        steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
        means = [
            np.mean([curve[curve[:, 0] == step, 1].mean() for curve in curves
                     if step in curve[:, 0]])
            for step in steps
        ]  # fmt: skip
        few = {"marker": arm_style(arm)["marker"]} if len(steps) < 3 else {}
        (lines[arm],) = axes.plot(steps, means, color=colour, **few)
    return lines


def _matrix(axes: Axes, matrix: np.ndarray, cell: float) -> None:
    """Draws a matrix whose cells are `cell` inches wide."""
    totals = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.zeros(matrix.shape), where=totals > 0)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for spine in axes.spines.values():
        spine.set_visible(False)
    size = max(min(7.0, cell * 72 / 3.2), 5.0)
    for (i, j), share in np.ndenumerate(shares):
        write = functools.partial(
            axes.text, j, color="white" if share > 0.55 else "black", ha="center",
            va="center",
        )  # fmt: skip
        if not totals[i]:
            write(i, "–", fontsize=size)
        elif not share:
            pass  # Empty cells make the confusions stand out.
        elif cell >= 0.3:
            write(i - 0.13, f"{share:.2f}", fontsize=size)
            write(i + 0.22, f"{matrix[i, j]:,}", fontsize=0.75 * size)
        elif share >= 0.005:
            write(i, f"{100 * share:.0f}", fontsize=size)


def _apart(sizes: Sequence[float]) -> list[float]:
    """Returns the sizes to label: the largest, and those far enough from the next."""
    gap = (sizes[-1] / sizes[0]) ** 0.08 if sizes else 1
    kept: list[float] = []
    for size in reversed(sizes):
        if not kept or kept[-1] / size >= max(gap, 1.05):
            kept.append(size)
    return kept[::-1]


def _strip(images: np.ndarray) -> np.ndarray:
    """Returns images side by side with white edges: `[H, W * N]` or `[.., 3]`."""
    edge = max(1, images.shape[1] // 24)
    pads = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = np.pad(images, pads, constant_values=255)
    return np.concatenate(list(padded), axis=1).squeeze()


def _worst_first(found: Mistakes) -> np.ndarray:
    """Returns the mistakes to show, most confident first."""
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
    return f"{share:.0f} % of {names[true]} classified as {names[predicted]}"


def _leaning(confidence: np.ndarray, accuracy: np.ndarray, count: np.ndarray) -> str:
    some = count > 0
    gap = np.average((confidence - accuracy)[some], weights=count[some])
    if abs(gap) < 0.01:
        return "is neither over- nor under-confident on average"
    return (
        f"is {'over' if gap > 0 else 'under'}-confident by {abs(100 * gap):.0f} points"
    )
