"""Responses of channels to images, and summaries over a layer and over seeds.

A response is the value of a channel after a ReLU, which does not change taps that are
already rectified. A channel without a response to any image is silent. Silent channels,
and those with responses that are not finite, are counted and excluded from averages.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from twostage_jax.explain.networks import Network, activations
from twostage_jax.stats.intervals import LEVEL

# Below this fraction of the layer's largest response, a response is a rounding error.
SILENT_SHARE = 1e-6


class Responses(NamedTuple):
    """Responses of a layer, `[N, C]` each.

    Attributes:
      centre: Responses of the unit in the middle: its receptive field includes least of
        the image's border, so a stimulus reaches it as it was drawn.
      mean: Means over all positions: for homogeneous images, such as textures, every
        position is one more sample of the same channel.

    A layer without positions has one response, which is both.
    """

    centre: np.ndarray
    mean: np.ndarray


class Layer(NamedTuple):
    """Summary of a layer: a value, and the number of channels behind it.

    Attributes:
      value: Mean or median over the channels that respond and are finite; None if there
        are none.
      channels: Number of all channels of the layer.
      silent: Number of channels without a response to any image.
      not_finite: Number of channels with NaN or infinity in at least one response.
      undefined: Number of channels whose value is undefined or out of range.
    """

    value: float | None
    channels: int
    silent: int = 0
    not_finite: int = 0
    undefined: int = 0


def respond(
    network: Network, images: np.ndarray, layers: Sequence[str]
) -> dict[str, Responses]:
    """Returns the responses of layers to images `[N, H, W, C]` in [0, 1].

    Raises:
      UserError: A layer does not exist.
    """
    found = activations(network, images, layers, _centre_and_mean)
    return {name: Responses(pair[:, 0], pair[:, 1]) for name, pair in found.items()}


def _centre_and_mean(tap: jax.Array) -> jax.Array:
    passed = jax.nn.relu(tap)
    if tap.ndim == 2:
        return jnp.stack([passed, passed], 1)
    rows, columns = tap.shape[1:3]
    centre = passed[:, rows // 2, columns // 2]
    return jnp.stack([centre, passed.mean((1, 2))], 1)


def of_layer(
    values: np.ndarray, responses: np.ndarray, *, open_ended: bool = False
) -> Layer:
    """Returns the mean of a value over channels, or its median.

    Args:
      values: Value of each channel, `[C]`; NaN if undefined.
      responses: Responses that the values were computed from, `[..., C]`.
      open_ended: Whether NaN means a value too large to measure, such as the bandwidth
        of a curve without a flank. The mean of the others would be too small, so the
        value is the median over all; None if the median is too large to measure.
    """
    flat = responses.reshape(-1, responses.shape[-1])
    finite = np.isfinite(flat).all(0)
    silent = finite & is_silent(flat)
    undefined = finite & ~silent & ~np.isfinite(values)
    used = finite & ~silent & ~undefined
    value = values[used].mean() if used.any() else np.inf
    if open_ended and used.any():
        value = np.median(np.append(values[used], np.full(undefined.sum(), np.inf)))
    return Layer(
        value=float(value) if np.isfinite(value) else None,
        channels=len(values),
        silent=int(silent.sum()),
        not_finite=int((~finite).sum()),
        undefined=int(undefined.sum()),
    )


def is_silent(responses: np.ndarray) -> np.ndarray:
    """Returns whether each channel of responses `[N, C]` is silent, `[C]` bool."""
    largest = np.where(np.isfinite(responses), np.abs(responses), 0).max(0)
    return largest <= SILENT_SHARE * largest.max()


def usable(features: np.ndarray) -> np.ndarray:
    """Returns whether each channel of features `[N, C]` is finite and varies, `[C]`."""
    finite = np.isfinite(features).all(0)
    spread = np.where(np.isfinite(features), features, 0).std(0)
    return finite & (spread > SILENT_SHARE * spread.max())


def over_seeds(values: Sequence[float | None], why: str = "") -> dict[str, Any]:
    """Returns the mean over seeds and its 95 % t interval, as JSON values.

    If any seed lacks a value, so does the mean: the other seeds are not a fair sample,
    for example if only seeds above chance have a value.

    Args:
      values: One value per seed; None if missing.
      why: Reason why a seed may lack a value.

    Returns:
      'mean', 'low' and 'high', None if missing, and 'reason', which says why.
    """
    lost = sum(value is None for value in values)
    if lost or not len(values):
        reason = f"{lost} of {len(values)} seeds without a value"
        reason = f"{reason}: {why}" if why else reason
        return {"mean": None, "low": None, "high": None, "reason": reason}
    known = np.array(values, float)
    mean = float(known.mean())
    if np.ptp(known) == 0:
        # An imported stage, for example, is one network for all seeds.
        what = "one seed" if len(known) == 1 else "the same value for all seeds"
        reason = f"{what}: no interval over seeds"
        return {"mean": mean, "low": None, "high": None, "reason": reason}
    error = known.std(ddof=1) / np.sqrt(len(known))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * error)
    return {"mean": mean, "low": mean - half, "high": mean + half, "reason": ""}


def p_value(values: Sequence[float | None]) -> float | None:
    """Returns the two-sided p-value of Student's t test that the mean is zero.

    Returns None for fewer than two seeds, a seed without a value, or equal values.
    """
    if len(values) < 2 or None in values or np.ptp(values) == 0:
        return None
    return float(stats.ttest_1samp(values, 0).pvalue)
