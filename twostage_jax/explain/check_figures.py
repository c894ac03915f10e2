"""The figures of the checks of saliency methods; see `figures`."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from twostage_jax.explain.faithfulness import RANDOM_ORDER, SHARES, UNCHANGED
from twostage_jax.explain.figures import Failed, foot_notes, method_label
from twostage_jax.report.figures import PAGE, SHARED, STYLE, arm_label, arm_style


def _small_multiples(
    methods: Sequence[str], failed: Failed
) -> tuple[Figure, np.ndarray]:
    columns = min(len(methods), 5)
    rows = -(-len(methods) // columns)
    notes = foot_notes(failed)
    height = rows * 1.55 + 0.55 + 0.12 * len(notes)
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(panels.flat, methods, strict=False):
        axes.set_title(method_label(method, failed))
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=6, x=0.02, ha="left")
    return figure, panels


def deletion_insertion(
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]], failed: Failed
) -> Figure:
    """Draws the probability of the class while pixels are deleted and inserted.

    Args:
      curves: Arm -> 'deletion' and 'insertion' -> method -> `[len(SHARES)]`; the mean
        over seeds.
      failed: What -> the methods that fail it; they are marked.
    """
    methods = [m for m in next(iter(curves.values()))["deletion"] if m != RANDOM_ORDER]
    kinds = {"deletion": "-", "insertion": (0, (3, 1.5))}
    with matplotlib.rc_context(STYLE):
        figure, panels = _small_multiples(methods, failed)
        for axes, method in zip(panels.flat, methods, strict=False):
            for arm, of_arm in curves.items():
                colour = arm_style(arm)["color"]
                for kind, dashes in kinds.items():
                    (line,) = axes.plot(
                        SHARES,
                        of_arm[kind][RANDOM_ORDER],
                        color=colour,
                        linewidth=0.5,
                        alpha=0.45,
                    )
                    line.set_linestyle(dashes)
                    (line,) = axes.plot(
                        SHARES, of_arm[kind][method], color=colour, linewidth=1
                    )
                    line.set_linestyle(dashes)
            axes.set(xlim=(0, 1), ylim=(0, 1))
        lines = [*_arm_lines(curves), *_kind_lines(kinds)]
        figure.legend(lines, [line.get_label() for line in lines],
                      loc="outside upper center", ncols=len(lines))  # fmt: skip
        figure.supylabel("probability of the class", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("share of pixels")
    return figure


def _kind_lines(kinds: Mapping[str, Any]) -> list[Any]:
    found = [Line2D([], [], color="black", linewidth=1, linestyle=dashes, label=kind)
             for kind, dashes in kinds.items()]  # fmt: skip
    thin = Line2D(
        [], [], color="black", linewidth=0.5, alpha=0.45, label="random order"
    )
    return [*found, thin]


def _arm_lines(arms: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    return [
        Line2D([], [], color=arm_style(arm)["color"],
                                label=arm_label(arm))
        for arm in arms
    ]  # fmt: skip


def randomisation(found: Mapping[str, Mapping[str, Any]], failed: Failed) -> Figure:
    """Draws how like the maps stay as layers are drawn anew, the head first.

    Args:
      found: Arm -> what `faithfulness.randomisation` returns.
      failed: What -> the methods that fail it; they are marked.
    """
    first = next(iter(found.values()))
    methods, steps = list(first["correlation"]), first["steps"]
    values = [of_arm["correlation"].values() for of_arm in found.values()]
    lowest = np.nanmin(np.array([[*v] for v in values], float), initial=-0.3)
    with matplotlib.rc_context(STYLE):
        figure, panels = _small_multiples(methods, failed)
        for axes, method in zip(panels.flat, methods, strict=False):
            axes.axhline(UNCHANGED, color=SHARED, linewidth=0.6, linestyle=(0, (4, 3)))
            for arm, of_arm in found.items():
                line = np.array([1.0, *of_arm["correlation"][method]], float)
                axes.plot(line, **arm_style(arm))
            axes.set_xticks(range(len(steps) + 1), ["none", *steps], rotation=60)
            axes.set_ylim(lowest - 0.05, 1.05)
        lines = _arm_lines(found)
        figure.legend(lines, [line.get_label() for line in lines],
                      loc="outside upper center", ncols=len(lines))  # fmt: skip
        figure.supylabel("rank correlation of maps", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("random down to")
    return figure
