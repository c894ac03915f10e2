"""The figures of the feature analysis; see `report.figures` for sizes and colours."""

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from twostage_jax.explain.checks import (
    CLASS_BLIND,
    RANDOM_ORDER,
    SHARES,
    UNCHANGED,
    Maps,
)
from twostage_jax.explain.compare import ALL_LAYERS, RANDOM
from twostage_jax.explain.measures import MEASURES, reliance
from twostage_jax.explain.saliency import SIGNED
from twostage_jax.explain.strongest import Patches
from twostage_jax.report.figures import (
    PAGE,
    SHARED,
    arm_label,
    arm_style,
    legend_above,
    picture,
    plain,
    styled,
    writer,
)

METHOD_NAMES = {
    "desalinet": "DeSaliNet",
    "deconvnet": "DeconvNet",
    "salinet": "SaliNet",
    "guided": "guided backprop",
    "smoothgrad": "SmoothGrad",
    "gradient_x_input": "gradient × input",
    "integrated_gradients": "integrated gradients",
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "occlusion": "occlusion",
    RANDOM_ORDER: "random order",
}
# Names broken in two, above narrow columns.
BROKEN_NAMES = {
    "smoothgrad": "Smooth-\nGrad",
    "grad_cam": "Grad-\nCAM",
    "grad_cam_pp": "Grad-\nCAM++",
}
# Check that a method fails -> mark after its name, and the meaning of the mark.
MARKS = {
    "unchanged": (
        "†",
        f"Maps, or their magnitudes, keep a rank correlation of {UNCHANGED} or more when "
        "all weights are re-initialised: they show the image, not what was learned.",
    ),
    "class_blind": (
        "‡",
        f"Maps, or their magnitudes, keep a rank correlation of {CLASS_BLIND} or more "
        "when the head is re-initialised: they do not distinguish classes.",
    ),
}
# Examples on a page of saliency maps.
EXAMPLES_PER_PAGE = 4
# Offset between the intervals of two networks at one tick, in ticks.
APART = 0.13
UNTRAINED = {"color": SHARED, "linestyle": "--", "marker": ""}
# The panel of edges comes first; the others follow the order of the registry.
PANELS = {
    one.name: one.panel
    for one in sorted(MEASURES.values(), key=lambda m: m.name != "edge_selectivity")
    if one.panel
}
CHANGES = {
    "shuffled": "Squares shuffled",
    "low-pass": "Low-pass, SD",
    "high-pass": "High-pass, SD",
    "contrast": "Contrast",
    "noise": "Noise, SD",
}
Failed = Mapping[str, Sequence[str]]


def method_label(
    method: str, failed: Failed | None = None, *, narrow: bool = False
) -> str:
    """Returns a method's name with marks of failed checks, `narrow` on two lines."""
    name = METHOD_NAMES[method]
    if narrow:
        name = BROKEN_NAMES.get(method, name.replace(" ", "\n", 1))
    failures = (failed or {}).items()
    return name + "".join(MARKS[what][0] for what, names in failures if method in names)


def foot_notes(failed: Failed) -> list[str]:
    """Returns a line for each mark in use."""
    return [" ".join(MARKS[what]) for what, names in failed.items() if names]


@styled
def strongest_patches(
    shown: Mapping[str, Patches], layer: str, channels: np.ndarray, method: str
) -> Figure:
    """Draws each channel's strongest patches, and below them its pictures, by arm.

    A picture is grey where it is 0, and scaled by its own largest value. Cells stay
    white if fewer images bring the channel above 0. Dead channels (see
    `strongest.Strongest`) have no pictures.

    Args:
      shown: Arm -> patches and pictures of K channels.
      layer: Name of the tap.
      channels: Indices of the channels, `[K]`.
      method: Name of the method that drew the pictures.
    """
    count = max(of_arm.patches.shape[1] for of_arm in shown.values())
    left, top, gap = 0.35, 0.62, 0.12
    width = (PAGE - left - gap * len(shown)) / len(shown)
    cell = min(width / count, 0.5)
    height = len(channels) * (2 * cell + gap) + top
    figure = Figure(figsize=(PAGE, height))
    write = writer(figure)
    for k, channel in enumerate(channels):
        bottom = height - top - k * (2 * cell + gap) - 2 * cell
        write(0.1, bottom + cell, str(channel), fontsize=7)
        for a, (arm, of_arm) in enumerate(shown.items()):
            start = left + a * (width + gap)
            if of_arm.dead[k]:
                middle = start + count * cell / 2
                write(middle, bottom + cell, "dead", ha="center",
                      fontsize=6, color=SHARED)  # fmt: skip
            else:
                box = (start, bottom, count * cell, 2 * cell)
                picture(figure, box, _channel(of_arm, k))
            if k == 0:
                style = {"color": arm_style(arm)["color"], "weight": "bold"}
                write(start + count * cell / 2, height - top + 0.1, arm_label(arm),
                      ha="center", **style)  # fmt: skip
    title = "the patches to which a channel responds most, each with its"
    write(0.1, height - 0.14,
          f"{plain(layer)}: {title} {method_label(method)} picture below")  # fmt: skip
    write(0.1, height - 0.5, "channel", fontsize=6)
    return figure


def _channel(of_arm: Patches, k: int) -> np.ndarray:
    """Returns the patches of a channel above its pictures, as one image."""
    pictures = 0.5 + _scaled(of_arm.pictures[k]) / 2
    strips = (of_arm.patches[k], pictures)
    return np.concatenate([_strip(strip, of_arm.answered[k]) for strip in strips])


def _scaled(images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]`, each divided by its largest magnitude."""
    largest = np.abs(images).max((1, 2, 3), keepdims=True)
    return images / np.where(largest == 0, 1, largest)


def _strip(images: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Returns images `[P, s, s, C]` side by side, `[s', P * s']` or `[.., 3]`.

    Each is framed; images without a response (`answered`, `[P]`) are white.
    """
    zoom = -(-64 // images.shape[1])
    images = np.clip(images, 0, 1).repeat(zoom, 1).repeat(zoom, 2)
    pads = ((0, 0), (0, 3), (0, 3), (0, 0))
    framed = np.pad(images, pads, constant_values=1)
    framed[:, 0, :-3] = framed[:, :-3, 0] = framed[:, -4, :-3] = framed[:, :-3, -4] = (
        0.7
    )
    framed[~answered] = 1
    strip = np.concatenate(list(framed), axis=1)
    return strip if strip.shape[-1] == 3 else strip[..., 0]


@styled
def first_layer(
    kernels: Mapping[str, np.ndarray], layer: str, arms: Sequence[str]
) -> Figure:
    """Draws the filters of the first layer, one panel per network.

    Each filter is scaled by its own largest value; grey is 0.

    Args:
      kernels: Name of the arm, or of another network -> `[h, w, C, O]`.
      layer: Name of the layer.
      arms: The names that are arms.
    """
    per_row = min(len(kernels), 3 if len(kernels) in (3, 5, 6) else 4)
    rows = -(-len(kernels) // per_row)
    side = (PAGE - 0.2) / per_row
    filters = next(iter(kernels.values())).shape[-1]
    columns = int(np.ceil(np.sqrt(filters * 1.2)))
    tall = side * -(-filters // columns) / columns
    height = rows * (tall + 0.25) + 0.3
    figure = Figure(figsize=(PAGE, height), layout="constrained")
    figure.suptitle(f"filters of {plain(layer)}, scaled individually", fontsize=8)
    panels = list(figure.subplots(rows, per_row, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, kernel) in zip(panels, kernels.items(), strict=False):
        axes.imshow(_sheet(kernel, columns), cmap="gray", vmin=0, vmax=1,
                    interpolation="nearest")  # fmt: skip
        colour = arm_style(name)["color"] if name in arms else SHARED
        axes.set_title(arm_label(name), color=colour, weight="bold", pad=3)
    return figure


def _sheet(kernel: np.ndarray, columns: int) -> np.ndarray:
    """Returns filters `[h, w, C, O]` as one picture with `columns` columns."""
    filters = np.moveaxis(kernel, -1, 0)
    if filters.shape[-1] not in (1, 3):
        filters = filters.mean(-1, keepdims=True)
    filters = 0.5 + _scaled(filters) / 2
    filters = np.pad(filters, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    rows = -(-len(filters) // columns)
    missing = ((0, rows * columns - len(filters)), (0, 0), (0, 0), (0, 0))
    filters = np.pad(filters, missing, constant_values=1)
    count, height, width, depth = filters.shape
    sheet = filters.reshape(rows, columns, height, width, depth).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, depth)
    return sheet if depth == 3 else sheet[..., 0]


def saliency_figures(checked: Mapping[str, Any], shown: Maps) -> dict[str, Figure]:
    """Returns figures of the result of `checks.check_saliency`, by file name."""
    failed = {what: checked[what] for what in MARKS}
    drawn = {}
    pages = range(0, len(shown.images), EXAMPLES_PER_PAGE)
    for number, start in enumerate(pages, 1):
        part = slice(start, start + EXAMPLES_PER_PAGE)
        name = f"saliency_{number}" if len(pages) > 1 else "saliency"
        drawn[name] = saliency_maps(
            shown.images[part],
            shown.classes[part],
            {a: {m: of[part] for m, of in by.items()} for a, by in shown.maps.items()},
            {arm: values[part] for arm, values in shown.probabilities.items()},
            failed,
        )
    drawn["deletion_insertion"] = deletion_insertion(checked, failed)
    drawn["randomisation"] = randomisation(checked["randomisation"], failed)
    return drawn


@styled
def saliency_maps(
    images: np.ndarray,
    titles: Sequence[str],
    maps: Mapping[str, Mapping[str, np.ndarray]],
    chances: Mapping[str, np.ndarray],
    failed: Failed,
) -> Figure:
    """Draws maps of every method, one row per arm, one block of rows per example.

    Sensitivities and Grad-CAM go from white to black; attributions are red for pixels
    that support the class, blue for pixels against it. Every map is scaled to its own
    99th percentile.

    Args:
      images: `[E, H, W, C]` in [0, 1].
      titles: Explained class of each image, E.
      maps: Arm -> method -> `[E, H, W]`.
      chances: Arm -> probabilities of those classes, `[E]`.
      failed: Check -> the methods that fail it; they are marked (see `MARKS`).
    """
    methods = list(next(iter(maps.values())))
    # A single row of maps leaves no room for the title below the image.
    left, top, gap = 0.8, 0.55, 0.1 if len(maps) > 1 else 0.2
    cell = min((PAGE - left - 0.05) / (len(methods) + 1), 0.9)
    block = len(maps) * cell + gap
    notes = [
        "Below each arm: its probability of the class. Darker: more important. Red: "
        "supports the class; blue: against it.",
        *foot_notes(failed),
    ]
    height = top + len(images) * block + 0.13 * len(notes) + 0.1
    figure = Figure(figsize=(PAGE, height))
    write, side = writer(figure), 0.96 * cell
    for e, image in enumerate(images):
        bottom = height - top - e * block - cell
        picture(figure, (left, bottom, side, side), image.squeeze())
        title = plain(titles[e].replace("_", " "), 20)
        write(left + side, bottom - 0.034, title, ha="right", va="top", fontsize=6)
        for a, (arm, of_arm) in enumerate(maps.items()):
            low = bottom - a * cell
            text = f"{arm_label(arm)}\n{chances[arm][e]:.2f}"
            write(left - 0.06, low + cell / 2, text, ha="right", fontsize=6,
                  color=arm_style(arm)["color"])  # fmt: skip
            for m, method in enumerate(methods, 1):
                box = (left + m * cell, low, side, side)
                _map(figure, box, of_arm[method][e], method in SIGNED)
    for m, method in enumerate(methods, 1):
        label = method_label(method, failed, narrow=True)
        write(left + (m + 0.5) * cell, height - top + 0.06, label, ha="center",
              va="bottom", fontsize=6.5)  # fmt: skip
    for line, note in enumerate(reversed(notes)):
        write(0.05, 0.08 + 0.13 * line, note, fontsize=6)
    return figure


def _map(
    figure: Figure,
    box: tuple[float, float, float, float],
    heat: np.ndarray,
    signed: bool,
) -> None:
    scale = np.percentile(np.abs(heat), 99) or np.abs(heat).max() or 1.0
    colours = ("RdBu_r", -scale, scale) if signed else ("gray_r", 0, scale)
    axes = picture(figure, box, heat, *colours)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, linewidth=0.3, color="#BBBBBB")


def _small_multiples(
    methods: Sequence[str], failed: Failed, xlabel: str, ylabel: str
) -> tuple[Figure, np.ndarray]:
    """Returns a figure with a panel per method, and its panels."""
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
    for axes in panels[-1]:
        axes.set_xlabel(xlabel)
    figure.supylabel(ylabel, fontsize=8)
    if notes:
        figure.supxlabel("\n".join(notes), fontsize=6, x=0.02, ha="left")
    return figure, panels


@styled
def deletion_insertion(checked: Mapping[str, Any], failed: Failed) -> Figure:
    """Draws the probability of the class while pixels are deleted and inserted.

    Args:
      checked: 'deletion' and 'insertion' -> arm -> method -> 'curve', the mean over
        seeds `[len(SHARES)]`.
      failed: Check -> the methods that fail it; they are marked.
    """
    arms = checked["deletion"]
    methods = [m for m in next(iter(arms.values())) if m != RANDOM_ORDER]
    kinds = {"deletion": "-", "insertion": (0, (3, 1.5))}
    thin = {"linewidth": 0.5, "alpha": 0.45}
    labels = "fraction of pixels", "class probability"
    figure, panels = _small_multiples(methods, failed, *labels)
    for axes, method in zip(panels.flat, methods, strict=False):
        for arm, (kind, dashes) in itertools.product(arms, kinds.items()):
            of_arm = checked[kind][arm]
            style = {"color": arm_style(arm)["color"], "linestyle": dashes}
            axes.plot(SHARES, of_arm[RANDOM_ORDER]["curve"], **style, **thin)
            axes.plot(SHARES, of_arm[method]["curve"], **style, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
    black = functools.partial(Line2D, [], [], color="black")
    legend_above(
        figure,
        {
            **_arm_lines(arms),
            **{kind: black(linewidth=1, linestyle=d) for kind, d in kinds.items()},
            "random order": black(**thin),
        },
    )
    return figure


def _arm_lines(arms: Iterable[str]) -> dict[str, Line2D]:
    return {arm_label(a): Line2D([], [], color=arm_style(a)["color"]) for a in arms}


@styled
def randomisation(found: Mapping[str, Mapping[str, Any]], failed: Failed) -> Figure:
    """Draws the similarity of maps as layers are randomised, starting at the head.

    For methods with signs, that of their magnitudes is drawn as well.

    Args:
      found: Arm -> result of `checks.randomisation`.
      failed: Check -> the methods that fail it; they are marked.
    """
    first = next(iter(found.values()))
    methods, steps = list(first["correlation"]), first["steps"]
    values = [
        [*of_arm["correlation"].values(), *of_arm["magnitudes"].values()]
        for of_arm in found.values()
    ]
    lowest = np.nanmin(np.array([[*v] for v in values], float), initial=-0.3)
    labels = "randomised down to", "rank correlation of maps"
    figure, panels = _small_multiples(methods, failed, *labels)
    for axes, method in zip(panels.flat, methods, strict=False):
        axes.axhline(UNCHANGED, color=SHARED, linewidth=0.6, linestyle=(0, (4, 3)))
        for arm, of_arm in found.items():
            line = np.array([1.0, *of_arm["correlation"][method]], float)
            axes.plot(line, **arm_style(arm))
            if method in of_arm["magnitudes"]:
                line = np.array([1.0, *of_arm["magnitudes"][method]], float)
                axes.plot(line, color=arm_style(arm)["color"], linestyle=":")
        axes.set_xticks(range(len(steps) + 1), ["none", *steps], rotation=60)
        axes.set_ylim(lowest - 0.05, 1.05)
    lines = _arm_lines(found)
    if first["magnitudes"]:
        lines["magnitudes"] = Line2D([], [], color="black", linestyle=":")
    legend_above(figure, lines)
    return figure


@styled
def draw_measures(measured: Mapping[str, Any]) -> dict[str, Figure]:
    """Returns figures of the result of `measure.measure`, by file name."""
    figures = {
        "responses": _responses(measured),
        "similarity": _similarity(measured),
    }
    if measured["values"].get("accuracy"):
        figures["reliance"] = _reliance(measured)
    return figures


def _responses(measured: Mapping[str, Any]) -> Figure:
    """Draws selectivity for edges and textures, and probe scores, along the layers."""
    rows = -(-len(PANELS) // 3)
    figure = Figure(figsize=(PAGE, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes in panels[len(PANELS) :]:
        axes.set_visible(False)
    lines: dict[str, Any] = {}
    for i, (name, panel) in enumerate(PANELS.items()):
        axes = panels[i]
        by_name = measured["values"].get(name, {})
        layers = measured["layers"]
        lines |= _lines(axes, by_name, layers, [*measured["chains"], RANDOM])
        axes.set_title(panel.title)
        if panel.chance:
            _probe_axis(axes, by_name)
        elif panel.bottom is None:
            axes.axhline(0, color=SHARED, linewidth=0.5, zorder=0)
        else:
            axes.set_ylim(bottom=panel.bottom)
        if i % 3 == 0:
            axes.set_ylabel(panel.ylabel)
    legend_above(figure, lines)
    return figure


def _probe_axis(axes: Axes, by_name: Mapping[str, Any]) -> None:
    if not by_name:
        axes.text(0.5, 0.5, "no labels", transform=axes.transAxes, ha="center")
        return
    entries = (entry for by_layer in by_name.values() for entry in by_layer.values())
    chances = {chance for entry in entries for chance in entry["chance"]}
    if len(chances) == 1:
        (chance,) = chances
        axes.axhline(chance, color=SHARED, linewidth=0.5, zorder=0)
        _name_chance(axes, chance)
    axes.set_ylim(0, 1)


def _name_chance(axes: Axes, chance: float) -> None:
    """Writes 'chance' below its line, or above it if there is too little room."""
    below = chance > 0.1
    axes.annotate(
        "chance", (1, chance), (-1, -2 if below else 1.5),
        xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
        va="top" if below else "bottom", color=SHARED, fontsize=7,
    )  # fmt: skip


def _similarity(measured: Mapping[str, Any]) -> Figure:
    """Draws the drift of parameters and the similarity of layers and arms."""
    figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    values, chains = measured["values"], measured["chains"]
    drift = values.get("drift", {})
    first = next(iter(drift.values()), {})
    layers = [layer for layer in first if layer != ALL_LAYERS]
    lines = _lines(left, drift, layers, list(chains))
    left.set_ylim(bottom=0)
    left.set_title("Drift of parameters in the last stage")
    left.set_ylabel("|after − before| / |before|")
    cka = values.get("cka", {})
    with_past = {arm: cka.get(f"{arm} ~ {c[-2]}", {}) for arm, c in chains.items()}
    lines |= _lines(middle, with_past, measured["layers"], list(chains))
    middle.set_ylim(min(0, middle.get_ylim()[0]), 1.02)
    middle.set_title("CKA with the stage before")
    _matrix(right, measured)
    legend_above(figure, lines)
    return figure


def _matrix(axes: Axes, measured: Mapping[str, Any]) -> None:
    names = [*measured["chains"], RANDOM]
    cka = measured["values"].get("cka", {})
    alike = np.eye(len(names))
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        pair = cka.get(f"{one} ~ {other}") or cka.get(f"{other} ~ {one}")
        mean = pair[ALL_LAYERS]["mean"] if pair else None
        alike[i, j] = alike[j, i] = np.nan if mean is None else mean
    axes.imshow(np.ma.masked_invalid(alike), vmin=0, vmax=1, cmap="Blues")
    for i, j in np.ndindex(alike.shape):
        if np.isfinite(alike[i, j]):
            colour = "white" if alike[i, j] > 0.6 else "black"
            text = f"{alike[i, j]:.2f}"
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7)
    labels = [_short_label(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), labels)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("CKA, mean over layers")


def _reliance(measured: Mapping[str, Any]) -> Figure:
    """Draws accuracy under each kind of change, from none to the strongest."""
    accuracy = measured["values"]["accuracy"]
    arms = [arm for arm in measured["chains"] if arm in accuracy]
    names = [name for name in accuracy[arms[0]] if name != ALL_LAYERS]
    groups = {
        kind: [reliance.UNCHANGED, *(n for n in names if n.startswith(kind))]
        for kind in CHANGES
    }
    if "mean only" in names:
        groups["low-pass"].append("mean only")
    if "mean removed" in names:
        groups["high-pass"].insert(1, "mean removed")
    figure = Figure(figsize=(PAGE, 2.5), layout="constrained")
    panels = figure.subplots(1, len(groups), sharey=True)
    classes = measured["counts"]["classes"]
    for axes, (kind, changes) in zip(panels, groups.items(), strict=True):
        lines = _lines(axes, accuracy, changes, arms, kind)
        axes.set_title(CHANGES[kind])
        if classes:
            axes.axhline(1 / classes, color=SHARED, linewidth=0.5, zorder=0)
    if classes:
        _name_chance(panels[-1], 1 / classes)
    panels[0].set_ylabel("Balanced accuracy")
    panels[0].set_ylim(0, 1)
    legend_above(figure, lines)
    return figure


def _lines(
    axes: Axes,
    by_name: Mapping[str, Any],
    places: list[str],
    names: list[str],
    kind: str = "",
) -> dict[str, Any]:
    """Draws one line of means per name, with intervals side by side.

    Args:
      axes: Panel.
      by_name: Name -> place -> entry.
      places: Keys of the entries, along x.
      names: Names to draw; those without entries are skipped.
      kind: Beginning of the places that the ticks omit.

    Returns:
      Label -> line.
    """
    lines, fields = {}, ("mean", "low", "high")
    for i, name in enumerate(names):
        if name not in by_name:
            continue
        entries = [by_name[name].get(place, {}) for place in places]
        values = [[entry.get(field) for field in fields] for entry in entries]
        # None becomes NaN.
        mean, low, high = np.array(values, float).reshape(-1, 3).T
        style: Mapping[str, Any] = UNTRAINED if name == RANDOM else arm_style(name)
        apart = APART if np.isfinite(low).any() else 0
        x = np.arange(len(places)) + apart * (i - (len(names) - 1) / 2)
        (lines[_short_label(name)],) = axes.plot(x, mean, **style)
        axes.vlines(x, low, high, color=style["color"], linewidth=0.8, alpha=0.7)
    ticks = [plain(place.removeprefix(kind).strip()) for place in places]
    axes.set_xticks(range(len(places)), ticks, rotation=45, ha="right")
    return lines


def _short_label(network: str) -> str:
    return "untrained" if network == RANDOM else arm_label(network)
