"""The section on external sets, scored by `twostage report --external`.

Every network of an arm predicts every example of the set, so a network (one fold of one
seed) takes the role of a seed: intervals are over external patients and networks. The same
holds for baselines.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from twostage_jax.errors import UserError, plain
from twostage_jax.io import read_json
from twostage_jax.report.analysis import (
    Analysis,
    Baseline,
    Scores,
    Size,
    against,
    corrected_baselines,
    of_arms,
)
from twostage_jax.report.cohort import acquisition_table
from twostage_jax.report.parts import Details, Part, Text
from twostage_jax.report.score_tables import (
    baseline_table,
    gain_columns,
    how,
    score_cells,
    score_columns,
)
from twostage_jax.report.study_table import (
    Place,
    Record,
    Study,
    named_predictions,
)
from twostage_jax.report.tables import (
    LONGEST_NAME,
    Column,
    Table,
    arm_name,
    listed,
    plural,
)
from twostage_jax.report.text import absent_classes
from twostage_jax.stats.arms import Predictions

DESCRIPTIONS = "external/*/set.json"


def section(study: Study, analysis: Analysis, notes: list[str]) -> list[Part]:
    """Returns the parts of the section; adds skipped sets, with reasons, to `notes`."""
    parts: list[Part] = []
    found = _found(study, analysis, notes)
    for number, (name, described, scores, others) in enumerate(found):
        parts.append(_table(number, name, scores, analysis.baseline))
        if others:
            parts.append(_baselines(number, name, analysis.champion, others))
        parts.append(Text(_words(described, scores)))
        acquisition = (described.get("cohort") or {}).get("acquisition")
        if acquisition:
            table = acquisition_table(
                acquisition, True, f"external_{number}_characteristics"
            )
            parts.append(Details(f"Patients of {name}", [table]))
    return parts


def _found(
    study: Study, analysis: Analysis, notes: list[str]
) -> Iterator[tuple[str, Mapping[str, Any], Scores, tuple[Baseline, ...]]]:
    """Yields each set's name, its `set.json`, and the scores of arms and baselines."""
    full = analysis.full
    by_set: dict[str, list[Path]] = defaultdict(list)
    for workdir in study.workdirs:
        for path in sorted(workdir.glob(DESCRIPTIONS)):
            by_set[path.parent.name].append(path)
    for folder, paths in by_set.items():
        try:
            described = read_json(paths[0])
            name = plain(described["name"], LONGEST_NAME)
            arms = {
                arm: _networks(study, full, arm, folder) for arm in full.scores.arms
            }
            scores = of_arms(arms, full.scores.resamples)
        except (UserError, KeyError, TypeError) as error:
            notes.append(f"External set {folder} is skipped: {error}")
            continue
        fitted, left_out = {}, []
        for one in study.whole_baselines(full.fraction, full.scores.seeds):
            try:
                fitted[one] = _networks(study, full, one, folder)
            except UserError:
                left_out.append(arm_name(one))
        if left_out:
            notes.append(
                f"External set {folder}: baselines were not scored on it, or were "
                f"fitted again since ({listed(left_out)}): run train, then report with "
                "--external."
            )
        pairs = against(analysis.champion, arms, fitted, full.scores.resamples)
        (others,) = corrected_baselines([pairs])
        yield name, described, scores, others


def _networks(study: Study, size: Size, arm: str, folder: str) -> list[Predictions]:
    """Returns the predictions of an arm's networks, or a baseline's, numbered like seeds.

    As in all other tables, seeds that are incomplete in some arm are excluded.
    """
    found = []
    for seed, fold in itertools.product(size.scores.seeds, study.folds):
        place = Place(arm, seed, size.fraction, fold)
        path = _path(study.record(place), folder)
        if path is None:
            raise UserError(
                f"{place} was not scored on it, or was retrained since: score it again "
                "with --external."
            )
        number = seed * len(study.folds) + fold
        found.append(named_predictions(path, number, study.class_names))
    return found


def _path(record: Record, folder: str) -> Path | None:
    """Returns the file of a row's predictions; None if it is of another network."""
    home = record.source / "external" / folder
    described = read_json(home / "set.json")
    scored = {**described["stage_runs"], **described.get("baselines", {})}
    now = record.stage_runs[-1] if record.stage_runs else record.key
    return home / record.file if now and scored.get(record.file) == now else None


def _baselines(
    number: int, name: str, champion: str, others: Sequence[Baseline]
) -> Table:
    caption = (
        f"Baselines on the external set {name}: balanced accuracy in per cent, and "
        f"{arm_name(champion)} minus baseline."
    )
    pairs = [(1.0, one) for one in others]
    return baseline_table(
        f"external_{number}_baselines", caption, arm_name(champion), pairs
    )


def _table(number: int, name: str, scores: Scores, base: str) -> Table:
    patients = f"{scores.groups:,} patients" if scores.groups else "unknown patients"
    gains, cells = gain_columns(scores, base, f"minus {arm_name(base)}")
    return Table(
        f"external_{number}",
        f"Scores on the external set {name} in per cent: {scores.examples:,} "
        f"patches of {patients}, mean of {plural(len(scores.seeds), 'network')} per arm.",
        [Column("arm", "arm"), *score_columns(), *gains],
        [[arm, *score_cells(scores, arm), *cells[arm]] for arm in scores.arms],
        how(scores).replace("and seeds", "and networks"),
    )


def _words(described: Mapping[str, Any], scores: Scores) -> str:
    """Returns caveats about a set."""
    told = [absent_classes(scores)]
    shared = described.get("shared_patients")
    if shared is None:
        told.append("The set does not identify patients.")
    elif shared:
        told.append(
            f"{shared} of its patients also occur by name in the target set: these are "
            "not external."
        )
    elif not described.get("training_known"):
        told.append(
            "Whether its patients are among those that the networks were trained on is "
            "unknown: an earlier version did not record these."
        )
    else:
        told.append(
            "This set was not used for training or selection: its patients and those of "
            "the target set have different names."
        )
    if described.get("synthetic"):
        told.append("Its images are synthetic.")
    return " ".join(filter(None, told))
