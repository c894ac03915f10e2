"""Every number of the report, computed once from the rows of a study.

Arms are scored on the same test examples: patches, or regions (the patches of one true
class of a patient). Resamples are drawn once per size and metric, and shared by all
intervals and differences there; those of the learning curve are shared by all sizes.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.report.study_table import Place, Record, Study
from twostage_jax.stats import calibration, intervals, learning_curve, metrics
from twostage_jax.stats.arms import Paired, Predictions, pair, regions, together
from twostage_jax.stats.intervals import RESAMPLES, Difference, Interval, Resampler
from twostage_jax.stats.learning_curve import SizeStudy
from twostage_jax.stats.metrics import OF_PATIENTS, Additive

METRIC = "balanced_accuracy"
ArmPredictions = Mapping[str, Sequence[Predictions]]
Level = Literal["patch", "region"]


@dataclasses.dataclass(frozen=True)
class Scores:
    """Arms on the same test examples and seeds.

    Attributes:
      level: Kind of the examples: patches, or regions (the patches of one true class of
        a patient).
      arms: Arm -> predictions of its seeds, folds joined.
      paired: The same predictions, paired.
      intervals: Metric -> arm -> score, mean over seeds, and interval; without AUROC if
        it is undefined, and with the scores of `OF_PATIENTS` at patch level if patients
        are known.
      differences: Metric -> difference of every pair of arms.
      resamples: Number of resamples per interval.
    """

    level: Level
    arms: ArmPredictions
    paired: Paired
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Sequence[Difference]]
    resamples: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds."""
        return self.paired.seeds

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the K classes."""
        return self.paired.class_names

    @property
    def examples(self) -> int:
        """Number of test examples."""
        return len(self.paired.labels)

    @property
    def groups(self) -> int | None:
        """Number of test patients, or None if unknown."""
        first, *_ = next(iter(self.arms.values()))
        return None if first.groups is None else len(self.paired.groups)

    def named(self, what: str) -> str:
        """Returns the name of a table or figure: 'region_...' at region level."""
        return what if self.level == "patch" else f"{self.level}_{what}"

    def minus(self, second: str, metric: str = METRIC) -> dict[str, Difference]:
        """Returns arm -> its difference from arm `second`, for all other arms."""
        return {
            one.first: one
            for pair in self.differences[metric]
            for one in (pair, pair.turned())
            if one.second == second
        }

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
    def ensembles(self) -> Mapping[str, tuple[Interval, Difference]]:
        """Arm -> balanced accuracy of its seeds' networks together, and minus one of them.

        Empty with one seed. `p_holm` is over the arms. Intervals hold for the training
        patients of the study: there is just one ensemble, so its variation over training
        patients cannot be estimated.
        """
        if len(self.seeds) < 2:
            return {}
        found, gains = [], []
        for seeds in self.arms.values():
            single = [dataclasses.replace(one, folds=None) for one in seeds]
            both = {"ensemble": together(single), "single": single}
            scores = of_arms(both, self.resamples, self.level, (METRIC,))
            found.append(scores.intervals[METRIC]["ensemble"])
            gains.append(scores.minus("single")["ensemble"])
        return self._by_arm(zip(found, intervals.corrected(gains), strict=True))

    @functools.cached_property
    def confusion(self) -> Mapping[str, np.ndarray]:
        """Arm -> counts `[K, K]`, true class by row, summed over seeds."""
        return {
            arm: sum(metrics.confusion(one.labels, one.probabilities) for one in seeds)
            for arm, seeds in self.arms.items()
        }

    @functools.cached_property
    def of_classes(self) -> Sequence[Mapping[str, Mapping[str, Interval | None]]]:
        """For each class, metric -> arm -> score (see `metrics.of_class`)."""
        classes = range(len(self.class_names))
        return [self._scored(metrics.of_class(self.paired, k)) for k in classes]

    @functools.cached_property
    def of_shares(self) -> Sequence[Mapping[str, Mapping[str, Interval]]]:
        """For each class, 'error' and 'agreement' -> arm -> value and interval.

        They compare the fractions of the class in the patches of each patient; see
        `metrics.shares_of_class`.
        """
        classes = range(len(self.class_names))
        return [self._scored(metrics.shares_of_class(self.paired, k)) for k in classes]

    @functools.cached_property
    def slopes(self) -> Mapping[str, Interval | None]:
        """Arm -> calibration slope, None if undefined; 1 is ideal."""
        return self._values(calibration.slope(self.paired))

    @functools.cached_property
    def intercepts(self) -> Sequence[Mapping[str, Interval | None]]:
        """For each class, arm -> calibration intercept, None if undefined; 0 is ideal."""
        return [
            self._values(calibration.intercept(self.paired, k))
            for k in range(len(self.class_names))
        ]

    def _scored(
        self, named: Mapping[str, Additive]
    ) -> dict[str, dict[str, Interval | None]]:
        found = {}
        for name, metric in named.items():
            sampler = Resampler(metric, self.resamples)
            found[name] = self._by_arm(intervals.score_intervals(sampler))
        return found

    def _values(self, metric: Additive) -> dict[str, Interval | None]:
        sampler = Resampler(metric, self.resamples)
        return self._by_arm(intervals.value_intervals(sampler))

    def _by_arm(self, values: Iterable[Any]) -> dict[str, Any]:
        return dict(zip(self.arms, values, strict=True))


class Baseline(NamedTuple):
    """A baseline on the test examples of the arms.

    Attributes:
      name: Name, such as 'descriptors'.
      score: Balanced accuracy, mean over seeds, and interval.
      difference: Champion minus baseline; `p_holm` is over all baselines on the same
        test examples, at all sizes.
      without: Smallest and largest difference without one patient; None if patients are
        unknown or there is only one.
    """

    name: str
    score: Interval
    difference: Difference
    without: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Size:
    """Results at one fraction of the target training set.

    Attributes:
      fraction: Fraction of the target training set.
      patches: Number of target training patches of each seed and fold.
      patients: Number of target training patients of each seed and fold; empty if
        unknown.
      scores: Scores of the arms.
      baselines: Baselines with all seeds of the arms, best first.
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
        needs no correction. The estimate is NaN if there is a `reason`.
      sizes: Number of sizes averaged.
      seeds: Seeds averaged.
      reason: Why it cannot be computed, or ''.
    """

    difference: Difference
    sizes: int
    seeds: tuple[int, ...]
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ByPatient:
    """The primary difference, or that of champion and baseline, patient by patient.

    Attributes:
      difference: Arms, metric and estimate.
      sizes: Number of sizes of the target set that it is over.
      score: Title of the metric of `scores`.
      patients: Names of the P patients.
      patches: Number of test patches per patient, `[P]`.
      scores: Score of each patient's patches by either arm, mean over seeds and sizes,
        `[2, P]`: the metric itself if it is computed from confusion counts, else
        balanced accuracy over the classes present in the patient.
      without: Difference without each patient, `[P]`.
    """

    difference: Difference
    sizes: int
    score: str
    patients: tuple[str, ...]
    patches: np.ndarray
    scores: np.ndarray
    without: np.ndarray

    @property
    def ahead(self) -> int:
        """Number of patients in whom the first arm scores higher."""
        return int((self.scores[0] > self.scores[1]).sum())

    @property
    def behind(self) -> int:
        """Number of patients in whom the first arm scores lower."""
        return int((self.scores[0] < self.scores[1]).sum())

    @property
    def most(self) -> int:
        """Index of the patient whose exclusion changes the difference most."""
        return int(np.abs(self.without - self.difference.estimate).argmax())


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Everything computed from a study.

    Attributes:
      sizes: Results by size, largest first; the first is the full target set.
      by_region: Full target set at region level, or None if patients are unknown.
      size_study: Learning curves, or None (see `notes`).
      baseline: Arm that the others are compared with.
      champion: Arm that the first sentences are about.
      notes: Skipped analyses, with reasons.
      primary: Primary endpoint, or None if the settings do not name one.
      by_patient: Main difference by patient, or None if patients are unknown or there is
        only one patient or one arm.
    """

    sizes: tuple[Size, ...]
    by_region: Scores | None
    size_study: SizeStudy | None
    baseline: str
    champion: str
    notes: tuple[str, ...]
    primary: Primary | None = None
    by_patient: ByPatient | None = None

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
        """Whether training sets of one fraction differ in size over seeds or folds."""
        return any(len(set(size.patches)) > 1 for size in self.sizes)

    @property
    def common_seeds(self) -> tuple[int, ...]:
        """The seeds that are complete at every size: those of the learning curve."""
        return _common_seeds(self.sizes)


def analyse(study: Study, resamples: int = RESAMPLES) -> Analysis:
    """Computes the numbers of a study.

    Raises:
      UserError: Every seed is incomplete in some arm, at every fraction.
    """
    notes, sizes = [], []
    for fraction in study.fractions:
        arms, seeds = study.complete(fraction)
        if seeds:
            sizes.append(_size(study, fraction, arms, seeds, resamples))
        else:
            notes.append(
                f"Fraction {fraction:g} is skipped: every seed lacks a fold in some arm."
            )
    if not sizes:
        raise UserError.at(
            study.workdirs[0],
            "arms cannot be compared, because every seed lacks a fold in some arm; "
            f"{len(study.missing)} rows are missing, such as {study.missing[0]}. "
            "Finish the study.",
        )
    names = list(sizes[0].scores.arms)
    baseline = "scratch" if "scratch" in names else names[0]
    champion = "two_stage" if "two_stage" in names else names[-1]
    primary = _primary(study, sizes, resamples)
    if primary and not primary.reason:
        baseline, champion = primary.difference.second, primary.difference.first
    by_size, reason = _size_study(study, sizes, baseline, resamples)
    notes += [f"Learning curve: skipped, because {reason}."] if reason else []
    found = corrected_baselines(
        [_baselines(study, size, champion, resamples) for size in sizes]
    )
    sizes = [
        dataclasses.replace(size, baselines=baselines)
        for size, baselines in zip(sizes, found, strict=True)
    ]
    return Analysis(
        tuple(sizes),
        by_region(sizes[0].scores),
        by_size,
        baseline,
        champion,
        tuple(notes),
        primary,
        _by_patient(study, sizes, primary, (champion, baseline)),
    )


def of_arms(
    arms: ArmPredictions,
    resamples: int,
    level: Level = "patch",
    named: Sequence[str] = (),
) -> Scores:
    """Returns the scores of arms.

    Args:
      arms: Predictions of each arm.
      resamples: Number of resamples per interval.
      level: Kind of the examples.
      named: Names of metrics; all defined ones if empty.

    Raises:
      UserError: The arms cannot be paired; see `arms.pair`.
    """
    paired = pair(arms)
    scores = Scores(level, arms, paired, {}, {}, resamples)
    if not named:
        patients = level == "patch" and scores.groups is not None
        named = metrics.OF_PATCHES + OF_PATIENTS * patients
    for metric in named:
        if metric == "auroc" and not metrics.has_auroc(paired):
            continue
        sampler = Resampler(metrics.metric(paired, metric), resamples)
        scores.intervals[metric] = scores._by_arm(intervals.score_intervals(sampler))
        scores.differences[metric] = intervals.differences(paired, sampler, metric)
    return scores


def by_region(scores: Scores) -> Scores | None:
    """Returns patch-level scores at region level, or None if patients are unknown."""
    if scores.groups is None:
        return None
    arms = {arm: [regions(one) for one in seeds] for arm, seeds in scores.arms.items()}
    return of_arms(arms, scores.resamples, "region")


def patients_of_curve(study: Study, analysis: Analysis) -> dict[float, float] | None:
    """Returns size on the learning curve -> mean number of training patients.

    Returns None unless fractions are drawn by patient and every row has its patients.
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


def _primary(study: Study, sizes: Sequence[Size], resamples: int) -> Primary | None:
    """Returns the primary endpoint of a study, or None if the settings name none."""
    named = study.config["study"].get("primary")
    if not named:
        return None
    first, second, metric = map(str, named)
    unknown = Difference(
        math.nan, None, None, first=first, second=second, metric=metric
    )
    there = [s for s in sizes if {first, second} <= set(s.scores.arms)]
    if len(there) < len(study.fractions):
        lacking = "the arms are incomplete at some sizes of the study"
        return Primary(unknown, len(there), (), lacking)
    if metric in metrics.METRICS and metric not in metrics.ENDPOINTS:
        # Earlier versions accepted it.
        lower = "this score is better if lower, so a positive difference is not a gain"
        return Primary(unknown, len(there), (), lower)
    if metric not in sizes[0].scores.differences:
        return Primary(unknown, len(there), (), "the score is undefined for these data")
    if len(sizes) == 1:
        scores = sizes[0].scores
        return Primary(scores.minus(second, metric)[first], 1, scores.seeds)
    seeds = _common_seeds(sizes)
    arms, reason = _on_curve(study, sizes, second, (first, second))
    if reason:
        return Primary(unknown, len(sizes), seeds, reason)
    found = learning_curve.size_study(
        arms, metric, baseline=second, resamples=resamples
    )
    return Primary(found.area_gains[first], len(sizes), seeds)


def _by_patient(
    study: Study,
    sizes: Sequence[Size],
    primary: Primary | None,
    pair_of_arms: tuple[str, str],
) -> ByPatient | None:
    """Returns the primary difference by patient, or else that at the full size."""
    named = primary and not primary.reason
    metric = primary.difference.metric if named else METRIC
    first, second = pair_of_arms
    full = sizes[0]
    if (full.scores.groups or 0) < 2 or first == second:
        return None
    arms = {arm: {full.n: full.scores.arms[arm]} for arm in pair_of_arms}
    weights = np.ones(1)
    if named and primary.sizes > 1:
        arms, _ = _on_curve(study, sizes, second, pair_of_arms)
        weights = learning_curve.area_weights(sorted(arms[first]))
    paired = pair({f"{a}, n={n:g}": arms[a][n] for a in arms for n in sorted(arms[a])})
    additive = metrics.metric(paired, metric)
    contrast = np.concatenate([weights, -weights])
    counts = metrics.METRICS[metric].counts
    shown = metric if counts else METRIC
    counts = counts or metrics.balanced_accuracy
    own = counts(paired.cells).mean(1).reshape(2, len(weights), -1)
    taking_part = np.flatnonzero(additive.shares > 0)
    estimate = contrast @ additive.score(additive.sums.sum(2)).mean(-1)
    return ByPatient(
        Difference(
            float(estimate), None, None, first=first, second=second, metric=metric
        ),
        len(weights),
        metrics.METRICS[shown].title,
        tuple(paired.groups[p] for p in taking_part),
        paired.sizes[taking_part],
        np.einsum("afp,f->ap", own, weights)[:, taking_part],
        intervals.without_each(additive).mean(-1) @ contrast,
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
        of_arms(predictions, resamples),
    )


def _baselines(
    study: Study, size: Size, champion: str, resamples: int
) -> list[Baseline]:
    """Returns the baselines at a size, each against the champion, best first."""
    seeds = size.scores.seeds
    others = {
        name: [study.joined(name, seed, size.fraction) for seed in seeds]
        for name in study.whole_baselines(size.fraction, seeds)
    }
    return against(champion, size.scores.arms, others, resamples)


def corrected_baselines(
    families: Sequence[Sequence[Baseline]],
) -> list[tuple[Baseline, ...]]:
    """Returns lists of baselines with p-values corrected over all of them."""
    every = [one.difference for family in families for one in family]
    found = iter(intervals.corrected(every))
    return [
        tuple(one._replace(difference=next(found)) for one in family)
        for family in families
    ]


def against(
    champion: str,
    arms: Mapping[str, Sequence[Predictions]],
    baselines: Mapping[str, Sequence[Predictions]],
    resamples: int,
) -> list[Baseline]:
    """Returns baselines, each against an arm, best first; none without the arm.

    Their p-values are not corrected; see `corrected_baselines`.
    """
    if champion not in arms:
        return []
    found = []
    for name, own in baselines.items():
        pair_of_arms = {champion: arms[champion], name: own}
        both = of_arms(pair_of_arms, resamples, named=(METRIC,))
        difference = both.minus(name)[champion]
        without = None
        if (both.groups or 0) > 1:
            scores = intervals.without_each(metrics.metric(both.paired, METRIC)).mean(
                -1
            )
            gains = scores[:, 0] - scores[:, 1]
            without = float(gains.min()), float(gains.max())
        score = both.intervals[METRIC][name]
        found.append(Baseline(name, score, difference, without))
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


def _mean_patches(trained: Sequence[Record]) -> float:
    return float(np.mean([record.n_train for record in trained]))


def _common_seeds(sizes: Sequence[Size]) -> tuple[int, ...]:
    return tuple(sorted(set.intersection(*(set(one.scores.seeds) for one in sizes))))


def _size_study(
    study: Study, sizes: Sequence[Size], baseline: str, resamples: int
) -> tuple[SizeStudy | None, str]:
    """Returns the learning curves, or None and the reason why they are missing."""
    if len(sizes) < 2:
        return None, "there is only one size"
    whole = [
        arm
        for arm in sizes[0].scores.arms
        if all(arm in size.scores.arms for size in sizes)
    ]
    arms, reason = _on_curve(study, sizes, baseline, whole)
    if reason:
        return None, reason
    found = learning_curve.size_study(
        arms, METRIC, baseline=baseline, resamples=resamples
    )
    return found, ""


def _on_curve(
    study: Study, sizes: Sequence[Size], baseline: str, arms: Sequence[str]
) -> tuple[dict[str, dict[float, list[Predictions]]], str]:
    """Returns arm -> size -> predictions of the common seeds, or why they are missing."""
    seeds = _common_seeds(sizes)
    if not seeds or baseline not in arms:
        return {}, "every seed is incomplete at some size"
    # Over the seeds whose scores are on the curve.
    means = {
        size.fraction: _mean_patches(_trained(study, size.fraction, baseline, seeds))
        for size in sizes
    }
    if len(set(means.values())) < len(sizes):
        return {}, "two fractions give the same number of patches"
    return {
        arm: {
            means[size.fraction]: [
                one for one in size.scores.arms[arm] if one.seed in seeds
            ]
            for size in sizes
        }
        for arm in arms
    }, ""
