"""Predictions of several arms, paired by seed and example."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.metrics import Predictions, checked


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
      folds: `[S, P]` ints: the fold whose model predicted a patient; None if one model
        predicted all of them.
      trained: `[A]`: fraction of the patients that a model of each arm was trained on;
        NaN if it is not known, or the data names no patients.
    """

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: tuple[str, ...]
    codes: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    folds: np.ndarray | None = None
    trained: np.ndarray | None = None

    @functools.cached_property
    def right(self) -> np.ndarray:
        """`[A, S, N]` bool: whether an example was predicted right."""
        return self.probabilities.argmax(-1) == self.labels

    @functools.cached_property
    def supports(self) -> np.ndarray:
        """`[P, K]`: number of examples of each class of a patient."""
        found = np.zeros((len(self.groups), self.probabilities.shape[-1]))
        np.add.at(found, (self.codes, self.labels), 1)
        return found

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
      UserError: Seeds are missing or twice there, or the examples, labels, groups or
        classes are not the same everywhere.
    """
    if not arms or not all(arms.values()):
        empty = [name for name, seeds in arms.items() if not seeds]
        raise UserError(f"No predictions of {', '.join(empty) or 'any arm'}.")
    by_seed = {name: _by_seed(name, given) for name, given in arms.items()}
    first = next(iter(by_seed))
    seeds = tuple(sorted(by_seed[first]))
    for name, given in by_seed.items():
        if missing := set(seeds) ^ set(given):
            raise UserError(
                f"Arms '{first}' and '{name}' cannot be paired: only one of them has "
                f"seeds {sorted(missing)}. Run these for both, or leave them out."
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
                    f"folds or classes are not those of arm '{first}', seed "
                    f"{seeds[0]}. It is from another split or other data: run it again "
                    "with the same data settings.",
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
    )


def _folds(given: Predictions) -> np.ndarray:
    """Returns the fold of each example, in the order of the ids; zeros for one model."""
    if given.folds is None:
        return np.zeros(len(given.labels), int)
    return np.asarray(given.folds)[np.argsort(np.asarray(given.ids).astype(str))]


def _by_patient(folds: Sequence[np.ndarray], codes: np.ndarray) -> np.ndarray | None:
    """Returns the folds `[S, P]` of patients, from those of the examples of each seed.

    Raises:
      UserError: Examples of one patient were predicted in two folds.
    """
    found = np.zeros((len(folds), codes.max() + 1), int)
    for s, of_examples in enumerate(folds):
        found[s, codes] = of_examples
        if not np.array_equal(found[s, codes], of_examples):
            raise UserError(
                "Examples of one patient were predicted in two folds: the folds are "
                "from different splits. Run the study again.",
                where="folds",
            )
    return found if found.any() else None


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
            "metrics.joined, and give each seed once."
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
