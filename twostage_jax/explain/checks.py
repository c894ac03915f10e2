"""Saliency maps of every method and arm, and checks of the methods.

The checks ask whether the maps follow the weights of the network (`randomisation`), and
whether the network uses the pixels that they point at (`deletion_insertion`).
"""

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.ndimage
from scipy import stats

from twostage_jax.errors import UserError
from twostage_jax.explain import networks, saliency
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import over_seeds
from twostage_jax.models.layers import HEAD, HEAD_NORM

PyTree = Any
Arms = Mapping[str, Sequence[Network]]
# Images per seed for the methods and their checks: one batch, compiled once.
IMAGES = networks.BATCH
# Examples drawn, one per class.
MOST_SHOWN = 8
# Pixels in random order: the baseline that a method must beat.
RANDOM_ORDER = "random_order"
# Fractions of the pixels changed, 0 to 1.
SHARES = np.linspace(0, 1, 17)
# Standard deviation of the blur that insertion starts from, as a fraction of the image
# side: coarse brightness stays, texture does not (4 pixels of 32).
BLUR_SHARE = 1 / 8
# Largest number of randomisation steps, from the head down to all layers.
RANDOMISED_STEPS = 4
# A map that keeps half of its rank correlation when every weight is randomised shows
# the image more than the network.
UNCHANGED = 0.5
# A map that is nearly the same for a random classifier cannot distinguish classes.
CLASS_BLIND = 0.9
# The parameters of the randomisation are independent of those of every seed.
RANDOMISATION_KEY = 2018


class Maps(NamedTuple):
    """Saliency maps to draw, of one network per arm.

    Attributes:
      images: `[E, H, W, C]` in [0, 1].
      classes: Name of the explained class of each image, E.
      maps: Arm -> method -> `[E, H, W]`.
      probabilities: Arm -> `[E]` probabilities of the explained classes.
    """

    images: np.ndarray
    classes: list[str]
    maps: dict[str, dict[str, np.ndarray]]
    probabilities: dict[str, np.ndarray]


def check_saliency(
    arms: Arms, examples: Mapping[int, Examples]
) -> tuple[dict[str, Any], Maps]:
    """Applies every method to every arm, on the same images and classes of a seed.

    Args:
      arms: Arm -> its networks, one per seed.
      examples: Seed -> images `[N, H, W, C]` in [0, 1]. The maps drawn are of the first
        seed that all arms share.

    Returns:
      JSON values, and the maps of up to `MOST_SHOWN` images to draw. The values:

        methods         names in `saliency.SALIENCY`
        shares          fractions of the pixels, along a curve
        unchanged, class_blind, undefined
                        methods that fail; see `labels_of`
        deletion, insertion
                        arm -> method -> 'curve' (mean over seeds) and 'area' (see
                        `responses.over_seeds`)
        randomisation   arm -> see `randomisation`; for the seed drawn only, because
                        it checks the methods, not the arms

    Raises:
      UserError: No seed has networks of all arms, or a map contains values that are not
        finite.
    """
    firsts = networks.of_first_seed(arms)
    asked = {seed: _asked(firsts, of_seed) for seed, of_seed in examples.items()}
    first = next(iter(firsts.values()))
    methods = saliency.methods_for(first.module)
    found: dict[str, Any] = {
        "methods": methods,
        "shares": SHARES.tolist(),
        "deletion": {},
        "insertion": {},
        "randomisation": {},
    }
    maps = {}
    for arm, of_arm in arms.items():
        of_seeds = []
        for network in of_arm:
            networks.say(f"saliency: {arm}, seed {network.seed}")
            images, labels = asked[network.seed]
            inputs = networks.scaled(network, images)
            of_network = saliency_maps(network, inputs, labels, methods)
            _check_finite(network, of_network)
            of_seeds.append(deletion_insertion(network, inputs, labels, of_network))
            if network is firsts[arm]:
                maps[arm] = of_network
                found["randomisation"][arm] = randomisation(
                    network, inputs, labels, of_network
                )
        for kind in ("deletion", "insertion"):
            found[kind][arm] = _over_seeds([of_seed[kind] for of_seed in of_seeds])
    found.update(labels_of(list(found["randomisation"].values())))
    images, labels = asked[first.seed]
    count = min(len(np.unique(labels)), MOST_SHOWN)
    shown = Maps(
        images[:count],
        [first.class_names[label] for label in labels[:count]],
        {arm: {m: of[:count] for m, of in by.items()} for arm, by in maps.items()},
        {
            arm: networks.probabilities(network, images)[
                np.arange(count), labels[:count]
            ]
            for arm, network in firsts.items()
        },
    )
    return found, shown


def _asked(
    firsts: Mapping[str, Network], examples: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Returns up to `IMAGES` images and the classes to explain, the same for all arms."""
    chosen = spread_over_classes(examples.labels, len(examples.images), IMAGES)
    examples = examples.take(chosen)
    return examples.images, explained_classes(firsts, examples)


def explained_classes(firsts: Mapping[str, Network], examples: Examples) -> np.ndarray:
    """Returns the classes to explain, the same for all arms, `[N]`.

    These are the true classes; without labels, those with the largest mean probability
    over one network per arm.
    """
    if examples.labels is not None:
        return np.asarray(examples.labels, np.int32)
    total = sum(networks.probabilities(n, examples.images) for n in firsts.values())
    return np.asarray(total).argmax(1).astype(np.int32)


def spread_over_classes(
    labels: np.ndarray | None, total: int, count: int
) -> np.ndarray:
    """Returns indices of up to `count` examples, one of each class in turn.

    The examples of a class are spread evenly over it, in their order.
    """
    if labels is None:
        return np.linspace(0, total - 1, min(count, total)).round().astype(int)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = -(-count // len(classes))
    taken = [
        one[np.linspace(0, len(one) - 1, min(turns, len(one))).astype(int)]
        for one in classes
    ]
    order = itertools.chain.from_iterable(itertools.zip_longest(*taken))
    return np.array([index for index in order if index is not None][:count])


def _check_finite(network: Network, maps: Mapping[str, np.ndarray]) -> None:
    for method, of_method in maps.items():
        if not np.isfinite(of_method).all():
            raise UserError(
                f"arm '{network.arm}', seed {network.seed}: the maps of '{method}' "
                "contain values that are not finite.",
                where=network.arm,
            )


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        method: {
            "curve": np.mean([one[method]["curve"] for one in found], 0).tolist(),
            "area": over_seeds([one[method]["area"] for one in found]),
        }
        for method in found[0]
    }


def saliency_maps(
    network: Network, inputs: np.ndarray, labels: np.ndarray, methods: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns the maps `[N, H, W]` of each method.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: Classes to explain, `[N]`.
      methods: Names in `saliency.SALIENCY`.
    """
    return {
        name: saliency.SALIENCY[name](network.module, network.variables, inputs, labels)
        for name in methods
    }


def ranks(maps: np.ndarray) -> np.ndarray:
    """Returns the rank of each pixel by importance, `[N, H, W]`.

    0 is the most important. Ties are in random order.
    """
    flat = maps.reshape(len(maps), -1)
    chance = np.random.default_rng(0).random(flat.shape)
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
    """Returns class probabilities as pixels are deleted or inserted by importance.

    Deletion and insertion of Petsiuk et al. 2018 (arXiv 1806.07421): deleted pixels get
    the image's mean; insertion starts from the blurred image. The sooner a probability
    falls, or rises, the better the order. Changed images differ from all that the
    network was trained on, so compare methods with `RANDOM_ORDER`, which is added.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: Classes whose probabilities are returned, `[N]`.
      maps: Method -> `[N, H, W]`.

    Returns:
      'deletion' and 'insertion' -> method -> 'curve' (mean over the images, one value
      per fraction in `SHARES`) and 'area' under it.
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
) -> dict[str, Any]:
    """Compares maps before and after layers are randomised, starting at the head.

    The cascading parameter randomisation test of Adebayo et al. 2018
    (arXiv 1810.03292): a map that does not change does not show what was learned.
    Methods with signs are compared with signs and without, as there: random weights
    flip signs, so the maps of such a method can be uncorrelated although every one of
    them shows the image.

    Args:
      network: The network.
      inputs: `[N, H, W, C]`, as the network takes them.
      labels: Classes to explain, `[N]`.
      maps: Method -> `[N, H, W]`, of the trained network.

    Returns:
      'steps': the layers randomised at each step, named by the last of them;
      'correlation': method -> mean Spearman correlation with the map of the trained
      network, one per step, None if both maps are constant for every image;
      'magnitudes': the same of the magnitudes of the maps, for methods in
      `saliency.SIGNED`.
    """
    order = layers_from_the_head(network, inputs)
    stops = np.unique(np.linspace(1, len(order), RANDOMISED_STEPS).round().astype(int))
    fresh = networks.drawn(network, jax.random.key(RANDOMISATION_KEY))
    correlation: dict[str, list[float | None]] = {name: [] for name in maps}
    magnitudes: dict[str, list[float | None]] = {
        name: [] for name in maps if name in saliency.SIGNED
    }
    for stop in stops:
        last = order[stop - 1][0]
        networks.say(f"  saliency with random layers, {order[0][0]} to {last}")
        drawn = set().union(*order[:stop])
        changed = replaced_layers(network.variables, fresh.variables, drawn)
        found = saliency_maps(
            network._replace(variables=changed), inputs, labels, list(maps)
        )
        for name, before in maps.items():
            after = found[name]
            correlation[name].append(_mean(rank_correlation(before, after)))
            if name in magnitudes:
                sizes = np.abs(before), np.abs(after)
                magnitudes[name].append(_mean(rank_correlation(*sizes)))
    return {
        "steps": [order[stop - 1][0] for stop in stops],
        "correlation": correlation,
        "magnitudes": magnitudes,
    }


def labels_of(found: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the methods that fail, by the mean correlation over networks.

    For a method with signs, the larger of its two correlations counts.

    Args:
      found: Results of `randomisation`, one per network.

    Returns:
      'unchanged': at least `UNCHANGED` with all layers random; 'class_blind': at least
      `CLASS_BLIND` with a random head, and not in 'unchanged'; 'undefined': all maps of
      a network are constant, before and after.
    """
    labels: dict[str, list[str]] = {"unchanged": [], "class_blind": [], "undefined": []}
    for method in found[0]["correlation"]:
        mean = _mean_steps(found, "correlation", method)
        if method in found[0]["magnitudes"]:
            mean = np.fmax(mean, _mean_steps(found, "magnitudes", method))
        if np.isnan(mean[-1]):
            labels["undefined"].append(method)
        elif mean[-1] >= UNCHANGED:
            labels["unchanged"].append(method)
        elif mean[0] >= CLASS_BLIND:
            labels["class_blind"].append(method)
    return labels


def _mean_steps(
    found: Sequence[Mapping[str, Any]], kind: str, method: str
) -> np.ndarray:
    """Returns the mean over networks at each step; NaN where one lacks a value."""
    return np.array([one[kind][method] for one in found], float).mean(0)


def layers_from_the_head(network: Network, inputs: np.ndarray) -> list[tuple[str, ...]]:
    """Returns the layers with parameters, last one first, each with its norm.

    Every name among the parameters occurs once: 'norm1' with 'conv1', the norm of the
    head with the head, and any other layer that is not a tap with the first layer.
    """
    taps = networks.tap_shapes(network.module, network.variables, inputs)
    params = network.variables["params"]
    # A residual network's 'stage1' is a tap without parameters of its own.
    found = {name: [name] for name in reversed(taps) if name in params}
    *_, first = found.values()
    for name in params:
        if name not in found:
            owner = HEAD if name == HEAD_NORM else name.replace("norm", "conv")
            found.get(owner, first).append(name)
    return [tuple(names) for names in found.values()]


def replaced_layers(
    variables: PyTree, fresh: PyTree, layers: Collection[str]
) -> PyTree:
    """Returns variables with all arrays of `layers` taken from `fresh`."""
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
