"""Figures of the measures: layers along x, one line an arm."""

from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twostage_jax.explain.comparisons import ALL_LAYERS, RANDOM
from twostage_jax.explain.reliance import UNCHANGED
from twostage_jax.report.figures import PAGE, SHARED, STYLE, arm_label, arm_style, plain

# Between the intervals of two networks at one place, in places.
APART = 0.13
UNTRAINED = {"color": SHARED, "linestyle": "--", "marker": ""}
PANELS = {
    "edge_selectivity": "Orientation selectivity, edges",
    "orientation_selectivity": "Orientation selectivity, gratings",
    "texture_modulation": "Texture modulation index",
    "probe_orientation": "Probe: orientation",
    "probe_texture": "Probe: texture family",
    "probe_target": "Probe: target class",
}
CHANGES = {
    "shuffled": "Squares shuffled",
    "low-pass": "Low-pass, deviation",
    "high-pass": "High-pass, deviation",
    "contrast": "Contrast",
    "noise": "Noise, deviation",
}


def draw(measured: Mapping[str, Any]) -> dict[str, Figure]:
    """Returns the figures of what `measure.measure` returned, by file name."""
    with matplotlib.rc_context(STYLE):
        figures = {
            "responses": _responses(measured),
            "similarity": _similarity(measured),
        }
        if measured["values"].get("accuracy"):
            figures["reliance"] = _reliance(measured)
    return figures


def _responses(measured: Mapping[str, Any]) -> Figure:
    """Selectivity for edges and textures, and what probes read off, along the layers."""
    figure = Figure(figsize=(PAGE, 4.4), layout="constrained")
    panels = figure.subplots(2, 3).ravel()
    lines: dict[str, Any] = {}
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        by_name = measured["values"].get(name, {})
        layers = measured["layers"]
        lines |= _lines(axes, by_name, layers, [*measured["chains"], RANDOM])
        _layer_axis(axes, layers)
        axes.set_title(title)
        if name == "texture_modulation":
            axes.axhline(0, color=SHARED, linewidth=0.5, zorder=0)
        elif name.startswith("probe"):
            _probe_axis(axes, by_name)
        else:
            axes.set_ylim(bottom=0)
    for row, label in ((0, "Mean of the channels"), (3, "Balanced accuracy")):
        panels[row].set_ylabel(label)
    _legend(figure, lines)
    return figure


def _probe_axis(axes: Axes, by_name: Mapping[str, Any]) -> None:
    if not by_name:
        axes.text(0.5, 0.5, "no labels", transform=axes.transAxes, ha="center")
        return
    entries = [e for entry in by_name.values() for e in entry.values() if "chance" in e]
    chance = entries[0]["chance"]
    axes.axhline(chance, color=SHARED, linewidth=0.5, zorder=0)
    _name_chance(axes, chance)
    axes.set_ylim(0, 1)


def _name_chance(axes: Axes, chance: float) -> None:
    """Writes 'chance' under its line, or over it where there is no room."""
    below = chance > 0.1
    axes.annotate(
        "chance", (1, chance), (-1, -2 if below else 1.5),
        xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="top" if below else "bottom", color=SHARED, fontsize=7,
    )  # fmt: skip


def _similarity(measured: Mapping[str, Any]) -> Figure:
    """How far parameters went, how alike a layer is to its past, and arms to arms."""
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    values, chains = measured["values"], measured["chains"]
    drift = values.get("drift", {})
    first = next(iter(drift.values()), {})
    layers = [layer for layer in first if layer != ALL_LAYERS]
    lines = _lines(left, drift, layers, list(chains))
    _layer_axis(left, layers)
    left.set_ylim(bottom=0)
    left.set_title("Drift of parameters in the last stage")
    left.set_ylabel("|after − before| / |before|")
    cka = values.get("cka", {})
    with_past = {arm: cka.get(f"{arm} ~ {c[-2]}", {}) for arm, c in chains.items()}
    lines |= _lines(middle, with_past, measured["layers"], list(chains))
    _layer_axis(middle, measured["layers"])
    middle.set_ylim(min(0, middle.get_ylim()[0]), 1.02)
    middle.set_title("CKA with the stage before")
    _matrix(figure, right, measured)
    _legend(figure, lines)
    return figure


def _matrix(figure: Figure, axes: Axes, measured: Mapping[str, Any]) -> None:
    names = [*measured["chains"], RANDOM]
    cka = measured["values"].get("cka", {})
    alike = np.eye(len(names))
    for i, one in enumerate(names):
        for j, other in enumerate(names):
            pair = cka.get(f"{one} ~ {other}") or cka.get(f"{other} ~ {one}")
            if i != j:
                mean = pair[ALL_LAYERS]["mean"] if pair else None
                alike[i, j] = np.nan if mean is None else mean
    axes.imshow(np.ma.masked_invalid(alike), vmin=0, vmax=1, cmap="Blues")
    for i, j in np.ndindex(alike.shape):
        if np.isfinite(alike[i, j]):
            colour = "white" if alike[i, j] > 0.6 else "black"
            text = f"{alike[i, j]:.2f}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    labels = [_label(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("CKA, mean of the layers")


def _reliance(measured: Mapping[str, Any]) -> Figure:
    """Accuracy under each kind of change, from none to the strongest."""
    accuracy = measured["values"]["accuracy"]
    arms = [arm for arm in measured["chains"] if arm in accuracy]
    names = [name for name in accuracy[arms[0]] if name != ALL_LAYERS]
    groups = {
        kind: [UNCHANGED, *(n for n in names if n.startswith(kind))] for kind in CHANGES
    }
    if "mean only" in names:
        groups["low-pass"].append("mean only")
    if "mean removed" in names:
        groups["high-pass"].insert(1, "mean removed")
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True)
    for axes, (kind, changes) in zip(panels, groups.items(), strict=True):
        lines = _lines(axes, accuracy, changes, arms)
        ticks = [plain(change.removeprefix(kind).strip()) for change in changes]
        axes.set_xticks(range(len(changes)), ticks, rotation=45, ha="right")
        axes.set_title(CHANGES[kind])
        chance = 1 / measured["counts"]["classes"]
        axes.axhline(chance, color=SHARED, linewidth=0.5, zorder=0)
    _name_chance(panels[-1], chance)
    panels[0].set_ylabel("Balanced accuracy")
    panels[0].set_ylim(0, 1)
    _legend(figure, lines)
    return figure


def _lines(
    axes: Axes, by_name: Mapping[str, Any], places: list[str], names: list[str]
) -> dict[str, Any]:
    """Draws means along places, with their intervals side by side where there are some.

    Args:
      by_name: Name -> place -> entry.
      places: Along x.
      names: What to draw; those without entries are passed over.
    """
    lines = {}
    for i, name in enumerate(names):
        if name not in by_name:
            continue

        def column(
            field: str, entries: Mapping[str, Any] = by_name[name]
        ) -> np.ndarray:
            found = [entries.get(place, {}).get(field) for place in places]
            return np.array([np.nan if value is None else value for value in found])

        mean, low, high = (column(field) for field in ("mean", "low", "high"))
        style: Mapping[str, Any] = UNTRAINED if name == RANDOM else arm_style(name)
        apart = APART if np.isfinite(low).any() else 0
        x = np.arange(len(places)) + apart * (i - (len(names) - 1) / 2)
        (lines[name],) = axes.plot(x, mean, **style)
        axes.vlines(x, low, high, color=style["color"], linewidth=0.8, alpha=0.7)
    return lines


def _layer_axis(axes: Axes, layers: list[str]) -> None:
    labels = [plain(layer) for layer in layers]
    axes.set_xticks(range(len(layers)), labels, rotation=45, ha="right")


def _legend(figure: Figure, lines: Mapping[str, Any]) -> None:
    labels = [_label(name) for name in lines]
    figure.legend(
        list(lines.values()), labels, loc="outside upper center", ncols=len(lines)
    )


def _label(network: str) -> str:
    return "untrained" if network == RANDOM else arm_label(network)
