"""Checks of saliency methods: do their maps follow the network, and does it use what
they point at?"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.ndimage
from scipy import stats

from twostage_jax.explain import networks
from twostage_jax.explain.networks import Network
from twostage_jax.explain.saliency import SALIENCY

PyTree = Any
# The order of pixels that no method has: what any method must beat.
RANDOM_ORDER = "random_order"
# Shares of the pixels changed, 0 to 1.
SHARES = np.linspace(0, 1, 17)
# Deviation of the blur that insertion starts from, as a share of the image's side:
# coarse brightness stays, texture does not (4 pixels of 32).
BLUR_SHARE = 1 / 8
# Up to this many steps of the randomisation, from the head down to all layers.
RANDOMISED_STEPS = 4
# A map that keeps half of its rank correlation when every weight is drawn anew tells
# of the image more than of the network.
UNCHANGED = 0.5
# A map that is nearly the same for a random classifier cannot tell classes apart.
CLASS_BLIND = 0.9
# The parameters of the randomisation have nothing to do with those of any seed.
RANDOMISATION_KEY = 2018


def saliency_maps(
    network: Network, inputs: np.ndarray, labels: np.ndarray, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns the maps `[N, H, W]` of each method.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: `[N]`, the classes that are explained.
      methods: Names in `saliency.SALIENCY`.
    """
    return {
        name: SALIENCY[name](network.module, network.variables, inputs, labels)
        for name in methods
    }


def ranks(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the place of each pixel in the order of importance, `[N, H, W]`.

    0 is the most important. Equal pixels come in random order.
    """
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(seed).random(flat.shape)
    order = np.lexsort((chance, -flat), axis=-1)
    found = np.empty(flat.shape, np.int32)
    np.put_along_axis(found, order, np.arange(flat.shape[1], dtype=np.int32)[None], 1)
    return found.reshape(maps.shape)


def deletion_insertion(
    network: Network,
    inputs: np.ndarray,
    labels: np.ndarray,
    maps: Mapping[str, np.ndarray],
) -> dict[str, dict[str, dict[str, Any]]]:
    """Follows the class's probability while pixels go, or come, in order of importance.

    Deletion and insertion of Petsiuk et al. 2018 (arXiv 1806.07421): deleted pixels get
    the image's mean; insertion starts from the blurred image. The sooner a probability
    falls, or rises, the better the order. Changed images are unlike any that the
    network was trained on; so compare methods with `RANDOM_ORDER`, which is added.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: `[N]`, the classes whose probabilities are followed.
      maps: Method -> `[N, H, W]`.

    Returns:
      'deletion' and 'insertion' -> method -> 'curve' (mean over the images, one a share
      in `SHARES`) and 'area' below it.
    """
    mean = np.broadcast_to(inputs.mean((1, 2), keepdims=True), inputs.shape)
    blur = BLUR_SHARE * inputs.shape[1]
    blurred = scipy.ndimage.gaussian_filter(inputs, (0, blur, blur, 0), mode="nearest")
    orders = {name: ranks(of_method) for name, of_method in maps.items()}
    orders[RANDOM_ORDER] = ranks(np.zeros(inputs.shape[:3]))
    pairs = {"deletion": (mean, inputs), "insertion": (inputs, blurred)}
    program = functools.partial(_mixed_program, network.module, network.variables)
    pixels = orders[RANDOM_ORDER][0].size
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for what, (put, into) in pairs.items():
        found[what] = {}
        for method, order in orders.items():
            curve = [
                networks.in_batches(
                    functools.partial(program, np.float32(share * pixels)),
                    put, into, order, labels,
                ).mean()
                for share in SHARES
            ]  # fmt: skip
            area = float(np.trapezoid(curve, SHARES))
            found[what][method] = {"curve": list(map(float, curve)), "area": area}
    return found


@functools.partial(jax.jit, static_argnums=0)
def _mixed_program(module, variables, count, put, into, order, labels):
    images = jax.numpy.where((order < count)[..., None], put, into)
    logits = module.apply(variables, images, train=False)[0]
    chances = jax.nn.softmax(logits)
    return jax.numpy.take_along_axis(chances, labels[:, None], 1)[:, 0]


def randomisation(
    network: Network,
    inputs: np.ndarray,
    labels: np.ndarray,
    maps: Mapping[str, np.ndarray],
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Compares maps with those of the network as its layers are drawn anew, head first.

    The cascading parameter randomisation test of Adebayo et al. 2018
    (arXiv 1810.03292): a map that stays as it is does not show what was learned.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: `[N]`, the classes that are explained.
      maps: Method -> `[N, H, W]`, of the network as it is.
      say: Takes a line on what is being done.

    Returns:
      'steps': the layers that are random at each step, named by the last of them;
      'correlation': method -> mean Spearman correlation with the map of the network as
      it is, one a step, None where no two maps vary.
    """
    order = layers_from_the_head(network, inputs)
    stops = np.unique(np.linspace(1, len(order), RANDOMISED_STEPS).round().astype(int))
    fresh = networks.drawn(network, jax.random.key(RANDOMISATION_KEY))
    correlation: dict[str, list[float | None]] = {name: [] for name in maps}
    for stop in stops:
        say(f"  saliency with random layers, {order[0]} to {order[stop - 1]}")
        changed = replaced_layers(network.variables, fresh.variables, order[:stop])
        found = saliency_maps(
            network._replace(variables=changed), inputs, labels, list(maps)
        )
        for name, before in maps.items():
            correlation[name].append(_mean(rank_correlation(before, found[name])))
    return {
        "steps": [order[stop - 1] for stop in stops],
        "correlation": correlation,
    }


def labels_of(found: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the methods that fail, by the mean correlation over networks.

    Args:
      found: What `randomisation` returns, one a network.

    Returns:
      'unchanged': at least `UNCHANGED` with all layers random; 'class_blind': at least
      `CLASS_BLIND` with a random head, and not in 'unchanged'.
    """
    labels: dict[str, list[str]] = {"unchanged": [], "class_blind": []}
    for method in found[0]["correlation"]:
        steps = np.array([one["correlation"][method] for one in found], float)
        mean = np.nan_to_num(steps).mean(0)
        if mean[-1] >= UNCHANGED:
            labels["unchanged"].append(method)
        elif mean[0] >= CLASS_BLIND:
            labels["class_blind"].append(method)
    return labels


def layers_from_the_head(network: Network, inputs: np.ndarray) -> list[str]:
    """Returns the names of the layers with parameters, the last one first."""
    taps = networks.tap_shapes(network.module, network.variables, inputs)
    # A residual network's 'stage1' is a tap without parameters of its own.
    named = [name for name in taps if name in network.variables["params"]]
    return named[::-1]


def replaced_layers(variables: PyTree, fresh: PyTree, layers: Sequence[str]) -> PyTree:
    """Returns variables with all arrays of some layers from `fresh`."""
    return {
        kind: {
            name: fresh[kind][name] if name in layers else value
            for name, value in of_kind.items()
        }
        for kind, of_kind in variables.items()
    }


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns Spearman's correlation of maps `[N, H, W]`, image by image, `[N]`.

    0 where one of the two maps is constant, NaN where both are.
    """
    a, b = (
        stats.rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other)
    )
    a, b = (r - r.mean(1, keepdims=True) for r in (a, b))
    spread_a, spread_b = (a**2).sum(1), (b**2).sum(1)
    product = np.sqrt(spread_a * spread_b)
    found = np.divide((a * b).sum(1), product, out=np.zeros(len(a)), where=product > 0)
    return np.where((spread_a == 0) & (spread_b == 0), np.nan, found)


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
