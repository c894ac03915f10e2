"""Scores of arms on the same test examples, of patches, regions and patients."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from twostage_jax.stats import intervals as statistics
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Paired, Predictions, pair, regions
from twostage_jax.stats.intervals import Difference, Interval, Resampler
from twostage_jax.stats.metrics import OF_PATIENTS

ArmPredictions = Mapping[str, Sequence[Predictions]]
Level = Literal["patch", "region"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Arms on the same test examples and seeds.

    Attributes:
      level: Kind of the examples: patches, or regions (the patches of one true class of
        a patient).
      arms: Arm -> the predictions of its seeds, folds joined.
      paired: The same, paired.
      class_names: K names.
      intervals: Metric -> arm -> score, mean over seeds, and interval; without AUROC if
        it is not defined, and with the scores of `OF_PATIENTS` at patch level if the set
        names patients.
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
        """Returns the name of a table or figure: 'region_...' at region level."""
        return what if self.level == "patch" else f"{self.level}_{what}"

    @functools.cached_property
    def of_seeds(self) -> Mapping[str, Sequence[Mapping[str, float | None]]]:
        """Arm -> scores of each seed (see `metrics.scores`)."""
        return {
            arm: [
                metrics.scores(one.labels, one.probabilities, one.folds)
                for one in seeds
            ]
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

    @functools.cached_property
    def of_shares(self) -> Sequence[Mapping[str, Mapping[str, Interval]]]:
        """For each class, 'error' and 'agreement' -> arm -> value and interval.

        Of the shares of the class in the patches of each patient: see
        `metrics.share_error` and `metrics.share_agreement`.
        """
        found = []
        for k in range(len(self.class_names)):
            error, agreement = (
                Resampler(one, self.resamples)
                for one in metrics.shares_of_class(self.paired, k)
            )
            correlations = [
                _of_correlation(statistics.difference_interval(agreement, one)[0])
                for one in np.eye(len(self.arms))
            ]
            errors = statistics.score_intervals(error)
            found.append(
                {
                    "error": dict(zip(self.arms, errors, strict=True)),
                    "agreement": dict(zip(self.arms, correlations, strict=True)),
                }
            )
        return found


def of_arms(
    arms: ArmPredictions,
    class_names: Sequence[str],
    resamples: int,
    level: Level = "patch",
    named: Sequence[str] = (),
) -> Scores:
    """Returns the scores of arms.

    Args:
      arms: Predictions of each arm.
      class_names: K names.
      resamples: Number of resamples of an interval.
      level: Kind of the examples.
      named: Metrics; empty for all that are defined.

    Raises:
      UserError: As `arms.pair`.
    """
    paired = pair(arms)
    first = next(iter(arms.values()))[0]
    if not named:
        named = metrics.OF_PATCHES
        if level == "patch" and first.groups is not None:
            named += OF_PATIENTS
    intervals, pairs = {}, {}
    for metric in named:
        if metric == "auroc" and not metrics.has_auroc(paired):
            continue
        sampler = Resampler(metrics.metric(paired, metric), resamples)
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


def _of_correlation(found: Interval) -> Interval:
    """Returns the interval of a correlation from that of a difference.

    A correlation may be negative, too, but is never outside -1 to 1.
    """
    if found.low is None:
        return found
    ends = ((found.low, found.high), found.these)
    ends = [one and tuple(float(x) for x in np.clip(one, -1, 1)) for one in ends]
    return Interval(found.estimate, *ends[0], these=ends[1])


def by_region(scores: Scores) -> Scores | None:
    """Returns patch-level scores at region level, or None if the set names no patients."""
    if scores.groups is None:
        return None
    arms = {arm: [regions(one) for one in seeds] for arm, seeds in scores.arms.items()}
    return of_arms(arms, scores.class_names, scores.resamples, "region")


def _with_names(found: Interval, class_names: Sequence[str]) -> Interval:
    reason = named_classes(found, class_names)
    return dataclasses.replace(found, reason=reason)


def named_classes(found: Interval, class_names: Sequence[str]) -> str:
    """Returns the reason of an interval with names of classes instead of numbers."""

    def name(match: re.Match[str]) -> str:
        return f"class '{class_names[int(match[1])]}'"

    return re.sub(r"^class (\d+)", name, found.reason)
