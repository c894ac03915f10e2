"""Every number of the report, computed once from the rows of a study.

Resamples are drawn once for each size and metric and shared by all intervals and
differences there; those of the size study are shared by all sizes.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.report import scores
from twostage_jax.report.joining import Place, Record, Study
from twostage_jax.report.scores import Scores
from twostage_jax.stats import learning_curve
from twostage_jax.stats.arms import Predictions
from twostage_jax.stats.intervals import RESAMPLES, Difference, Interval
from twostage_jax.stats.learning_curve import SizeStudy

METRIC = "balanced_accuracy"


class Baseline(NamedTuple):
    """A baseline on the test examples of the arms.

    Attributes:
      name: Such as 'descriptors'.
      score: Balanced accuracy, mean over seeds, and interval.
      difference: The champion minus the baseline, not corrected for others.
    """

    name: str
    score: Interval
    difference: Difference


@dataclasses.dataclass(frozen=True)
class Size:
    """Results at one fraction of the target training set.

    Attributes:
      fraction: The fraction.
      patches: Target training patches of each seed and fold.
      patients: Patients they are of, likewise; empty if the set names none.
      scores: Scores of the arms there.
      baselines: Baselines of which all seeds of the arms are there, the best first.
    """

    fraction: float
    patches: tuple[int, ...]
    patients: tuple[int, ...]
    scores: Scores
    baselines: tuple[Baseline, ...] = ()

    @property
    def n(self) -> float:
        """Mean number of target training patches."""
        return float(np.mean(self.patches))


@dataclasses.dataclass(frozen=True)
class Primary:
    """The primary endpoint: the one comparison that was named before the run.

    Attributes:
      difference: First arm minus second over all sizes, or at the only size; its p-value
        needs no correction. Without an estimate (NaN) where `reason` says why.
      sizes: Number of sizes that it is over.
      seeds: Seeds that it is over.
      reason: Why it cannot be computed, or ''.
    """

    difference: Difference
    sizes: int
    seeds: tuple[int, ...]
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything computed from a study.

    Attributes:
      sizes: Largest first; the first one is the full target set.
      by_region: The full target set at region level, or None without patients.
      size_study: Scores against size, or None (see `notes`).
      baseline: The arm that the others are compared with.
      champion: The arm that the first sentences are about.
      notes: What could not be computed, and why.
      primary: The primary endpoint, or None if the settings name none.
    """

    sizes: tuple[Size, ...]
    by_region: Scores | None
    size_study: SizeStudy | None
    baseline: str
    champion: str
    notes: tuple[str, ...]
    primary: Primary | None = None

    @property
    def full(self) -> Size:
        return self.sizes[0]

    @property
    def levels(self) -> tuple[Scores, ...]:
        """The full target set at patch level and, with patients, at region level."""
        by_region = self.by_region
        return (self.full.scores, *([by_region] if by_region else []))

    @property
    def sizes_differ(self) -> bool:
        """Whether seeds or folds of one fraction have training sets of other sizes."""
        return any(len(set(size.patches)) > 1 for size in self.sizes)

    @property
    def common_seeds(self) -> tuple[int, ...]:
        """The seeds that are whole at every size: those of the size study."""
        return _common_seeds(self.sizes)


def analyse(study: Study, resamples: int = RESAMPLES) -> Analysis:
    """Computes the numbers of a study.

    Raises:
      UserError: No fraction has a seed that is whole in every arm.
    """
    notes, sizes = [], []
    for fraction in study.fractions:
        arms, seeds = study.complete(fraction)
        if seeds:
            sizes.append(_size(study, fraction, arms, seeds, resamples))
        else:
            notes.append(
                f"Fraction {fraction:g}: no seed is whole in every arm, so nothing is "
                "compared there."
            )
    if not sizes:
        raise UserError(
            f"{study.workdirs[0]}: no seed has all its folds in every arm, so there is "
            f"nothing to compare; {len(study.missing)} rows are missing, such as "
            f"{study.missing[0]}. Run the study to its end."
        )
    names = list(sizes[0].scores.arms)
    baseline = "scratch" if "scratch" in names else names[0]
    champion = "two_stage" if "two_stage" in names else names[-1]
    primary = _primary(study, sizes, resamples)
    if primary and not primary.reason:
        baseline, champion = primary.difference.second, primary.difference.first
    by_size, reason = _size_study(study, sizes, baseline, resamples)
    notes += [reason] if reason else []
    sizes = [
        dataclasses.replace(
            size, baselines=tuple(_baselines(study, size, champion, resamples))
        )
        for size in sizes
    ]
    return Analysis(
        tuple(sizes),
        scores.by_region(sizes[0].scores),
        by_size,
        baseline,
        champion,
        tuple(notes),
        primary,
    )


def _primary(study: Study, sizes: Sequence[Size], resamples: int) -> Primary | None:
    """Returns the primary endpoint of a study, or None if its settings name none."""
    named = study.config["study"].get("primary")
    if not named:
        return None
    first, second, metric = map(str, named)
    unknown = Difference(
        math.nan, None, None, first=first, second=second, metric=metric
    )
    there = [s for s in sizes if {first, second} <= set(s.scores.arms)]
    if len(there) < len(study.fractions):
        lacking = "the arms are not whole at every size of the study"
        return Primary(unknown, len(there), (), lacking)
    if metric not in sizes[0].scores.differences:
        return Primary(unknown, len(there), (), "the score is not defined on this data")
    if len(sizes) == 1:
        scores_ = sizes[0].scores
        (difference,) = (
            one
            for pair in scores_.differences[metric]
            for one in (pair, pair.turned())
            if (one.first, one.second) == (first, second)
        )
        return Primary(difference, 1, scores_.seeds)
    seeds = _common_seeds(sizes)
    arms, reason = _on_curve(study, sizes, second, (first, second))
    if reason:
        return Primary(unknown, len(sizes), seeds, reason)
    found = learning_curve.size_study(
        arms, metric, baseline=second, resamples=resamples
    )
    gain, p_value = found.area_gains[first]
    difference = dataclasses.replace(
        unknown,
        **{**vars(gain), "reason": scores.named_classes(gain, study.class_names)},
    )
    return Primary(dataclasses.replace(difference, p_value=p_value), len(sizes), seeds)


def _size(
    study: Study,
    fraction: float,
    arms: Sequence[str],
    seeds: Sequence[int],
    resamples: int,
) -> Size:
    predictions = {
        arm: [study.joined(arm, seed, fraction) for seed in seeds] for arm in arms
    }
    trained = _trained(study, fraction, arms[0], seeds)
    return Size(
        fraction,
        tuple(record.n_train for record in trained),
        tuple(record.groups["train"] for record in trained if record.groups),
        scores.of_arms(predictions, study.class_names, resamples),
    )


def _baselines(
    study: Study, size: Size, champion: str, resamples: int
) -> list[Baseline]:
    """Returns the baselines at a size, each against the champion, the best first."""
    arms, seeds = size.scores.arms, size.scores.seeds
    if champion not in arms:
        return []
    found = []
    for name in study.whole_baselines(size.fraction, seeds):
        own = [study.joined(name, seed, size.fraction) for seed in seeds]
        both = scores.of_arms(
            {champion: arms[champion], name: own},
            study.class_names,
            resamples,
            named=(METRIC,),
        )
        (difference,) = both.differences[METRIC]
        if difference.first != champion:
            difference = difference.turned()
        found.append(Baseline(name, both.intervals[METRIC][name], difference))
    return sorted(found, key=lambda one: -one.score.estimate)


def _trained(
    study: Study, fraction: float, arm: str, seeds: Sequence[int]
) -> list[Record]:
    """Returns the rows of an arm; the others were trained on the same examples."""
    return [
        study.records[Place(arm, seed, fraction, fold)]
        for seed in seeds
        for fold in study.folds
    ]


def patients_of_curve(study: Study, analysis: Analysis) -> dict[float, float] | None:
    """Returns size on the size curve -> mean number of training patients.

    None unless the fractions are drawn by patient, and every row knows its patients.
    """
    if study.config["study"].get("draw") != "group":
        return None
    found = {}
    for size in analysis.sizes:
        trained = _trained(
            study, size.fraction, analysis.baseline, analysis.common_seeds
        )
        if not all(record.groups for record in trained):
            return None
        patients = [record.groups["train"] for record in trained]
        found[_mean_patches(trained)] = float(np.mean(patients))
    return found


def _mean_patches(trained: Sequence[Record]) -> float:
    return float(np.mean([record.n_train for record in trained]))


def _common_seeds(sizes: Sequence[Size]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*(set(one.scores.seeds) for one in sizes))))


def _size_study(
    study: Study, sizes: Sequence[Size], baseline: str, resamples: int
) -> tuple[SizeStudy | None, str]:
    """Returns the size study, or None and why there is none."""
    if len(sizes) < 2:
        return None, (
            "Only one size of the target set was studied: add fractions to "
            "config.study.fractions for a size curve."
        )
    arms, reason = _on_curve(
        study,
        sizes,
        baseline,
        [
            arm
            for arm in sizes[0].scores.arms
            if all(arm in size.scores.arms for size in sizes)
        ],
    )
    if reason:
        return None, reason
    return learning_curve.size_study(
        arms, METRIC, baseline=baseline, resamples=resamples
    ), ""


def _on_curve(
    study: Study, sizes: Sequence[Size], baseline: str, arms: Sequence[str]
) -> tuple[dict[str, dict[float, list[Predictions]]], str]:
    """Returns arm -> size -> predictions of the common seeds, or why there are none."""
    seeds = _common_seeds(sizes)
    if not seeds or baseline not in arms:
        return {}, "No seed is whole at every size, so there is no size curve."
    # Over the seeds whose scores are on the curve.
    means = {
        size.fraction: _mean_patches(_trained(study, size.fraction, baseline, seeds))
        for size in sizes
    }
    if len(set(means.values())) < len(sizes):
        return {}, "Two fractions give the same number of patches: no size curve."
    return {
        arm: {
            means[size.fraction]: [
                one for one in size.scores.arms[arm] if one.seed in seeds
            ]
            for size in sizes
        }
        for arm in arms
    }, ""
