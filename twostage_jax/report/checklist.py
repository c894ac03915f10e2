"""Two reporting checklists, filled in with the location of each item in the report.

CLAIM 2024 (Tejani et al. 2024, "Checklist for Artificial Intelligence in Medical Imaging
(CLAIM): 2024 Update") and TRIPOD+AI (Collins et al. 2024). Numbers follow the published
checklists; the wording does not. An item is at the first of its places that the report
has; if the report has none of them it is missing, and items without places are for the
manuscript.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

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


class Item(NamedTuple):
    """An item of a checklist.

    Attributes:
      number: Number of the item.
      asks: Content of the item.
      places: Anchors of sections, names of tables and figures, and fields of
        `config.report`, best first; text that starts with '=' is the answer itself.
    """

    number: str
    asks: str
    places: tuple[str, ...] = ()


NO_ENSEMBLES = "=Not used: every score is the mean over single networks."
CLAIM = (
    Item("1", "Title: study of AI, and kind of method"),
    Item("2", "Abstract: design, methods, results, conclusions"),
    Item("3", "Background, and the intended use of the method"),
    Item("4", "Aims and hypotheses", ("primary",)),
    Item("5", "Prospective or retrospective"),
    Item("6", "Goal of the study, such as feasibility or validation"),
    Item("7", "Source of the data"),
    Item("8", "Inclusion and exclusion criteria", ("flow",)),
    Item("9", "Preprocessing of the images", ("settings",)),
    Item("10", "Selection of data subsets", ("flow", "settings")),
    Item("11", "De-identification"),
    Item("12", "Handling of missing data", ("warnings",)),
    Item("13", "Image acquisition", ("characteristics",)),
    Item("14", "Reference standard: definition", ("reference_standard",)),
    Item("15", "Reference standard: rationale"),
    Item("16", "Annotators, and their qualifications", ("reference_standard",)),
    Item("17", "Annotation of the test set", ("reference_standard",)),
    Item("18", "Intra- and inter-reader variability"),
    Item("19", "Assignment to training, validation and test", ("classes_by_split",)),
    Item("20", "Level at which partitions are disjoint", ("classes_by_split",)),
    Item("21", "Size of the test set, and its power", ("differences",)),
    Item("22", "Description of the network", ("settings",)),
    Item("23", "Software and versions", ("versions",)),
    Item("24", "Initialisation of parameters", ("stages",)),
    Item("25", "Training: augmentation, settings, number of networks", ("settings",)),
    Item("26", "Selection of the final network", ("tuning", "settings")),
    Item("27", "Ensembles", (NO_ENSEMBLES,)),
    Item("28", "Performance metrics", ("method",)),
    Item("29", "Statistical uncertainty and significance", ("method",)),
    Item("30", "Robustness and sensitivity", ("influence", "size")),
    Item("31", "Explainability", ("features",)),
    Item("32", "Evaluation on internal data", ("scores",)),
    Item("33", "Evaluation on external data", ("external",)),
    Item("34", "Trial registration"),
    Item("35", "Numbers included and excluded", ("flow",)),
    Item("36", "Characteristics of the cases by partition", ("characteristics",)),
    Item("37", "Performance, with uncertainty", ("scores",)),
    Item(
        "38",
        "Diagnostic performance, with precision",
        ("operating_points", "classes"),
    ),
    Item("39", "Failure analysis", ("mistakes", "confusion_matrices")),
    Item("40", "Limitations"),
    Item("41", "Implications for practice"),
    Item("42", "Full protocol, or further technical details", ("settings",)),
    Item("43", "Availability of software, network and data"),
    Item("44", "Funding, and the role of funders", ("funding",)),
)
TRIPOD = (
    Item("1", "Title: model, population and outcome"),
    Item("2", "Abstract"),
    Item("3a", "Clinical context, and existing models"),
    Item("3b", "Population, purpose and users"),
    Item("3c", "Known health inequalities between groups"),
    Item("4", "Objectives: development, evaluation, or both", ("primary",)),
    Item("5a", "Sources of the data, and how representative they are"),
    Item("5b", "Dates of the data"),
    Item("6a", "Setting: kind, number and location of centres"),
    Item("6b", "Eligibility criteria", ("flow",)),
    Item("6c", "Treatments received"),
    Item("7", "Preparation and quality checks of the data", ("flow", "settings")),
    Item("8a", "Outcome, and how it is assessed", ("reference_standard",)),
    Item("8b", "Assessors of the outcome", ("reference_standard",)),
    Item("8c", "Blinding of the assessment"),
    Item("9a", "Choice of predictors", ("=Predictors are the pixels of the patches.",)),
    Item("9b", "Definition of predictors", ("characteristics", "settings")),
    Item("9c", "Assessors of predictors", ("=Not applicable to pixels.",)),
    Item("10", "Sample size", ("differences",)),
    Item("11", "Missing data", ("warnings",)),
    Item(
        "12a", "Use of the data for development and evaluation", ("classes_by_split",)
    ),
    Item("12b", "Handling of predictors", ("settings",)),
    Item("12c", "Type of model, tuning, internal validation", ("tuning", "settings")),
    Item("12d", "Heterogeneity between clusters such as centres"),
    Item("12e", "Performance measures", ("method",)),
    Item("12f", "Model updating", ("=Not done.",)),
    Item("12g", "Computation of predictions", ("method",)),
    Item("13", "Class imbalance", ("settings",)),
    Item("14", "Fairness"),
    Item("15", "Output of the model, and thresholds", ("operating_points",)),
    Item("16", "Differences between development and evaluation data", ("external",)),
    Item("17", "Ethics approval and consent", ("ethics",)),
    Item("18a", "Funding", ("funding",)),
    Item("18b", "Conflicts of interest"),
    Item("18c", "Protocol"),
    Item("18d", "Registration"),
    Item("18e", "Availability of the data"),
    Item("18f", "Availability of the code"),
    Item("19", "Patient and public involvement"),
    Item("20a", "Flow of participants, and numbers with each outcome", ("flow",)),
    Item("20b", "Characteristics of the participants", ("characteristics",)),
    Item(
        "20c", "Comparison with the development data", ("external_0_characteristics",)
    ),
    Item("21", "Participants and outcomes of each analysis", ("classes_by_split",)),
    Item("22", "The model itself", ("stages",)),
    Item("23a", "Performance with intervals, including subgroups", ("scores",)),
    Item("23b", "Heterogeneity of performance between clusters", ("by_patient",)),
    Item("24", "Updated model", ("=Not done.",)),
    Item("25", "Interpretation, with fairness and earlier studies"),
    Item("26", "Limitations"),
    Item("27a", "Poor-quality or missing input"),
    Item("27b", "User interaction and required expertise"),
    Item("27c", "Future research"),
)


def section(study: Study, sections: Sequence[Section], primary: bool) -> Section:
    """Returns the section with both checklists.

    Args:
      study: Study, whose settings hold the statements.
      sections: All other sections of the report.
      primary: Whether the study has a primary endpoint.
    """
    places = dict(_places(study, sections))
    if primary:
        places["primary"] = "First paragraph; setting study.primary"
    lists = [
        _table("claim", "CLAIM 2024", CLAIM, places),
        _table("tripod_ai", "TRIPOD+AI", TRIPOD, places),
    ]
    parts: list[Part] = [Details(f"{one.caption}", [one]) for one in lists]
    return Section("Checklists", "checklists", [Text(LEAD), *parts])


def _places(study: Study, sections: Sequence[Section]) -> Iterator[tuple[str, str]]:
    """Yields each place that the report has, with its description."""
    yield "warnings", "Missing and skipped"
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


def _table(
    name: str, title: str, items: Sequence[Item], places: Mapping[str, str]
) -> Table:
    rows = [[one.number, one.asks, _answer(one, places)] for one in items]
    missing = sum(row[2].startswith(MISSING) for row in rows)
    return Table(
        name,
        f"{title}: {len(rows) - missing} of {len(rows)} items are in the report.",
        columns("text", "item", "what is asked for", "where it stands"),
        rows,
    )


def _answer(item: Item, places: Mapping[str, str]) -> str:
    for place in item.places:
        if place.startswith("="):
            return place[1:]
        if place in places:
            return places[place]
    return MISSING if item.places else FOR_MANUSCRIPT
