"""The sections of the report, in order."""

import dataclasses
from collections.abc import Iterable

from twostage_jax.config import TARGET, AugmentConfig
from twostage_jax.notices import NOTICE
from twostage_jax.report import (
    checklist,
    cohort,
    external,
    figures,
    operating,
    score_tables,
    stage_tables,
)
from twostage_jax.report.analysis import Analysis
from twostage_jax.report.artefacts import Artefacts
from twostage_jax.report.parts import Details, Part, Section, Text
from twostage_jax.report.study_table import Study, some
from twostage_jax.report.tables import Table
from twostage_jax.report.text import influence_words, size_words, summary

METHOD = (
    "Scores are computed from the stored predictions of the test examples. The score of "
    "an arm is the mean over seeds of the score on all its test examples; folds are "
    "pooled first, except for the AUROC, which is averaged over folds: probabilities of "
    "different models are not on a common scale.",
    "Intervals and p-values: patients, then seeds, are resampled with replacement 10,000 "
    "times, in the same way for every arm; the level is set by a t distribution with a "
    "jackknife variance over patients and seeds, because a plain bootstrap is too "
    "narrow with few patients of unequal sizes. Intervals of scores are Wilson's, with "
    "the larger of this variance and that of the resamples. p-values are two-sided. The "
    "primary endpoint is not corrected; all other comparisons are exploratory, and "
    "corrected over pairs by Holm's step-down method. An AUROC is resampled by the "
    "placements of its examples among those of the other classes (DeLong 1988, "
    "Obuchowski 1997).",
    "A difference is called significant if its p-value is below 0.05. A difference that "
    "is not significant may still exist: its interval gives the differences that are "
    "compatible with the data.",
    f"{NOTICE}.",
)
AVERAGED = (
    "The class probabilities of an image are the means over its {count} orientations "
    "({flip} flips) and over windows that cover it, in tests and in the choice of "
    "thresholds."
)
# Measured by simulation: experiments/coverage.md.
TWO_READINGS = (
    "Models of different folds and seeds are trained on the same patients, whose "
    "peculiarities do not average out over seeds. There are therefore two intervals. "
    "That for the training patients of this study covers test patients and seeds. That "
    "for new training patients also includes the variance between training sets, "
    "estimated from the folds, which each seed redraws. In 1,000 simulated studies of 17 "
    "patients, 2 folds and 5 seeds, without a true difference but with training-set "
    "effects of 0.5 logits in each arm, tests at the 5 % level rejected in {these} % "
    "with the first interval and in {new} % with the second."
)
ONE_READING = (
    "The intervals do not include the variation between training patients: estimating it "
    "takes cross-validation with two or more seeds, each with its own folds."
)
# The case '2 folds, 0.5 logits' in experiments/coverage.md.
REJECTED = {"these": "29.1", "new": "4.6"}


@dataclasses.dataclass(frozen=True)
class Report:
    """Contents of the report.

    Attributes:
      title: Name of the study.
      summary: Paragraphs of the answer.
      warnings: Missing rows and skipped items.
      sections: All other sections.
      result: Main result, for LaTeX.
    """

    title: str
    summary: list[str]
    warnings: list[str]
    sections: list[Section]
    result: Table


def build(study: Study, analysis: Analysis, artefacts: Artefacts) -> Report:
    """Returns the report of a study."""
    notes: list[str] = []
    sections = [
        Section("Scores", "scores", _scores(study, analysis)),
        Section("Size of the target set", "size", _sizes(study, analysis)),
        Section("Patients", "patients", _patients(analysis)),
        Section("Classes", "classes", _classes(study, analysis)),
        Section(
            "Operating points",
            "operating",
            operating.section(study, analysis.full, artefacts),
        ),
        Section("Calibration", "calibration", _calibration(study, analysis)),
        Section("External sets", "external", external.section(study, analysis, notes)),
        Section("Data", "data", cohort.section(study, artefacts)),
        Section("Training", "training", _training(study, analysis, artefacts)),
        Section("Examples", "examples", figures.example_pictures(study, artefacts)),
        Section("Worst mistakes", "mistakes", _mistakes(study, artefacts)),
        Section("What the features respond to", "features", _features(artefacts)),
        Section("Stages", "stages", _stages(study, artefacts)),
        Section("Settings and versions", "settings", _settings(study, artefacts)),
        Section("Method", "method", _method(study, analysis)),
    ]
    primary = analysis.primary is not None
    sections.append(checklist.section(study, sections, primary))
    return Report(
        study.name,
        [*summary(study, analysis), *_target_images(study, artefacts)],
        [*_missing(study, analysis), *analysis.notes, *artefacts.notes, *notes],
        [section for section in sections if section.parts],
        score_tables.result_table(analysis),
    )


def _target_images(study: Study, artefacts: Artefacts) -> Iterable[str]:
    """Yields warnings if the target images are synthetic or not CT."""
    targets = {chain[-1] for chain in study.arms.values()}
    images = {
        (str(data.get("name")), data.get("synthetic") is True, data.get("kind", "ct"))
        for record in artefacts.stages.values()
        if record.lineage["stage"] in targets
        for data in (record.lineage["data"],)
    }
    for name, synthetic, kind in sorted(images):
        if synthetic:
            yield (
                f"The target images (data set '{name}') are synthetic: the results say "
                "nothing about patients."
            )
        if kind != "ct":
            yield (
                f"The target images (data set '{name}') are not CT: a 'patient' of this "
                "report is a group of them, such as one sample of a material."
            )


def _method(study: Study, analysis: Analysis) -> list[Part]:
    *method, last = METHOD
    flips = AugmentConfig.stored(study.config["stages"][TARGET])
    if flips.average:
        method.append(AVERAGED.format(count=flips.orientations, flip=flips.flip))
    if len(study.folds) > 1:
        both = any(
            one.these
            for of_arms in analysis.full.scores.intervals.values()
            for one in of_arms.values()
        )
        method.append(TWO_READINGS.format(**REJECTED) if both else ONE_READING)
    return [Text(text) for text in [*method, last]]


def _missing(study: Study, analysis: Analysis) -> Iterable[str]:
    """Yields warnings about missing rows, and about seeds and arms excluded for them."""
    if study.missing:
        yield (
            f"Missing rows: {some(study.missing)}. A seed counts only if every arm has "
            "all of its folds."
        )
    for size in analysis.sizes:
        seeds = [seed for seed in study.seeds if seed not in size.scores.seeds]
        arms = [arm for arm in study.arms if arm not in size.scores.arms]
        for what, left in (("seeds", seeds), ("arms", arms)):
            if left:
                yield (
                    f"Excluded at fraction {size.fraction:g} because of missing rows: "
                    f"{what} {', '.join(map(str, left))}."
                )


def _scores(study: Study, analysis: Analysis) -> list[Part]:
    parts: list[Part] = []
    for scores in analysis.levels:
        parts.append(score_tables.scores_table(study, analysis, scores))
        if len(scores.arms) > 1:
            parts.append(score_tables.pairs_table(scores))
        if scores.level == "patch":
            parts += score_tables.patient_tables(scores)
            parts += score_tables.baseline_tables(analysis)
            parts += score_tables.ensemble_tables(study, scores)
    return [*parts, Details("Every row", [score_tables.rows_table(study)])]


def _sizes(study: Study, analysis: Analysis) -> list[Part]:
    if len(analysis.sizes) < 2:
        return []
    parts: list[Part] = [score_tables.sizes_table(analysis)]
    words: list[Part] = [Text(text) for text in size_words(analysis)]
    several = len(analysis.full.scores.arms) > 1
    if several:
        parts.append(score_tables.size_pairs_table(analysis))
    if analysis.size_study:
        parts.insert(0, figures.size_picture(study, analysis))
        parts.append(score_tables.areas_table(analysis))
        if several:
            parts.append(score_tables.matches_table(analysis))
    return [*words, *parts]


def _patients(analysis: Analysis) -> list[Part]:
    if (found := analysis.by_patient) is None:
        return []
    return [
        Text(influence_words(found)),
        figures.patients_picture(found),
        Details("Every patient", [score_tables.influence_table(found)]),
    ]


def _classes(study: Study, analysis: Analysis) -> list[Part]:
    parts: list[Part] = []
    for scores in analysis.levels:
        counts = score_tables.confusion_table(scores)
        parts.append(figures.confusion_picture(scores))
        parts.append(score_tables.class_table(study, scores))
        parts.append(Details(counts.caption.removesuffix("."), [counts]))
    return parts


def _calibration(study: Study, analysis: Analysis) -> list[Part]:
    return [
        figures.calibration_picture(analysis.full.scores),
        *(score_tables.calibration_table(study, scores) for scores in analysis.levels),
        score_tables.intercepts_table(study, analysis.full.scores),
    ]


def _training(study: Study, analysis: Analysis, artefacts: Artefacts) -> list[Part]:
    curves = figures.curves_picture(study, artefacts.stages, analysis.full.fraction)
    return [*([curves] if curves else []), *stage_tables.tuning(study)]


def _mistakes(study: Study, artefacts: Artefacts) -> list[Part]:
    if not artefacts.mistakes:
        return []
    parts: list[Part] = [
        Text(
            "Test patches that each arm misclassified with the highest confidence. "
            "Brackets give predicted probabilities, averaged over seeds."
        )
    ]
    drawn = []
    for arm, found in artefacts.mistakes.items():
        parts.append(cards := figures.mistake_cards(arm, found, study.class_names))
        if cards.cards:
            drawn.append(figures.mistakes_picture(arm, found, study.class_names))
    return [*parts, Details("Figures for print", drawn)] if drawn else parts


def _features(artefacts: Artefacts) -> list[Part]:
    found = artefacts.explanation
    if found is None:
        return []
    count = len(found.figures)
    return [
        *(Text(text) for text in found.words),
        *([Details(f"Figures ({count})", found.figures)] if count else []),
        *(Text(f"Note: {text}") for text in found.left_out),
    ]


def _stages(study: Study, artefacts: Artefacts) -> list[Part]:
    if not artefacts.stages:
        return []
    return [
        Text("Each stage starts from the parameters of its parent in this tree."),
        stage_tables.tree(study, artefacts.stages),
        Details("Every stage run", [stage_tables.stage_runs(artefacts.stages)]),
        *stage_tables.transfers(artefacts.stages),
    ]


def _settings(study: Study, artefacts: Artefacts) -> list[Part]:
    found = stage_tables.versions(artefacts.stages)
    return [
        *([found] if found else []),
        Details("Every setting", [stage_tables.settings_table(study)], True),
    ]
