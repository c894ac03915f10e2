"""The sections of the report, in order."""

import collections
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from twostage_jax.report import (
    checklist,
    cohort,
    external,
    figures,
    operating,
    score_tables,
)
from twostage_jax.report.analysis import Analysis
from twostage_jax.report.artefacts import Artefacts, StageRecord
from twostage_jax.report.parts import Details, Node, Part, Section, Text, Tree
from twostage_jax.report.study_table import Study, flat, some
from twostage_jax.report.tables import (
    NOTHING,
    Column,
    Table,
    arm_name,
    columns,
    file_name,
)
from twostage_jax.report.text import influence_words, size_words, summary

METHOD = (
    "Scores are computed from the stored predictions of the test examples. The score of "
    "an arm is the mean over seeds of the score on all its test examples; folds are "
    "pooled first, except for the AUROC, which is averaged over folds: probabilities of "
    "different models are not on a common scale.",
    "Intervals and p-values: patients, then seeds, are resampled with replacement 10,000 "
    "times, in the same way for every arm; the level is set by a t distribution with a "
    "jackknife variance over patients and seeds, because a plain bootstrap is too "
    "narrow with few patients of unequal sizes. p-values are two-sided. The primary "
    "endpoint is not corrected; all other comparisons are exploratory, and corrected "
    "over pairs by Holm's step-down method. An AUROC is resampled by the placements of "
    "its examples among those of the other classes (DeLong 1988, Obuchowski 1997).",
    "A difference is called significant if its p-value is below 0.05. A difference that "
    "is not significant may still exist: its interval gives the differences that are "
    "compatible with the data.",
    "Research use only, not for diagnosis.",
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
        Section("Calibration", "calibration", _calibration(analysis)),
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


def _calibration(analysis: Analysis) -> list[Part]:
    return [
        figures.calibration_picture(analysis.full.scores),
        *(score_tables.calibration_table(scores) for scores in analysis.levels),
        score_tables.intercepts_table(analysis.full.scores),
    ]


def _training(study: Study, analysis: Analysis, artefacts: Artefacts) -> list[Part]:
    curves = figures.curves_picture(study, artefacts.stages, analysis.full.fraction)
    return [*([curves] if curves else []), *tuning(study)]


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
        tree(study, artefacts.stages),
        Details("Every stage run", [stage_runs(artefacts.stages)]),
        *transfers(artefacts.stages),
    ]


def _settings(study: Study, artefacts: Artefacts) -> list[Part]:
    found = versions(artefacts.stages)
    return [
        *([found] if found else []),
        Details("Every setting", [settings_table(study)], True),
    ]


Stages = Mapping[str, StageRecord]


def tree(study: Study, stages: Stages) -> Tree:
    """Returns the tree of stages, with each path once for all of its runs."""
    by_path: dict[str, list[StageRecord]] = {}
    for record in stages.values():
        by_path.setdefault(record.path, []).append(record)
    arms = {" > ".join(chain): arm for arm, chain in study.arms.items()}

    def below(path: str) -> list[Node]:
        depth = path.count(" > ") + 1 if path else 0
        start = f"{path} > " if path else ""
        paths = [p for p in by_path if p.startswith(start) and p.count(" > ") == depth]
        return [_node(p, by_path[p], arms.get(p), below(p)) for p in paths]

    return Tree(below(""))


def _node(
    path: str, records: Sequence[StageRecord], arm: str | None, children: list[Node]
) -> Node:
    lineage = records[0].lineage
    title = lineage["stage"]
    if origin := lineage.get("imported"):
        return Node(title, _imported(origin), children)
    data, train = lineage["data"], lineage["settings"].get("train", {})
    whole = [r for r in records if r.lineage["fraction"] == 1] or records
    scores = [r.lineage["scores"].get("balanced_accuracy") for r in whole]
    score = (
        f", balanced accuracy {100 * statistics.fmean(scores):.1f} % on its own test set"
        if None not in scores
        else ""
    )
    count = len(records)
    text = (
        f"{data.get('name', '?')}, data {str(data.get('fingerprint', '?'))[:12]}, "
        f"{len(data.get('class_names', ()))} classes, {train.get('steps', '?')} steps, "
        f"{count} run{'s' if count > 1 else ''}{score}"
    )
    if arm:
        title += f" (arm {arm_name(arm)})"
    return Node(title, text, children)


def _imported(origin: Mapping[str, Any]) -> str:
    text = (
        f"imported from {origin['file']}, SHA-256 {origin['sha256'][:12]}, "
        f"licence {origin.get('licence') or 'not recorded'}, "
        f"{len(origin['names'])} arrays"
    )
    if origin["missing"]:
        # 'head' instead of 'params/head/kernel' and 'params/head/bias'.
        places = (place.split("/")[1:-1] for place in origin["missing"])
        text += f", without {', '.join(dict.fromkeys(map('/'.join, places)))}"
    return "; ".join([text, *origin["notes"]])


def stage_runs(stages: Stages) -> Table:
    """Returns every stage run with its lineage."""
    return Table(
        "stage_runs",
        "Every stage run, named by a hash of everything that determines its result.",
        [
            *columns("text", "folder", "chain of stages", "started from"),
            *columns("number", "seed", "fraction", "fold"),
            *columns("count", "train examples", "validation examples", "test examples"),
            Column("balanced accuracy", "percent"),
        ],
        [_stage_row(record) for record in stages.values()],
        "Balanced accuracy is on the stage's own test set, in per cent.",
    )


def _stage_row(record: StageRecord) -> list[Any]:
    lineage = record.lineage
    examples = lineage["data"].get("examples", {})
    first = (lineage.get("imported") or {}).get("file", "random parameters")
    return [
        record.name,
        record.path,
        [first, *lineage["chain"][:-1]][-1],
        *(lineage[key] for key in ("seed", "fraction", "fold")),
        *(examples.get(key) for key in ("train", "validation", "test")),
        lineage["scores"].get("balanced_accuracy"),
    ]


def transfers(stages: Stages) -> list[Part]:
    """Returns the transfer reports of each path, folded, without duplicates."""
    groups: dict[tuple, list[StageRecord]] = {}
    for record in stages.values():
        if record.transfer:
            done = tuple(
                (row["path"], row["action"], str(row["target_shape"]))
                for row in record.transfer.get("rows", ())
            )
            groups.setdefault((record.path, done), []).append(record)
    parts: list[Part] = []
    for number, ((path, _), records) in enumerate(groups.items()):
        same = (
            f"The same in {len(records)} runs; norms are those of the first, "
            f"{records[0].name}."
            if len(records) > 1
            else f"Run: {records[0].name}."
        )
        report = records[0].transfer
        text = " ".join([_summary(report["rows"], report.get("unused", ())), same])
        table = _transfer(f"transfer_{number}_{file_name(path)}", path, report["rows"])
        notes = [Text(str(note)) for note in report.get("notes", ())]
        parts.append(Details(f"Into {path}", [Text(text), *notes, table], True))
    return parts


def _summary(rows: Sequence[Mapping[str, Any]], unused: Sequence[str]) -> str:
    counts = collections.Counter(row["action"] for row in rows)
    fresh = [row["path"] for row in rows if row["action"] == "init"]
    done = ", ".join(f"{action} {count}" for action, count in counts.items())
    text = f"Arrays by action: {done}."
    if fresh:
        text += f" Re-initialised: {', '.join(fresh)}."
    return text + (f" Unused: {', '.join(map(str, unused))}." if unused else "")


def _transfer(name: str, path: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    def shape(value: Sequence[int] | None) -> str:
        return NOTHING if value is None else " × ".join(map(str, value))

    return Table(
        name,
        f"Transfer into {path}, array by array.",
        [
            *columns("text", "array", "action", "rule", "shape before", "shape after"),
            *columns("number", "norm before", "norm if fresh", "norm after"),
        ],
        [
            [
                *(row[key] for key in ("path", "action", "rule")),
                *(shape(row[key]) for key in ("source_shape", "target_shape")),
                *(row[key] for key in ("source_norm", "fresh_norm", "norm")),
            ]
            for row in rows
        ],
    )


def tuning(study: Study) -> list[Part]:
    """Returns the chosen and all tried settings, or nothing without tuning."""
    tried = [
        (record.place, one) for record in study.records.values() for one in record.tried
    ]
    if not any(one["settings"] for _, one in tried):
        return []
    chosen = {arm: collections.Counter() for arm in study.arms}
    counts = collections.defaultdict(set)
    for place, one in tried:
        counts[place].add(_tuned(one))
        chosen[place.arm][_tuned(one)] += bool(one.get("chosen"))
    names = dict.fromkeys(_tuned(one) for _, one in tried)
    grids = {len(found) for found in counts.values()}
    same = (
        f"every row tried the same {grids.pop()} settings"
        if len(grids) == 1
        else "rows tried different numbers of settings"
    )
    summary = Table(
        "tuning",
        "Number of times each setting was chosen per arm, on validation patients only.",
        [Column("setting"), *columns("count", *map(arm_name, study.arms))],
        [[name, *(chosen[arm][name] for arm in study.arms)] for name in names],
        f"All arms were tuned alike: {same}. {_choice(chosen)}",
    )
    return [summary, Details("All settings tried", [_tried(tried)])]


def _choice(chosen: Mapping[str, collections.Counter]) -> str:
    """Returns how the settings were chosen, inferred from the choices."""
    if any(len(+counts) > 1 for counts in chosen.values()):
        return "Each row, or each run folder, chose its own setting."
    return (
        "Each arm has one setting for the whole study: that with the highest mean "
        "balanced accuracy on validation patients over all its rows. With folds, these "
        "patients are test patients of other rows, equally for every arm."
    )


def _tried(tried: Sequence[tuple]) -> Table:
    return Table(
        "tried",
        "All settings tried, with their validation scores.",
        [
            Column("arm", "arm"),
            *columns("number", "seed", "fraction", "fold"),
            Column("setting"),
            Column("balanced accuracy", "percent"),
            Column("loss", "number"),
            Column("chosen"),
        ],
        [
            [
                *place,
                _tuned(one),
                (one.get("validation") or {}).get("balanced_accuracy"),
                (one.get("validation") or {}).get("loss"),
                "yes" if one.get("chosen") else "",
            ]
            for place, one in tried
        ],
        "Balanced accuracy in per cent.",
    )


def _tuned(one: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in one["settings"].items())


def settings_table(study: Study) -> Table:
    """Returns every setting."""
    return Table(
        "settings",
        "Every setting of the study.",
        columns("text", "setting", "value"),
        [[f"config.{key}", value] for key, value in flat(study.config).items()],
    )


def versions(stages: Stages) -> Table | None:
    """Returns the versions behind the stage runs; several if they differ."""
    found = collections.defaultdict(collections.Counter)
    for record in stages.values():
        for name, version in record.lineage["versions"].items():
            found[name][str(version)] += 1
    if not found:
        return None
    return Table(
        "versions",
        "Versions of the program and its libraries, and devices of the runs.",
        columns("text", "what", "version"),
        [[name, _counted(counts)] for name, counts in found.items()],
    )


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{version} ({n} runs)" for version, n in counts.items())
