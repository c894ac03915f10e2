"""Comparisons of networks: between arms, with earlier stages, and with no training.

The networks of a study have names: those of the arms, 'after natural > texture' and so
on for earlier stages of an arm, and 'random' for the target's network before training.
A difference is significant if its p-value, corrected (Holm) over all comparisons of one
paragraph, is below 0.05.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax.config import ALL_LAYERS, RANDOM
from twostage_jax.explain import networks
from twostage_jax.explain.measures import MEASURES, probes, similarity
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import Layer, over_seeds, p_value
from twostage_jax.models.layers import HEAD, HEAD_NORM
from twostage_jax.stats.intervals import ALPHA, holm

# (measure, one network, another, layer or change of the images).
Pair = tuple[str, str, str, str]
CKA_EXAMPLES = 256

Named = dict[str, dict[int, Network]]


class Findings:
    """Values of measures and notes on them, filled network by network.

    Attributes:
      values: (measure, network, layer) -> seed -> a number or a record with one.
      notes: (measure, reason) -> network -> its layers without a value, or with a
        caveat.
    """

    def __init__(self) -> None:
        self.values: dict[tuple[str, str, str], dict[int, Any]] = {}
        self.notes: dict[tuple[str, str], dict[str, list[str]]] = {}

    def put(
        self, measure_name: str, name: str, layer: str, seed: int, value: Any
    ) -> None:
        """Stores the value of a measure for a layer of a network."""
        self.values.setdefault((measure_name, name, layer), {})[seed] = value

    def note(self, measure_name: str, reason: str, name: str, layer: str) -> None:
        """Notes why a measure has no value for a layer of a network, or a caveat."""
        by_network = self.notes.setdefault((measure_name, reason), {})
        layers = by_network.setdefault(name, [])
        if layer not in layers:
            layers.append(layer)

    def note_lines(self) -> list[str]:
        """Returns a line per measure and reason, which names networks and layers."""
        lines = []
        for (measure_name, reason), by_network in self.notes.items():
            networks_of: dict[str, list[str]] = {}
            for name, layers in by_network.items():
                networks_of.setdefault(", ".join(layers), []).append(name)
            places = (f"{', '.join(n)}: {layers}" for layers, n in networks_of.items())
            lines.append(f"{measure_name}: {reason} ({'; '.join(places)}).")
        return lines


def name_networks(
    arms: Mapping[str, Sequence[Network]],
) -> tuple[Named, dict[str, list[str]]]:
    """Returns networks by name and seed, and the chain of names of each arm.

    The names are those of the arms, 'after natural > texture' and so on for their
    earlier stages, and 'random' for the target's network before any training. A chain
    of stages that several arms share is one network.
    """
    named: Named = {}
    before: Named = {}
    chains: dict[str, list[str]] = {}
    for arm, of_arm in arms.items():
        named[arm] = {network.seed: network for network in of_arm}
        for network in of_arm:
            *ancestors, _ = network.chain()
            stages = [ancestor.stage for ancestor in ancestors]
            names = [f"after {' > '.join(stages[: i + 1])}" for i in range(len(stages))]
            for name, ancestor in zip(names, ancestors, strict=True):
                before.setdefault(name, {}).setdefault(ancestor.seed, ancestor)
            chains[arm] = [RANDOM, *names, arm]
    named.update(sorted(before.items(), key=lambda item: len(item[0])))
    targets = {n.seed: n for of_arm in arms.values() for n in of_arm}
    named[RANDOM] = {s: networks.randomised(n) for s, n in sorted(targets.items())}
    return named, chains


def drift(found: Findings, named: Named, chains: Mapping[str, list[str]]) -> None:
    """Adds the distance of each layer from its initial parameters in the stage.

    Those are the parameters of the stage before, or the random ones of a first stage.
    An imported network, which has no such start, is skipped, as are the head and its
    norm, which belong to the classes of their stage. A layer that the transfer
    re-initialised has no value.
    """
    for name in {name: None for chain in chains.values() for name in chain[1:]}:
        for network in named[name].values():
            layers = [
                layer
                for layer in network.variables["params"]
                if layer not in (HEAD, HEAD_NORM)
            ]
            if network.imported:
                for layer in layers:
                    why = "not defined, because the network was imported"
                    found.note("drift", why, name, layer)
                continue
            start = network.parent or networks.randomised(network)
            moved = similarity.drift(start.variables, network.variables)
            for layer in layers:
                value = moved[layer]
                if layer in network.redrawn:
                    why = "not defined, because the transfer re-initialised the layer"
                    found.note("drift", why, name, layer)
                    value = None
                found.put("drift", name, layer, network.seed, value)


def similarities(
    found: Findings,
    named: Named,
    chains: Mapping[str, list[str]],
    examples: Mapping[int, Examples],
    layers: Sequence[str],
) -> None:
    """Adds the linear CKA of pairs of networks of a seed on the examples of that seed.

    It uses the rectified activations at all positions of a layer, as in `responses`.
    """
    grams: dict[tuple[str, int], dict[str, similarity.Gram | None]] = {}
    for name, by_seed in named.items():
        for seed, network in by_seed.items():
            images = examples[seed].images
            images = images[:: -(-len(images) // CKA_EXAMPLES)]
            taps = networks.activations(network, images, layers, jax.nn.relu)
            grams[name, seed] = {k: similarity.gram(tap) for k, tap in taps.items()}
            for layer, gram in grams[name, seed].items():
                if gram is None:
                    why = "activations are constant over images, or not finite"
                    found.note("cka", why, name, layer)
    for first, second in pairs(chains):
        for seed in (s for s in named[first] if s in named[second]):
            for layer in layers:
                one, other = (grams[name, seed][layer] for name in (first, second))
                known = one is not None and other is not None
                value = similarity.cka(one, other) if known else None
                found.put("cka", f"{first} ~ {second}", layer, seed, value)


def pairs(chains: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    """Returns pairs of networks to compare: arms, successive stages, and 'random'."""
    found = [(b, a) for a, b in itertools.combinations(chains, 2)]
    found += [(arm, RANDOM) for arm in chains]
    found += [(b, a) for chain in chains.values() for a, b in itertools.pairwise(chain)]
    return list(dict.fromkeys(found))


def add_all_layers(found: Findings, layers: Sequence[str]) -> None:
    """Adds means over all layers, for measures with a value in each of them."""
    for key in dict.fromkeys(key[:2] for key in found.values):
        by_layer = [found.values.get((*key, layer), {}) for layer in layers]
        if not all(by_layer):
            continue
        for seed in by_layer[0]:
            numbers = [_number(by_seed.get(seed)) for by_seed in by_layer]
            mean = None if None in numbers else sum(numbers) / len(numbers)
            found.put(*key, ALL_LAYERS, seed, mean)


def tables(
    found: Findings, chains: Mapping[str, list[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values, and the differences of the measures that are `compared`.

    See `measure` for the format. Differences are between networks of the same seed.
    """
    values: dict[str, Any] = {}
    chances = _chances(found)
    for (measure_name, name, layer), by_seed in found.values.items():
        of_network = values.setdefault(measure_name, {}).setdefault(name, {})
        entry = _entry(by_seed, MEASURES[measure_name].why_none)
        if measure_name in chances:
            entry["chance"] = [chances[measure_name][seed] for seed in by_seed]
            if len(set(entry["chance"])) > 1:
                why = "the number of classes, hence chance, differs between seeds"
                entry.update(mean=None, low=None, high=None, reason=why)
        of_network[layer] = entry
    differences: dict[str, Any] = {}
    for measure_name in (name for name, one in MEASURES.items() if one.compared):
        by_name = values.get(measure_name, {})
        for first, second in pairs(chains):
            if first not in by_name or second not in by_name:
                continue
            pair = differences.setdefault(measure_name, {}).setdefault(
                f"{first} - {second}", {}
            )
            for layer in by_name[first]:
                one, other = (
                    {
                        s: _number(v)
                        for s, v in found.values[measure_name, n, layer].items()
                    }
                    for n in (first, second)
                )
                less = {
                    s: None if None in (one[s], other[s]) else one[s] - other[s]
                    for s in one
                    if s in other
                }
                pair[layer] = _entry(less, MEASURES[measure_name].why_none)
                pair[layer]["p_value"] = p_value(list(less.values()))
    return values, differences


def _chances(found: Findings) -> dict[str, dict[int, float]]:
    """Returns the chance level of each probe by seed: all layers have the same labels."""
    chances: dict[str, dict[int, float]] = {}
    for (measure_name, *_), by_seed in found.values.items():
        for seed, value in by_seed.items():
            if isinstance(value, probes.Probe):
                chances.setdefault(measure_name, {})[seed] = value.chance
    return chances


def _entry(by_seed: Mapping[int, Any], why: str) -> dict[str, Any]:
    numbers = [_number(value) for value in by_seed.values()]
    entry = {"seeds": list(by_seed), "values": numbers, **over_seeds(numbers, why)}
    sample = next(iter(by_seed.values()), None)
    if isinstance(sample, Layer):
        entry["channels"] = sample.channels
        for name in ("silent", "not_finite", "undefined"):
            entry[name] = [getattr(value, name) for value in by_seed.values()]
    if isinstance(sample, probes.Probe):
        entry["channels"] = sample.channels
        entry["left_out"] = [value.left_out for value in by_seed.values()]
    return entry


def _number(value: Any) -> float | None:
    """Returns the number itself, or that of a `Layer` or `Probe`; None if missing."""
    if isinstance(value, Layer):
        value = value.value
    elif isinstance(value, probes.Probe):
        value = value.score
    return float(value) if value is not None and np.isfinite(value) else None


class Told(NamedTuple):
    """A difference and its significance.

    Attributes:
      entry: The difference; see `measure`.
      sign: 1 (significantly higher), -1 (lower), 0 (not significant), or None if it
        cannot be tested: one seed, or the same difference for all seeds.
    """

    entry: Mapping[str, Any]
    sign: int | None


def told(measured: Mapping[str, Any], pairs: Iterable[Pair]) -> dict[Pair, Told]:
    """Returns the differences that have a mean, with their significance (Holm).

    Args:
      measured: Result of `measure.measure`.
      pairs: (measure, first network, second network, layer or change) tuples.
    """
    entries = {}
    for pair in pairs:
        name, first, second, place = pair
        of_pair = measured["differences"].get(name, {}).get(f"{first} - {second}", {})
        if place in of_pair and of_pair[place]["mean"] is not None:
            entries[pair] = of_pair[place]
    found = {}
    corrected = holm([entry["p_value"] for entry in entries.values()])
    for (pair, entry), p in zip(entries.items(), corrected, strict=True):
        sign = None
        if p is not None:
            sign = int(np.sign(entry["mean"])) if p < ALPHA else 0
        found[pair] = Told(entry, sign)
    return found
