"""Simulated studies whose true scores are known.

Patients of very different sizes, each with its own difficulty and its own difference
between the arms, seeds that differ, patches that are easy or hard for every arm and seed,
and models that are trained on patients of the same study.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from twostage_jax.stats import intervals, learning_curve, metrics
from twostage_jax.stats.arms import Paired
from twostage_jax.stats.intervals import Resampler

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()
# Effects of training sets at which true scores are computed, for interpolation.
SHIFTS = np.linspace(-2, 2, 9)
# The same for metrics that are not counts, which take longer.
FEW_SHIFTS = np.linspace(-1, 1, 5)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Population of studies; effects are standard deviations in logits.

    Attributes:
      patients, seeds, classes: Numbers of each.
      level: Logit of a right prediction, of each of the two arms.
      patient: Difficulty of a (patient, class), for both arms.
      patient_arm: Difference between the arms in a (patient, class).
      seed, seed_arm: Effect of a seed on both arms, and on each.
      cell: Effect of (arm, seed, patient, class).
      patch: Difficulty of a patch.
      folds: Number of folds, drawn again for each seed; 0 for one test set of one model.
      training: Effect of a training set on each arm: the sum of the effects of the
        patients in it, who are patients of the study, for every fold and seed.
      validation: Fraction of the patients outside the test fold who are not trained on.
      redraw: Whether each seed draws its own folds, as the program does; otherwise all
        seeds have the same.
      spread: Standard deviation of the log of the number of patches of a patient.
      patches: Median number of patches of a patient.
      mixed: Whether patients have patches of all classes, or of one only.
    """

    patients: int = 17
    seeds: int = 5
    classes: int = 2
    level: tuple[float, float] = (2.5, 2.0)
    patient: float = 1.0
    patient_arm: float = 0.5
    seed: float = 0.15
    seed_arm: float = 0.15
    cell: float = 0.3
    patch: float = 0.7
    folds: int = 0
    training: float = 0.0
    validation: float = 0.0
    redraw: bool = True
    spread: float = 1.0
    patches: float = 30.0
    mixed: bool = True


class Simulated(NamedTuple):
    """Simulated study.

    Attributes:
      patches: Number of patches `[P, K]`.
      logits: Logits `[A, S, P, K]` of a right prediction.
      folds: Test folds `[S, P]`; zeros without folds.
      trained: Fraction of the patients that a model is trained on; NaN without folds.
      shift: Mean effect `[A]` of the training sets that these patients can make.
    """

    patches: np.ndarray
    logits: np.ndarray
    folds: np.ndarray
    trained: float
    shift: np.ndarray


# Sizes of a training set, and the logit of a correct prediction at each, for two arms.
SIZES = (100, 300, 900, 2700)
CURVES = ((0.6, 1.2, 1.8, 2.2), (1.0, 1.6, 2.2, 2.6))


def simulate(scenario: Scenario, generator: np.random.Generator) -> Simulated:
    """Returns one study."""
    p, s, k = scenario.patients, scenario.seeds, scenario.classes
    sizes = scenario.patches * np.exp(scenario.spread * generator.normal(size=p))
    shares = (
        generator.dirichlet(np.full(k, 2.0), p)
        if scenario.mixed
        else np.eye(k)[np.arange(p) % k]
    )
    patches = generator.poisson(sizes[:, None] * shares)
    draw = generator.normal
    logits = (
        np.array(scenario.level)[:, None, None, None]
        + scenario.patient * draw(size=(p, k))
        + scenario.patient_arm * draw(size=(2, 1, p, k))
        + scenario.seed * draw(size=(s, 1, 1))
        + scenario.seed_arm * draw(size=(2, s, 1, 1))
        + scenario.cell * draw(size=(2, s, p, k))
    )
    if not scenario.folds:
        return Simulated(patches, logits, np.zeros((s, p), int), np.nan, np.zeros(2))
    drawn = s if scenario.redraw else 1
    folds = np.tile(np.arange(p) % scenario.folds, (drawn, 1))  # [S or 1, P]
    folds = np.broadcast_to(generator.permuted(folds, axis=1), (s, p))
    effects = scenario.training * draw(size=(2, p))
    of_sets, sizes = np.zeros((2, s, scenario.folds)), []
    for place in np.ndindex(drawn, scenario.folds):
        rest = generator.permutation(np.flatnonzero(folds[place[0]] != place[1]))
        held = round(scenario.validation * len(rest))
        chosen = rest[held:]
        sizes.append(len(chosen))
        where = place[0] if scenario.redraw else slice(None)
        of_set = effects[:, chosen].sum(1) / np.sqrt(len(chosen))
        of_sets[:, where, place[1]] = of_set if scenario.redraw else of_set[:, None]
    size = np.mean(sizes)
    of_patients = np.take_along_axis(of_sets, np.stack([folds] * 2), axis=2)
    return Simulated(
        patches,
        logits + of_patients[..., None],
        folds,
        size / p,
        effects.mean(1) * np.sqrt(size),
    )


def predicted(
    scenario: Scenario,
    generator: np.random.Generator,
    simulated: Simulated,
) -> Paired:
    """Returns the predictions of one simulated study.

    The probability that the true class does not get goes to the next one.
    """
    patches, logits = simulated.patches, simulated.logits
    groups, classes = (np.repeat(axis.ravel(), patches.ravel())
                       for axis in np.indices(patches.shape))  # fmt: skip
    hard = scenario.patch * generator.normal(size=len(groups))
    margin = logits[:, :, groups, classes] + hard
    # Positive with the probability whose logit is the margin.
    margin = margin + generator.logistic(size=margin.shape)
    chance = 1 / (1 + np.exp(-margin))
    probabilities = np.zeros((*margin.shape, scenario.classes))
    arms, seeds = np.ogrid[: logits.shape[0], : logits.shape[1]]
    examples = np.arange(len(groups))
    where = arms[..., None], seeds[..., None], examples
    probabilities[*where, classes] = chance
    probabilities[*where, (classes + 1) % scenario.classes] = 1 - chance
    names = [tuple(map(str, range(length))) for length in logits.shape[:3]]
    seed_names = tuple(range(scenario.seeds))
    trained = np.full(len(logits), simulated.trained)
    return Paired(
        names[0], seed_names, names[2], groups, classes, probabilities,
        simulated.folds, trained,
    )  # fmt: skip


def truth(scenario: Scenario, metric: str) -> Callable[[np.ndarray, float], np.ndarray]:
    """Returns a function from effects of training sets to the scores `[A]`.

    Its arguments are the mean `[A]` of these effects and their standard deviation, both
    in logits. The scores are over all patients and seeds, to about 0.001.
    """
    shifts = np.zeros(1)
    if scenario.training:
        shifts = SHIFTS if metrics.METRICS[metric].counts else FEW_SHIFTS
    # Neither depends on the numbers of patients and seeds of a study.
    many = dataclasses.replace(
        scenario, folds=0, training=0.0, validation=0.0, redraw=True, patients=3000,
        seeds=100 if scenario.seeds > 1 else 1,
    )  # fmt: skip
    curve = np.array([_true(_shifted(many, shift), metric) for shift in shifts])

    def score(mean: np.ndarray, spread: float) -> np.ndarray:
        if not scenario.training:
            return curve[0]
        return np.array(
            [
                NODE_WEIGHTS @ np.interp(mean[a] + spread * NODES, shifts, curve[:, a])
                for a in range(2)
            ]
        )

    return score


def _shifted(scenario: Scenario, shift: float) -> Scenario:
    return dataclasses.replace(
        scenario, level=tuple(level + shift for level in scenario.level)
    )


@functools.cache
def _true(many: Scenario, metric: str) -> np.ndarray:
    """Returns the scores `[A]` of a study of very many patients and seeds.

    A metric of counts is integrated over the chance in patches; others are those of
    many patches.
    """
    generator = np.random.default_rng(99)
    matrix = np.zeros((2, many.classes, many.classes))
    if not metrics.METRICS[metric].counts:
        part = dataclasses.replace(many, seeds=max(many.seeds // 20, 1))
        found = []
        for _ in range(10):
            study = predicted(part, generator, simulate(part, generator))
            one = metrics.metric(study, metric)
            found.append(one.score(one.sums.sum(2)).mean(1))
        return np.mean(found, axis=0)
    for _ in range(10):
        simulated = simulate(many, generator)
        patches, logits = simulated.patches, simulated.logits
        chance = sum(
            weight / (1 + np.exp(-(logits + many.patch * node)))
            for node, weight in zip(NODES, NODE_WEIGHTS, strict=True)
        )
        right = (patches * chance.mean(1)).sum(1)
        for k in range(many.classes):
            matrix[:, k, k] += right[:, k]
            matrix[:, k, (k + 1) % many.classes] += patches[:, k].sum() - right[:, k]
    return metrics.METRICS[metric].counts(matrix)


def measure(
    scenario: Scenario,
    metric: str,
    repeats: int,
    resamples: int,
    seed: int = 0,
) -> dict[str, float]:
    """Returns the coverage of intervals, and how often p is at most 0.05.

    'these' is the reading for the training patients of a study, whose true scores are
    those of the training sets that these patients can make. The reading for new ones is
    missing if the study does not give it (see `statistics`). Without effects of training
    sets both are the same.
    """
    score, contrast = np.array([1.0, 0.0]), np.array([1.0, -1.0])
    true_score = truth(scenario, metric)
    new = true_score(np.zeros(2), scenario.training)
    if scenario.level[0] == scenario.level[1]:
        new = new.mean() * np.ones(2)
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        simulated = simulate(scenario, generator)
        study = predicted(scenario, generator, simulated)
        # Effects vary less between training sets with the same patients.
        within = scenario.training * np.sqrt(1 - np.nan_to_num(simulated.trained))
        these = true_score(simulated.shift, within)
        sampler = Resampler(metrics.metric(study, metric), resamples, seed=repeat)
        one = intervals.score_interval(sampler, score)
        two, p_value = intervals.difference_interval(sampler, contrast)
        plain = np.quantile(sampler.resampled @ [1, -1], [0.025, 0.975])
        gap = contrast @ new
        note = found.setdefault
        for name, weights, interval in (
            ("score", score, one),
            ("difference", contrast, two),
        ):
            if interval.low is None:
                continue
            low, high = interval.these or (interval.low, interval.high)
            note(f"{name}_these", []).append(low <= weights @ these <= high)
            note(f"{name}_width_these", []).append(high - low)
            if interval.these or not scenario.training:
                note(name, []).append(interval.low <= weights @ new <= interval.high)
                note(f"{name}_width", []).append(interval.high - interval.low)
        if p_value is not None:
            note("rejected", []).append(p_value <= 0.05)
            if two.these:
                beyond = two.these[0] > 0 or two.these[1] < 0
                note("rejected_these", []).append(beyond)
        note("percentile", []).append(plain[0] <= gap <= plain[1])
        mcnemar = intervals.mcnemar(*study.right)
        note("mcnemar", []).append(mcnemar <= 0.05)
    shares = {name: float(np.mean(values)) for name, values in found.items()}
    given = len(found["difference_these"]) / repeats
    return shares | {"gap": float(gap), "given": given}


def simulate_sizes(scenario: Scenario, generator: np.random.Generator) -> Simulated:
    """Returns one size study: its arms are (arm, size), sizes fastest."""
    simulated = simulate(scenario, generator)
    p, s, k = scenario.patients, scenario.seeds, scenario.classes
    f, draw = len(SIZES), generator.normal
    # Effects of one arm are independent between sizes.
    return simulated._replace(
        logits=np.reshape(CURVES, (-1, 1, 1, 1))
        + np.repeat(simulated.logits, f, axis=0)
        + 0.3 * draw(size=(2 * f, 1, p, k))
        + scenario.seed_arm * draw(size=(2 * f, s, 1, 1))
        + scenario.cell * draw(size=(2 * f, s, p, k))
    )


def measure_sizes(
    scenario: Scenario, repeats: int, resamples: int, seed: int = 0
) -> list[float]:
    """Returns the coverage of intervals of the area gained and of the matching sizes."""
    scenario = dataclasses.replace(scenario, level=(0.0, 0.0), patch=0.0)
    many = dataclasses.replace(scenario, patients=3000, seeds=20, folds=0)
    generator = np.random.default_rng(99)
    right, total = 0.0, 0.0
    for _ in range(10):
        patches, logits, *_ = simulate_sizes(many, generator)
        of_sets = generator.normal(size=(2, *logits.shape[1:3], 1))
        logits = logits + scenario.training * np.repeat(of_sets, len(SIZES), axis=0)
        right = right + (patches / (1 + np.exp(-logits))).mean(1).sum(1)
        total = total + patches.sum(0)
    true = (right / total).mean(1).reshape(2, -1)
    needed = learning_curve.patches_to_match(true[0], true[1], SIZES)
    areas = learning_curve.area_weights(SIZES)
    gain, hits = areas @ (true[1] - true[0]), []
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        study = predicted(scenario, generator, simulate_sizes(scenario, generator))
        balanced = metrics.metric(study, "balanced_accuracy")
        sampler = Resampler(balanced, resamples, repeat)
        weights = np.concatenate([-areas, areas])
        area, _ = intervals.difference_interval(sampler, weights)
        matches = learning_curve.matches(sampler, SIZES, 0, 1)
        hits.append([area.low <= gain <= area.high])
        hits[-1] += [
            match.low <= value <= match.high
            for match, value in zip(matches, needed, strict=True)
        ]
    return [float(share) for share in np.mean(hits, axis=0)]
