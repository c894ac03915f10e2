"""Intervals of arms straight from their predictions, for tests of the statistics."""

import numpy as np

from twostage_jax.stats import intervals, metrics
from twostage_jax.stats.arms import Predictions, pair
from twostage_jax.stats.intervals import RESAMPLES, Resampler


def predictions(labels, said, groups=None, **more):
    """Returns predictions of numbered examples.

    Args:
      labels: True classes, `[N]`.
      said: Probabilities `[N, K]`, probabilities of the second of two classes `[N]`, or
        predicted classes `[N]`, as integers.
      groups: Patients, `[N]`; None without patients.
      **more: Further fields of `Predictions`.
    """
    labels, said = np.asarray(labels), np.asarray(said)
    if said.ndim == 1 and said.dtype.kind == "i":
        said = np.eye(1 + max(labels.max(), said.max(), 1))[said]
    elif said.ndim == 1:
        said = np.stack([1 - said, said], axis=1)
    groups = None if groups is None else np.asarray(groups).astype(str)
    ids = np.array([f"e{i:05}" for i in range(len(labels))])
    return Predictions(ids, groups, labels, said, **more)


def sampler_of(arms, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the resamples of a metric of `{arm: predictions of its seeds}`."""
    return Resampler(metrics.metric(pair(arms), metric), resamples)


def interval(predictions, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the interval of the mean score of one arm."""
    return intervals.score_interval(
        sampler_of({"arm": predictions}, metric, resamples), np.ones(1)
    )


def class_intervals(paired, resamples=RESAMPLES):
    """Returns, for each class, metric -> the intervals of the arms."""
    return [
        {
            name: intervals.score_intervals(Resampler(one, resamples))
            for name, one in metrics.of_class(paired, k).items()
        }
        for k in range(paired.probabilities.shape[-1])
    ]


def compare(arms, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the differences of every pair of arms."""
    sampler = sampler_of(arms, metric, resamples)
    return intervals.differences(pair(arms), sampler, metric)
