"""Variance of scores over the patients of the training sets.

Models of a cross-validation are trained on the same patients, so that neither more seeds
nor more folds average out what is good or bad about these patients. The variance that
this adds is estimated from what the design does vary. A linear model is assumed: the
effect of a training set on the score is the sum of the effects t of its n patients,
independent, with variance s2 / n. The effects of two training sets then have the
covariance s2 times the fraction of patients that they share, and their mean over all
folds and seeds has the variance s2 * n / P, where P is the number of patients.

s2 is estimated by regression of products on their expectation (Haseman & Elston 1972):
patients who are tested by the same model share the effect of its training set, others
share less of it. Nadeau & Bengio (2003) correct for the same overlap by a fixed ratio of
test to training size; here the ratio is that of the linear model, and the variance of
test patients does not enter it.
"""

import dataclasses
import functools

import numpy as np

# Patients count in the regression with this power of their share of the score: large
# ones are measured more precisely, but differ from each other all the same. By
# simulation, as is the smallest number of standard errors (without any effect) that the
# estimate is taken for; see `experiments/coverage.md`.
POWER = 0.25
LEAST = 0.75


@dataclasses.dataclass(frozen=True)
class TrainingSets:
    """Cross-validation whose folds are drawn again for each seed.

    Attributes:
      folds: `[S, P]` ints in `[0, F)`: the fold in which each patient is tested.
      trained: Fraction of the patients that a model is trained on, in (0, 1).
      counted: `[P]` bool: patients who take part in the score.
      shares: `[Q]`: their shares of the score; they sum to 1.
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
        # Some of the others are for validation: which ones is not known.
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
        weight = self.shares ** (2 * POWER)
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
        # Standard error of the effect if there is none, from the noise of each patient.
        spread = (scores**2).sum(1) / (seeds - 1)
        terms = squares - 2 * slope * noise * traces + slope**2 * noise**2 * (seeds - 1)
        terms = pairs**2 * np.outer(spread, spread) * terms
        error = np.sqrt(2 * terms.sum()) / expected
        return float(self.trained * max(effect, LEAST * error))


def training_sets(
    folds: np.ndarray | None,
    trained: float | None,
    counted: np.ndarray,
    shares: np.ndarray,
) -> TrainingSets | str:
    """Returns the training sets of a study, or why nothing is known of new ones."""
    if folds is None:
        return "all patients are tested by models of the same training set"
    if len(folds) < 2:
        return "one seed draws the folds once"
    if (folds == folds[0]).all():
        return "the folds are the same for every seed"
    if trained is None:
        return "the number of training patients is not known"
    if not 0 < trained < 1:
        return "the number of training patients does not fit the folds"
    return TrainingSets(folds, trained, counted, shares)
