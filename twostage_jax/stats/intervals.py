"""Intervals and tests for scores of arms that share test patients and seeds.

The score of an arm is the mean over its seeds of a metric of all test examples. Patients
and seeds are crossed: every seed is tested on the same patients. One hierarchical
resample draws patients with replacement, then seeds with replacement, the same ones for
every arm and size; patients are weights on their sums (see `metrics`), so that all
resamples are one matrix product.

Plain percentile intervals are too narrow with few patients of unequal sizes, and too wide
where chance in single patches dominates (Owen 2007, "The pigeonhole bootstrap"). So the
level is set by a t distribution (Hesterberg 2015, "What teachers should know about the
bootstrap"), with a jackknife variance over patients and seeds (MacKinnon et al. 2023,
"Cluster-robust inference"; two ways as in Cameron et al. 2011), Satterthwaite's degrees
of freedom, and the effective number of patients, given their sizes.

There are two intervals. For the training patients of the study, the interval is over test
patients and seeds. For new training patients, it also includes the variance over training
sets (see `TrainingSets`), which takes cross-validation with two or more seeds to estimate.
Otherwise, only the first interval is available. `experiments/coverage.md` has the coverage
of both.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
import scipy

from twostage_jax.stats.arms import Paired
from twostage_jax.stats.metrics import Additive

LEVEL = 0.95
# A difference with a p-value below this is significant.
ALPHA = round(1 - LEVEL, 9)
# Power of the least detectable difference.
POWER = 0.8
# Smallest number of resamples in a tail for it to be estimated from them.
MIN_BEYOND = 10
RESAMPLES = 10_000
# Cells of resampled sums held at once (float64): 64 MiB.
CHUNK_CELLS = 2**23
# Patients count in the regression with this power of their weight in the score: large
# patients are measured more precisely, but still differ from each other. Chosen by
# simulation, like the lower bound of the estimate in standard errors (without any
# effect); see `experiments/coverage.md`.
SHARE_POWER = 0.25
LEAST = 0.75


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score, or a difference of scores, and its 95 % interval.

    Attributes:
      estimate: The score.
      low, high: Ends of the interval: for new training patients if `these` is given,
        else for the training patients of the study. None without an interval.
      reason: Reason why no interval is available, or ''.
      these: Ends of the interval for the training patients of the study; None if `low`
        and `high` are those.
      detectable: Smallest true difference that a study like this detects with power 0.8
        (two-sided test at the level of the interval); None for a score.
    """

    estimate: float
    low: float | None
    high: float | None
    reason: str = ""
    these: tuple[float, float] | None = None
    detectable: float | None = None


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """First arm minus second, paired.

    Attributes:
      first, second: Names of the arms.
      metric: Name of the score.
      p_value: Two-sided p-value of no difference, for the interval of `low` and `high`.
      p_holm: p-value corrected over the differences of its family (Holm 1979).
      mcnemar: Exact McNemar p-value of the pooled patches. It treats patches as
        independent, which patches of one patient are not: usually far too small.
    """

    first: str = ""
    second: str = ""
    metric: str = ""
    p_value: float | None = None
    p_holm: float | None = None
    mcnemar: float = 1.0

    def turned(self) -> "Difference":
        """Returns the same difference, second arm minus first."""
        return dataclasses.replace(
            self,
            first=self.second,
            second=self.first,
            estimate=-self.estimate,
            low=None if self.high is None else -self.high,
            high=None if self.low is None else -self.low,
            these=self.these and (-self.these[1], -self.these[0]),
        )


@dataclasses.dataclass(frozen=True)
class TrainingSets:
    """Cross-validation whose folds are redrawn for each seed.

    It gives the variance of scores over the patients of the training sets. Models of a
    cross-validation are trained on the same patients, so that neither more seeds nor more
    folds average out the peculiarities of these patients. The variance that this adds is
    estimated from the variation within the design. A linear model is assumed: the
    effect of a training set on the score is the sum of the effects t of its n patients,
    independent, with variance s2 / n. The effects of two training sets then have the
    covariance s2 times the fraction of patients that they have in common, and their mean
    over all folds and seeds has the variance s2 * n / P, where P is the number of
    patients.

    s2 is estimated by regression of products on their expectation (Haseman & Elston
    1972): patients who are tested by the same model have the effect of its training set
    in common, others only a part of it. Nadeau & Bengio (2003) correct for the same
    overlap by a fixed ratio of test to training size; here the ratio is that of the
    linear model, and the variance of test patients does not enter it.

    Attributes:
      folds: `[S, P]` ints in `[0, F)`: the fold in which each patient is tested.
      trained: Fraction of the patients that a model is trained on, in (0, 1).
      counted: `[P]` bool: patients who take part in the score.
      shares: `[Q]`: their weights in the score; they sum to 1.
    """

    folds: np.ndarray
    trained: float
    counted: np.ndarray
    shares: np.ndarray

    @functools.cached_property
    def _loadings(self) -> np.ndarray:
        """`[Q, S, S * F]`: effects on the scores of patients, in units of sqrt(s2).

        Their products over the last axis are covariances of what is left of the scores
        without the means over seeds of each patient, and over patients of each seed.
        """
        seeds, patients = self.folds.shape
        count = self.folds.max() + 1
        cells = (self.folds[:, None] != np.arange(count)[:, None]).reshape(-1, patients)
        size = self.trained * patients
        # Some of the others are for validation, but it is unknown which.
        kept = min(size / cells.sum(1).mean(), 1.0)
        overlap = kept**2 * (cells @ cells.T.astype(float)) / size
        np.fill_diagonal(overlap, kept * cells.sum(1) / size)
        values, vectors = np.linalg.eigh(overlap)
        root = vectors * np.sqrt(np.maximum(values, 0))
        cell = np.arange(seeds)[:, None] * count + self.folds[:, self.counted]
        loadings = root[cell.T]
        loadings = loadings - np.einsum("p,psc->sc", self.shares, loadings)
        return loadings - loadings.mean(1, keepdims=True)

    @functools.cached_property
    def _design(self) -> tuple[np.ndarray, ...]:
        """`[Q, Q]` sums over pairs of seeds: see `variance`."""
        flat = self._loadings.reshape(len(self.shares), -1)
        squares = np.einsum("psc,psd->pcd", self._loadings, self._loadings)
        squares = squares.reshape(len(self.shares), -1)
        # Covariance of centred scores without any effect: a constant variance of cells.
        noise = (self.shares**2).sum() - self.shares[:, None] - self.shares
        return squares @ squares.T, flat @ flat.T, noise

    @property
    def freedom(self) -> float:
        """Degrees of freedom of s2 were there no noise: of patients, and of cells."""
        seeds, patients = self.folds.shape
        return 1 / (1 / (patients - 1) + 1 / ((seeds - 1) * self.folds.max()))

    def variance(self, pulls: np.ndarray) -> float:
        """Returns the variance of the mean score over new training patients.

        Args:
          pulls: `[Q, S]`, influence of each patient on the score of each seed.
        """
        seeds = pulls.shape[1]
        scores = pulls / self.shares[:, None]
        scores = scores - scores.mean(1, keepdims=True)
        weight = self.shares ** (2 * SHARE_POWER)
        pairs = np.outer(weight, weight)
        np.fill_diagonal(pairs, 0)  # A patient's own product is full of noise.
        squares, traces, noise = self._design
        # Sums over all pairs of patients and seeds of products of three things: the
        # expectation by the effect, that by noise, and what is observed.
        both = (pairs * noise * traces).sum()
        alone = (pairs * noise**2).sum() * (seeds - 1)
        slope = both / alone
        pulled = np.einsum("psc,ps->pc", self._loadings, scores)
        observed = (pairs * (pulled @ pulled.T)).sum()
        observed -= slope * (pairs * noise * (scores @ scores.T)).sum()
        expected = (pairs * squares).sum() - slope * both
        effect = observed / expected
        # Standard error without any true effect, from the noise of each patient.
        spread = (scores**2).sum(1) / (seeds - 1)
        terms = squares - 2 * slope * noise * traces + slope**2 * noise**2 * (seeds - 1)
        terms = pairs**2 * np.outer(spread, spread) * terms
        error = np.sqrt(2 * terms.sum()) / expected
        return float(self.trained * max(effect, LEAST * error))


class Resampler:
    """Scores of arms in the sample, in hierarchical resamples, and without a patient.

    Patients who do not take part in the score are excluded.

    Attributes:
      sample: `[A, S]`, scores of the sample.
      resampled: `[B, A]`, means over resampled seeds.
      without: `[P, A, S]`, scores without one patient each.
      shares: `[P]`, weight of each patient in the score.
      reason: Reason why no interval is available, or ''.
      bounds: Smallest and largest possible score.
      defined: `[A]` bool, whether the score of an arm is defined for all seeds.
    """

    def __init__(self, metric: Additive, resamples: int = RESAMPLES, seed: int = 0):
        sums, score = metric.sums, metric.score
        total = sums.sum(2)
        self.sample = score(total)
        self.reason, self.bounds = metric.reason, metric.bounds
        every = np.ones(len(self.sample), bool)
        self.defined = every if metric.defined is None else metric.defined
        self._metric = metric
        self._sets = functools.lru_cache(self._training_sets)
        taking_part = metric.shares > 0
        self.shares = metric.shares[taking_part]
        if self.reason:
            return
        sums = sums[:, :, taking_part]
        seeds, groups = sums.shape[1:3]
        self.without = without_each(metric)
        generator = np.random.default_rng(seed)
        patients = generator.multinomial(groups, np.full(groups, 1 / groups), resamples)
        drawn = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
        flat = np.moveaxis(sums, 2, 0).reshape(groups, -1)
        chunk = max(1, CHUNK_CELLS // flat.shape[1])
        self.resampled = np.concatenate(
            [
                np.einsum(
                    "bas,bs->ba",
                    score((patients[i : i + chunk] @ flat).reshape(-1, *total.shape)),
                    drawn[i : i + chunk] / seeds,
                )
                for i in range(0, resamples, chunk)
            ]
        )

    def training_sets(self, weights: np.ndarray) -> TrainingSets | None:
        """Returns the training sets behind an `[A]`-weighted score.

        None if their variance is unknown: the folds are the same for every seed, or the
        number of training patients is unknown or does not fit the folds. If arms were
        trained on different numbers of patients, the largest counts: its training sets
        overlap most.
        """
        trained = float(np.max(self._metric.trained[weights != 0]))
        folds = self._metric.folds
        if (folds == folds[0]).all() or not 0 < trained < 1:
            return None
        return self._sets(trained)

    def _training_sets(self, trained: float) -> TrainingSets:
        counted, shares = self._metric.shares > 0, self.shares / self.shares.sum()
        return TrainingSets(self._metric.folds, trained, counted, shares)


def without_each(metric: Additive) -> np.ndarray:
    """Returns the scores `[P, A, S]` without the first patient, the second, ...

    P counts the patients who take part in the score.
    """
    total = metric.sums.sum(2)
    taking_part = np.flatnonzero(metric.shares > 0)
    return np.stack([metric.score(total - metric.sums[:, :, p]) for p in taking_part])


def differences(paired: Paired, sampler: Resampler, metric: str) -> list[Difference]:
    """Returns the paired difference of every pair of arms, later minus earlier.

    `sampler` holds the resamples of the metric of these arms.
    """
    found = []
    for second, first in itertools.combinations(range(len(paired.arms)), 2):
        weights = np.zeros(len(paired.arms))
        weights[first], weights[second] = 1, -1
        one = difference(
            sampler, weights, paired.arms[first], paired.arms[second], metric
        )
        right = paired.right[first], paired.right[second]
        found.append(dataclasses.replace(one, mcnemar=mcnemar(*right)))
    return corrected(found)


def difference(
    sampler: Resampler, weights: np.ndarray, first: str, second: str, metric: str
) -> Difference:
    """Returns a `[A]`-weighted contrast as the difference of two arms."""
    interval, p_value = difference_interval(sampler, weights)
    return Difference(
        **vars(interval), first=first, second=second, metric=metric, p_value=p_value
    )


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """Returns differences with p-values that are Holm-corrected over all of them."""
    p_values = holm([one.p_value for one in found])
    return [
        dataclasses.replace(one, p_holm=p)
        for one, p in zip(found, p_values, strict=True)
    ]


def score_intervals(sampler: Resampler) -> list[Interval | None]:
    """Returns the interval of each arm's score; None if it is undefined."""
    arms = zip(np.eye(len(sampler.sample)), sampler.defined, strict=True)
    return [score_interval(sampler, one) if there else None for one, there in arms]


def value_intervals(sampler: Resampler) -> list[Interval | None]:
    """Returns the interval of each arm's value, which may be negative; or None."""
    arms = zip(np.eye(len(sampler.sample)), sampler.defined, strict=True)
    return [
        difference_interval(sampler, one)[0] if there else None for one, there in arms
    ]


def score_interval(sampler: Resampler, weights: np.ndarray) -> Interval:
    """Returns the interval of a mean `[A]`-weighted score.

    Wilson's interval (1927, doi:10.1080/01621459.1927.10502953) of a proportion of as
    many independent examples as would have the same variance, with a t quantile, as for
    proportions in clusters (Dean & Pagano 2015, doi:10.1093/jssam/smv024). Near the ends
    of the range, a symmetric interval leaves it, and one on the logit scale fills it. The
    variance is the larger of bootstrap and jackknife.
    """
    estimate = float(weights @ sampler.sample.mean(1))
    if sampler.reason:
        return Interval(estimate, None, None, sampler.reason)
    effective = max(1 / (sampler.shares**2).sum(), 2.0)
    variance, freedom = jackknife(sampler, weights, effective)
    least, most = sampler.bounds
    share = (estimate - least) / (most - least)
    if not variance or not 0 < share < 1:
        reason = "the score is the same in every patient"
        return Interval(estimate, None, None, reason)

    def ends(variance: float, freedom: float) -> tuple[float, float]:
        square = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) ** 2
        variance = variance / (most - least) ** 2
        ratio = square * variance / (share * (1 - share))  # square / examples
        centre = (share + ratio / 2) / (1 + ratio)
        half = (square * variance + ratio**2 / 4) ** 0.5 / (1 + ratio)
        return (
            least + (most - least) * max(centre - half, 0.0),
            least + (most - least) * min(centre + half, 1.0),
        )

    variance = max(variance, float((sampler.resampled @ weights).var()))
    these = ends(variance, freedom)
    wider = _over_training(sampler, weights, variance, freedom)
    if wider is None:
        return Interval(estimate, *these)
    return Interval(estimate, *ends(*wider), these=these)


def difference_interval(
    sampler: Resampler, weights: np.ndarray
) -> tuple[Interval, float | None]:
    """Returns the interval of a `[A]`-weighted contrast, and the p-value of zero.

    For the training patients of the study it is a percentile interval whose level makes
    it as wide as a t interval with the jackknife variance, were the resamples normal; p
    is the level at which it just reaches zero. Tails of fewer than `MIN_BEYOND`
    resamples are taken as normal, but for what the farthest tail that can be read says:
    an interval is never narrower than that of a lower level, and p never larger than
    that of an interval without zero. For new training patients it is a t interval, never
    narrower than the other.
    """
    estimate = float(weights @ sampler.sample.mean(1))
    if sampler.reason:
        return Interval(estimate, None, None, sampler.reason), None
    variance, freedom = jackknife(sampler, weights, patients_of_contrast(sampler))
    resampled = sampler.resampled @ weights
    spread = resampled.std()
    if not variance or not spread:
        reason = "the difference is the same in every patient"
        return Interval(estimate, None, None, reason), 1.0 if not estimate else None
    error = np.sqrt(variance)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    tail = scipy.stats.norm.cdf(-half / spread)
    farthest = min(MIN_BEYOND / len(resampled), 0.5)
    read = max(tail, farthest)
    low, high = (float(x) for x in np.quantile(resampled, [read, 1 - read]))
    if tail < farthest:
        low, high = min(low, estimate - half), max(high, estimate + half)
    beyond = min((resampled <= 0).sum(), (resampled >= 0).sum())
    share = np.clip(beyond / len(resampled), farthest, 0.5)
    reach = -scipy.stats.norm.ppf(share) * spread / error
    if beyond < MIN_BEYOND:
        reach = max(reach, abs(estimate) / error)
    p_value = float(2 * scipy.stats.t.sf(reach, freedom))
    wider = _over_training(sampler, weights, variance, freedom)
    if wider is None:
        found = _detectable(variance, freedom)
        return Interval(estimate, low, high, detectable=found), p_value
    error, freedom = np.sqrt(wider[0]), wider[1]
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    p_value = max(p_value, float(2 * scipy.stats.t.sf(abs(estimate) / error, freedom)))
    return Interval(
        estimate,
        min(low, estimate - half),
        max(high, estimate + half),
        these=(low, high),
        detectable=_detectable(*wider),
    ), p_value


def widening(sampler: Resampler, weights: np.ndarray) -> float:
    """Returns the factor, 1 or more, by which new training patients widen an interval.

    It is 1 if the study does not allow an estimate.
    """
    variance, freedom = jackknife(sampler, weights, patients_of_contrast(sampler))
    wider = _over_training(sampler, weights, variance, freedom) if variance else None
    if wider is None:
        return 1.0
    reach = scipy.stats.t.ppf((1 + LEVEL) / 2, [wider[1], freedom])
    return float(max(reach[0] / reach[1] * np.sqrt(wider[0] / variance), 1.0))


def patients_of_contrast(sampler: Resampler) -> float:
    """Returns the effective number of patients of equal size for a difference of arms.

    Effects that patients share cancel in a difference. The remainder is partly chance in
    single patches, which averages out in large patients: they weigh less than their size
    suggests. The simulation supports a value half-way.
    """
    return (max(1 / (sampler.shares**2).sum(), 2.0) + len(sampler.shares)) / 2


def jackknife(
    sampler: Resampler, weights: np.ndarray, effective: float
) -> tuple[float, float]:
    """Returns the jackknife variance of a weighted score and its degrees of freedom.

    Args:
      sampler, weights: Resamples, and the weights `[A]` of the arms.
      effective: Effective number of patients of equal size.
    """
    sample = weights @ sampler.sample  # [S]
    pulls = _pulls(sampler, weights)
    groups, seeds = pulls.shape
    pulls = pulls * np.sqrt((groups - 1) / groups)
    by_group = pulls.mean(1)
    patients = float(((by_group - by_group.mean()) ** 2).sum())
    freedom = patients**2 / (effective - 1)
    variance = patients
    if seeds > 1:
        between = float(sample.var(ddof=1)) / seeds
        # The residual without effects of patients and seeds is in both of them.
        rest = pulls - by_group[:, None] - pulls.mean(0) + pulls.mean()
        both = float((rest**2).sum()) / (seeds * (seeds - 1))
        variance = max(patients + between - both, patients, between)
        freedom += between**2 / (seeds - 1)
    # Rounding alone does not count as variance.
    if variance < 1e-20:
        return 0.0, 1.0
    return variance, max(variance**2 / freedom, 1.0)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the exact two-sided McNemar p-value of two `[...]` bool arrays."""
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    if not gained + lost:
        return 1.0
    return float(scipy.stats.binomtest(gained, gained + lost).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values corrected by Holm's step-down method (1979); None stays None."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[i] = largest
    return corrected


def _detectable(variance: float, freedom: float) -> float:
    """Returns the true difference that a t test finds with `POWER`, to first order."""
    quantiles = scipy.stats.t.ppf([(1 + LEVEL) / 2, POWER], freedom)
    return float(quantiles.sum() * np.sqrt(variance))


def _over_training(
    sampler: Resampler, weights: np.ndarray, variance: float, freedom: float
) -> tuple[float, float] | None:
    """Returns variance and degrees of freedom over new training patients, too.

    None if the study does not allow an estimate.
    """
    sets = sampler.training_sets(weights)
    if sets is None:
        return None
    more = sets.variance(_pulls(sampler, weights))
    whole = variance + more
    return whole, whole**2 / (variance**2 / freedom + more**2 / sets.freedom)


def _pulls(sampler: Resampler, weights: np.ndarray) -> np.ndarray:
    """Returns `[P, S]`: change of a weighted score of each seed without a patient."""
    return np.einsum("pas,a->ps", sampler.without, weights) - weights @ sampler.sample
