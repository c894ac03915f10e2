"""The class names of annotated CT slices: from a setting, a file, or the regions."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from twostage_jax import tables
from twostage_jax.ct.rois import clean_label
from twostage_jax.data import files
from twostage_jax.data.annotations import RoiFile
from twostage_jax.errors import UserError, did_you_mean


def given(root: Path, classes: str) -> tuple[str, ...]:
    """Returns the names that the setting `classes`, or a file in `root`, gives; or ().

    Args:
      root: Folder of the slices, and of `classes.json` or `classes.csv`.
      classes: 'normal,ggo', or the name of a file below `root`: JSON (a list of names)
        or CSV (columns value, name).

    Raises:
      UserError: The file does not name classes.
    """
    if not classes:
        found = [f for f in ("classes.json", "classes.csv") if (root / f).is_file()]
        classes = found[0] if found else ""
    if classes.lower().endswith((".json", ".csv")):
        return _read(root / classes)
    return files.split_names(classes, "classes") if classes else ()


def occurring(root: Path, regions: Sequence[RoiFile]) -> tuple[str, ...]:
    """Returns the labels that files of regions use, sorted.

    Raises:
      UserError: Some files number their regions.
    """
    labels = {label for file in regions for label in file.labels if label}
    if not labels or not all(file.labels for file in regions):
        raise UserError(
            f"{root}: name the classes, in the order of the mask values 1, 2, ...: in "
            "the setting 'classes' or in classes.json."
        )
    return tuple(sorted(labels))


def check(names: Sequence[str], regions: Sequence[RoiFile]) -> None:
    """Raises a UserError for a class that no region has, where all regions say theirs."""
    labels = {label for file in regions for label in file.labels}
    if not all(file.labels for file in regions):
        return
    for name in names:
        if clean_label(name) not in labels:
            hint = did_you_mean(name, labels)
            raise UserError(
                f"classes: no region is labelled '{name}'.{hint}", where="classes"
            )


def _read(path: Path) -> tuple[str, ...]:
    """Returns the names of a JSON list, or of a CSV with columns value, name."""
    if path.suffix.lower() == ".json":
        names = _read_json(path)
    else:
        names = _read_table(path)
    cleaned = [clean_label(name) for name in names]
    doubled = [name for name in names if cleaned.count(clean_label(name)) > 1]
    if not names or not all(cleaned) or doubled:
        raise UserError(
            f"{path}: the classes need names, each once; found "
            f"{', '.join(map(repr, names)) or 'none'}.",
            where=path,
        )
    return tuple(names)


def _read_json(path: Path) -> list[str]:
    try:
        names = json.loads(tables.decoded(path))
    except ValueError as error:
        raise UserError(
            f"{path}: cannot be read as JSON: {error}.", where=path
        ) from None
    if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
        raise UserError(
            f'{path}: must hold a list of names, as in ["normal", "fibrosis"].',
            where=path,
        )
    return [tables.composed(str(name)).strip() for name in names]


def _read_table(path: Path) -> list[str]:
    named: dict[int, str] = {}
    for line, row in tables.read(path, ("value", "name")):
        # Spreadsheets may write whole numbers with a fraction.
        value = re.fullmatch(r"0*([1-9]\d{0,3})(?:[.,]0+)?", row["value"])
        if not value or int(value[1]) in named:
            raise UserError(
                f"{path}, line {line}: the value must be a whole number from 1, and "
                f"stand in one row only; it is '{row['value'][:40]}'.",
                where=path,
            )
        named[int(value[1])] = row["name"]
    if sorted(named) != list(range(1, len(named) + 1)):
        raise UserError(
            f"{path}: the values must be 1, 2, ... without a gap; they are "
            f"{', '.join(map(str, sorted(named))) or 'missing'}.",
            where=path,
        )
    return [named[value] for value in sorted(named)]
