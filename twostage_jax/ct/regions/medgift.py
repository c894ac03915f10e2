"""Regions in MedGIFT contour files.

The format is that of Depeursinge et al. 2012, "Building a reference multimedia database
for interstitial lung diseases" (doi:10.1016/j.compmedimag.2011.07.003).
"""

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct.decode import refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions.base import (
    Contents,
    Draw,
    Format,
    Key,
    Query,
    clean_label,
    draw_regions,
    is_outside,
)
from twostage_jax.ct.regions.masks import file_number
from twostage_jax.errors import UserError

FORM = "a MedGIFT contour file"
# Contour files round the spacing.
SPACING_TOLERANCE = 0.01
SLICE_NAME = re.compile(r"CT-.*\d{4}\.dcm$", re.IGNORECASE)

# (label, slice number from 1, contour `[n, 2]` in pixels: x, y)
Region = tuple[str, int, np.ndarray]


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a text file that begins like a MedGIFT contour file."""
    if path.suffix.lower() != ".txt":
        return None
    with path.open("rb") as file:
        if not file.read(200).lstrip().lower().startswith(b"spacing"):
            return None
    return Contents(labels=tuple(sorted({label for label, _, _ in parse(path)[1]})))


def draw(query: Query) -> dict[Key, Draw]:
    """Returns the regions of slices.

    Raises:
      UserError: A region lies on a slice that is missing or ambiguous, or whose spacing
        is different.
    """
    names, drawn = query.class_names, defaultdict(list)
    with refusing(query.path, FORM):
        (x_mm, y_mm), regions = parse(query.path)
        by_number = _slices(query.headers, {number for _, number, _ in regions})
        for label, number, points in regions:
            if label not in names:
                continue
            if number not in by_number:
                raise UserError(f"has a region on slice {number}, which is missing.")
            header = by_number[number]
            if header.spacing is not None and not np.allclose(
                header.spacing, (y_mm, x_mm), rtol=SPACING_TOLERANCE
            ):
                raise UserError(
                    f"gives a spacing of {x_mm} x {y_mm} mm, but slice {number} one "
                    f"of {header.spacing[1]} x {header.spacing[0]} mm."
                )
            if is_outside(points, header.shape):
                raise UserError(
                    f"a contour of slice {number} lies outside it: points are in mm."
                )
            drawn[number].append((names.index(label), points))
    return {
        by_number[number].key: functools.partial(
            draw_regions, regions, by_number[number].shape
        )
        for number, regions in drawn.items()
    }


def parse(path: Path) -> tuple[tuple[float, float], list[Region]]:
    """Returns the spacing (x, y) in mm and the regions of a file.

    Raises:
      UserError: The file does not follow the format.
    """
    with refusing(path, FORM):
        text = path.read_text(encoding="utf-8", errors="replace")
        return _parsed([line.strip() for line in text.splitlines() if line.strip()])


FORMAT = Format(recognise, draw=draw, anywhere=True)


def _slices(headers: Sequence[Header], used: set[int]) -> dict[int, Header]:
    """Returns the slices of the `used` numbers, which end the names of their files.

    The format defines this for files named `CT-*-NNNN.dcm`. For other files,
    InstanceNumber must agree; it replaces names without numbers.
    """
    by_name, by_instance = defaultdict(list), defaultdict(list)
    for header in headers:
        by_name[file_number(header.path)].append(header)
        by_instance[header.number].append(header)
    by_name.pop(None, None)
    found = {}
    for number in sorted(used):
        named, other = by_name.get(number, []), by_instance.get(number, [])
        slices = named if by_name else other
        if len(slices) > 1:
            raise UserError(
                f"slice {number} could be any of {len(slices)}, such as "
                f"{slices[0].path} and {slices[1].path}."
            )
        if not slices:
            continue
        (found[number],) = slices
        file = found[number].path
        if other and found[number] not in other and not SLICE_NAME.match(file.name):
            raise UserError(
                f"slice {number} could be either of two: {file} by the name of "
                f"its file, {other[0].path} by InstanceNumber. Name the files as the "
                "data set does: CT-*-NNNN.dcm."
            )
    return found


def _parsed(lines: list[str]) -> tuple[tuple[float, float], list[Region]]:
    spacing: dict[str, float] = {}
    regions, label, number, at = [], "", 0, 0
    while at < len(lines):
        key, colon, value = (part.strip() for part in lines[at].partition(":"))
        at += 1
        if not colon:
            raise ValueError(f"line '{lines[at - 1]}' was not expected")
        match key.lower():
            case "spacingx" | "spacingy" | "spacingz":
                spacing[key.lower()[-1]] = float(value)
            case "label":
                label = clean_label(value)
            case "slice_number":
                number = int(value)
            case "nb_points_on_contour":
                count = int(value)
                rows = [line.split() for line in lines[at : at + count]]
                if len(rows) != count or any(len(row) != 2 for row in rows):
                    raise ValueError(f"a contour of slice {number} lacks points")
                points = np.array(rows, float).reshape(-1, 2)
                points /= (spacing["x"], spacing["y"])
                if not label or not np.isfinite(points).all():
                    raise ValueError(f"a contour of slice {number} is not valid")
                if count > 2:
                    regions.append((label, number, points))
                at += count
    if not (spacing.get("x", 0) > 0 and spacing.get("y", 0) > 0):
        raise ValueError("SpacingX and SpacingY must be given and positive")
    return (spacing["x"], spacing["y"]), regions
