"""Two reporting checklists, filled in with the location of each item in the report.

CLAIM 2024 (Tejani et al. 2024, "Checklist for Artificial Intelligence in Medical Imaging
(CLAIM): 2024 Update") and TRIPOD+AI (Collins et al. 2024) are `templates/checklists.csv`.
Numbers follow the published checklists; the wording does not. An item is at the first of
its places that the report has; if the report has none of them it is missing, and items
without places are for the manuscript.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources

from twostage_jax.report.cohort import STATEMENTS
from twostage_jax.report.parts import Details, Part, Section, Text, file_of, walk
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import Table, columns

FILE = "checklist.md"
MISSING = "missing"
FOR_MANUSCRIPT = "missing: for the manuscript"
LEAD = (
    "Location of each item in this report. An item that is present need not be complete; "
    "missing items are for the authors to add."
)


def items(title: str) -> list[dict[str, str]]:
    """Returns the items of a checklist, 'CLAIM 2024' or 'TRIPOD+AI'.

    Each has a 'number', its content ('item') and 'places', separated by '; ': anchors of
    sections, names of tables and figures, and fields of `config.report`, best first;
    text that starts with '=' is the answer itself.
    """
    file = resources.files("twostage_jax.report") / "templates" / "checklists.csv"
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["checklist"] == title]


def section(study: Study, sections: Sequence[Section], primary: bool) -> Section:
    """Returns the section with both checklists, given all other sections.

    `primary` says whether the study has a primary endpoint.
    """
    places = dict(_places(study, sections))
    if primary:
        places["primary"] = "First paragraph; setting study.primary"
    lists = [
        _table("claim", "CLAIM 2024", places),
        _table("tripod_ai", "TRIPOD+AI", places),
    ]
    parts: list[Part] = [Details(f"{one.caption}", [one]) for one in lists]
    return Section("Checklists", "checklists", [Text(LEAD), *parts])


def _places(study: Study, sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Yields each place that the report has, with its description."""
    for one in sections:
        for part in walk(one.parts):
            if file := file_of(part):
                yield part.name, f"{one.title} ({file})"
    for one in sections:
        if one.parts:
            yield one.anchor, one.title
    given: Mapping[str, str] = study.config.get("report") or {}
    for name, title in STATEMENTS.items():
        if str(given.get(name) or "").strip():
            yield name, f"Data ({title})"


def _table(name: str, title: str, places: Mapping[str, str]) -> Table:
    rows = [
        [one["number"], one["item"], _answer(one["places"], places)]
        for one in items(title)
    ]
    missing = sum(row[2].startswith(MISSING) for row in rows)
    return Table(
        name,
        f"{title}: {len(rows) - missing} of {len(rows)} items are in the report.",
        columns("text", "item", "what is asked for", "where it stands"),
        rows,
    )


def _answer(wanted: str, places: Mapping[str, str]) -> str:
    for place in wanted.split("; "):
        if place.startswith("="):
            return place[1:]
        if place in places:
            return places[place]
    return MISSING if wanted else FOR_MANUSCRIPT
