"""Regions of a CSV file of polygons: patient, series, slice, label, points."""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct.dicom import Header, patient_hash
from twostage_jax.ct.rois import Key, Load, clean_label, draw_regions
from twostage_jax.errors import UserError

COLUMNS = ("patient", "series", "slice", "label", "points")


def rows_of(path: Path) -> Iterator[dict[str, str]]:
    """Yields the rows, with their number in the file as 'row'.

    patient: PatientID, or its salted hash; may be empty. series: SeriesInstanceUID.
    slice: SOPInstanceUID, or InstanceNumber (of a multi-frame file the number of the
    frame, from 1). points: column and row of at least three corners, in pixels; the
    centre of the first pixel is 0 0: '10 20; 30.5 20; 30.5 40'.

    Raises:
      UserError: The file cannot be read, or a column or a value is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise UserError(
                    f"{path}: has no column {', '.join(missing)}; {', '.join(COLUMNS)} "
                    "are needed."
                )
            for row in reader:
                values = {c: (row[c] or "").strip() for c in COLUMNS}
                values["row"] = str(reader.line_num)
                for column in ("series", "slice", "label"):
                    if not values[column]:
                        raise UserError(
                            f"{path}, line {reader.line_num}: {column} is empty."
                        )
                yield values
    except (OSError, csv.Error, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read as CSV: {error}") from error


def read(
    path: Path,
    headers: Sequence[Header],
    class_names: Sequence[str],
    salt: str = "",
) -> dict[Key, Load]:
    """Returns the label masks of slices; rows of other series or labels are left out.

    Raises:
      UserError: A row names a slice that is not in its series, another patient, or no
        polygon.
    """
    by_uid = {(h.series_uid, h.sop_uid): h for h in headers}
    by_number = defaultdict(list)
    for header in headers:
        by_number[header.series_uid, str(header.number)].append(header)
    series = {header.series_uid for header in headers}
    drawn: dict[Key, list[tuple[int, np.ndarray]]] = defaultdict(list)
    shapes = {header.key: header.shape for header in headers}
    for row in rows_of(path):
        label = clean_label(row["label"])
        if row["series"] not in series or label not in class_names:
            continue
        place = row["series"], row["slice"]
        candidates = [by_uid[place]] if place in by_uid else by_number[place]
        if len(candidates) != 1:
            raise UserError(
                f"{path}, line {row['row']}: slice {row['slice']} "
                f"{'occurs twice' if candidates else 'is not there'} in series "
                f"{row['series']}."
            )
        header = candidates[0]
        own = {"", header.patient}
        given = {row["patient"], patient_hash(row["patient"], salt)}
        if header.patient and not own & given:
            raise UserError(
                f"{path}, line {row['row']}: series {row['series']} is of another "
                "patient."
            )
        drawn[header.key].append((class_names.index(label), _points(row, path)))
    return {key: lambda key=key: draw_regions(drawn[key], shapes[key]) for key in drawn}


def _points(row: dict[str, str], path: Path) -> np.ndarray:
    """Returns the corners `[n, 2]`: column, row."""
    parts = [part for part in re.split(r"[\s;,]+", row["points"]) if part]
    try:
        points = np.array(parts, float).reshape(-1, 2)
    except ValueError:
        points = np.zeros((0, 2))
    if len(points) < 3 or not np.isfinite(points).all():
        raise UserError(
            f"{path}, line {row['row']}: points are no polygon: column and row of at "
            "least three corners are needed."
        )
    return points
