"""Responses of channels to images, and summaries over a layer and over seeds.

A response is what a channel passes on: its value after a ReLU, which leaves taps that
are already rectified as they are. A channel that passes nothing on to any image is
silent. Silent channels, and those whose responses are not finite numbers, are counted
and left out, never averaged in.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from twostage_jax.explain.networks import Network, activations, scaled

LEVEL = 0.95
# Below this share of the layer's largest response, a response is rounding.
SILENT_SHARE = 1e-6


class Responses(NamedTuple):
    """Responses of a layer, `[N, C]` each.

    Attributes:
      centre: Responses of the unit in the middle: it sees least of the image's border, so a
        stimulus reaches it as it was drawn.
      mean: Mean over all places: for images that are alike everywhere, such as
        textures, every place is one more sample of the same channel.

    A layer without places has one response, which is both.
    """

    centre: np.ndarray
    mean: np.ndarray


class Layer(NamedTuple):
    """Summary of a layer: a value, and the number of channels behind it.

    Attributes:
      value: Over the channels that are neither silent nor without finite responses;
        None if there is none.
      channels: Number of all channels of the layer.
      silent: Passed nothing on to any image.
      not_finite: Gave NaN or infinity at least once.
      undefined: Have no such value, or one beyond what could be measured.
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
    found = activations(
        network.module,
        network.variables,
        scaled(network, images),
        tuple(layers),
        _centre_and_mean,
    )
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
      values: `[C]`, NaN where a channel has none.
      responses: `[..., C]`, those that the values come from.
      open_ended: NaN means more than could be measured, as the bandwidth of a curve
        without a flank. The mean of the others would be too small, so the value is the
        median over all; None if that is more than could be measured.
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
    """Returns `[C]`: whether a channel passes nothing on, of responses `[N, C]`."""
    largest = np.where(np.isfinite(responses), np.abs(responses), 0).max(0)
    return largest <= SILENT_SHARE * largest.max()


def usable(features: np.ndarray) -> np.ndarray:
    """Returns `[C]`: channels of features `[N, C]` that are finite and vary."""
    finite = np.isfinite(features).all(0)
    spread = np.where(np.isfinite(features), features, 0).std(0)
    return finite & (spread > SILENT_SHARE * spread.max())


def over_seeds(values: Sequence[float | None], why: str = "") -> dict[str, Any]:
    """Returns the mean over seeds and its 95 % t interval, as JSON values.

    There is no mean where a seed has no value: those that have one are no fair sample
    of all, as where only seeds above chance have one.

    Args:
      values: One a seed; None where a seed has none.
      why: It would have none.

    Returns:
      'mean', 'low', 'high' (None where there is none) and 'reason', which says why.
    """
    lost = sum(value is None for value in values)
    if lost or not len(values):
        reason = f"{lost} of {len(values)} seeds without a value"
        reason = f"{reason}: {why}" if why else reason
        return {"mean": None, "low": None, "high": None, "reason": reason}
    known = np.array(values, float)
    mean = float(known.mean())
    if len(known) == 1:
        reason = "one seed: no interval over seeds"
        return {"mean": mean, "low": None, "high": None, "reason": reason}
    error = known.std(ddof=1) / np.sqrt(len(known))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(known) - 1) * error)
    return {"mean": mean, "low": mean - half, "high": mean + half, "reason": ""}


def p_value(values: Sequence[float | None]) -> float | None:
    """Returns the two-sided p of Student's t test that the mean over seeds is zero.

    None with fewer than two seeds, with a seed without a value, or if all are equal.
    """
    if len(values) < 2 or None in values or np.ptp(values) == 0:
        return None
    return float(stats.ttest_1samp(values, 0).pvalue)
