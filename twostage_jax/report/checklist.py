"""Two reporting checklists, filled in: where each item stands in the report.

CLAIM 2024 (Tejani et al. 2024, "Checklist for Artificial Intelligence in Medical Imaging
(CLAIM): 2024 Update") and TRIPOD+AI (Collins et al. 2024). Numbers are those of the
published checklists; the words are not. An item stands at the first of its places that
the report has; without any it is missing, and one without places is for the manuscript.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from twostage_jax.report.cohort import STATEMENTS
from twostage_jax.report.parts import Details, Part, Picture, Saved, Section, Text, walk
from twostage_jax.report.study_table import Study
from twostage_jax.report.tables import Column, Table

FILE = "checklist.md"
MISSING = "missing"
FOR_MANUSCRIPT = "missing: for the manuscript"
LEAD = (
    "Where each item stands in this report. That an item is here does not mean that it is "
    "complete; those that are missing are for the authors to add."
)


class Item(NamedTuple):
    """An item of a checklist.

    Attributes:
      number: Its number.
      asks: What it asks for.
      places: Anchors of sections, names of tables and figures, and fields of
        `config.report`, the best first; words that start with '=' are the answer.
    """

    number: str
    asks: str
    places: tuple[str, ...] = ()


NO_ENSEMBLES = "=Not used: every score is the mean over single networks."
CLAIM = (
    Item("1", "Title: that this is a study of AI, and of which kind"),
    Item("2", "Abstract: design, methods, results, conclusions"),
    Item("3", "Background, and the intended use of the method"),
    Item("4", "Aims and hypotheses", ("primary",)),
    Item("5", "Prospective or retrospective"),
    Item("6", "Goal of the study, such as feasibility or validation"),
    Item("7", "Source of the data"),
    Item("8", "Criteria of inclusion and exclusion", ("flow",)),
    Item("9", "Preprocessing of the images", ("settings",)),
    Item("10", "Selection of parts of the data", ("flow", "settings")),
    Item("11", "De-identification"),
    Item("12", "Handling of missing data", ("warnings",)),
    Item("13", "Acquisition of the images", ("characteristics",)),
    Item("14", "Reference standard: how it was obtained", ("reference_standard",)),
    Item("15", "Reference standard: why this one"),
    Item("16", "Who made the annotations", ("reference_standard",)),
    Item("17", "Annotation of the test set", ("reference_standard",)),
    Item("18", "Variability within and between readers"),
    Item("19", "Assignment to training, validation and test", ("classes_by_split",)),
    Item("20", "Unit that the partitions do not share", ("classes_by_split",)),
    Item("21", "Size of the test set, and what it can detect", ("differences",)),
    Item("22", "Description of the network", ("settings",)),
    Item("23", "Software and versions", ("versions",)),
    Item("24", "Initial parameters", ("stages",)),
    Item("25", "Training: augmentation, settings, number of networks", ("settings",)),
    Item("26", "Selection of the final network", ("tuning", "settings")),
    Item("27", "Ensembles", (NO_ENSEMBLES,)),
    Item("28", "Measures of performance", ("method",)),
    Item("29", "Uncertainty and tests", ("method",)),
    Item("30", "Robustness and sensitivity", ("influence", "size")),
    Item("31", "Explanation of the network", ("features",)),
    Item("32", "Test on internal data", ("scores",)),
    Item("33", "Test on external data", ("external",)),
    Item("34", "Registration of the trial"),
    Item("35", "Numbers included and excluded", ("flow",)),
    Item("36", "Characteristics of the cases by partition", ("characteristics",)),
    Item("37", "Performance, with its uncertainty", ("scores",)),
    Item(
        "38",
        "Diagnostic performance, with its precision",
        ("operating_points", "classes"),
    ),
    Item("39", "Analysis of mistakes", ("mistakes", "confusion_matrices")),
    Item("40", "Limitations"),
    Item("41", "Meaning for practice"),
    Item("42", "Full protocol, or further technical details", ("settings",)),
    Item("43", "Availability of software, network and data"),
    Item("44", "Funding, and the role of funders", ("funding",)),
)
TRIPOD = (
    Item("1", "Title: model, population and outcome"),
    Item("2", "Abstract"),
    Item("3a", "Clinical context, and existing models"),
    Item("3b", "Population, purpose and users"),
    Item("3c", "Known inequalities between groups of people"),
    Item("4", "Objectives: development, evaluation, or both", ("primary",)),
    Item("5a", "Sources of the data, and how representative they are"),
    Item("5b", "Dates of the data"),
    Item("6a", "Setting: kind, number and place of centres"),
    Item("6b", "Criteria of eligibility", ("flow",)),
    Item("6c", "Treatments received"),
    Item("7", "Preparation and quality checks of the data", ("flow", "settings")),
    Item("8a", "Outcome, and how it is assessed", ("reference_standard",)),
    Item("8b", "Assessors of the outcome", ("reference_standard",)),
    Item("8c", "Blinding of the assessment"),
    Item("9a", "Choice of predictors", ("=Predictors are the pixels of the patches.",)),
    Item("9b", "Definition of predictors", ("characteristics", "settings")),
    Item("9c", "Assessors of predictors", ("=Not needed: nobody judges pixels.",)),
    Item("10", "Size of the study", ("differences",)),
    Item("11", "Missing data", ("warnings",)),
    Item(
        "12a", "Use of the data for development and evaluation", ("classes_by_split",)
    ),
    Item("12b", "Handling of predictors", ("settings",)),
    Item("12c", "Kind of model, tuning, internal validation", ("tuning", "settings")),
    Item("12d", "Differences between clusters such as centres"),
    Item("12e", "Measures of performance", ("method",)),
    Item("12f", "Updating of the model", ("=Not done.",)),
    Item("12g", "How predictions were computed", ("method",)),
    Item("13", "Imbalance of classes", ("settings",)),
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
    Item("19", "Involvement of patients and the public"),
    Item("20a", "Flow of participants, and numbers with each outcome", ("flow",)),
    Item("20b", "Characteristics of the participants", ("characteristics",)),
    Item(
        "20c", "Comparison with the development data", ("external_0_characteristics",)
    ),
    Item("21", "Participants and outcomes of each analysis", ("classes_by_split",)),
    Item("22", "The model itself", ("stages",)),
    Item("23a", "Performance, with intervals, also of subgroups", ("scores",)),
    Item("23b", "Differences of performance between clusters", ("by_patient",)),
    Item("24", "Updated model", ("=Not done.",)),
    Item("25", "Interpretation, with fairness and earlier studies"),
    Item("26", "Limitations"),
    Item("27a", "Poor or missing input"),
    Item("27b", "Skills that users need"),
    Item("27c", "Next steps"),
)


def section(study: Study, sections: Sequence[Section], primary: bool) -> Section:
    """Returns the section with both checklists.

    Args:
      study: Study, whose settings hold the statements.
      sections: All other sections of the report.
      primary: Whether the report begins with a primary endpoint.
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
    """Yields each place that the report has, with its words."""
    yield "warnings", "Missing and left out"
    for one in sections:
        for part in walk(one.parts):
            if isinstance(part, Table):
                yield part.name, f"{one.title} (tables/{part.name}.csv)"
            elif isinstance(part, Picture | Saved):
                yield part.name, f"{one.title} (figures/{part.name}.png)"
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
        [Column("item"), Column("what is asked for"), Column("where it stands")],
        rows,
    )


def _answer(item: Item, places: Mapping[str, str]) -> str:
    for place in item.places:
        if place.startswith("="):
            return place[1:]
        if place in places:
            return places[place]
    return MISSING if item.places else FOR_MANUSCRIPT
