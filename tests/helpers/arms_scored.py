"""Intervals of arms straight from their predictions, for tests of the statistics."""

import numpy as np

from twostage_jax.stats import intervals, metrics
from twostage_jax.stats.arms import pair
from twostage_jax.stats.intervals import RESAMPLES, Resampler


def sampler_of(arms, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the resamples of a metric of `{arm: predictions of its seeds}`."""
    return Resampler(metrics.metric(pair(arms), metric), resamples)


def interval(predictions, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the interval of the mean score of one arm."""
    return intervals.score_interval(
        sampler_of({"arm": predictions}, metric, resamples), np.ones(1)
    )


def compare(arms, metric="balanced_accuracy", resamples=RESAMPLES):
    """Returns the differences of every pair of arms."""
    sampler = sampler_of(arms, metric, resamples)
    return intervals.differences(pair(arms), sampler, metric)
