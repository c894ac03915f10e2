"""Intervals and tests for scores of arms that share test patients and seeds.

They come from the hierarchical bootstrap of `resampling`. Plain percentile intervals
are too narrow with few patients of unequal sizes, and too wide where chance in single
patches dominates (Owen 2007, "The pigeonhole bootstrap"). So the level is set by a t
distribution (Hesterberg 2015, "What teachers should know about the bootstrap"), with a
jackknife variance over patients and seeds (MacKinnon et al. 2023, "Cluster-robust
inference"; two ways as in Cameron et al. 2011), Satterthwaite's degrees of freedom, and
the effective number of patients, given their sizes. `experiments/coverage.md` has what
this covers.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from twostage_jax import additive
from twostage_jax.metrics import Predictions
from twostage_jax.paired import Paired, pair
from twostage_jax.resampling import RESAMPLES, Resampler

LEVEL = 0.95
# Resamples that a tail must hold to be read off them.
MIN_BEYOND = 10


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score and its 95 % interval; None, and why, where there is none to give."""

    estimate: float
    low: float | None
    high: float | None
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Difference:
    """First arm minus second, paired.

    Attributes:
      first, second: The arms.
      metric: Of what.
      estimate, low, high: The difference and its 95 % interval.
      p_value: Two-sided, of no difference, from the same resamples as the interval.
      p_holm: The same, corrected over all pairs (Holm 1979).
      mcnemar: Exact McNemar p-value of the pooled patches. It takes patches for
        independent, which those of one patient are not: far too small as a rule.
      reason: Why there is no interval, if there is none.
    """

    first: str
    second: str
    metric: str
    estimate: float
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    mcnemar: float
    reason: str = ""


def interval(
    predictions: Sequence[Predictions],
    metric: str = "balanced_accuracy",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Returns the score of one arm, mean over its seeds, and its 95 % interval.

    With one seed the interval holds for that seed: it knows nothing of others.

    Raises:
      UserError: As `paired.pair`, or the metric is unknown.
    """
    of_arm = additive.metric(pair({"arm": predictions}), metric)
    return score_interval(Resampler(of_arm, resamples, seed), np.ones(1))


def class_intervals(
    paired: Paired, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[dict[str, list[Interval | None]]]:
    """Returns, for each class, metric -> the mean over seeds of each arm, and interval.

    The metrics are those of `additive.of_class`. None stands for what some seed of the
    arm does not define.
    """
    found = []
    for k in range(paired.probabilities.shape[-1]):
        found.append({})
        for name, one in additive.of_class(paired, k).items():
            intervals = score_intervals(Resampler(one, resamples, seed))
            defined = np.ones(len(intervals)) if one.defined is None else one.defined
            found[-1][name] = [
                interval if there else None
                for interval, there in zip(intervals, defined, strict=True)
            ]
    return found


def compare(
    arms: Mapping[str, Sequence[Predictions]],
    metric: str = "balanced_accuracy",
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Difference]:
    """Returns the paired difference of every pair of arms, later minus earlier.

    Raises:
      UserError: As `paired.pair`, or the metric is unknown.
    """
    paired = pair(arms)
    sampler = Resampler(additive.metric(paired, metric), resamples, seed)
    return differences(paired, sampler, metric)


def differences(paired: Paired, sampler: Resampler, metric: str) -> list[Difference]:
    """Returns what `compare` does, from resamples that are there already."""
    found = []
    for second, first in itertools.combinations(range(len(paired.arms)), 2):
        weights = np.zeros(len(paired.arms))
        weights[first], weights[second] = 1, -1
        difference, p_value = difference_interval(sampler, weights)
        found.append(
            Difference(
                paired.arms[first],
                paired.arms[second],
                metric,
                difference.estimate,
                difference.low,
                difference.high,
                p_value,
                None,
                mcnemar(paired.right[first], paired.right[second]),
                difference.reason,
            )
        )
    corrected = holm([one.p_value for one in found])
    return [
        dataclasses.replace(one, p_holm=p)
        for one, p in zip(found, corrected, strict=True)
    ]


def score_intervals(sampler: Resampler) -> list[Interval]:
    """Returns the interval of each arm."""
    return [score_interval(sampler, one) for one in np.eye(len(sampler.sample))]


def score_interval(sampler: Resampler, weights: np.ndarray) -> Interval:
    """Returns the interval of a mean `[A]`-weighted score.

    On the logit scale of its range, where scores near the ends are less skewed: the t
    quantile times the larger of the bootstrap and the jackknife standard error.
    """
    estimate = float(weights @ sampler.sample.mean(1))
    if sampler.reason:
        return Interval(estimate, None, None, sampler.reason)
    effective = max(1 / (sampler.shares**2).sum(), 2.0)
    variance, freedom = _variance(sampler, weights, effective)
    share = estimate / sampler.largest
    if not variance or not 0 < share < 1:
        reason = "the score is the same in every patient"
        return Interval(estimate, None, None, reason)
    error = max(np.sqrt(variance), (sampler.resampled @ weights).std())
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error / sampler.largest
    half, centre = half / (share * (1 - share)), np.log(share / (1 - share))
    low, high = sampler.largest / (1 + np.exp(-(centre + half * np.array([-1, 1]))))
    return Interval(estimate, float(low), float(high))


def difference_interval(
    sampler: Resampler, weights: np.ndarray
) -> tuple[Interval, float | None]:
    """Returns the interval of a `[A]`-weighted contrast, and the p-value of zero.

    A percentile interval whose level makes it as wide as a t interval with the
    jackknife variance, were the resamples normal; p is the level at which it just
    reaches zero. Tails of fewer than `MIN_BEYOND` resamples are taken as normal, but
    for what the farthest tail that can be read says: an interval is never narrower
    than that of a lower level, and p never larger than that of an interval without
    zero.
    """
    estimate = float(weights @ sampler.sample.mean(1))
    if sampler.reason:
        return Interval(estimate, None, None, sampler.reason), None
    variance, freedom = _variance(sampler, weights, patients_of_contrast(sampler))
    resampled = sampler.resampled @ weights
    spread = resampled.std()
    if not variance or not spread:
        reason = "the difference is the same in every patient"
        return Interval(estimate, None, None, reason), 1.0 if not estimate else None
    error = np.sqrt(variance)
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    tail = stats.norm.cdf(-half / spread)
    farthest = min(MIN_BEYOND / len(resampled), 0.5)
    read = max(tail, farthest)
    low, high = np.quantile(resampled, [read, 1 - read])
    if tail < farthest:
        low, high = min(low, estimate - half), max(high, estimate + half)
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    share = np.clip(beyond / len(resampled), farthest, 0.5)
    reach = -stats.norm.ppf(share) * spread / error
    if beyond < MIN_BEYOND:
        reach = max(reach, abs(estimate) / error)
    p_value = float(2 * stats.t.sf(reach, freedom))
    return Interval(estimate, float(low), float(high)), p_value


def patients_of_contrast(sampler: Resampler) -> float:
    """Returns how many patients of equal size tell as much of a difference of arms.

    What patients have in common cancels in a difference. What is left is partly chance
    in single patches, which large patients even out: they weigh less than their size
    says. Half-way is what the simulation bears out.
    """
    return (max(1 / (sampler.shares**2).sum(), 2.0) + len(sampler.shares)) / 2


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the exact two-sided McNemar p-value of two `[...]` bool arrays."""
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    if not gained + lost:
        return 1.0
    return float(stats.binomtest(gained, gained + lost).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected by Holm's step-down method (1979); None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def _variance(
    sampler: Resampler, weights: np.ndarray, effective: float
) -> tuple[float, float]:
    """Returns the jackknife variance of a weighted score and its degrees of freedom.

    `effective` is the number of patients of equal size that tell as much.
    """
    sample = weights @ sampler.sample  # [S]
    pulls = np.einsum("pas,a->ps", sampler.without, weights) - sample
    groups, seeds = pulls.shape
    pulls = pulls * np.sqrt((groups - 1) / groups)
    by_group = pulls.mean(1)
    patients = float(((by_group - by_group.mean()) ** 2).sum())
    freedom = patients**2 / (effective - 1)
    variance = patients
    if seeds > 1:
        between = float(sample.var(ddof=1)) / seeds
        # What is left without effects of patients and seeds is in both of them.
        rest = pulls - by_group[:, None] - pulls.mean(0) + pulls.mean()
        both = float((rest**2).sum()) / (seeds * (seeds - 1))
        variance = max(patients + between - both, patients, between)
        freedom += between**2 / (seeds - 1)
    # Rounding alone is no variance.
    if variance < 1e-20:
        return 0.0, 1.0
    return variance, max(variance**2 / freedom, 1.0)
