"""Which slices of a patient's folder are annotated, and with which classes."""

import csv
import functools
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct import rois
from twostage_jax.ct.dicom import Header
from twostage_jax.data import files
from twostage_jax.errors import UserError, did_you_mean

# Contour files round the spacing.
SPACING_TOLERANCE = 0.01
Labelled = list[tuple[Header, rois.Load]]


def labelled_slices(
    folder: Path, headers: Sequence[Header], class_names: Sequence[str]
) -> Labelled:
    """Returns the slices with regions, each with what reads its label mask `[H, W]`.

    Raises:
      UserError: Masks or contours do not fit the slices.
    """
    if (folder / "rois").is_dir():
        masks = rois.masks_of(folder / "rois", headers)
        return [
            (h, functools.partial(_checked, masks[h.sop_uid], len(class_names), h))
            for h in headers
            if h.sop_uid in masks
        ]
    return _medgift(folder, headers, class_names)


def _checked(load: rois.Load, num_classes: int, header: Header) -> np.ndarray:
    labels = load().astype(np.int64)
    if labels.min() < 0 or labels.max() > num_classes:
        raise UserError(
            f"{header.path}: its mask in 'rois' has values {labels.min()} to "
            f"{labels.max()}; {num_classes} classes allow 0 to {num_classes}. Name all "
            "classes in the setting 'classes'."
        )
    return labels


def _medgift(
    folder: Path, headers: Sequence[Header], class_names: Sequence[str]
) -> Labelled:
    by_number = {}
    for header in headers:
        number = re.search(r"(\d+)$", header.path.stem)
        if number and by_number.setdefault(int(number[1]), header) is not header:
            raise UserError(f"{header.path}: a second file with number {number[1]}.")
    drawn = defaultdict(list)
    text = _contour_file(folder)
    (x_mm, y_mm), regions = rois.read_medgift(text)
    for label, number, points in regions:
        if label not in class_names:
            continue
        if number not in by_number:
            raise UserError(f"{text}: has a region on slice {number}; no file has it.")
        header = by_number[number]
        if header.spacing is not None and not np.allclose(
            header.spacing, (y_mm, x_mm), rtol=SPACING_TOLERANCE
        ):
            raise UserError(
                f"{text}: spacing {x_mm} x {y_mm} mm; {header.path.name} says "
                f"{header.spacing[1]} x {header.spacing[0]} mm."
            )
        drawn[number].append((class_names.index(label), points))
    return [
        (
            by_number[number],
            functools.partial(
                rois.draw_regions, drawn[number], by_number[number].shape
            ),
        )
        for number in sorted(drawn)
    ]


def _contour_file(folder: Path) -> Path:
    texts = sorted(folder.glob("*.txt"))
    if len(texts) != 1:
        raise UserError(
            f"{folder}: {len(texts)} .txt files; one with contours is needed."
        )
    return texts[0]


def is_annotated(folder: Path) -> bool:
    """Whether a patient's folder has regions, in one form or the other."""
    return (folder / "rois").is_dir() or any(folder.glob("*.txt"))


def class_names_of(
    root: Path, folders: Sequence[Path], classes: str
) -> tuple[str, ...]:
    """Returns the class names that the setting `classes` of `dicom.recipe` stands for.

    Raises:
      UserError: There are none, or a MedGIFT label is named that never occurs.
    """
    if not classes:
        given = [f for f in ("classes.json", "classes.csv") if (root / f).is_file()]
        classes = given[0] if given else ""
    if classes.endswith((".json", ".csv")):
        return _read_class_names(root / classes)
    contours = [f for f in folders if not (f / "rois").is_dir()]
    occur = {r[0] for f in contours for r in rois.read_medgift(_contour_file(f))[1]}
    if classes:
        names = files.split_names(classes, "classes")
        for name in names:
            if len(contours) == len(folders) and name not in occur:
                hint = did_you_mean(name, occur)
                raise UserError(f"classes: no region is labelled '{name}'.{hint}")
        return names
    if not occur or len(contours) != len(folders):
        raise UserError(
            f"{root}: name the classes, in the order of the mask values 1, 2, ...: in "
            "the setting 'classes' or in classes.json."
        )
    return tuple(sorted(occur))


def _read_class_names(path: Path) -> tuple[str, ...]:
    """Returns the names of a JSON list, or of a CSV with columns value, name."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            names = json.loads(text)
            if not isinstance(names, list):
                raise ValueError("a list of names is needed")
        else:
            rows = list(csv.DictReader(text.splitlines()))
            named = {int(row["value"]): row["name"].strip() for row in rows}
            if sorted(named) != list(range(1, len(rows) + 1)):
                raise ValueError("values must be 1, 2, ..., each once")
            names = [named[value] for value in sorted(named)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: names no classes: {error}") from error
    return files.split_names(",".join(map(str, names)), str(path))
