"""Scores of arms in the sample, in hierarchical resamples, and without a patient.

The score of an arm is the mean over its seeds of a metric of all test examples. Patients
and seeds are crossed: every seed is tested on the same patients. One hierarchical
resample draws patients with replacement, then seeds with replacement, the same ones for
every arm and size; patients are weights on their sums (see `additive`), so that all
resamples are one matrix product.
"""

import numpy as np

from twostage_jax.additive import Additive
from twostage_jax.training_sets import TrainingSets, training_sets

RESAMPLES = 10_000
# Cells of resampled sums held at once (float64): 64 MiB.
CHUNK_CELLS = 2**23


class Resampler:
    """One metric of arms: see the top of this file.

    Patients who have no part in the score are excluded.

    Attributes:
      sample: `[A, S]`, scores of the sample.
      resampled: `[B, A]`, means over resampled seeds.
      without: `[P, A, S]`, scores without one patient each.
      shares: `[P]`, the share of each patient in the score.
      reason: Why no interval can be given, or ''.
      largest: The largest possible score.
    """

    def __init__(self, metric: Additive, resamples: int = RESAMPLES, seed: int = 0):
        sums, score = metric.sums, metric.score
        total = sums.sum(2)
        self.sample = score(total)
        self.reason, self.largest = metric.reason, metric.largest
        self._metric, self._training = metric, {}
        taking_part = metric.shares > 0
        self.shares = metric.shares[taking_part]
        if self.reason:
            return
        sums = sums[:, :, taking_part]
        seeds, groups = sums.shape[1:3]
        # Without the first patient, without the second, ...
        self.without = np.stack([score(total - sums[:, :, p]) for p in range(groups)])
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

    def training_sets(self, weights: np.ndarray) -> TrainingSets | str:
        """Returns the training sets behind an `[A]`-weighted score.

        If arms were trained on different numbers of patients, the largest counts: its
        training sets overlap most. A string says why nothing is known of new patients.
        """
        trained = self._metric.trained
        of_arms = np.nan if trained is None else np.max(trained[weights != 0])
        key = None if np.isnan(of_arms) else float(of_arms)
        if key not in self._training:
            counted = self._metric.shares > 0
            self._training[key] = training_sets(
                self._metric.folds, key, counted, self.shares / self.shares.sum()
            )
        return self._training[key]
