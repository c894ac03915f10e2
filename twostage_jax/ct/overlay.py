"""Colour overlays of a slice and of a series, as a radiologist reads them.

Slices are seen from the feet, on a dark ground, in grey, with a bar of five centimetres.
Normal lung is left grey, see `palette`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from twostage_jax.ct import drawing
from twostage_jax.ct.dicom import window as windowed
from twostage_jax.ct.palette import NOTICE, colour, is_striped

LUNG_WINDOW = (-600.0, 1500.0)
# Share of a class's colour over the grey of the slice.
TINT = 0.42
# Pixels: longer side of a slice, above it; sheet and its slices.
PANEL, HEAD = 560, 44
SHEET_WIDTH, LARGEST_THUMB, SMALLEST_THUMB = 2400, 380, 150


@dataclasses.dataclass(frozen=True)
class Style:
    """What all pictures of a series share.

    Attributes:
      class_names: Of the K classes.
      pixel_mm: Distance between rows and between columns.
      sides: Letters at the left, right, top and bottom, such as 'RLAP'; see `sides`.
      title: What the series is, without anything that identifies the patient.
      made_by: What made the picture, a text a line.
      notices: Texts in the colour of a warning, a text a line.
    """

    class_names: tuple[str, ...]
    pixel_mm: tuple[float, float]
    sides: str
    title: str
    made_by: tuple[str, ...]
    notices: tuple[str, ...] = (NOTICE,)

    @property
    def foot(self) -> int:
        """Pixels below a picture."""
        return drawing.foot_height(self.notices, self.made_by)


def draw_slice(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    name: str,
    unlike: np.ndarray | None = None,
) -> Image.Image:
    """Returns the slice twice, plain and with its classes in colour, and the legend.

    Args:
      hu: `[H, W]` int16.
      labels: `[H, W]`: 1 + class index, 0 = no class.
      lungs: `[H, W]` bool.
      style: Of the series.
      name: Of the slice.
      unlike: `[H, W]` bool, hatched: what is unlike the training images; `None`: not
        judged.
    """
    high, wide = _shown(hu.shape, style.pixel_mm, PANEL)
    plain = _grey(hu, (high, wide))
    coloured = _coloured(plain, labels, lungs, style, unlike)
    width = 2 * wide + drawing.LEGEND + 4 * drawing.MARGIN
    tall = max(high, drawing.legend_height(style.class_names))
    canvas = Image.new("RGB", (width, tall + HEAD + style.foot), drawing.GROUND)
    pen = ImageDraw.Draw(canvas)
    for left, panel in ((drawing.MARGIN, plain), (2 * drawing.MARGIN + wide, coloured)):
        canvas.paste(Image.fromarray(panel), (left, HEAD))
        drawing.sides(pen, (left, HEAD), (high, wide), style.sides)
    mm = hu.shape[1] * style.pixel_mm[1] / wide
    drawing.bar(pen, drawing.MARGIN + 14, HEAD + high - 16, mm, wide // 2)
    centre, width_hu = LUNG_WINDOW
    note = f"W {width_hu:.0f}, L {centre:.0f} HU"
    drawing.write(
        pen, (drawing.MARGIN + wide - 10, HEAD + high - 10), note, 13, drawing.DIM, "rs"
    )
    drawing.write(pen, (drawing.MARGIN, 14), f"{style.title}, {name}", 17, room=width)
    counts = np.bincount(labels[lungs], minlength=1 + len(style.class_names))
    left = 3 * drawing.MARGIN + 2 * wide
    drawing.legend(
        pen,
        (left, HEAD + 4),
        style.class_names,
        counts,
        "of the lung here",
        None if unlike is None else np.count_nonzero(unlike[lungs]),
    )
    drawing.foot(pen, HEAD + tall + 10, width, style.notices, style.made_by)
    return canvas


def draw_sheet(
    hu: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    unlike: np.ndarray | None = None,
) -> Image.Image:
    """Returns all slices of a series on one sheet, the head first, cut to the lungs.

    Args:
      hu: `[Z, H, W]` int16, from feet to head.
      labels: `[Z, H, W]`: 1 + class index, 0 = no class.
      lungs: `[Z, H, W]` bool.
      style: Of the series.
      unlike: `[Z, H, W]` bool, see `draw_slice`, or `None`.
    """
    rows, columns = _around(lungs, style.pixel_mm)
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    count = len(hu)
    thumb, across = _tiling(count, shape, style.pixel_mm)
    high, wide = _shown(shape, style.pixel_mm, thumb)
    down = -(-count // across)
    beside = across * (wide + 4) + 3 * drawing.MARGIN
    # The legend, and below it the bar: on the pictures it would lie on white tissue.
    below_legend = drawing.legend_height(style.class_names)
    tall = max(down * (high + 4), below_legend + 60)
    canvas = Image.new(
        "RGB", (beside + drawing.LEGEND, tall + HEAD + style.foot), drawing.GROUND
    )
    pen = ImageDraw.Draw(canvas)
    for place, z in enumerate(range(count - 1, -1, -1)):
        part = z, rows, columns
        plain = _grey(hu[part], (high, wide))
        hatched = None if unlike is None else unlike[part]
        picture = _coloured(plain, labels[part], lungs[part], style, hatched)
        left = drawing.MARGIN + place % across * (wide + 4)
        top = HEAD + place // across * (high + 4)
        canvas.paste(Image.fromarray(picture), (left, top))
        drawing.write(pen, (left + 5, top + 4), str(place + 1), 13)
    drawing.sides(pen, (drawing.MARGIN, HEAD), (high, wide), style.sides)
    mm = shape[1] * style.pixel_mm[1] / wide
    drawing.bar(pen, beside, HEAD + below_legend + 50, mm, drawing.LEGEND // 2)
    numbers = f"{count} slices from the head" if count > 1 else "1 slice"
    title = f"{style.title}, {numbers}"
    drawing.write(pen, (drawing.MARGIN, 14), title, 17, room=canvas.width)
    counts = np.bincount(labels[lungs], minlength=1 + len(style.class_names))
    drawing.legend(
        pen,
        (beside, HEAD + 4),
        style.class_names,
        counts,
        "of the lungs",
        None if unlike is None else np.count_nonzero(unlike[lungs]),
    )
    drawing.foot(pen, HEAD + tall + 10, canvas.width, style.notices, style.made_by)
    return canvas


def sides(orientation: Sequence[float] | None) -> str:
    """Returns the letters at the left, right, top and bottom of a slice.

    'R' and 'L', 'A' and 'P', 'H' and 'F' stand for the patient's right and left,
    front (anterior) and back, head and feet. Unknown: four spaces.

    Args:
      orientation: Direction cosines of a row, then of a column, as DICOM has them.
    """
    if orientation is None:
        return "    "
    letters = ""
    for direction in np.reshape(orientation, (2, 3)):
        axis = int(np.abs(direction).argmax())
        pair = ("RL", "AP", "FH")[axis]
        letters += pair if direction[axis] > 0 else pair[::-1]
    return letters


def _coloured(
    plain: np.ndarray,
    labels: np.ndarray,
    lungs: np.ndarray,
    style: Style,
    unlike: np.ndarray | None,
) -> np.ndarray:
    """Returns `[H, W, 3]` uint8: tinted classes in their own outline, lungs in white.

    What is unlike the training images is outlined and hatched in white on black, to be
    seen on any colour. Masks are those of the slice, in its own pixels.
    """
    picture = plain.astype(np.float32)
    labels, lungs = _nearest(labels, plain), _nearest(lungs, plain)
    rows, columns = np.indices(labels.shape)
    stripes = (rows + columns) // drawing.STRIPE % 2 == 0
    unknown = lungs & (labels == 0) & ((rows - columns) % (2 * drawing.STRIPE) < 2)
    picture[unknown] = drawing.DIM
    picture[_edge(lungs)] = drawing.OUTLINE
    for index in range(len(style.class_names)):
        rgb = colour(index, style.class_names)
        region = labels == 1 + index
        if rgb is None or not region.any():
            continue
        tinted = region & stripes if is_striped(index, style.class_names) else region
        picture[tinted] = (1 - TINT) * picture[tinted] + TINT * np.array(rgb)
        picture[_edge(region)] = rgb
    if unlike is not None:
        lines, region = drawing.hatch(labels.shape), _nearest(unlike, plain)
        picture[region & (np.roll(lines, 1, 1) | np.roll(lines, -1, 1))] = (
            drawing.GROUND
        )
        picture[region & lines | _edge(region)] = drawing.OUTLINE
    return np.rint(picture).astype(np.uint8)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Returns the pixels of `mask` `[H, W]` beside others."""
    inner = np.pad(mask, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return mask & ~inner


def _grey(hu: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns HU `[H, W]` in the lung window as `[*shape, 3]` uint8."""
    unit = np.rint(255 * windowed(hu, *LUNG_WINDOW)).astype(np.uint8)
    scaled = Image.fromarray(unit).resize(shape[::-1], Image.Resampling.BILINEAR)
    return np.repeat(np.asarray(scaled)[..., None], 3, axis=2)


def _nearest(mask: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Returns a mask `[H, W]` in the size of the picture `like`."""
    rows, columns = (
        (np.arange(new) + 0.5) * old // new
        for old, new in zip(mask.shape, like.shape[:2], strict=True)
    )
    return mask[np.ix_(rows.astype(int), columns.astype(int))]


def _shown(
    shape: tuple[int, int], pixel_mm: tuple[float, float], longest: int
) -> tuple[int, int]:
    """Returns (height, width) in square pixels, the longer side `longest`."""
    high, wide = (n * mm for n, mm in zip(shape, pixel_mm, strict=True))
    scale = longest / max(high, wide)
    return max(1, round(high * scale)), max(1, round(wide * scale))


def _around(lungs: np.ndarray, pixel_mm: tuple[float, float]) -> tuple[slice, slice]:
    """Returns the rows and columns of the lungs of a series and 12 mm around them."""
    cut = []
    for axis, mm in ((1, pixel_mm[0]), (2, pixel_mm[1])):
        length, margin = lungs.shape[axis], round(12 / mm)
        found = np.flatnonzero(lungs.any((0, 3 - axis)))
        found = found if len(found) else np.array([0, length - 1])
        cut.append(
            slice(max(0, found[0] - margin), min(length, found[-1] + margin + 1))
        )
    return cut[0], cut[1]


def _tiling(
    count: int, shape: tuple[int, int], pixel_mm: tuple[float, float]
) -> tuple[int, int]:
    """Returns the longer side of a thumbnail and how many lie side by side."""
    thumb = LARGEST_THUMB
    while True:
        high, wide = _shown(shape, pixel_mm, thumb)
        across = max(1, min(count, (SHEET_WIDTH - drawing.LEGEND) // (wide + 4)))
        if thumb <= SMALLEST_THUMB or -(-count // across) * high <= SHEET_WIDTH:
            return thumb, across
        thumb = max(SMALLEST_THUMB, int(thumb * 0.9))
