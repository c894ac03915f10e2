"""The figures of the feature analysis; see `report.figures` for sizes and colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from twostage_jax.explain.faithfulness import CLASS_BLIND, RANDOM_ORDER, UNCHANGED
from twostage_jax.explain.saliency import SIGNED
from twostage_jax.explain.strongest import Patches
from twostage_jax.report.figures import PAGE, SHARED, STYLE, arm_label, arm_style, plain

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
# Where names stand over narrow columns.
BROKEN_NAMES = {
    "smoothgrad": "Smooth-\nGrad",
    "grad_cam": "Grad-\nCAM",
    "grad_cam_pp": "Grad-\nCAM++",
}
# What a method fails -> what is put after its name, and what that means.
MARKS = {
    "unchanged": (
        "†",
        f"The maps keep a rank correlation of {UNCHANGED} or more when all weights are "
        "drawn anew: they show the image, not what was learned.",
    ),
    "class_blind": (
        "‡",
        f"The maps keep a rank correlation of {CLASS_BLIND} or more when the head is "
        "drawn anew: they do not tell classes apart.",
    ),
}
Failed = Mapping[str, Sequence[str]]


def method_label(
    method: str, failed: Failed | None = None, *, narrow: bool = False
) -> str:
    """Returns a method's name with the marks of what it fails, `narrow` in two lines."""
    name = METHOD_NAMES[method]
    if narrow:
        name = BROKEN_NAMES.get(method, name.replace(" ", "\n", 1))
    return name + _mark(method, failed)


def _mark(method: str, failed: Failed | None) -> str:
    return "".join(
        MARKS[w][0] for w, names in (failed or {}).items() if method in names
    )


def foot_notes(failed: Failed) -> list[str]:
    """Returns a line for each mark that is used."""
    return [" ".join(MARKS[what]) for what, names in failed.items() if names]


def _figure(height: float, width: float = PAGE, **kwargs: Any) -> Figure:
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), **kwargs)


def strongest_patches(
    shown: Mapping[str, Patches], layer: str, channels: np.ndarray, method: str
) -> Figure:
    """Draws each channel's strongest patches and below them what it saw, by arm.

    A picture is grey where it is 0, and scaled by its own largest value. Places stay
    white where fewer images bring the channel above 0.

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
                    f"{method_label(method)} picture", va="center")  # fmt: skip
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
    strips = [of_arm.patches[k], 0.5 + pictures / largest / 2]
    rows = [_strip(strip, of_arm.answered[k]) for strip in strips]
    axes.imshow(np.concatenate(rows), cmap="gray", vmin=0, vmax=1,
                interpolation="nearest")  # fmt: skip


def _strip(images: np.ndarray, answered: np.ndarray) -> np.ndarray:
    """Returns `[P, s, s, C]` side by side, `[s', P * s']` or `[.., 3]`.

    Each is framed; the places of images that were not answered, `[P]`, are white.
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


def _within(
    box: tuple[float, float, float, float], width: float, height: float
) -> tuple[float, float, float, float]:
    """Returns a box in inches as shares of the figure."""
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def _arm_title(axes: Axes, arm: str, arms: Sequence[str] | None = None) -> None:
    """Writes a name above a panel, in the colour of the arm if it is one of `arms`."""
    colour = arm_style(arm)["color"] if arms is None or arm in arms else SHARED
    axes.set_title(arm_label(arm), color=colour, weight="bold", pad=3)


def first_layer(
    kernels: Mapping[str, np.ndarray], layer: str, arms: Sequence[str]
) -> Figure:
    """Draws the filters of the first layer, a panel a network.

    Each is scaled by its own largest value; grey is 0.

    Args:
      kernels: Name of the arm, or of another network -> `[h, w, C, O]`.
      layer: Name of the layer.
      arms: Which of the names are arms.
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
        panels = list(figure.subplots(rows, per_row, squeeze=False).flat)
        for axes in panels:
            axes.set_axis_off()
        for axes, (name, kernel) in zip(panels, kernels.items(), strict=False):
            axes.imshow(_sheet(kernel, columns), cmap="gray", vmin=0, vmax=1,
                        interpolation="nearest")  # fmt: skip
            _arm_title(axes, name, arms)
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
    failed: Failed,
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
      failed: What -> the methods that fail it; they are marked (see `MARKS`).
    """
    methods = list(next(iter(maps.values())))
    # A single row of maps leaves no room for the title below the image.
    left, top, gap = 0.8, 0.55, 0.1 if len(maps) > 1 else 0.2
    cell = min((PAGE - left - 0.05) / (len(methods) + 1), 0.9)
    block = len(maps) * cell + gap
    notes = [
        "Below an arm: the probability it gives the class. Darker: matters more. Red: "
        "speaks for the class; blue: against it.",
        *foot_notes(failed),
    ]
    foot = 0.13 * len(notes) + 0.1
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
                        method_label(method, failed, narrow=True), ha="center",
                        va="bottom",
                        fontsize=6.5)  # fmt: skip
        for line, note in enumerate(reversed(notes)):
            figure.text(0.05 / PAGE, (0.08 + 0.13 * line) / height, note, fontsize=6,
                        va="center")  # fmt: skip
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
    axes.text(1, -0.035 / cell, plain(title.replace("_", " "), 20), ha="right", va="top",
              transform=axes.transAxes, fontsize=6)  # fmt: skip


def _map(axes: Axes, heat: np.ndarray, method: str) -> None:
    scale = np.percentile(np.abs(heat), 99) or np.abs(heat).max() or 1.0
    signed = method in SIGNED
    axes.imshow(heat, cmap="RdBu_r" if signed else "gray_r", vmax=scale,
                vmin=-scale if signed else 0, interpolation="nearest")  # fmt: skip
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, linewidth=0.3, color="#BBBBBB")
