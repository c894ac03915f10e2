"""Measures of the layers of one network: each adds its numbers to `found`.

`name` is that of the network in the study; see `compare`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from twostage_jax.explain import networks, stimuli
from twostage_jax.explain.compare import Findings
from twostage_jax.explain.measures import gabor, probes, reliance, tuning
from twostage_jax.explain.measures.textures import modulation_index, pairs
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import of_layer, respond

# Largest number of examples per seed used by the measures.
MOST_EXAMPLES = 512


@dataclasses.dataclass(frozen=True)
class Shown:
    """The images of all measures, in [0, 1], with their labels and groups.

    `examples` differ by seed; the others are the same for all seeds.
    """

    frequencies: np.ndarray
    gratings: np.ndarray
    edges: np.ndarray
    textures: stimuli.Textures
    texture_pair: tuple[np.ndarray, np.ndarray]
    oriented: tuple[np.ndarray, np.ndarray, np.ndarray]
    examples: Mapping[int, Examples]


def to_show(
    size: int,
    channels: int,
    textures: stimuli.Textures,
    examples: Mapping[int, Examples],
) -> Shown:
    """Returns all images, with at most `MOST_EXAMPLES` random examples per seed."""
    # Seeds that share an object share its subset.
    kept = {id(of_seed): _some(of_seed) for of_seed in examples.values()}
    return Shown(
        frequencies=stimuli.frequencies(size),
        gratings=stimuli.gratings(size, channels),
        edges=stimuli.edges(size, channels),
        textures=textures,
        texture_pair=pairs(textures),
        oriented=stimuli.oriented(size, channels),
        examples={seed: kept[id(of_seed)] for seed, of_seed in examples.items()},
    )


def _some(examples: Examples) -> Examples:
    order = np.random.default_rng(0).permutation(len(examples.images))
    return examples.take(np.sort(order[:MOST_EXAMPLES]))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[-3:])


def add_tuning(
    found: Findings, name: str, network: Network, shown: Shown, layers: Sequence[str]
) -> None:
    """Adds the tuning of the channels of layers to gratings and edges."""
    gratings = respond(network, _flat(shown.gratings), layers)
    edges = respond(network, _flat(shown.edges), layers)
    for layer in layers:
        centre = gratings[layer].centre.reshape(*shown.gratings.shape[:3], -1)
        tuned = tuning.of_gratings(centre, shown.frequencies, stimuli.ORIENTATIONS)
        at_edges = edges[layer].centre.reshape(*shown.edges.shape[:2], -1)
        for measure_name, values, responses in (
            ("orientation_selectivity", tuned.selectivity, centre),
            ("orientation_bandwidth", tuned.orientation_bandwidth, centre),
            ("frequency", tuned.frequency, centre),
            ("frequency_bandwidth", tuned.frequency_bandwidth, centre),
            ("band_pass", 1.0 * np.isfinite(tuned.frequency_bandwidth), centre),
            (
                "edge_selectivity",
                tuning.of_edges(at_edges, stimuli.DIRECTIONS),
                at_edges,
            ),
        ):
            wide = measure_name.endswith("bandwidth")
            summary = of_layer(values, responses, open_ended=wide)
            found.put(measure_name, name, layer, network.seed, summary)


def add_textures_and_probes(
    found: Findings,
    name: str,
    network: Network,
    shown: Shown,
    layers: Sequence[str],
) -> None:
    """Adds texture modulation and the scores of linear probes."""
    textures, examples = shown.textures, shown.examples[network.seed]
    at_texture, at_noise = (
        respond(network, images, layers) for images in shown.texture_pair
    )
    images, orientations, groups = shown.oriented
    # Probe -> its features, labels, and groups never split between training and test.
    asked = {
        "probe_texture": (at_texture, textures.labels, textures.groups),
        "probe_orientation": (respond(network, images, layers), orientations, groups),
    }
    if examples.labels is not None:
        responses = respond(network, examples.images, layers)
        asked["probe_target"] = (responses, examples.labels, examples.groups)
    for layer in layers:
        pair = at_texture[layer].mean, at_noise[layer].mean
        index = modulation_index(*pair, textures.labels)
        summary = of_layer(index, np.concatenate(pair))
        found.put("texture_modulation", name, layer, network.seed, summary)
        for measure_name, (responses, labels, groups) in asked.items():
            one = probes.probe(responses[layer].mean, labels, groups)
            if one.reason:
                found.note(measure_name, one.reason, name, layer)
            found.put(measure_name, name, layer, network.seed, one)


def add_first_layer(found: Findings, name: str, network: Network) -> None:
    """Adds the fraction of filters of the first convolution that a Gabor function fits."""
    kernel = networks.first_kernel(network)
    fits = gabor.fit(kernel)
    filters = kernel.reshape(-1, kernel.shape[-1])
    good = np.where(np.isfinite(fits.explained), fits.good, np.nan)
    for measure_name, values in (
        ("gabor_share", good),
        ("gabor_explained", fits.explained),
    ):
        summary = of_layer(values, filters)
        layer = network.module.FIRST_LAYER
        found.put(measure_name, name, layer, network.seed, summary)


def add_reliance(found: Findings, name: str, network: Network, shown: Shown) -> None:
    """Adds the accuracy on changed examples of the network's seed, if labelled."""
    examples = shown.examples[network.seed]
    if examples.labels is None:
        return

    def classify(images: np.ndarray) -> np.ndarray:
        return networks.logits(network, images).argmax(1)

    scores = reliance.scores(
        classify, examples.images, examples.labels, reliance.changes(network.size)
    )
    for change, score in scores.items():
        found.put("accuracy", name, change, network.seed, score.accuracy)
        found.put("kept", name, change, network.seed, score.kept)
