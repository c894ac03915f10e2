"""Sheets of images with labels, for print."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from twostage_jax.report.style import COLUMN, LABEL_ROOM, PAGE, plain, styled


@styled
def montage(
    images: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
    *,
    columns: int = 8,
) -> Figure:
    """Draws examples, one row a class, in the order given.

    Args:
      images: `[N, H, W, C]` or `[N, H, W]`, uint8 or floats in [0, 1]; C is 1 or 3.
      labels: `[N]` indices into `class_names`.
      class_names: One a class; a class without an image has no row.
      title: Above all.
      columns: Images a row at most.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8:
        images = np.uint8(np.clip(images, 0, 1) * 255 + 0.5)
    present = np.unique(labels)
    # Beyond a dozen classes, two blocks side by side keep the figure on one page.
    blocks = 1 if len(present) <= 12 else 2
    width, gutter = (COLUMN if blocks == 1 else PAGE), LABEL_ROOM - 0.1
    columns = min(columns, np.bincount(labels).max())
    cell = min((width / blocks - gutter - 0.1) / columns, 0.6)
    rows = -(-len(present) // blocks)
    height = rows * cell + 0.35
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.16 / height, plain(title, 60), ha="center", va="center")
    for place, label in enumerate(present):
        block, row = divmod(place, rows)
        left = block * width / blocks + gutter
        bottom = height - 0.3 - (row + 1) * cell
        figure.text((left - 0.06) / width, (bottom + cell / 2) / height,
                    plain(class_names[label], 18), ha="right", va="center",
                    fontsize=7)  # fmt: skip
        chosen = images[labels == label][:columns]
        strip = _strip(chosen)
        box = (left, bottom, cell * len(chosen), cell)
        axes = figure.add_axes(
            (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        )
        axes.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
    return figure


@styled
def labelled(images: np.ndarray, lines: Sequence[Sequence[str]], title: str) -> Figure:
    """Draws images four a row, each above its own lines of text.

    Args:
      images: `[N, H, W, C]`, uint8; C is 1 or 3.
      lines: Of each image.
      title: Above all.
    """
    cell, side = PAGE / 4, 1.2
    deep = 0.15 * max(map(len, lines)) + 0.1
    width = cell * min(4, len(images))
    height = -(-len(images) // 4) * (side + deep) + 0.3
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.16 / height, plain(title, 60), ha="center", va="center")
    for place, (image, below) in enumerate(zip(images, lines, strict=True)):
        row, column = divmod(place, 4)
        left = column * cell + (cell - side) / 2
        bottom = height - 0.3 - row * (side + deep) - side
        axes = figure.add_axes(
            (left / width, bottom / height, side / width, side / height)
        )
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255,
                    interpolation="nearest")  # fmt: skip
        axes.set_axis_off()
        figure.text((left + side / 2) / width, (bottom - 0.04) / height,
                    "\n".join(plain(line, 30) for line in below), ha="center",
                    va="top", fontsize=6.5)  # fmt: skip
    return figure


def _strip(images: np.ndarray) -> np.ndarray:
    """Returns images side by side with a white edge: `[H, W * N]` or `[.., 3]`."""
    edge = max(1, images.shape[1] // 24)
    pads = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = np.pad(images, pads, constant_values=255)
    return np.concatenate(list(padded), axis=1).squeeze()
