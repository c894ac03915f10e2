"""The figures of the feature analysis; see `report.figures` for sizes and colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twostage_jax.explain.faithfulness import RANDOM_ORDER, SHARES, UNCHANGED
from twostage_jax.explain.saliency import SIGNED
from twostage_jax.explain.strongest import Patches
from twostage_jax.report.figures import (
    PAGE,
    SHARED,
    STYLE,
    arm_label,
    arm_style,
    plain,
)

METHOD_NAMES = {
    "desalinet": "DeSaliNet",
    "deconvnet": "DeconvNet",
    "salinet": "SaliNet",
    "guided": "guided\nbackprop",
    "smoothgrad": "SmoothGrad",
    "gradient_x_input": "gradient\n× input",
    "integrated_gradients": "integrated\ngradients",
    "grad_cam": "Grad-CAM",
    "grad_cam_pp": "Grad-CAM++",
    "occlusion": "occlusion",
    RANDOM_ORDER: "random order",
}
# Put after the name of a method that does not see the weights.
MARK = "†"
MARK_TEXT = (
    f"{MARK} The maps stay much the same when all weights are drawn anew (rank "
    f"correlation {UNCHANGED} or more): they show the image, not what was learned."
)


def method_label(method: str, unchanged: Sequence[str] = ()) -> str:
    """Returns a method's name, marked if its maps do not follow the weights."""
    return METHOD_NAMES[method] + (MARK if method in unchanged else "")


def _figure(height: float, width: float = PAGE, **kwargs: Any) -> Figure:
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), **kwargs)


def strongest_patches(
    shown: Mapping[str, Patches], layer: str, channels: np.ndarray, method: str
) -> Figure:
    """Draws each channel's strongest patches and below them what it saw, by arm.

    A picture is grey where it is 0, and scaled by its own largest value.

    Args:
      shown: Arm -> what to draw of K channels.
      layer: Name of the tap.
      channels: `[K]` numbers.
      method: Name of the method that drew the pictures.
    """
    count = max(of_arm.patches.shape[1] for of_arm in shown.values())
    left, top, gap = 0.35, 0.62, 0.12
    width = (PAGE - left - gap * len(shown)) / len(shown)
    cell = min(width / count, 0.5)
    height = len(channels) * (2 * cell + gap) + top
    with matplotlib.rc_context(STYLE):
        figure = _figure(height)
        for k, channel in enumerate(channels):
            bottom = height - top - k * (2 * cell + gap) - 2 * cell
            figure.text(0.1 / PAGE, (bottom + cell) / height, str(channel),
                        va="center", fontsize=7)  # fmt: skip
            for a, (arm, of_arm) in enumerate(shown.items()):
                box = (left + a * (width + gap), bottom, count * cell, 2 * cell)
                axes = figure.add_axes(_within(box, PAGE, height))
                _channel(axes, of_arm, k)
                if k == 0:
                    _arm_title(axes, arm)
        figure.text(0.1 / PAGE, 1 - 0.14 / height, f"{plain(layer)}: the patches that "
                    "a channel answers to most, and below each its "
                    f"{METHOD_NAMES[method]} picture", va="center")  # fmt: skip
        figure.text(0.1 / PAGE, 1 - 0.5 / height, "channel", va="center", fontsize=6)
    return figure


def _channel(axes: Axes, of_arm: Patches, k: int) -> None:
    axes.set_axis_off()
    if of_arm.dead[k]:
        axes.text(0.5, 0.5, "dead: no image brings it above 0", ha="center",
                  va="center", fontsize=6, color=SHARED, wrap=True,
                  transform=axes.transAxes)  # fmt: skip
        return
    pictures = of_arm.pictures[k]
    largest = np.abs(pictures).max((1, 2, 3), keepdims=True)
    largest[largest == 0] = 1
    rows = [_strip(of_arm.patches[k]), _strip(0.5 + pictures / largest / 2)]
    axes.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=1,
                interpolation="nearest")  # fmt: skip


def _strip(images: np.ndarray) -> np.ndarray:
    """Returns `[P, s, s, C]` side by side, white between: `[s, P * s]` or `[.., 3]`."""
    edge = max(1, images.shape[1] // 24)
    pads = ((0, 0), (0, edge), (0, edge), (0, 0))
    padded = np.pad(np.clip(images, 0, 1), pads, constant_values=1)
    return np.concatenate(list(padded), axis=1).squeeze(-1 if images.shape[-1] == 1
                                                        else ())  # fmt: skip


def _within(
    box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    """Returns a box in inches as shares of the figure."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _arm_title(axes: Axes, arm: str) -> None:
    axes.set_title(arm_label(arm), color=arm_style(arm)["color"], weight="bold", pad=3)


def first_layer(kernels: Mapping[str, np.ndarray], layer: str) -> Figure:
    """Draws the filters of the first layer, a panel a network.

    Each is scaled by its own largest value; grey is 0.

    Args:
      kernels: Name of the arm, or of another network -> `[h, w, C, O]`.
      layer: Name of the layer.
    """
    per_row = min(len(kernels), 3 if len(kernels) in (3, 5, 6) else 4)
    rows = -(-len(kernels) // per_row)
    side = (PAGE - 0.2) / per_row
    filters = next(iter(kernels.values())).shape[-1]
    columns = int(np.ceil(np.sqrt(filters * 1.2)))
    tall = side * -(-filters // columns) / columns
    with matplotlib.rc_context(STYLE):
        figure = _figure(rows * (tall + 0.25) + 0.3, layout="constrained")
        figure.suptitle(f"filters of {plain(layer)}, each scaled by itself", fontsize=8)
        panels = figure.subplots(rows, per_row, squeeze=False).flat
        for axes in panels:
            axes.set_axis_off()
        for axes, (name, kernel) in zip(panels, kernels.items(), strict=False):
            axes.imshow(_sheet(kernel, columns), cmap="gray", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            _arm_title(axes, name)
    return figure


def _sheet(kernel: np.ndarray, columns: int) -> np.ndarray:
    """Returns filters `[h, w, C, O]` as one picture, `columns` side by side."""
    filters = np.moveaxis(kernel, -1, 0)
    if filters.shape[-1] not in (1, 3):
        filters = filters.mean(-1, keepdims=True)
    largest = np.abs(filters).max((1, 2, 3), keepdims=True)
    filters = 0.5 + filters / np.where(largest == 0, 1, largest) / 2
    filters = np.pad(filters, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1)
    rows = -(-len(filters) // columns)
    missing = ((0, rows * columns - len(filters)), (0, 0), (0, 0), (0, 0))
    filters = np.pad(filters, missing, constant_values=1)
    count, height, width, depth = filters.shape
    sheet = filters.reshape(rows, columns, height, width, depth).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, depth)
    return sheet if depth == 3 else sheet[..., 0]


def saliency_maps(
    images: np.ndarray,
    titles: Sequence[str],
    maps: Mapping[str, Mapping[str, np.ndarray]],
    chances: Mapping[str, np.ndarray],
    unchanged: Sequence[str],
) -> Figure:
    """Draws maps of every method, a row an arm, a block of rows an example.

    Sensitivities and Grad-CAM go from white to black; attributions are red where a
    pixel speaks for the class, blue where against. Every map has its own scale, to its
    99th percentile.

    Args:
      images: `[E, H, W, C]` in [0, 1].
      titles: What each shows: the class that is explained.
      maps: Arm -> method -> `[E, H, W]`.
      chances: Arm -> `[E]` probabilities of those classes.
      unchanged: Methods to be marked.
    """
    methods = list(next(iter(maps.values())))
    left, top, gap = 0.8, 0.55, 0.1
    cell = (PAGE - left - 0.05) / (len(methods) + 1)
    block = len(maps) * cell + gap
    foot = 0.25 if unchanged else 0
    height = top + len(images) * block + foot
    with matplotlib.rc_context(STYLE):
        figure = _figure(height)
        for e, image in enumerate(images):
            bottom = height - top - e * block - cell
            _image_cell(figure, (0.8, bottom), cell, image, titles[e])
            for a, (arm, of_arm) in enumerate(maps.items()):
                low = bottom - a * cell
                figure.text((left - 0.06) / PAGE, (low + cell / 2) / height,
                            f"{arm_label(arm)}\n{chances[arm][e]:.2f}", ha="right",
                            va="center", fontsize=6,
                            color=arm_style(arm)["color"])  # fmt: skip
                for m, method in enumerate(methods, 1):
                    box = (left + m * cell, low, cell * 0.96, cell * 0.96)
                    axes = figure.add_axes(_within(box, PAGE, height))
                    _map(axes, of_arm[method][e], method)
        for m, method in enumerate(methods, 1):
            figure.text((left + (m + 0.5) * cell) / PAGE, 1 - (top - 0.06) / height,
                        method_label(method, unchanged), ha="center", va="bottom",
                        fontsize=6.5)  # fmt: skip
        if unchanged:
            figure.text(0.05 / PAGE, 0.1 / height, MARK_TEXT, fontsize=6, va="center")
    return figure


def _image_cell(
    figure: Figure,
    place: tuple[float, float],
    cell: float,
    image: np.ndarray,
    title: str,
) -> None:
    width, height = figure.get_size_inches()
    box = (place[0], place[1], cell * 0.96, cell * 0.96)
    axes = figure.add_axes(_within(box, width, height))
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.text(0.5, -0.06, plain(title, 14), transform=axes.transAxes, ha="center",
              va="top", fontsize=6)  # fmt: skip


def _map(axes: Axes, heat: np.ndarray, method: str) -> None:
    scale = np.percentile(np.abs(heat), 99) or np.abs(heat).max() or 1.0
    signed = method in SIGNED
    axes.imshow(heat, cmap="RdBu_r" if signed else "gray_r", vmax=scale,
                vmin=-scale if signed else 0, interpolation="nearest")  # fmt: skip
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.3, color="#BBBBBB")


def _small_multiples(
    methods: Sequence[str], unchanged: Sequence[str], note: bool
) -> tuple[Figure, np.ndarray]:
    columns = min(len(methods), 5)
    rows = -(-len(methods) // columns)
    figure = _figure(rows * 1.55 + 0.55, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, method in zip(panels.flat, methods, strict=False):
        axes.set_title(method_label(method, unchanged).replace("\n", " "))
    for axes in panels.flat[len(methods) :]:
        axes.set_visible(False)
    if note and unchanged:
        figure.supxlabel(MARK_TEXT, fontsize=6)
    return figure, panels


def deletion_insertion(
    curves: Mapping[str, Mapping[str, Mapping[str, Any]]], unchanged: Sequence[str]
) -> Figure:
    """Draws the probability of the class while pixels are deleted and inserted.

    Args:
      curves: Arm -> 'deletion' and 'insertion' -> method -> `[len(SHARES)]`; the mean
        over seeds.
      unchanged: Methods to be marked.
    """
    methods = [m for m in next(iter(curves.values()))["deletion"] if m != RANDOM_ORDER]
    kinds = {"deletion": "-", "insertion": (0, (3, 1.5))}
    with matplotlib.rc_context(STYLE):
        figure, panels = _small_multiples(methods, unchanged, True)
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
    line = matplotlib.lines.Line2D
    found = [line([], [], color="black", linewidth=1, linestyle=dashes, label=kind)
             for kind, dashes in kinds.items()]  # fmt: skip
    thin = line([], [], color="black", linewidth=0.5, alpha=0.45, label="random order")
    return [*found, thin]


def _arm_lines(arms: Sequence[str] | Mapping[str, Any]) -> list[Any]:
    return [
        matplotlib.lines.Line2D([], [], color=arm_style(arm)["color"],
                                label=arm_label(arm))
        for arm in arms
    ]  # fmt: skip


def randomisation(
    found: Mapping[str, Mapping[str, Any]], unchanged: Sequence[str]
) -> Figure:
    """Draws how like the maps stay as layers are drawn anew, the head first.

    Args:
      found: Arm -> what `faithfulness.randomisation` returns.
      unchanged: Methods to be marked.
    """
    first = next(iter(found.values()))
    methods, steps = list(first["correlation"]), first["steps"]
    with matplotlib.rc_context(STYLE):
        figure, panels = _small_multiples(methods, unchanged, True)
        for axes, method in zip(panels.flat, methods, strict=False):
            axes.axhline(UNCHANGED, color=SHARED, linewidth=0.6, linestyle=(0, (4, 3)))
            for arm, of_arm in found.items():
                values = np.array([1.0, *of_arm["correlation"][method]], float)
                axes.plot(values, **arm_style(arm))
            axes.set_xticks(range(len(steps) + 1), ["none", *steps], rotation=60)
            axes.set_ylim(-0.35, 1.05)
        lines = _arm_lines(found)
        figure.legend(lines, [line.get_label() for line in lines],
                      loc="outside upper center", ncols=len(lines))  # fmt: skip
        figure.supylabel("rank correlation of maps", fontsize=8)
        for axes in panels[-1]:
            axes.set_xlabel("random down to")
    return figure
