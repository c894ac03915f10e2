"""Selectivity of channels for the orientation and frequency of gratings and edges.

Responses are those of the unit in the middle of the map, averaged over the phases of a
grating (positions of an edge). For a linear filter before a ReLU this is proportional to
its amplitude, and for a phase-invariant unit it is the response itself, so simple and
complex channels are measured alike. The baseline is not subtracted: a channel that a
bias keeps active is less selective, and so is its output.
"""

from typing import NamedTuple

import numpy as np

from twostage_jax.explain.measures.record import Measure, Panel, Sentence

MEASURES = (
    Measure(
        "orientation_selectivity",
        "orientation selectivity, gratings",
        Panel("Orientation selectivity, gratings"),
    ),
    Measure("orientation_bandwidth", "orientation bandwidth, median (degrees)"),
    Measure("frequency", "best frequency (cycles per pixel)"),
    Measure("band_pass", "fraction of channels that are band-pass"),
    Measure("frequency_bandwidth", "frequency bandwidth, median (octaves)"),
    Measure(
        "edge_selectivity",
        "orientation selectivity, edges",
        Panel("Orientation selectivity, edges"),
        Sentence(
            "Edges.",
            "selective for the orientation of edges",
            "Orientation selectivity for step edges (0 to 1)",
        ),
    ),
)


class Tuning(NamedTuple):
    """Tuning of C channels, `[C]` each; NaN if undefined for a channel.

    Attributes:
      selectivity: 1 minus the circular variance over orientations at the best
        frequency: 0 for equal responses to all, 1 for a response to one only (Ringach,
        Shapley & Hawken 2002, J Neurosci 22:5639).
      orientation_bandwidth: Full width at half the largest response, degrees; NaN if
        the curve stays above half.
      frequency: Frequency of the largest response, cycles per pixel.
      frequency_bandwidth: Full width at half the largest response at the best
        orientation, octaves (De Valois, Albrecht & Thorell 1982, Vision Res 22:545);
        NaN if the curve does not fall to half on both sides.
    """

    selectivity: np.ndarray
    orientation_bandwidth: np.ndarray
    frequency: np.ndarray
    frequency_bandwidth: np.ndarray


def of_gratings(
    responses: np.ndarray, frequencies: np.ndarray, orientations: np.ndarray
) -> Tuning:
    """Returns the tuning of channels to gratings.

    Args:
      responses: Non-negative responses, `[F, O, P, C]`; P phases.
      frequencies: Increasing frequencies, cycles per pixel, `[F]`.
      orientations: Orientations, evenly over half a turn, `[O]`.
    """
    mean = responses.mean(2, dtype=np.float64)
    count = mean.shape[-1]
    best = mean.reshape(-1, count).argmax(0)
    f, o = np.unravel_index(best, mean.shape[:2])
    channel = np.arange(count)
    curves, profiles = mean[f, :, channel], mean[:, o, channel].T
    octaves, degrees = np.log2(frequencies), np.rad2deg(orientations)
    return Tuning(
        selectivity=_resultant(curves, 2 * orientations),
        orientation_bandwidth=np.array([_ring_width(degrees, c) for c in curves]),
        frequency=frequencies[f],
        frequency_bandwidth=np.array([_width(octaves, p) for p in profiles]),
    )


def of_edges(responses: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Returns the orientation selectivity for step edges, `[C]`, whatever their sign.

    Args:
      responses: Non-negative responses, `[D, P, C]`; P positions of the edge.
      directions: Directions, evenly over a whole turn, `[D]`.

    Returns:
      1 minus the circular variance of twice the angle; NaN for a silent channel.
    """
    return _resultant(responses.mean(1, dtype=np.float64).T, 2 * directions)


def _resultant(curves: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Returns |sum r exp(i a)| / sum r for curves `[C, A]`."""
    total = curves.sum(1)
    length = np.abs(curves @ np.exp(1j * angles))
    some = np.isfinite(total) & (total > 0)
    return np.where(some, length / np.where(some, total, 1), np.nan)


def _ring_width(degrees: np.ndarray, curve: np.ndarray) -> float:
    """Returns the full width at half maximum of a curve over half a turn, degrees."""
    if not np.isfinite(curve).all():
        return np.nan
    count = len(curve)
    turned = np.roll(curve, count // 2 - curve.argmax())
    # Closed at both ends, as the curve is periodic.
    turned = np.append(turned, turned[0])
    step = degrees[1] - degrees[0]
    return _width(step * np.arange(count + 1), turned)


def _width(x: np.ndarray, curve: np.ndarray) -> float:
    """Returns the full width at half maximum, or NaN if a flank does not reach half."""
    if not np.isfinite(curve).all() or curve.max() <= 0:
        return np.nan
    peak, half = int(curve.argmax()), curve.max() / 2
    below = np.flatnonzero(curve <= half)
    left, right = below[below < peak], below[below > peak]
    if not len(left) or not len(right):
        return np.nan
    i, j = left[-1], right[0]
    start = np.interp(half, curve[[i, i + 1]], x[[i, i + 1]])
    stop = np.interp(half, curve[[j, j - 1]], x[[j, j - 1]])
    return float(stop - start)
