"""Scores of arms on the same test examples, at patch level or at patient level."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from twostage_jax import additive, metrics, statistics
from twostage_jax.metrics import Predictions
from twostage_jax.paired import Paired, pair
from twostage_jax.resampling import Resampler
from twostage_jax.statistics import Difference, Interval

ArmPredictions = Mapping[str, Sequence[Predictions]]
Level = Literal["patch", "patient"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Arms on the same test examples and seeds.

    Attributes:
      level: What an example is: a patch, or a patient's patches of one true class.
      arms: Arm -> the predictions of its seeds, folds joined.
      paired: The same, paired.
      class_names: K names.
      intervals: Metric -> arm -> score, mean over seeds, and interval; no AUROC where a
        class does not occur.
      differences: Metric -> every pair of arms.
      examples: Number of test examples.
      groups: Number of test patients, or None if the set has none.
      resamples: Number of resamples of an interval.
    """

    level: Level
    arms: ArmPredictions
    paired: Paired
    class_names: tuple[str, ...]
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Sequence[Difference]]
    examples: int
    groups: int | None
    resamples: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.paired.seeds

    def named(self, what: str) -> str:
        """Returns the name of a table or figure: 'patient_...' at patient level."""
        return what if self.level == "patch" else f"{self.level}_{what}"

    @functools.cached_property
    def of_seeds(self) -> Mapping[str, Sequence[Mapping[str, float | None]]]:
        """Arm -> scores of each seed (see `metrics.scores`)."""
        return {
            arm: [metrics.scores(one.labels, one.probabilities) for one in seeds]
            for arm, seeds in self.arms.items()
        }

    @functools.cached_property
    def confusion(self) -> Mapping[str, np.ndarray]:
        """Arm -> counts `[K, K]`, true class by row, added up over the seeds."""
        return {
            arm: sum(metrics.confusion(one.labels, one.probabilities) for one in seeds)
            for arm, seeds in self.arms.items()
        }

    @functools.cached_property
    def of_classes(self) -> Sequence[Mapping[str, Mapping[str, Interval | None]]]:
        """For each class, metric -> arm -> score (see `statistics.class_intervals`)."""
        return [
            {
                metric: {
                    arm: one and _with_names(one, self.class_names)
                    for arm, one in zip(self.arms, intervals, strict=True)
                }
                for metric, intervals in of_class.items()
            }
            for of_class in statistics.class_intervals(
                self.paired, resamples=self.resamples
            )
        ]


def of_arms(
    arms: ArmPredictions,
    class_names: Sequence[str],
    resamples: int,
    level: Level = "patch",
) -> Scores:
    """Returns the scores of arms.

    Raises:
      UserError: As `paired.pair`.
    """
    paired = pair(arms)
    intervals, pairs = {}, {}
    for metric in additive.METRICS:
        if metric == "auroc" and not paired.supports.any(0).all():
            continue
        sampler = Resampler(additive.metric(paired, metric), resamples)
        intervals[metric] = {
            arm: _with_names(one, class_names)
            for arm, one in zip(
                paired.arms, statistics.score_intervals(sampler), strict=True
            )
        }
        pairs[metric] = [
            _with_names(one, class_names)
            for one in statistics.differences(paired, sampler, metric)
        ]
    first = next(iter(arms.values()))[0]
    return Scores(
        level,
        arms,
        paired,
        tuple(class_names),
        intervals,
        pairs,
        len(paired.labels),
        None if first.groups is None else len(paired.groups),
        resamples,
    )


def by_patient(scores: Scores) -> Scores | None:
    """Returns patch-level scores at patient level, or None if the set names none."""
    if scores.groups is None:
        return None
    arms = {
        arm: [metrics.grouped(one) for one in seeds]
        for arm, seeds in scores.arms.items()
    }
    return of_arms(arms, scores.class_names, scores.resamples, "patient")


def _with_names(
    found: Interval | Difference, class_names: Sequence[str]
) -> Interval | Difference:
    """Returns it with the reason naming classes, which the statistics number."""

    def name(match: re.Match[str]) -> str:
        return f"class '{class_names[int(match[1])]}'"

    return dataclasses.replace(
        found, reason=re.sub(r"^class (\d+)", name, found.reason)
    )
