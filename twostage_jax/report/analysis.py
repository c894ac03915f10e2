"""Every number of the report, computed once from the rows of a study.

Resamples are drawn once for each size and metric and shared by all intervals and
differences there; those of the size study are shared by all sizes.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from twostage_jax import metrics, size_study
from twostage_jax.errors import UserError
from twostage_jax.metrics import Predictions
from twostage_jax.report.joining import Place, Record, Study
from twostage_jax.resampling import METRICS, RESAMPLES, Resampler, count
from twostage_jax.size_study import SizeStudy
from twostage_jax.statistics import Difference, Interval, differences, score_interval

METRIC = "balanced_accuracy"
ArmPredictions = Mapping[str, Sequence[Predictions]]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Arms on the same test examples and seeds.

    Attributes:
      arms: Arm -> the predictions of its seeds, folds joined.
      seeds: The seeds.
      intervals: Metric -> arm -> score, mean over seeds, and interval.
      differences: Metric -> every pair of arms.
      examples: Number of test examples.
      groups: Number of test patients, or None if the set has none.
    """

    arms: ArmPredictions
    seeds: tuple[int, ...]
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Sequence[Difference]]
    examples: int
    groups: int | None

    @functools.cached_property
    def of_seeds(self) -> Mapping[str, Sequence[Mapping[str, float | None]]]:
        """Arm -> scores of each seed (see `metrics.scores`)."""
        return {
            arm: [metrics.scores(one.labels, one.probabilities) for one in seeds]
            for arm, seeds in self.arms.items()
        }


@dataclasses.dataclass(frozen=True)
class Size:
    """What was found at one fraction of the target training set.

    Attributes:
      fraction: The fraction.
      patches: Target training patches of each seed and fold.
      patients: Patients they are of, likewise; empty if the set names none.
      scores: Of the arms there.
    """

    fraction: float
    patches: tuple[int, ...]
    patients: tuple[int, ...]
    scores: Scores

    @property
    def n(self) -> float:
        """Mean number of target training patches."""
        return float(np.mean(self.patches))


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What a study shows.

    Attributes:
      sizes: Largest first; the first one is the full target set.
      by_patient: The full target set at patient level, or None without patients.
      size_study: Scores against size, or None (see `notes`).
      baseline: What the others are compared with.
      champion: The arm that the first sentences are about.
      notes: What could not be computed, and why.
    """

    sizes: tuple[Size, ...]
    by_patient: Scores | None
    size_study: SizeStudy | None
    baseline: str
    champion: str
    notes: tuple[str, ...]

    @property
    def full(self) -> Size:
        return self.sizes[0]

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
    by_size, reason = _size_study(study, sizes, baseline, resamples)
    notes += [reason] if reason else []
    return Analysis(
        tuple(sizes),
        _by_patient(sizes[0].scores, study.class_names, resamples),
        by_size,
        baseline,
        champion,
        tuple(notes),
    )


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
        _scores(predictions, tuple(METRICS), study.class_names, resamples),
    )


def _trained(
    study: Study, fraction: float, arm: str, seeds: Sequence[int]
) -> list[Record]:
    """Returns the rows of an arm; the others were trained on the same examples."""
    return [
        study.records[Place(arm, seed, fraction, fold)]
        for seed in seeds
        for fold in study.folds
    ]


def _scores(
    arms: ArmPredictions,
    names: Sequence[str],
    class_names: Sequence[str],
    resamples: int,
) -> Scores:
    """Returns the scores of arms, with intervals of the metrics that are named."""
    counts = count(arms)
    intervals, pairs = {}, {}
    for metric in names:
        sampler = Resampler(counts, metric, resamples)
        weights = np.eye(len(counts.arms))
        intervals[metric] = {
            arm: _with_names(score_interval(sampler, one), class_names)
            for arm, one in zip(counts.arms, weights, strict=True)
        }
        pairs[metric] = [
            _with_names(one, class_names)
            for one in differences(counts, sampler, metric)
        ]
    first = next(iter(arms.values()))[0]
    return Scores(
        arms,
        counts.seeds,
        intervals,
        pairs,
        len(first.labels),
        None if first.groups is None else len(counts.groups),
    )


def _with_names(
    found: Interval | Difference, class_names: Sequence[str]
) -> Interval | Difference:
    """Returns it with the reason naming classes, which the statistics number."""

    def name(match: re.Match[str]) -> str:
        return f"class '{class_names[int(match[1])]}'"

    return dataclasses.replace(
        found, reason=re.sub(r"^class (\d+)", name, found.reason)
    )


def _by_patient(
    scores: Scores, class_names: Sequence[str], resamples: int
) -> Scores | None:
    if scores.groups is None:
        return None
    arms = {
        arm: [metrics.grouped(one) for one in seeds]
        for arm, seeds in scores.arms.items()
    }
    return _scores(arms, (METRIC, "accuracy"), class_names, resamples)


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
    seeds = _common_seeds(sizes)
    arms = [
        arm
        for arm in sizes[0].scores.arms
        if all(arm in size.scores.arms for size in sizes)
    ]
    if not seeds or baseline not in arms:
        return None, "No seed is whole at every size, so there is no size curve."
    # Over the seeds whose scores are on the curve.
    means = {
        size.fraction: float(
            np.mean(
                [r.n_train for r in _trained(study, size.fraction, baseline, seeds)]
            )
        )
        for size in sizes
    }
    if len(set(means.values())) < len(sizes):
        return None, "Two fractions give the same number of patches: no size curve."
    found = size_study.size_study(
        {
            arm: {
                means[size.fraction]: [
                    one for one in size.scores.arms[arm] if one.seed in seeds
                ]
                for size in sizes
            }
            for arm in arms
        },
        METRIC,
        baseline=baseline,
        resamples=resamples,
    )
    return found, ""
