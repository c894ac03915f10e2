"""The class names of annotated CT slices: from a setting, a file, or the regions."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

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
    if classes.endswith((".json", ".csv")):
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
            raise UserError(f"classes: no region is labelled '{name}'.{hint}")


def _read(path: Path) -> tuple[str, ...]:
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
