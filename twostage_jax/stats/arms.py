"""Predictions of arms: checked, joined over folds, averaged over regions, paired.

`labels` are `[N]` integers in `[0, K)`, `probabilities` `[N, K]`. Arms are paired by seed
and by example, and their test patients are the units of all statistics.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from twostage_jax.errors import UserError

# Softmax in float32, or bfloat16 cast to it, sums to one within this.
SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of one seed of one arm; folds are concatenated.

    Attributes:
      ids: `[N]` strings, unique.
      groups: `[N]` strings (patients), or None if the set has no groups: every example
        is then a group of its own.
      labels: `[N]` integers in `[0, K)`.
      probabilities: `[N, K]` floats; rows sum to one.
      seed: The seed; arms are paired by it.
      folds: `[N]` integers: the fold whose model predicted the example; None if one
        model predicted all of them.
      trained: Number of groups (patients) that a model was trained on, mean over folds;
        None if unknown.
      class_names: Names of the K classes, for messages; empty if unknown.
    """

    ids: np.ndarray
    groups: np.ndarray | None
    labels: np.ndarray
    probabilities: np.ndarray
    seed: int = 0
    folds: np.ndarray | None = None
    trained: float | None = None
    class_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Paired:
    """Predictions of arms with the same seeds for the same examples.

    Attributes:
      arms: A names.
      seeds: S seeds.
      groups: P names of patients.
      codes: `[N]` ints: the patient of each example.
      labels: `[N]` ints in `[0, K)`.
      probabilities: `[A, S, N, K]` float64.
      folds: `[S, P]` ints: the fold whose model predicted a patient; zeros if one model
        predicted all of them.
      trained: Fraction of the patients that a model of each arm was trained on, `[A]`;
        NaN if unknown, or if the data do not identify patients.
      class_names: Names of the K classes; empty if unknown.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    codes: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray
    trained: np.ndarray
    class_names: tuple[str, ...] = ()

    @functools.cached_property
    def right(self) -> np.ndarray:
        """Whether each example was predicted correctly, `[A, S, N]` bool."""
        return self.probabilities.argmax(-1) == self.labels

    @functools.cached_property
    def supports(self) -> np.ndarray:
        """`[P, K]`: number of examples of each class of a patient."""
        found = np.zeros((len(self.groups), self.probabilities.shape[-1]))
        np.add.at(found, (self.codes, self.labels), 1)
        return found

    @property
    def sizes(self) -> np.ndarray:
        """`[P]`: number of examples of a patient."""
        return self.supports.sum(1)

    @functools.cached_property
    def cells(self) -> np.ndarray:
        """`[A, S, P, K, K]` float64: confusion counts, true class before predicted."""
        predicted = self.probabilities.argmax(-1)
        classes = self.probabilities.shape[-1]
        found = np.zeros((*predicted.shape[:2], len(self.groups), classes, classes))
        arms, seeds = np.ogrid[: predicted.shape[0], : predicted.shape[1]]
        where = (arms[..., None], seeds[..., None], self.codes, self.labels, predicted)
        np.add.at(found, where, 1)
        return found

    def name(self, k: int) -> str:
        """Returns "class 'NAME'", or 'class K' if its name is unknown."""
        return f"class '{self.class_names[k]}'" if self.class_names else f"class {k}"

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """Returns the sums `[A, S, P, ...]` over the examples of each patient."""
        order = np.argsort(self.codes, kind="stable")
        present, starts = np.unique(self.codes[order], return_index=True)
        shape = (*values.shape[:2], len(self.groups), *values.shape[3:])
        found = np.zeros(shape, values.dtype)
        found[:, :, present] = np.add.reduceat(values[:, :, order], starts, axis=2)
        return found


def pair(arms: Mapping[str, Sequence[Predictions]]) -> Paired:
    """Returns the predictions of arms, paired by seed and example.

    Args:
      arms: Arm -> the predictions of its seeds, in any order. Without groups every
        example counts as a group of its own.

    Raises:
      UserError: Seeds are missing or duplicated, or examples, labels, groups or classes
        differ.
    """
    if not arms or not all(arms.values()):
        empty = [name for name, seeds in arms.items() if not seeds]
        raise UserError(
            f"Predictions of {', '.join(empty) or 'all arms'} are missing.",
            where=empty[0] if empty else "",
        )
    by_seed = {name: _by_seed(name, given) for name, given in arms.items()}
    first = next(iter(by_seed))
    seeds = tuple(sorted(by_seed[first]))
    for name, given in by_seed.items():
        if missing := set(seeds) ^ set(given):
            raise UserError(
                f"Arms '{first}' and '{name}' cannot be paired: only one of them has "
                f"seeds {sorted(missing)}. Run these for both, or exclude them.",
                where=name,
            )
    *examples, probabilities = _examples(by_seed[first][seeds[0]])
    found = np.empty((len(arms), len(seeds), *probabilities.shape))
    folds = {seed: _folds(by_seed[first][seed]) for seed in seeds}
    for a, (name, given) in enumerate(by_seed.items()):
        for s, seed in enumerate(seeds):
            *others, probabilities = _examples(given[seed])
            if (
                probabilities.shape != found.shape[2:]
                or not all(map(np.array_equal, examples, others))
                or not np.array_equal(folds[seed], _folds(given[seed]))
            ):
                raise UserError(
                    f"Arm '{name}', seed {seed}: its test examples, labels, groups, "
                    f"folds or classes differ from those of arm '{first}', seed "
                    f"{seeds[0]}. The split or the data differ: run it again with the "
                    "same data settings.",
                    where=name,
                )
            found[a, s] = probabilities
    _, labels, groups = examples
    names, codes = np.unique(groups, return_inverse=True)
    return Paired(
        tuple(arms),
        seeds,
        tuple(names.tolist()),
        codes,
        labels,
        found,
        _by_patient(list(folds.values()), codes),
        np.array([_trained(seeds, len(names)) for seeds in arms.values()]),
        arms[first][0].class_names,
    )


def joined(folds: Sequence[Predictions]) -> Predictions:
    """Returns the predictions of all folds of one seed as one set.

    Raises:
      UserError: There are none, an example was tested twice, or the folds differ in
        seed, classes or in having groups.
    """
    if not folds:
        raise UserError("Folds to join are missing.")
    alike = {
        (fold.seed, fold.groups is None, np.shape(fold.probabilities)[1])
        for fold in folds
    }
    ids = np.concatenate([fold.ids for fold in folds])
    if len(alike) > 1 or len(np.unique(ids)) < len(ids):
        raise UserError(
            "Folds cannot be joined: they differ in seed, classes or groups, or test the "
            "same example twice, so they belong to different studies."
        )
    trained = [fold.trained for fold in folds]
    grouped, several = folds[0].groups is not None, len(folds) > 1
    sizes = [len(fold.labels) for fold in folds]
    return dataclasses.replace(
        folds[0],
        ids=ids,
        groups=np.concatenate([fold.groups for fold in folds]) if grouped else None,
        labels=np.concatenate([fold.labels for fold in folds]),
        probabilities=np.concatenate([fold.probabilities for fold in folds]),
        folds=np.repeat(np.arange(len(folds)), sizes) if several else None,
        trained=None if None in trained else float(np.mean(trained)),
    )


def together(seeds: Sequence[Predictions]) -> list[Predictions]:
    """Returns the predictions of the seeds' models as an ensemble.

    The probabilities of an example are the means over the seeds. They are given once per
    seed, with its folds, so that they can be paired with those of the single models.

    Raises:
      UserError: The seeds test different examples.
    """
    orders = [np.argsort(one.ids) for one in seeds]
    tested = [one.ids[order] for one, order in zip(seeds, orders, strict=True)]
    if not all(np.array_equal(tested[0], ids) for ids in tested):
        raise UserError("The seeds of an ensemble test different examples.")
    mean = np.mean(
        [
            np.asarray(one.probabilities, np.float64)[order]
            for one, order in zip(seeds, orders, strict=True)
        ],
        axis=0,
    )
    return [
        dataclasses.replace(one, probabilities=mean[np.argsort(order)])
        for one, order in zip(seeds, orders, strict=True)
    ]


def regions(predictions: Predictions) -> Predictions:
    """Returns region-level predictions: one for each (patient, true class).

    The probabilities of a patient's patches of one true class are averaged (soft vote).
    The true class selects the patches, as an outline would; this is not a diagnosis of a
    patient, for which labels are unavailable.

    Returns:
      Predictions sorted by group, then label; ids are 'GROUP/LABEL'.

    Raises:
      UserError: The predictions have no groups.
    """
    if predictions.groups is None:
        raise UserError(
            "The data set is not grouped, but region-level scores need patients.",
            where="groups",
        )
    _, labels, groups, probabilities = _examples(predictions)
    count = probabilities.shape[1]
    names, first, codes = np.unique(groups, return_index=True, return_inverse=True)
    cells, codes = np.unique(codes * count + labels, return_inverse=True)
    patient, label = np.divmod(cells, count)
    sums = np.zeros((len(cells), count))
    np.add.at(sums, codes, probabilities)
    return dataclasses.replace(
        predictions,
        ids=np.array([f"{names[p]}/{k}" for p, k in zip(patient, label, strict=True)]),
        groups=names[patient],
        labels=label,
        probabilities=sums / np.bincount(codes)[:, None],
        # A patient is tested by one model.
        folds=predictions.folds
        if predictions.folds is None
        else _folds(predictions)[first][patient],
    )


def checked(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels as int64 and probabilities as float64, if they are such.

    Raises:
      UserError: They are not; the message names the first bad example.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    if labels.ndim != 1 or probabilities.ndim != 2 or len(labels) != len(probabilities):
        raise UserError(
            f"Predictions: labels of shape {labels.shape} and probabilities of shape "
            f"{probabilities.shape}; they must be [N] and [N, K] of the same examples.",
            where="probabilities",
        )
    if not len(labels):
        raise UserError(
            "Predictions: the set of examples is empty, so scores are undefined.",
            where="labels",
        )
    if probabilities.shape[1] < 2:
        raise UserError(
            "Predictions: probabilities need a column for each class.",
            where="probabilities",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"Predictions: labels must be integers, not {labels.dtype}.", where="labels"
        )
    probabilities = probabilities.astype(np.float64)
    count = probabilities.shape[1]
    _check(
        "labels",
        (labels >= 0) & (labels < count),
        f"a label outside 0 to {count - 1}: it was made with other classes.",
    )
    _check(
        "probabilities",
        np.isfinite(probabilities).all(1),
        "a probability that is NaN or infinite: the model has diverged.",
    )
    _check(
        "probabilities",
        (probabilities >= 0).all(1)
        & (np.abs(probabilities.sum(1) - 1) <= SUM_TOLERANCE),
        "probabilities that are negative or do not sum to 1: give the softmax of the "
        "logits.",
    )
    return labels.astype(np.int64), probabilities


def _check(where: str, good: np.ndarray, problem: str) -> None:
    if not good.all():
        bad = np.flatnonzero(~good)
        raise UserError(
            f"Predictions: {len(bad)} of {len(good)} examples, the first at position "
            f"{bad[0]}, have {problem}",
            where=where,
        )


def _folds(given: Predictions) -> np.ndarray:
    """Returns the fold of each example, in the order of the ids; zeros for one model."""
    if given.folds is None:
        return np.zeros(len(given.labels), int)
    return np.asarray(given.folds)[np.argsort(np.asarray(given.ids).astype(str))]


def _by_patient(folds: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray:
    """Returns the folds `[S, P]` of patients, from those of the examples of each seed.

    Raises:
      UserError: Examples of one patient were predicted in two folds.
    """
    found = np.zeros((len(folds), codes.max() + 1), int)
    found[:, codes] = folds
    if not np.array_equal(found[:, codes], folds):
        raise UserError(
            "Examples of one patient were predicted in two folds: the folds are from "
            "different splits. Run the study again.",
            where="folds",
        )
    return found


def _trained(given: Sequence[Predictions], patients: int) -> float:
    counts = [one.trained for one in given if one.groups is not None]
    if len(counts) < len(given) or None in counts:
        return np.nan
    return float(np.mean(counts)) / patients


def _by_seed(arm: str, given: Sequence[Predictions]) -> dict[int, Predictions]:
    by_seed = {one.seed: one for one in given}
    if len(by_seed) < len(given):
        raise UserError(
            f"Arm '{arm}' has predictions of the same seed twice: join folds with "
            "`joined`, and give each seed once.",
            where=arm,
        )
    return by_seed


def _examples(
    given: Predictions,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, labels, groups and probabilities by id."""
    labels, probabilities = checked(given.labels, given.probabilities)
    ids = np.asarray(given.ids).astype(str)
    groups = ids if given.groups is None else np.asarray(given.groups).astype(str)
    if ids.shape != labels.shape or groups.shape != labels.shape:
        raise UserError(
            f"{len(labels)} predictions with {len(ids)} ids and {len(groups)} groups: "
            "they must be of the same examples."
        )
    if len(np.unique(ids)) < len(ids):
        raise UserError("Predictions: ids are not unique, so they cannot be paired.")
    order = np.argsort(ids)
    return ids[order], labels[order], groups[order], probabilities[order]
