"""Measures of what the features of each arm respond to, with intervals over seeds.

`measure` runs every measure on the final networks of the arms, on those of earlier
stages, and on untrained ones, and returns plain JSON values:

    schema, size, layers
    counts    numbers of images; 'examples' is the largest number per seed;
              'example_sets' is 1 if all seeds share their examples; 'classes' is the
              number of classes of the examples (null: unknown, or other for each seed)
    textures  'folder' (name; null: the embedded textures), 'grouped' (whether pieces of
              material are known), 'trained_on' (arms with a stage of such textures),
              'unknown' (other arms with an imported stage)
    seeds     network -> its seeds
    order     names of the networks: the arms, then 'after STAGES', then 'random'
    chains    arm -> names of its stages, from 'random' to the arm itself
    values    measure -> network -> layer -> entry
    differences   measure -> 'one - other' -> layer -> entry, paired by seed
    notes     skipped items, with reasons

An entry holds 'values' (one per seed, None if missing), 'mean', 'low' and 'high'
(95 % t interval over seeds, and over their examples if these differ) and 'reason', which
says why a value is missing; for a difference also 'p_value', of the paired t test over
seeds; for a probe also 'chance', one value per seed ('mean' is None if they differ). For
'accuracy' and 'kept' a change of the images takes the place of the layer, for 'cka' a
pair 'one ~ other' that of the network. The layer 'all layers' is the mean over layers, if
all have a value. Intervals and p-values are not corrected for multiplicity.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from twostage_jax.explain import compare, networks, stimuli
from twostage_jax.explain.compare import Findings
from twostage_jax.explain.measures import gabor, probes, reliance, tuning
from twostage_jax.explain.measures.textures import modulation_index, pairs
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import of_layer, respond

# Bump when the same networks and images give other numbers or other fields.
SCHEMA = 2
# Fewest examples per seed: similarity needs as many.
FEWEST = 4
# Largest number of examples per seed used by the measures.
MOST_EXAMPLES = 512


# The matrices of probes are small: several threads would mostly wait for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
def measure(
    arms: Mapping[str, Sequence[Network]],
    examples: Mapping[int, Examples],
    layers: Sequence[str],
    textures: stimuli.Textures | None = None,
) -> dict[str, Any]:
    """Measures what the layers of each arm respond to.

    Args:
      arms: Arm -> its networks, one per seed. All take images of one size.
      examples: Seed -> test images of the target, `[N, H, W, C]` in [0, 1], N at least
        `FEWEST`; without labels, measures that need them are skipped.
      layers: Names of taps that all networks have.
      textures: Families of textures; the embedded textures if None.

    Returns:
      JSON values; see the module docstring.

    Raises:
      UserError: A layer does not exist.
    """
    named, chains = compare.name_networks(arms)
    first = next(iter(arms.values()))[0]
    size, channels = first.size, first.channels
    if textures is None:
        networks.say("drawing textures")
        textures = stimuli.embedded_textures(size, channels)
    shown = to_show(size, channels, textures, examples)
    found = Findings()
    for name, by_seed in named.items():
        for seed, network in by_seed.items():
            networks.say(f"measuring {name}, seed {seed}")
            add_tuning(found, name, network, shown, layers)
            add_textures_and_probes(found, name, network, shown, layers)
            add_first_layer(found, name, network)
            if name in arms:
                add_reliance(found, name, network, shown)
    networks.say("comparing networks")
    compare.drift(found, named, chains)
    compare.similarities(found, named, chains, shown.examples, layers)
    compare.add_all_layers(found, layers)
    values, differences = compare.tables(found, chains)
    return {
        "schema": SCHEMA,
        "layers": list(layers),
        "seeds": {name: list(by_seed) for name, by_seed in named.items()},
        "counts": {
            "examples": max(len(one.images) for one in shown.examples.values()),
            "example_sets": networks.distinct(shown.examples),
            "classes": _classes(shown.examples),
            "texture_families": len(textures.names),
            "texture_images": len(textures.images),
            "gratings": int(np.prod(shown.gratings.shape[:3])),
        },
        "textures": describe_textures(textures, arms),
        "size": size,
        "order": list(named),
        "chains": chains,
        "values": values,
        "differences": differences,
        "notes": [*_notes_on(examples, textures), *found.note_lines()],
    }


def _classes(examples: Mapping[int, Examples]) -> int | None:
    """Returns the number of classes of the examples; None if unknown, or by seed."""
    if any(of_seed.labels is None for of_seed in examples.values()):
        return None
    counts = {len(np.unique(of_seed.labels)) for of_seed in examples.values()}
    return counts.pop() if len(counts) == 1 else None


def _notes_on(
    examples: Mapping[int, Examples], textures: stimuli.Textures
) -> list[str]:
    notes = []
    if any(of_seed.labels is None for of_seed in examples.values()):
        notes.append(
            "The images are not labelled with the target's classes: the probe of the "
            "target class and accuracy on changed images are skipped."
        )
    elif any(of_seed.groups is None for of_seed in examples.values()):
        notes.append(
            "The patients of the images are not known: the probe of the target class may "
            "be tested on patients that it was trained on, and the networks may have been "
            "trained on these images."
        )
    if textures.groups is None:
        notes.append(
            "Pieces of material are not known: the probe of the texture family may be "
            "tested on pieces that it was trained on."
        )
    return notes


def describe_textures(
    textures: stimuli.Textures, arms: Mapping[str, Sequence[Network]]
) -> dict[str, Any]:
    """Returns a record of the textures, for text and figures.

    'folder' is the name of their folder, None for the embedded textures; 'grouped' is
    whether samples of one material are kept together; 'trained_on' lists the arms with a
    stage whose source are the same textures; 'unknown' lists the others with an imported
    stage, whose training images are not recorded.
    """
    stages = {
        arm: [stage for network in of_arm for stage in network.chain()]
        for arm, of_arm in arms.items()
    }
    favoured = [
        arm
        for arm, of_arm in stages.items()
        if any(stimuli.trained_on(textures, one.source, one.path) for one in of_arm)
    ]
    return {
        "folder": Path(textures.path).name if textures.path else None,
        "grouped": textures.groups is not None,
        "trained_on": favoured,
        "unknown": [
            arm
            for arm, of_arm in stages.items()
            if arm not in favoured and any(one.imported for one in of_arm)
        ],
    }


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


# In these functions, `name` is that of the network in the study; see `compare`.
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
    """Adds the fraction of filters of the first convolution that a Gabor function fits.

    Filters that are `gabor.too_small` have no value.
    """
    kernel, layer = networks.first_kernel(network), network.module.FIRST_LAYER
    if gabor.too_small(kernel):
        for one in gabor.MEASURES:
            why = "not defined, because a Gabor function fits noise in so few pixels"
            found.note(one.name, why, name, layer)
            found.put(one.name, name, layer, network.seed, None)
        return
    fits = gabor.fit(kernel)
    filters = kernel.reshape(-1, kernel.shape[-1])
    good = np.where(np.isfinite(fits.explained), fits.good, np.nan)
    for measure_name, values in (
        ("gabor_share", good),
        ("gabor_explained", fits.explained),
    ):
        summary = of_layer(values, filters)
        found.put(measure_name, name, layer, network.seed, summary)


def add_reliance(found: Findings, name: str, network: Network, shown: Shown) -> None:
    """Adds the accuracy on changed examples of the network's seed, if labelled."""
    examples = shown.examples[network.seed]
    if examples.labels is None:
        return

    def classify(images: np.ndarray) -> np.ndarray:
        return networks.logits(network, images).argmax(1)

    scores = reliance.scores(
        classify,
        examples.images,
        examples.labels,
        reliance.changes(network.size),
    )
    for change, score in scores.items():
        found.put("accuracy", name, change, network.seed, score.accuracy)
        found.put("kept", name, change, network.seed, score.kept)
