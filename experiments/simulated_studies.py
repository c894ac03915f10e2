"""Simulated studies whose true scores are known.

Patients of very different sizes, each with its own difficulty and its own difference
between the arms, seeds that differ, patches that are easy or hard for every arm and seed.
"""

import dataclasses

import numpy as np

from twostage_jax import additive, size_study, statistics
from twostage_jax.paired import Paired
from twostage_jax.resampling import Resampler

NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
NODE_WEIGHTS = NODE_WEIGHTS / NODE_WEIGHTS.sum()


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A population of studies; effects are standard deviations in logits.

    Attributes:
      patients, seeds, classes: How many.
      level: Logit of a right prediction, of each of the two arms.
      patient: Difficulty of a (patient, class), for both arms.
      patient_arm: Difference between the arms in a (patient, class).
      seed, seed_arm: Effect of a seed on both arms, and on each.
      cell: Effect of (arm, seed, patient, class).
      patch: Difficulty of a patch.
      folds: How many folds share out the patients; 0 for one test set of one model.
      fold_arm: Effect of the training set of a fold on each arm: what the patients whom
        that model tests have in common.
      anew: Whether each seed shares out the patients in its own way, as the program
        does; otherwise folds and their effects are the same for every seed.
      spread: Deviation of the log of the number of patches of a patient.
      patches: Their median.
      mixed: Patients have patches of all classes, or of one only.
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
    fold_arm: float = 0.0
    anew: bool = True
    spread: float = 1.0
    patches: float = 30.0
    mixed: bool = True


# Sizes of a study, and the logits of a right prediction at each, of two arms.
SIZES = (100, 300, 900, 2700)
CURVES = ((0.6, 1.2, 1.8, 2.2), (1.0, 1.6, 2.2, 2.6))


def simulate(
    scenario: Scenario, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches `[P, K]` and logits `[A, S, P, K]` of one study."""
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
    if scenario.folds:
        drawn = s if scenario.anew else 1
        fold = np.tile(np.arange(p) % scenario.folds, (drawn, 1))  # [S or 1, P]
        fold = generator.permuted(fold, axis=1)
        effects = scenario.fold_arm * draw(size=(2, drawn, scenario.folds, 1))
        logits = logits + np.take_along_axis(effects, fold[None, :, :, None], axis=2)
    return patches, logits


def predicted(
    scenario: Scenario,
    generator: np.random.Generator,
    patches: np.ndarray,
    logits: np.ndarray,
) -> Paired:
    """Returns the predictions of one simulated study.

    What is not given to the true class is given to the next one.
    """
    groups, classes = (np.repeat(axis.ravel(), patches.ravel())
                       for axis in np.indices(patches.shape))  # fmt: skip
    hard = scenario.patch * generator.normal(size=len(groups))
    margin = logits[:, :, groups, classes] + hard
    # Positive with the probability whose logit the margin was.
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
    return Paired(names[0], seed_names, names[2], groups, classes, probabilities)


def truth(scenario: Scenario, metric: str) -> np.ndarray:
    """Returns the scores `[A]` over all patients and seeds, to about 0.001.

    A metric of counts is integrated over the chance in patches; others are those of
    many patches.
    """
    generator = np.random.default_rng(99)
    matrix = np.zeros((2, scenario.classes, scenario.classes))
    many = dataclasses.replace(
        scenario,
        patients=3000,
        seeds=100 if scenario.seeds > 1 else 1,
        folds=3000 if scenario.folds else 0,  # Over all training sets, too.
    )
    if metric not in additive.OF_COUNTS:
        part = dataclasses.replace(many, seeds=max(many.seeds // 10, 1))
        found = []
        for _ in range(10):
            study = predicted(part, generator, *simulate(part, generator))
            one = additive.metric(study, metric)
            found.append(one.score(one.sums.sum(2)).mean(1))
        return np.mean(found, axis=0)
    for _ in range(10):
        patches, logits = simulate(many, generator)
        chance = sum(
            weight / (1 + np.exp(-(logits + scenario.patch * node)))
            for node, weight in zip(NODES, NODE_WEIGHTS, strict=True)
        )
        right = (patches * chance.mean(1)).sum(1)
        for k in range(scenario.classes):
            matrix[:, k, k] += right[:, k]
            matrix[:, k, (k + 1) % scenario.classes] += (
                patches[:, k].sum() - right[:, k]
            )
    return additive.OF_COUNTS[metric](matrix)


def measure(
    scenario: Scenario,
    metric: str,
    repeats: int,
    resamples: int,
    seed: int = 0,
) -> dict[str, float]:
    """Returns shares: what intervals cover, and how often p is at most 0.05."""
    true = truth(scenario, metric)
    gap = true[0] - true[1] if scenario.level[0] != scenario.level[1] else 0.0
    found: dict[str, list[float]] = {}
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        study = predicted(scenario, generator, *simulate(scenario, generator))
        sampler = Resampler(additive.metric(study, metric), resamples, seed=repeat)
        one = statistics.score_interval(sampler, np.array([1.0, 0.0]))
        two, p_value = statistics.difference_interval(sampler, np.array([1.0, -1.0]))
        plain = np.quantile(sampler.resampled @ [1, -1], [0.025, 0.975])
        note = found.setdefault
        if one.low is not None:
            note("score", []).append(one.low <= true[0] <= one.high)
        if two.low is not None:
            note("difference", []).append(two.low <= gap <= two.high)
            note("width", []).append(two.high - two.low)
        if p_value is not None:
            note("rejected", []).append(p_value <= 0.05)
        note("percentile", []).append(plain[0] <= gap <= plain[1])
        mcnemar = statistics.mcnemar(*study.right)
        note("mcnemar", []).append(mcnemar <= 0.05)
    shares = {name: float(np.mean(values)) for name, values in found.items()}
    return shares | {"gap": float(gap), "given": len(found["difference"]) / repeats}


def simulate_sizes(
    scenario: Scenario, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches `[P, K]` and logits `[A * F, S, P, K]` of one size study."""
    patches, logits = simulate(scenario, generator)
    p, s, k = scenario.patients, scenario.seeds, scenario.classes
    f, draw = len(SIZES), generator.normal
    # The same arm at another size has effects of its own, too.
    return patches, (
        np.reshape(CURVES, (-1, 1, 1, 1))
        + np.repeat(logits, f, axis=0)
        + 0.3 * draw(size=(2 * f, 1, p, k))
        + scenario.seed_arm * draw(size=(2 * f, s, 1, 1))
        + scenario.cell * draw(size=(2 * f, s, p, k))
    )


def measure_sizes(repeats: int, resamples: int, seed: int = 0) -> list[float]:
    """Returns what intervals of the area gained and of the matching sizes cover."""
    scenario = Scenario(level=(0.0, 0.0), patch=0.0)
    many = dataclasses.replace(scenario, patients=3000, seeds=20)
    generator = np.random.default_rng(99)
    right, total = 0.0, 0.0
    for _ in range(10):
        patches, logits = simulate_sizes(many, generator)
        right = right + (patches / (1 + np.exp(-logits))).mean(1).sum(1)
        total = total + patches.sum(0)
    true = (right / total).mean(1).reshape(2, -1)
    needed = size_study.patches_to_match(true[0], true[1], SIZES)
    areas = size_study.area_under_curve(SIZES, np.eye(len(SIZES)))
    gain, hits = areas @ (true[1] - true[0]), []
    for repeat in range(repeats):
        generator = np.random.default_rng((seed, repeat))
        study = predicted(scenario, generator, *simulate_sizes(scenario, generator))
        balanced = additive.metric(study, "balanced_accuracy")
        sampler = Resampler(balanced, resamples, repeat)
        weights = np.concatenate([-areas, areas])
        area, _ = statistics.difference_interval(sampler, weights)
        matches = size_study.matches(sampler, SIZES, 0, 1)
        hits.append([area.low <= gain <= area.high])
        hits[-1] += [
            match.low <= value <= match.high
            for match, value in zip(matches, needed, strict=True)
        ]
    return [float(share) for share in np.mean(hits, axis=0)]
