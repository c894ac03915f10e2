"""Figures for print: one colour an arm, text of 7 to 8 pt at the width it is made for.

Every function returns a `Figure`; `save` writes it.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from twostage_jax.report.style import (
    ARM_COLOURS,
    COLUMN,
    LABEL_ROOM,
    OTHER_COLOURS,
    PAGE,
    SHARED,
    STYLE,
    arm_label,
    arm_style,
    file_name,
    plain,
    save,
    styled,
    svg,
)

__all__ = [
    "ARM_COLOURS", "COLUMN", "OTHER_COLOURS", "PAGE", "SHARED", "STYLE", "arm_label",
    "arm_style", "calibration", "confusion_matrices", "file_name",
    "learning_curves", "plain", "save", "size_curve", "svg",
]  # fmt: skip
# Bins with a smaller share of the examples are not drawn.
MIN_SHARE = 0.01

History = Sequence[Mapping[str, float]]


@styled
def learning_curves(
    stages: Mapping[str, Mapping[str, tuple[str, History]]],
) -> Figure:
    """Draws loss and validation score against the step, one column of panels a stage.

    Args:
      stages: Stage name -> stage run -> (arm, history). The arm is '' for a run that
        several arms share. An entry of a history has 'step', 'loss' (training),
        'validation_loss' and 'validation_balanced_accuracy'. Thin lines are runs, a
        thick one is the mean of an arm's runs.
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
    _legend_above(figure, arms)
    return figure


def _curves(
    axes: Axes, runs: Mapping[str, tuple[str, History]], key: str
) -> dict[str, Any]:
    """Draws one panel; returns a line for each arm."""
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


def _legend_above(figure: Figure, lines: Mapping[str, Any]) -> None:
    names = [arm_label(arm) if arm else "shared by arms" for arm in lines]
    figure.legend(
        lines.values(), names, loc="outside upper center", ncols=max(len(names), 1)
    )


@styled
def confusion_matrices(
    matrices: Mapping[str, np.ndarray], class_names: Sequence[str]
) -> Figure:
    """Draws one panel an arm: shares of each true class, and below them the counts.

    Where cells are too small for both (ten classes or more), they hold per cent.

    Args:
      matrices: Arm -> counts `[K, K]`, true class by row.
      class_names: K names.
    """
    count = len(class_names)
    # A cell needs about 0.3 inch to hold a share that can be read.
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
        elif cell >= 0.3:
            write(i - 0.13, f"{share:.2f}", fontsize=size)
            write(i + 0.22, f"{matrix[i, j]:,}", fontsize=0.75 * size)
        elif share >= 0.005:
            write(i, f"{100 * share:.0f}", fontsize=size)


@styled
def size_curve(
    curves: Mapping[str, Mapping[str, Sequence[float | None]]],
    *,
    unit: str = "target training patches",
    score: str = "balanced accuracy",
    patients: Mapping[float, float] | None = None,
) -> Figure:
    """Draws the score against the size of the target training set, a band an arm.

    Args:
      curves: Arm -> 'n' (sizes), 'score', and 'low' and 'high' (the band; None where
        there is none).
      unit: What is counted.
      score: What is scored.
      patients: Size -> patients it is of, in brackets below the size; or None.
    """
    figure = Figure(figsize=(COLUMN, 2.6), layout="constrained")
    axes = figure.subplots()
    sizes: set[float] = set()
    for place, (arm, curve) in enumerate(curves.items()):
        order = np.argsort(curve["n"])
        n, value, low, high = (
            np.array(curve[key], float)[order] for key in ("n", "score", "low", "high")
        )
        sizes |= set(n)
        style = arm_style(arm)
        axes.fill_between(n, low, high, color=style["color"], alpha=0.1, linewidth=0)
        # Bars, a little apart, where bands of several arms cannot be told apart.
        apart = n * 1.02 ** (place - (len(curves) - 1) / 2)
        axes.vlines(apart, low, high, color=style["color"], linewidth=0.7)
        axes.plot(apart, value, label=arm_label(arm), **style)
    axes.set_xscale("log")
    ticks = _apart(sorted(sizes))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    labels = [f"{n:,.0f}" for n in ticks]
    if patients:
        # A mean over seeds and folds need not be whole.
        numbers = [f"{patients[n]:,.1f}".removesuffix(".0") for n in ticks]
        labels = [f"{n}\n({p})" for n, p in zip(labels, numbers, strict=True)]
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(plain(unit))
    axes.set_ylabel(plain(score))
    axes.legend(loc="best")
    return figure


def _apart(sizes: Sequence[float]) -> list[float]:
    """Returns the sizes to label: the largest, and those clear of the next label."""
    gap = (sizes[-1] / sizes[0]) ** 0.08 if sizes else 1
    kept: list[float] = []
    for size in reversed(sizes):
        if not kept or kept[-1] / size >= max(gap, 1.05):
            kept.append(size)
    return kept[::-1]


@styled
def calibration(
    bins: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> Figure:
    """Draws reliability diagrams, and below them where the confidences lie.

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
    below.set(xlabel="confidence", ylabel="share", ylim=(0, None))
    return figure
