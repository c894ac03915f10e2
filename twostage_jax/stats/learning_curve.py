"""Learning curves: the score of each arm over the size of the target training set.

All numbers come from the same resamples for all arms and sizes (`intervals.Resampler`):
areas and matching sizes carry the pairing.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions, pair
from twostage_jax.stats.intervals import (
    LEVEL,
    RESAMPLES,
    Difference,
    Interval,
    Resampler,
    corrected,
    difference,
    patients_of_contrast,
    score_interval,
    score_intervals,
    widening,
)


@dataclasses.dataclass(frozen=True)
class Match:
    """Equivalent sample size: patches that the baseline needs to match the arm at `n`.

    Attributes:
      n: Size at which the arm is matched.
      value, low, high: Number of patches and its 95 % interval: `inf` for more than the
        largest size studied, 0 for at most the smallest; low and high are None without
        an interval.
      text: Number and interval in words, 'more than 2,400 (640 to more than 2,400)'.
    """

    n: float
    value: float
    low: float | None
    high: float | None
    text: str


@dataclasses.dataclass(frozen=True)
class SizeStudy:
    """Learning curves.

    Attributes:
      n: Sizes, ascending.
      scores: Arm -> score with interval at each size.
      areas: Arm -> area under its curve (see `area_weights`).
      area_gains: Arm -> its area minus that of the baseline; `p_holm` is over the arms.
      trends: Arm -> its gain over the baseline at the smallest size minus that at the
        largest.
      matches: Arm -> equivalent sample size of the baseline, at each size.
    """

    n: tuple[float, ...]
    scores: dict[str, list[Interval]]
    areas: dict[str, Interval]
    area_gains: dict[str, Difference]
    trends: dict[str, Difference]
    matches: dict[str, list[Match]]


def area_weights(n: Sequence[float]) -> np.ndarray:
    """Returns weights `[F]` of scores whose sum is the area under a curve over log n.

    Trapezoids over the logarithm of the size, divided by its range: a constant score c
    gives c.

    Args:
      n: F sizes, two or more, ascending from above 0.
    """
    steps = np.diff(np.log(n))
    edges = np.concatenate([[0.0], steps, [0.0]])
    return (edges[:-1] + edges[1:]) / 2 / steps.sum()


def patches_to_match(
    scratch: np.ndarray, other: np.ndarray, n: Sequence[float]
) -> np.ndarray:
    """Returns the number of patches with which `scratch` matches `other` at each size.

    The curve of `scratch` is first made monotone (isotonic least squares: more patches
    do not harm), then interpolated linearly in log n, without extrapolation.

    Args:
      scratch, other: Scores `[..., F]` at the sizes `n`.
      n: F sizes; see `area_weights`.

    Returns:
      `[..., F]`: `inf` for more than the largest size, 0 for at most the smallest.
    """
    logs = np.log(n)
    curve, goal = np.broadcast_arrays(_isotonic(np.asarray(scratch, float)), other)
    found = np.full(goal.shape, np.inf)
    for j in range(len(logs) - 2, -1, -1):
        low, high = curve[..., j, None], curve[..., j + 1, None]
        rise = np.where(high > low, high - low, 1)
        share = np.clip((goal - low) / rise, 0, 1)
        at = logs[j] + share * (logs[j + 1] - logs[j])
        found = np.where((goal <= high) & (goal > low), np.exp(at), found)
    return np.where(goal <= curve[..., :1], 0.0, found)


def size_study(
    arms: Mapping[str, Mapping[float, Sequence[Predictions]]],
    metric: str = "balanced_accuracy",
    *,
    baseline: str = "scratch",
    resamples: int = RESAMPLES,
) -> SizeStudy:
    """Returns the learning curves of arms, all against the baseline.

    Args:
      arms: Arm -> size (number of target training patches) -> predictions of its seeds.
        All arms have the same sizes, two or more.
      metric: One of `metrics.COMPARED`.
      baseline: Arm that the others are compared with.
      resamples: Number of resamples of the bootstrap.

    Raises:
      UserError: Predictions cannot be paired.
    """
    n = tuple(sorted(arms[baseline]))
    flat = {f"{arm}, n={size:g}": arms[arm][size] for arm in arms for size in n}
    sampler = Resampler(metrics.metric(pair(flat), metric), resamples)
    scores = score_intervals(sampler)
    weights = np.eye(len(flat)).reshape(len(arms), len(n), -1)
    areas = np.einsum("f,afi->ai", area_weights(n), weights)
    base = list(arms).index(baseline)
    others = {arm: a for a, arm in enumerate(arms) if a != base}
    area_gains, gains = areas - areas[base], weights - weights[base]
    trends = gains[:, 0] - gains[:, -1]

    def differences(contrasts: np.ndarray) -> dict[str, Difference]:
        found = [
            difference(sampler, contrasts[a], arm, baseline, metric)
            for arm, a in others.items()
        ]
        return dict(zip(others, corrected(found), strict=True))

    return SizeStudy(
        n,
        {arm: scores[a * len(n) : (a + 1) * len(n)] for a, arm in enumerate(arms)},
        {arm: score_interval(sampler, areas[a]) for a, arm in enumerate(arms)},
        differences(area_gains),
        differences(trends),
        {arm: matches(sampler, n, base, a) for arm, a in others.items()},
    )


def describe_size(value: float, n: Sequence[float]) -> str:
    """Returns an equivalent sample size as text, never beyond the sizes studied."""
    if math.isinf(value):
        return f"more than {max(n):,.0f}"
    return f"{value:,.0f}" if value else f"no more than {min(n):,.0f}"


def matches(sampler: Resampler, n: Sequence[float], base: int, arm: int) -> list[Match]:
    """Returns the sizes at which arm `base` matches arm `arm` at each size.

    The number is not a smooth function of the scores, so the intervals are percentile
    intervals. Their level is that which would make the percentile interval of a mean
    over so many patients as wide as its t interval (Hesterberg 2015, "expanded
    percentile"): plain ones cover far too little with few patients. For new training
    patients they reach farther by the factor by which the interval of the difference at
    that size is wider.

    Args:
      sampler: Resamples of scores whose arms are (arm, size), sizes fastest.
      n: sizes.
      base, arm: Positions of the arms.
    """

    def curve(scores: np.ndarray, a: int) -> np.ndarray:
        return scores[..., a * len(n) : (a + 1) * len(n)]

    sample = sampler.sample.mean(1)
    values = patches_to_match(curve(sample, base), curve(sample, arm), n)
    if sampler.reason:
        return [
            Match(size, value, None, None, describe_size(value, n))
            for size, value in zip(n, values.tolist(), strict=True)
        ]
    resampled = patches_to_match(
        curve(sampler.resampled, base), curve(sampler.resampled, arm), n
    )
    patients, freedom = len(sampler.shares), patients_of_contrast(sampler) - 1
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * np.sqrt(
        patients / (patients - 1)
    )
    ends = []
    for j in range(len(n)):
        contrast = np.zeros(len(sampler.sample))
        contrast[[arm * len(n) + j, base * len(n) + j]] = 1, -1
        far = reach * widening(sampler, contrast)
        # A quantile that is one of the values: between a number and infinity is neither.
        tails = scipy.stats.norm.cdf([-far, far])
        ends.append(np.quantile(resampled[:, j], tails, method="inverted_cdf"))
    found = []
    for size, numbers in zip(n, np.column_stack([values, ends]).tolist(), strict=True):
        value, low, high = (describe_size(number, n) for number in numbers)
        found.append(Match(size, *numbers, f"{value} ({low} to {high})"))
    return found


def _isotonic(curve: np.ndarray) -> np.ndarray:
    """Returns the closest non-decreasing curves to `[..., F]`, in least squares.

    The max-min formula (Robertson et al. 1988): the largest over starts, of the
    smallest over ends, of the mean between.
    """
    size = curve.shape[-1]
    sums = np.concatenate([np.zeros((*curve.shape[:-1], 1)), curve.cumsum(-1)], -1)
    fitted = np.empty_like(curve)
    for i in range(size):
        ends = np.arange(i + 1, size + 1)
        means = [
            (sums[..., ends] - sums[..., start, None]) / (ends - start)
            for start in range(i + 1)
        ]
        fitted[..., i] = np.min(means, axis=-1).max(0)
    return fitted
