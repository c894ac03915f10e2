"""CSV files of polygons, with the columns patient, series, slice, label and points."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax import io
from twostage_jax.ct.dicom import patient_hash
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
from twostage_jax.errors import UserError

COLUMNS = ("patient", "series", "slice", "label", "points")
# Separators between the numbers of a point and between points; see `_corners`.
LAYOUTS = (" ;", " |", "|;", "| ", ",;", ", ", ",|")


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a CSV file other than `classes.csv`."""
    name = path.name.lower()
    if not name.endswith(".csv") or name == "classes.csv":
        return None
    rows = [row for _, row in _rows(path)]
    return Contents(
        tuple(sorted({row["series"] for row in rows})),
        tuple(sorted({clean_label(row["label"]) for row in rows})),
    )


def draw(query: Query) -> dict[Key, Draw]:
    """Returns a function per slice that draws its regions; skips other series.

    Raises:
      UserError: A row names a slice that its series lacks, or another patient, or its
        points are not a polygon.
    """
    path, headers, class_names = query.path, query.headers, query.class_names
    by_uid = {(h.series_uid, h.sop_uid): h for h in headers}
    by_number = defaultdict(list)
    for header in headers:
        by_number[header.series_uid, str(header.number)].append(header)
    series = {header.series_uid for header in headers}
    drawn: dict[Key, list[tuple[int, np.ndarray]]] = defaultdict(list)
    shapes = {header.key: header.shape for header in headers}
    rows = _rows(path)
    corners = _corners([row["points"] for _, row in rows])
    for (line, row), points in zip(rows, corners, strict=True):
        label = clean_label(row["label"])
        if row["series"] not in series or label not in class_names:
            continue
        at = f"{path}, line {line}"
        named = row["series"], row["slice"]
        candidates = [by_uid[named]] if named in by_uid else by_number[named]
        if len(candidates) != 1:
            raise UserError(
                f"{at}: slice {row['slice']} "
                f"{'occurs twice' if candidates else 'is missing'} in series "
                f"{row['series']}.",
                where=path,
            )
        header = candidates[0]
        given = {row["patient"], unicodedata.normalize("NFD", row["patient"])}
        given |= {patient_hash(patient, query.salt) for patient in given}
        if header.patient and not {"", header.patient} & given:
            raise UserError(
                f"{at}: series {row['series']} is of another patient.", where=path
            )
        if isinstance(points, str):
            raise UserError(f"{at}: {points}", where=path)
        if is_outside(points, header.shape):
            raise UserError(
                f"{at}: the polygon lies outside its slice. Points are columns and rows "
                "in pixels, not mm.",
                where=path,
            )
        drawn[header.key].append((class_names.index(label), points))
    return {key: lambda key=key: draw_regions(drawn[key], shapes[key]) for key in drawn}


FORMAT = Format(recognise, draw=draw, needs_every_series=True)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows of a file; see `io.read` for the accepted variants of CSV.

    patient: PatientID or its salted hash; may be empty. series: SeriesInstanceUID.
    slice: SOPInstanceUID, or InstanceNumber (in a multi-frame file the number of the
    frame, from 1). points: column and row of at least three corners, in pixels; the
    centre of the first pixel is 0 0: '10 20; 30.5 20; 30.5 40'. See `_corners` for
    other ways to separate the numbers.

    Raises:
      UserError: The file cannot be read, or a column or a value is missing.
    """
    return io.read(path, COLUMNS, may_be_empty=("patient", "points"))


def _corners(texts: Sequence[str]) -> list[np.ndarray | str]:
    """Returns the corners `[n, 2]` (column, row) of each polygon, or an error message.

    Numbers stand in pairs, with one separator within a pair and another between pairs:

        10 20; 30.5 20; 30.5 40         10,20 30.5,20 30.5,40
        10, 20; 30.5, 20; 30.5, 40      10 20, 30.5 20, 30.5 40

    or in one row with one separator: blanks, semicolons, commas, or commas and blanks. A
    comma without a blank may also be the decimal mark: '10 20; 30,5 20; 30,5 40'. If both
    readings give a polygon, as for '10,5 20,3 30,7 20,1 15,5 40,2' (six corners, or
    three), other polygons of the same table decide; if they do not decide or disagree,
    the text is refused.

    Args:
      texts: Column 'points' of all polygons of a table.
    """
    readings = [_readings(text) for text in texts]
    marks = {mark for found in readings if len(found) == 1 for mark in found}
    marks.discard("")
    corners: list[np.ndarray | str] = []
    for found in readings:
        chosen = [mark for mark in found if len(found) == 1 or {mark} == marks]
        if chosen:
            corners.append(found[chosen[0]])
        elif found:
            corners.append(
                "a comma in the points may separate numbers or be a decimal mark: "
                "write a point as the decimal mark and blanks between numbers, as in "
                "'10.5 20; 30 20; 30 40'."
            )
        else:
            corners.append(
                "the points are not a polygon: column and row of at least three corners "
                "are needed, as in '10.5 20; 30 20; 30 40'."
            )
    return corners


def _readings(text: str) -> dict[str, np.ndarray]:
    """Returns the polygons that a text may mean, by their decimal mark.

    The mark is '' if the text fits both.
    """
    text = text.strip(" ;,\t\r\n")
    text = re.sub(r"\s*;\s*", ";", text)
    # A comma next to a blank cannot be a decimal mark.
    text = re.sub(r"\s+,\s*|,\s+", "|", text)
    text = re.sub(r"\s+", " ", text)
    if "," not in text:
        points = _parsed(text)
        return {} if points is None else {"." if "." in text else "": points}
    found = {".": _parsed(text)}
    if "." not in text:
        found[","] = _parsed_decimal_commas(text)
    return {mark: points for mark, points in found.items() if points is not None}


def _parsed_decimal_commas(text: str) -> np.ndarray | None:
    if re.search("[ ;|]", text):
        return _parsed(re.sub(r"(?<=\d),(?=\d)", ".", text))
    # '10,5,20,3,...': every second comma would be a decimal mark.
    parts = text.split(",")
    if len(parts) % 2:
        return None
    return _parsed(" ".join(map(".".join, zip(parts[::2], parts[1::2], strict=True))))


def _parsed(text: str) -> np.ndarray | None:
    """Returns the corners `[n, 2]` of a text in one of the layouts, or None."""
    for inner, outer in LAYOUTS:
        pairs = [pair.split(inner) for pair in text.split(outer)]
        if all(len(pair) == 2 for pair in pairs):
            return _polygon(pairs)
    for separator in " ;|,":
        numbers = text.split(separator)
        if len(numbers) > 1 and len(numbers) % 2 == 0:
            return _polygon([numbers[i : i + 2] for i in range(0, len(numbers), 2)])
    return None


def _polygon(pairs: Sequence[Sequence[str]]) -> np.ndarray | None:
    try:
        points = np.array(pairs, float)
    except ValueError:
        return None
    return points if len(points) >= 3 and np.isfinite(points).all() else None
