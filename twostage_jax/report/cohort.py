"""The section on the data: included and excluded patients, and statements.

Numbers come from the lineages of the target's stage runs (`data.cohort.describe`); if
these are too old to contain them, the section says so.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from twostage_jax.report.artefacts import Artefacts
from twostage_jax.report.figures import PAGE, plain, styled
from twostage_jax.report.parts import Details, Part, Picture, Text
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import Column, Table, columns, mean_and_range

SPLITS = ("train", "validation", "test")
NOT_RECORDED = (
    "Flow of data and classes by split: not recorded by the version that trained these "
    "stage runs."
)
NO_ACQUISITION = (
    "Scanner, kernel, slice thickness, pixel size, sex and age: not recorded; they are "
    "read from DICOM files only."
)
# Field of config.report -> heading.
STATEMENTS = {
    "reference_standard": "Reference standard",
    "ethics": "Ethics",
    "funding": "Funding",
}
LINE = {"linewidth": 0.7, "color": "#444444"}
# Largest number of lines in an excluded box of the flow figure.
REASONS = 4


def cohorts(study: Study, artefacts: Artefacts) -> list[Mapping[str, Any]]:
    """Returns the recorded cohort of each seed and fold at the largest fraction."""
    found: dict[tuple[int, int], Mapping[str, Any]] = {}
    for place, record in study.records.items():
        run = artefacts.last_stage(record)
        cohort = run and run.lineage["data"].get("cohort")
        if cohort and place.fraction == study.fractions[0]:
            found.setdefault((place.seed, place.fold), cohort)
    return list(found.values())


def section(study: Study, artefacts: Artefacts) -> list[Part]:
    """Returns the parts of the section."""
    found = cohorts(study, artefacts)
    if not found:
        return [Text(NOT_RECORDED), *statements(study)]
    # With folds, a patient is in all splits in turn.
    first, whole = found[0], len(study.folds) > 1
    parts: list[Part] = [classes_table(study, found), Text(NO_ACQUISITION)]
    if first["acquisition"]:
        parts[-1] = acquisition_table(first["acquisition"], whole)
    if first["flow"]:
        parts.insert(0, flow_picture(first, whole, len(study.folds)))
        parts.append(Details("Exclusions by class", [flow_table(first, whole)]))
    else:
        parts.append(Text("Exclusions: not recorded by the data source."))
    return [*parts, *statements(study)]


def statements(study: Study) -> Iterator[Text]:
    """Yields the free texts of the settings, naming missing ones."""
    given = study.config.get("report") or {}
    for name, title in STATEMENTS.items():
        text = str(given.get(name) or "").strip()
        yield Text(f"{title}: {text or f'not stated (config.report.{name}).'}")


def classes_table(study: Study, found: Sequence[Mapping[str, Any]]) -> Table:
    """Returns patches and patients of each class in each split."""
    with_patients = found[0]["classes"]["train"]["groups"] is not None
    counted = {"examples": "patches"}
    if with_patients:
        counted["groups"] = "patients"
    several = "; mean over seeds and folds, range in brackets" if len(found) > 1 else ""
    return Table(
        "classes_by_split",
        f"Patches{' and patients' * with_patients} of each class by split, all training "
        f"patients{several}.",
        [
            Column("class"),
            *columns("cells", *(f"{s}: {w}" for s in SPLITS for w in counted.values())),
        ],
        [
            [
                name,
                *(
                    mean_and_range([one["classes"][split][key][k] for one in found])
                    for split in SPLITS
                    for key in counted
                ),
            ]
            for k, name in enumerate(study.class_names)
        ],
        "The splits of a network do not share patients; a patient may have patches of "
        "several classes."
        if with_patients
        else "The data do not identify patients, so patches were split at random.",
    )


def acquisition_table(
    found: Mapping[str, Any], whole: bool, name: str = "characteristics"
) -> Table:
    """Returns characteristics of the patients and of their images."""
    names = ["all", *(() if whole else SPLITS)]
    rows = [
        ["patients", "", *(str(found[split]["patients"]) for split in names)],
        ["series", "", *(str(found[split]["series"]) for split in names)],
        ["age, years", "", *(_spread(found[split]["age"], "g") for split in names)],
    ]
    for title, key in (
        ("sex", "sex"),
        ("scanner (series)", "scanner"),
        ("kernel (series)", "kernel"),
        ("slice thickness, mm (series)", "thickness_mm"),
    ):
        values = list(found["all"][key])
        for value in sorted(values, key=lambda value: value == ""):
            counts = (found[split][key] for split in names)
            cells = [_part(one.get(value, 0), sum(one.values())) for one in counts]
            rows.append([title, value or "not given", *cells])
    pixel = (_spread(found[split]["pixel_mm"], ".3f") for split in names)
    rows.append(["pixel size, mm", "", *pixel])
    return Table(
        name,
        "Characteristics of the patients and their images.",
        [*columns("text", "characteristic", "value"), *columns("cells", *names)],
        rows,
        "From DICOM headers of the series with patches. Age and pixel size: median "
        "(quartiles); sex, scanner, kernel and thickness: number (per cent).",
    )


def flow_table(found: Mapping[str, Any], whole: bool) -> Table:
    """Returns numbers of excluded and included units, by class, reason and split."""
    counts: dict[tuple[str, str, str], Counter] = {}
    for row in found["flow"]:
        key = row["level"], row["class"], row["reason"]
        counts.setdefault(key, Counter())[row["split"]] += row["count"]
    order = list(dict.fromkeys(level for level, _, _ in counts))
    splits = [] if whole else [*SPLITS, ""]
    return Table(
        "flow",
        "Flow of data: numbers of units included, and excluded by reason.",
        [
            *columns("text", "unit", "class", "excluded because"),
            *columns("count", "all", *(name or "in no split" for name in splits)),
        ],
        [
            [level, name, reason or "included", sum(by_split.values())]
            + [by_split[split] for split in splits]
            for (level, name, reason), by_split in sorted(
                counts.items(),
                key=lambda item: (order.index(item[0][0]), item[0][1], not item[0][2]),
            )
        ],
        "Units of patients without patches are in no split.",
    )


def flow_picture(found: Mapping[str, Any], whole: bool, folds: int) -> Picture:
    """Draws the flow of data from patients to the splits."""
    counts: Counter = Counter()
    for row in found["flow"]:
        counts[row["level"], row["reason"]] += row["count"]
    start = [_total(counts, level) for level in ("patients", "series", "slices")]
    first = ", ".join(filter(None, start[1:]))
    boxes = [
        f"{start[0]}\n{first}" if first else start[0],
        f"{_total(counts, 'patches')} in annotated regions",
        f"{counts['patches', '']:,} patches of {counts['patients', '']:,} patients",
    ]
    out = [
        _reasons(counts, ("files", "patients", "series", "slices")),
        _reasons(counts, ("patches",)),
    ]
    parts = [f"{folds} folds by patient,\neach tested once per seed"]
    if not whole:
        patients: Counter = Counter()
        for row in found["flow"]:
            if row["level"] == "patients" and not row["reason"]:
                patients[row["split"]] += row["count"]
        parts = [
            f"{split}\n{sum(found['classes'][split]['examples']):,} patches\n"
            f"{patients[split]:,} patients"
            for split in SPLITS
        ]
    excluded = "; ".join(line for lines in out for line in lines)
    return Picture(
        "flow",
        flow(boxes, out, parts),
        f"From {boxes[0]} to {boxes[2]}. Excluded: {excluded or 'none'}.".replace(
            "\n", ", "
        ),
        "Flow of data. Left: included units; right: excluded units, with reasons.",
    )


@styled
def flow(
    boxes: Sequence[str], excluded: Sequence[Sequence[str]], parts: Sequence[str]
) -> Figure:
    """Draws a flow diagram.

    Args:
      boxes: Texts of the boxes, from top to bottom.
      excluded: Lines of the boxes on the right, between each box and the next.
      parts: Texts of the boxes side by side at the bottom.
    """
    gap, middle, width = 0.22, 1.9, 3.3  # inches
    lines = [text.split("\n") for text in boxes]
    last = _height(max((text.split("\n") for text in parts), key=len))
    room = [_height(side) if side else 0 for side in excluded]
    height = sum(map(_height, lines)) + sum(room) + gap * len(boxes) + last + 0.2
    figure = Figure(figsize=(PAGE, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, PAGE), ylim=(0, height))
    axes.set_axis_off()
    top = height - 0.1
    for text, side in itertools.zip_longest(lines, excluded, fillvalue=()):
        _box(axes, middle, top, width, text)
        top -= _height(text)
        if side:
            below = top - _height(side) - gap
            _arrow(axes, (middle, top), (middle, below))
            at = (top + below) / 2
            _arrow(axes, (middle, at), (3.85, at))
            _box(axes, 5.4, at + _height(side) / 2, 3.1, side)
            top = below
        elif text is not lines[-1]:
            _arrow(axes, (middle, top), (middle, top - gap))
            top -= gap
    own = (width - 0.15 * (len(parts) - 1)) / len(parts)
    for i, text in enumerate(parts):
        centre = middle + (i - (len(parts) - 1) / 2) * (own + 0.15)
        axes.plot([middle, middle, centre], [top, top - gap / 2, top - gap / 2], **LINE)
        _arrow(axes, (centre, top - gap / 2), (centre, top - gap))
        _box(axes, centre, top - gap, own, text.split("\n"))
    return figure


def _height(lines: Sequence[str]) -> float:
    """Returns the height in inches of a box with these lines."""
    return 0.15 * len(lines) + 0.14


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **LINE}
    axes.annotate("", end, start, arrowprops=style)


def _box(axes: Axes, x: float, top: float, width: float, lines: Sequence[str]) -> None:
    height = _height(lines)
    text = "\n".join(plain(line, 60) for line in lines)
    axes.text(x, top - height / 2, text, ha="center", va="center", fontsize=7)
    corner = (x - width / 2, top - height)
    axes.add_patch(Rectangle(corner, width, height, fill=False, **LINE))


def _total(counts: Counter, level: str) -> str:
    total = sum(count for (unit, _), count in counts.items() if unit == level)
    return f"{total:,} {level}" if total else ""


def _reasons(counts: Counter, levels: Sequence[str]) -> list[str]:
    """Returns lines on excluded units, most frequent first within a level."""
    lines = []
    for level in levels:
        own = [(n, why) for (unit, why), n in counts.items() if unit == level and why]
        own.sort(reverse=True)
        lines += [f"{n:,} {level}: {plain(why, 52)}" for n, why in own[:REASONS]]
        if rest := own[REASONS:]:
            lines.append(f"{sum(n for n, _ in rest):,} {level}: other reasons")
    return lines


def _spread(found: Mapping[str, float] | None, form: str) -> str:
    if not found:
        return "not given"
    median, low, high = (format(found[key], form) for key in ("median", "low", "high"))
    return f"{median} ({low} to {high})"


def _part(count: int, whole: int) -> str:
    return f"{count} ({100 * count / whole:.0f} %)" if whole else str(count)
