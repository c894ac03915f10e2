"""The sections of the report, in order."""

import dataclasses
from collections.abc import Iterable

from twostage_jax.config import TARGET
from twostage_jax.report import (
    classes_content,
    pictures,
    scores_content,
    sizes_content,
    stages_content,
)
from twostage_jax.report.analysis import Analysis
from twostage_jax.report.artefacts import Artefacts
from twostage_jax.report.figures import file_name
from twostage_jax.report.formats import Table
from twostage_jax.report.joining import NAMED, Study
from twostage_jax.report.parts import Details, Part, Saved, Section, Text
from twostage_jax.report.summary import summary

METHOD = (
    "Every score is computed from the predictions of the test examples that are stored "
    "with the rows. The score of an arm is the mean over seeds of the score of all its "
    "test examples; folds are put together first, except for the AUROC, which ranks "
    "within a fold.",
    "Intervals and p-values: patients are drawn with replacement, then seeds, the same "
    "ones for every arm, 10,000 times; the level is set by a t distribution with a "
    "jackknife variance over patients and seeds, because a plain bootstrap is too "
    "narrow with few patients of unequal sizes. p-values are two-sided. That of the "
    "primary endpoint is not corrected; all others are exploratory, and corrected over "
    "the pairs by Holm's step-down method. An AUROC is resampled by the placements of "
    "its examples among those of the other classes (DeLong 1988, Obuchowski 1997).",
    "A difference is called shown if its p-value is below 0.05. That none is shown does "
    "not mean that there is none: the interval says which differences the data are "
    "compatible with.",
    "Research use only, not for diagnosis.",
)
# Measured by simulation: experiments/coverage.md.
TWO_READINGS = (
    "Models of different folds and seeds are trained on the same patients: what is good "
    "or bad about these does not average out, however many seeds there are. So there are "
    "two readings. For the training patients of this study, intervals are over test "
    "patients and seeds. For new training patients, they also hold the variance between "
    "training sets, estimated from the folds, which each seed draws again. In 1,000 "
    "simulated studies of 17 patients, 2 folds and 5 seeds without a difference, where "
    "training sets had effects of 0.5 logits in each arm, the first reading rejected in "
    "{these} % of the tests at the 5 % level, the second in {new} %."
)
ONE_READING = (
    "Models of different folds are trained on the same patients. How much scores vary "
    "with the training patients is not in the intervals: it takes cross-validation with "
    "two or more seeds, each with its own folds, to know it."
)
# Of '2 folds, 0.5 logits' in experiments/coverage.md.
REJECTED = {"these": "29.1", "new": "4.6"}


@dataclasses.dataclass(frozen=True)
class Report:
    """All that the report says.

    Attributes:
      title: Of the study.
      summary: The answer, in paragraphs.
      warnings: What is missing, and what was left out.
      sections: The rest.
      result: The main result, for LaTeX.
    """

    title: str
    summary: list[str]
    warnings: list[str]
    sections: list[Section]
    result: Table


def build(study: Study, analysis: Analysis, artefacts: Artefacts) -> Report:
    """Returns the report of a study."""
    sections = [
        Section("Scores", "scores", _scores(study, analysis)),
        Section("Size of the target set", "size", _sizes(study, analysis)),
        Section("Classes", "classes", _classes(study, analysis)),
        Section("Calibration", "calibration", _calibration(analysis)),
        Section("Training", "training", _training(study, analysis, artefacts)),
        Section("Examples", "examples", pictures.of_artefacts(study, artefacts)),
        Section("Worst mistakes", "mistakes", _mistakes(study, artefacts)),
        Section("What the features respond to", "features", _features(artefacts)),
        Section("Stages", "stages", _stages(study, artefacts)),
        Section("Settings and versions", "settings", _settings(study, artefacts)),
        Section("Method", "method", _method(study, analysis)),
    ]
    return Report(
        study.name,
        [*summary(study, analysis), *_synthetic(artefacts)],
        [*_missing(study, analysis), *analysis.notes, *artefacts.notes],
        [section for section in sections if section.parts],
        scores_content.result(analysis),
    )


def _synthetic(artefacts: Artefacts) -> Iterable[str]:
    """Returns that scores are of synthetic images, where a lineage says so."""
    names = {
        str(record.lineage["data"].get("name"))
        for record in artefacts.stages.values()
        if record.lineage["stage"] == TARGET
        and record.lineage["data"].get("synthetic") is True
    }
    for name in sorted(names):
        yield (
            f"The target images (data set '{name}') are synthetic: no score and no "
            "disease map of these models says anything about patients."
        )


def _method(study: Study, analysis: Analysis) -> list[Part]:
    *method, last = METHOD
    if len(study.folds) > 1:
        both = any(
            one.these
            for of_arms in analysis.full.scores.intervals.values()
            for one in of_arms.values()
        )
        method.append(TWO_READINGS.format(**REJECTED) if both else ONE_READING)
    return [Text(text) for text in [*method, last]]


def _missing(study: Study, analysis: Analysis) -> Iterable[str]:
    """Returns which rows are missing, and what is left out because of it."""
    if study.missing:
        named = ", ".join(map(str, study.missing[:NAMED]))
        more = len(study.missing) - NAMED
        yield (
            f"Missing rows: {named}{f' and {more} more' if more > 0 else ''}. Nothing is "
            "averaged over them: a seed counts where all its folds are there in every "
            "arm."
        )
    for size in analysis.sizes:
        seeds = [seed for seed in study.seeds if seed not in size.scores.seeds]
        arms = [arm for arm in study.arms if arm not in size.scores.arms]
        for what, left in (("seeds", seeds), ("arms", arms)):
            if left:
                yield (
                    f"Left out at fraction {size.fraction:g}, because rows are missing: "
                    f"{what} {', '.join(map(str, left))}."
                )


def _scores(study: Study, analysis: Analysis) -> list[Part]:
    parts: list[Part] = []
    for scores in analysis.levels:
        parts.append(scores_content.main(study, analysis, scores))
        if len(scores.arms) > 1:
            parts.append(scores_content.pairs(scores))
        if scores.level == "patch":
            parts += scores_content.patients(scores)
        if scores.level == "patch":
            parts += scores_content.baselines(analysis)
    return [*parts, Details("Every row", [scores_content.rows(study)])]


def _sizes(study: Study, analysis: Analysis) -> list[Part]:
    if len(analysis.sizes) < 2:
        return []
    parts: list[Part] = [sizes_content.sizes(analysis)]
    several = len(analysis.full.scores.arms) > 1
    if several:
        parts.append(sizes_content.size_pairs(analysis))
    if analysis.size_study:
        parts.insert(0, pictures.size_curve(study, analysis))
        parts.append(sizes_content.areas(analysis))
        if several:
            parts.append(sizes_content.matches(analysis))
    return parts


def _classes(study: Study, analysis: Analysis) -> list[Part]:
    parts: list[Part] = []
    for scores in analysis.levels:
        counts = classes_content.confusion(scores)
        parts.append(pictures.confusion(scores))
        parts.append(classes_content.per_class(study, scores))
        parts.append(Details(counts.caption.removesuffix("."), [counts]))
    return parts


def _calibration(analysis: Analysis) -> list[Part]:
    return [
        pictures.calibration(analysis.full.scores),
        *(classes_content.calibration(scores) for scores in analysis.levels),
    ]


def _training(study: Study, analysis: Analysis, artefacts: Artefacts) -> list[Part]:
    curves = pictures.learning_curves(study, artefacts.stages, analysis.full.fraction)
    return [*([curves] if curves else []), *stages_content.tuning(study)]


def _mistakes(study: Study, artefacts: Artefacts) -> list[Part]:
    if not artefacts.mistakes:
        return []
    parts: list[Part] = [
        Text(
            "The test patches that each arm was surest of a wrong class for; in "
            "brackets the probability it gave, mean over seeds."
        )
    ]
    for arm, found in artefacts.mistakes.items():
        parts.append(pictures.mistake_cards(arm, found, study.class_names))
    drawn = [
        pictures.mistakes(arm, found, study.class_names)
        for arm, found in artefacts.mistakes.items()
        if pictures.mistake_cards(arm, found, study.class_names).cards
    ]
    return [*parts, Details("The same as figures for print", drawn)] if drawn else parts


def _features(artefacts: Artefacts) -> list[Part]:
    found = artefacts.explanation
    if found is None:
        return []
    drawn = [
        Saved(f"explain_{file_name(name)}", one.png, one.pdf, name.replace("_", " "))
        for name, one in found.figures.items()
    ]
    return [
        *(Text(text) for text in found.words),
        *([Details(f"Figures ({len(drawn)})", drawn)] if drawn else []),
        *(Text(f"Left out: {text}") for text in found.left_out),
    ]


def _stages(study: Study, artefacts: Artefacts) -> list[Part]:
    if not artefacts.stages:
        return []
    return [
        Text("Each stage starts from the parameters of the one it hangs from."),
        stages_content.tree(study, artefacts.stages),
        Details("Every stage run", [stages_content.stage_runs(artefacts.stages)]),
        *stages_content.transfers(artefacts.stages),
    ]


def _settings(study: Study, artefacts: Artefacts) -> list[Part]:
    found = stages_content.versions(artefacts.stages)
    return [
        *([found] if found else []),
        Details("Every setting", [stages_content.settings(study)], True),
    ]
