"""Describes the patients of a data set: flow of data, characteristics, classes by split.

The preparation records two tables (see `dataset.Made.facts`): 'flow' with rows of
`flow_row`, and 'acquisition' with a row per series that has patches:

    patient, series       hashes
    slices                number of slices with patches
    sex, age              'F', 'M', 'O' or ''; years or None
    scanner, kernel       manufacturer and model; ConvolutionKernel; '' if not given
    thickness_mm          SliceThickness or None
    pixel_mm              PixelSpacing or None

`describe` aggregates both over the patients of each split, so that the result does not
identify anyone.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twostage_jax.ct.dicom import Header, hashed
from twostage_jax.ct.series import by_series
from twostage_jax.data.dataset import SPLITS, Dataset, Example
from twostage_jax.data.splits import Splits

# Units of the flow of data, from the outermost.
LEVELS = ("files", "patients", "series", "slices", "patches")
WHOLE = "all"
# Reason for which slices and patients are excluded.
NO_PATCH = "no patch lies far enough inside a region"


def flow_row(
    level: str, count: int, reason: str = "", class_name: str = "", patient: str = ""
) -> dict[str, Any]:
    """Returns a row of the table 'flow'.

    Args:
      level: Unit that is counted, one of `LEVELS`.
      count: Number of units.
      reason: Reason for exclusion; '' if the units are included.
      class_name: Class of the units; '' for units without a class.
      patient: Hash of the patient; '' for units without a patient of the set.
    """
    return {
        "level": level,
        "count": count,
        "reason": reason,
        "class": class_name,
        "patient": patient,
    }


def patient_flow(
    patient: str,
    counts: Iterable[tuple[str, int, str]],
    made: Sequence[Example],
    dropped: Mapping[tuple[str, int], int],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Returns rows of the table 'flow' on a patient, without those that count nothing.

    Args:
      patient: Hash of the patient.
      counts: (level, count, reason) of units above patches.
      made: Patches of the patient.
      dropped: Numbers of excluded patches by reason and class index.
      class_names: Class names in label order.
    """
    rows = [(*row, "") for row in counts]
    if not made:
        rows.append(("patients", 1, NO_PATCH, ""))
    for (reason, label), count in dropped.items():
        rows.append(("patches", count, reason, class_names[label]))
    for label, count in Counter(example.label for example in made).items():
        rows.append(("patches", count, "", class_names[label]))
    return [flow_row(*row, patient) for row in rows if row[1]]


def acquisition(
    used: Sequence[Header], patient: str, salt: str
) -> list[dict[str, Any]]:
    """Returns rows of the table 'acquisition', one per series.

    `used` are the slices that have patches.
    """
    return [
        {
            "patient": patient,
            "series": hashed("series", uid, salt),
            "slices": len(own),
            "sex": own[0].sex,
            "age": own[0].age,
            "scanner": own[0].scanner,
            "kernel": own[0].kernel,
            "thickness_mm": own[0].thickness,
            "pixel_mm": own[0].spacing and round(own[0].spacing[0], 4),
        }
        for uid, own in by_series(used).items()
    ]


def describe(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """Returns a description of the patients of a data set and of its splits.

    All values can be written as JSON.

    Returns:
      'classes': numbers of 'examples' and 'groups' (or None) per class, by split.
      'flow': rows with 'level', 'reason', 'class', 'split' and 'count', summed over the
        patients of a split ('' for units outside all splits); None if not recorded.
      'acquisition': by split and for 'all', numbers of 'patients' and 'series', counts of
        patients by 'sex', counts of series by 'scanner', 'kernel' and 'thickness_mm', and
        'age' and 'pixel_mm' (see `_spread`); None if not recorded.
    """
    parts = {name: getattr(splits, name) for name in SPLITS}
    split_of = {}
    if dataset.groups is not None:
        split_of = {
            str(group): name
            for name, part in parts.items()
            for group in np.unique(dataset.groups[part])
        }
    flow, series = (dataset.facts.get(table) for table in ("flow", "acquisition"))
    return {
        "classes": {name: _classes(dataset, part) for name, part in parts.items()},
        "flow": None if flow is None else _flow(flow, split_of),
        "acquisition": _by_split(series, split_of) if series else None,
    }


def _classes(dataset: Dataset, part: np.ndarray) -> dict[str, Any]:
    labels, groups = dataset.labels[part], dataset.groups
    classes = range(dataset.num_classes)
    return {
        "examples": np.bincount(labels, minlength=dataset.num_classes).tolist(),
        "groups": None
        if groups is None
        else [len(np.unique(groups[part][labels == k])) for k in classes],
    }


def _flow(
    rows: Sequence[Mapping[str, Any]], split_of: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Returns rows of the table 'flow', summed over the patients of each split."""
    counts: Counter = Counter()
    included: dict[str, set[str]] = {}
    for row in rows:
        split = split_of.get(row["patient"], "")
        counts[row["level"], row["reason"], row["class"], split] += row["count"]
        if row["level"] == "patches" and not row["reason"]:
            included.setdefault(split, set()).add(row["patient"])
    for split, patients in included.items():
        counts["patients", "", "", split] += len(patients)
    order = {level: i for i, level in enumerate(LEVELS)}
    return [
        dict(zip(("level", "reason", "class", "split"), key, strict=True), count=count)
        for key, count in sorted(counts.items(), key=lambda item: order[item[0][0]])
    ]


def _by_split(
    rows: Sequence[Mapping[str, Any]], split_of: Mapping[str, str]
) -> dict[str, Any]:
    found = {WHOLE: _acquisition(rows)}
    for name in SPLITS:
        own = [row for row in rows if split_of.get(row["patient"]) == name]
        found[name] = _acquisition(own)
    return found


def _acquisition(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    # A patient may have several series, at different ages.
    patients = {row["patient"]: row for row in reversed(rows)}
    return {
        "patients": len(patients),
        "series": len(rows),
        "sex": _counts(row["sex"] for row in patients.values()),
        "age": _spread(row["age"] for row in patients.values()),
        "scanner": _counts(row["scanner"] for row in rows),
        "kernel": _counts(row["kernel"] for row in rows),
        "thickness_mm": _counts(
            "" if row["thickness_mm"] is None else f"{row['thickness_mm']:g}"
            for row in rows
        ),
        "pixel_mm": _spread(row["pixel_mm"] for row in rows),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Returns number, median and quartiles of the known values, or None without any.

    Omits minimum and maximum, because they belong to single people.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, median, high = np.quantile(known, (0.25, 0.5, 0.75))
    return {
        "count": len(known),
        "median": round(float(median), 3),
        "low": round(float(low), 3),
        "high": round(float(high), 3),
    }
