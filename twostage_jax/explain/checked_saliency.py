"""Saliency maps of all methods and arms on a seed's images, and checks of the methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from twostage_jax.errors import UserError
from twostage_jax.explain import (
    check_figures,
    faithfulness,
    figures,
    networks,
    saliency,
)
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import over_seeds

Arms = Mapping[str, Sequence[Network]]
# Images that the methods and their checks see: one batch, compiled once.
IMAGES = networks.BATCH
# Examples drawn, one a class, and on a page.
MOST_SHOWN, EXAMPLES_A_PAGE = 8, 4


def explain(
    arms: Arms, examples: Mapping[int, Examples], say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Figure]]:
    """Asks every method and every arm about the same images and classes of a seed.

    Args:
      arms: Arm -> its networks, one a seed.
      examples: Seed -> images `[N, H, W, C]` in [0, 1]. The maps drawn are of the first
        seed that all arms have.
      say: Takes a line on what is being done.

    Returns:
      JSON values, and figures by name:

        methods         names in `saliency.SALIENCY`
        shares          of the pixels, along a curve
        unchanged, class_blind
                        methods that fail; see `faithfulness.labels_of`
        deletion, insertion
                        arm -> method -> 'curve' (mean over seeds) and 'area' (see
                        `responses.over_seeds`)
        randomisation   arm -> see `faithfulness.randomisation`; of the seed drawn: it
                        is a check of the methods, not of the arms

    Raises:
      UserError: No seed has networks of all arms, or a map holds numbers that are not
        finite.
    """
    firsts = networks.of_first_seed(arms)
    asked = {seed: _asked(firsts, of_seed) for seed, of_seed in examples.items()}
    first = next(iter(firsts.values()))
    methods = saliency.methods_for(first.module)
    found: dict[str, Any] = {
        "methods": methods,
        "shares": faithfulness.SHARES.tolist(),
        "deletion": {},
        "insertion": {},
        "randomisation": {},
    }
    maps = {}
    for arm, of_arm in arms.items():
        of_seeds = []
        for network in of_arm:
            say(f"saliency: {arm}, seed {network.seed}")
            images, labels = asked[network.seed]
            inputs = networks.scaled(network, images)
            of_network = faithfulness.saliency_maps(network, inputs, labels, methods)
            _check_finite(network, of_network)
            of_seeds.append(
                faithfulness.deletion_insertion(network, inputs, labels, of_network)
            )
            if network is firsts[arm]:
                maps[arm] = of_network
                found["randomisation"][arm] = faithfulness.randomisation(
                    network, inputs, labels, of_network, say
                )
        for kind in ("deletion", "insertion"):
            found[kind][arm] = _over_seeds([of_seed[kind] for of_seed in of_seeds])
    failed = faithfulness.labels_of(list(found["randomisation"].values()))
    found.update(failed)
    drawn = _maps_drawn(firsts, asked[first.seed], maps, failed)
    curves = {
        arm: {
            kind: {m: of["curve"] for m, of in found[kind][arm].items()}
            for kind in ("deletion", "insertion")
        }
        for arm in arms
    }
    drawn["deletion_insertion"] = check_figures.deletion_insertion(curves, failed)
    drawn["randomisation"] = check_figures.randomisation(found["randomisation"], failed)
    return found, drawn


def _asked(
    firsts: Mapping[str, Network], examples: Examples
) -> tuple[np.ndarray, np.ndarray]:
    """Returns up to `IMAGES` images and the classes that every arm is asked about."""
    chosen = spread_over_classes(examples.labels, len(examples.images), IMAGES)
    images = examples.images[chosen]
    return images, explained_classes(firsts, images, examples, chosen)


def explained_classes(
    firsts: Mapping[str, Network],
    images: np.ndarray,
    examples: Examples,
    chosen: np.ndarray,
) -> np.ndarray:
    """Returns the class that every arm is asked about, `[N]`.

    The true one; without labels, that of the largest mean probability over one network
    an arm.
    """
    if examples.labels is not None:
        return np.asarray(examples.labels[chosen], np.int32)
    mean = sum(
        networks.probabilities(n.module, n.variables, networks.scaled(n, images))
        for n in firsts.values()
    )
    return np.asarray(mean).argmax(1).astype(np.int32)


def spread_over_classes(
    labels: np.ndarray | None, total: int, count: int
) -> np.ndarray:
    """Returns indices of up to `count` examples, one of each class in turn.

    Of each class, those are taken that are spread evenly over it, in their order.
    """
    if labels is None:
        return np.linspace(0, total - 1, min(count, total)).round().astype(int)
    classes = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turns = -(-count // len(classes))
    taken = [
        of_class[
            np.linspace(0, len(of_class) - 1, min(turns, len(of_class))).astype(int)
        ]
        for of_class in classes
    ]
    order = [
        of_class[turn] for turn in range(turns) for of_class in taken
        if turn < len(of_class)
    ]  # fmt: skip
    return np.array(order[:count])


def _check_finite(network: Network, maps: Mapping[str, np.ndarray]) -> None:
    for method, of_method in maps.items():
        if not np.isfinite(of_method).all():
            raise UserError(
                f"arm '{network.arm}', seed {network.seed}: the maps of '{method}' hold "
                "numbers that are not finite."
            )


def _over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        method: {
            "curve": np.mean([one[method]["curve"] for one in found], 0).tolist(),
            "area": over_seeds([one[method]["area"] for one in found]),
        }
        for method in found[0]
    }


def _maps_drawn(
    firsts: Mapping[str, Network],
    asked: tuple[np.ndarray, np.ndarray],
    maps: Mapping[str, Mapping[str, np.ndarray]],
    failed: figures.Failed,
) -> dict[str, Figure]:
    images, labels = asked
    names = next(iter(firsts.values())).class_names
    chances, drawn = {}, {}
    for arm, network in firsts.items():
        inputs = networks.scaled(network, images)
        of_network = networks.probabilities(network.module, network.variables, inputs)
        chances[arm] = of_network[np.arange(len(labels)), labels]
    count = min(len(np.unique(labels)), MOST_SHOWN)
    pages = range(0, count, EXAMPLES_A_PAGE)
    for number, start in enumerate(pages, 1):
        part = slice(start, min(start + EXAMPLES_A_PAGE, count))
        name = f"saliency_{number}" if len(pages) > 1 else "saliency"
        drawn[name] = figures.saliency_maps(
            images[part],
            [names[label] for label in labels[part]],
            {a: {m: of[part] for m, of in by.items()} for a, by in maps.items()},
            {arm: values[part] for arm, values in chances.items()},
            failed,
        )
    return drawn
