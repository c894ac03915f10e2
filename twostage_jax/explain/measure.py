"""What the features of each arm respond to, measured, with intervals over seeds.

`measure` runs every measure on the networks that the arms end with, on those of the
stages before, and on untrained ones, and returns plain JSON values:

    schema, size, layers, counts
    textures  'folder' (its name; null: the embedded ones), 'grouped' (whether pieces of
              material are known), 'trained_on' (arms with a stage of such textures)
    seeds     network -> its seeds
    order     names of the networks: the arms, then 'after STAGES', then 'random'
    chains    arm -> the names it went through, from 'random' to the arm itself
    values    measure -> network -> layer -> entry
    differences   measure -> 'one - other' -> layer -> entry, paired by seed
    notes     what was left out, and why

An entry holds 'values' (one a seed, None where there is none), 'mean', 'low' and 'high'
(95 % t interval over seeds, the images being what they are) and 'reason', which says why
something is missing; of a difference also 'p_value', of the paired t test over seeds. For
'accuracy' and 'kept' a change of the images stands in place of the layer, for 'cka' a
pair 'one ~ other' in place of the network. The layer 'all layers' is the mean of the
layers, where all have a value. Intervals and p-values are not corrected for their
number.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from twostage_jax.errors import UserError
from twostage_jax.explain import (
    comparisons,
    gabor,
    networks,
    probes,
    reliance,
    stimuli,
    texture,
    tuning,
)
from twostage_jax.explain.comparisons import Found, Named, put
from twostage_jax.explain.measure_figures import draw as draw
from twostage_jax.explain.measure_words import words as words
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.explain.responses import of_layer, respond

SCHEMA = 1
# Examples of the target that the measures look at, at most.
MOST_EXAMPLES = 512
# Measure -> how it is named in tables and figures.
MEASURES = {
    "orientation_selectivity": "orientation selectivity, gratings",
    "orientation_bandwidth": "orientation bandwidth, median (degrees)",
    "frequency": "best frequency (cycles a pixel)",
    "band_pass": "share of channels with a band of frequencies",
    "frequency_bandwidth": "frequency bandwidth, median (octaves)",
    "edge_selectivity": "orientation selectivity, edges",
    "texture_modulation": "texture modulation index",
    "probe_orientation": "probe: orientation (balanced accuracy)",
    "probe_texture": "probe: texture family (balanced accuracy)",
    "probe_target": "probe: target class (balanced accuracy)",
    "gabor_share": "share of filters that a Gabor function fits",
    "gabor_explained": "share of filter energy that a Gabor function explains",
    "drift": "relative change of parameters since the stage before",
    "cka": "linear CKA on the target's images",
    "accuracy": "balanced accuracy on changed images",
    "kept": "share of the accuracy above chance that is kept",
}
# Measures whose differences between networks mean something.
COMPARED = tuple(name for name in MEASURES if name not in ("drift", "cka"))


@dataclasses.dataclass(frozen=True)
class Shown:
    """The images of all measures, in [0, 1], and what is known of them."""

    frequencies: np.ndarray
    gratings: np.ndarray
    edges: np.ndarray
    textures: stimuli.Textures
    texture_pair: tuple[np.ndarray, np.ndarray]
    oriented: tuple[np.ndarray, np.ndarray, np.ndarray]
    examples: Examples


# The matrices of probes are small: several threads would mostly wait for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
def measure(
    arms: Mapping[str, Sequence[Network]],
    examples: Examples,
    layers: Sequence[str],
    say: Callable[[str], None] = print,
    textures: stimuli.Textures | None = None,
) -> dict[str, Any]:
    """Measures what the layers of each arm respond to.

    Args:
      arms: Arm -> its networks, one a seed. All take images of one size.
      examples: The target's test images; without labels, what needs them is left out.
      layers: Names of taps that all networks have.
      say: Takes a line on what is being done.
      textures: Families of textures; the embedded ones if None.

    Returns:
      See the module.

    Raises:
      UserError: A layer does not exist; there are no networks, or they differ in what
        they take; or the textures or examples are of another size.
    """
    named, chains = comparisons.name_networks(arms)
    size, channels = _checked(named, examples, textures)
    if textures is None:
        say("drawing textures")
        textures = stimuli.embedded_textures(size, channels)
    shown = _shown(size, channels, textures, examples)
    found: Found = {}
    notes = _notes_on(examples, textures)
    for name, by_seed in named.items():
        for seed, network in by_seed.items():
            say(f"measuring {name}, seed {seed}")
            _tuning(found, name, network, shown, layers)
            _textures_and_probes(found, name, network, shown, layers, notes)
            _first_layer(found, name, network, notes)
            if name in arms and examples.labels is not None:
                _reliance(found, name, network, shown.examples)
    say("comparing networks")
    comparisons.drift(found, named, chains, notes)
    comparisons.similarities(found, named, chains, shown.examples.images, layers, notes)
    comparisons.add_all_layers(found, layers)
    values, differences = comparisons.tables(found, chains, COMPARED)
    return {
        "schema": SCHEMA,
        "layers": list(layers),
        "seeds": {name: list(by_seed) for name, by_seed in named.items()},
        "counts": {
            "examples": len(shown.examples.images),
            "classes": len(examples.class_names),
            "texture_families": len(textures.names),
            "texture_images": len(textures.images),
            "gratings": int(np.prod(shown.gratings.shape[:3])),
        },
        "textures": _described(textures, arms),
        "size": size,
        "order": list(named),
        "chains": chains,
        "values": values,
        "differences": differences,
        "notes": list(dict.fromkeys(notes)),
    }


def _checked(
    named: Named, examples: Examples, textures: stimuli.Textures | None
) -> tuple[int, int]:
    """Returns size and channels of all images."""
    sizes = {
        (n.size, n.channels) for by_seed in named.values() for n in by_seed.values()
    }
    if len(sizes) > 1:
        raise UserError(
            f"the networks take images of different sizes or channels ({sizes}): "
            "measure them apart."
        )
    size, channels = sizes.pop()
    for what, images in (
        ("the examples", examples.images),
        ("the textures", None if textures is None else textures.images),
    ):
        if images is not None and images.shape[1:] != (size, size, channels):
            raise UserError(
                f"{what} are {images.shape[1:]}, the networks take "
                f"{(size, size, channels)}."
            )
    if len(examples.images) < 4:
        raise UserError(f"{len(examples.images)} examples are too few: give 4 or more.")
    return size, channels


def _notes_on(examples: Examples, textures: stimuli.Textures) -> list[str]:
    notes = []
    if examples.labels is None:
        notes.append(
            "The images have no labels of the target's classes: no probe of the "
            "target's class, no accuracy on changed images."
        )
    if textures.groups is None:
        notes.append(
            "Which textures are of one piece of material is not known: the probe of the "
            "texture family may be tested on pieces that it saw."
        )
    return notes


def _described(
    textures: stimuli.Textures, arms: Mapping[str, Sequence[Network]]
) -> dict[str, Any]:
    def seen(network: Network | None) -> bool:
        return network is not None and (
            stimuli.trained_on(textures, network.source, network.path)
            or seen(network.parent)
        )

    return {
        "folder": Path(textures.path).name if textures.path else None,
        "grouped": textures.groups is not None,
        "trained_on": [arm for arm, of_arm in arms.items() if any(map(seen, of_arm))],
    }


def _shown(
    size: int, channels: int, textures: stimuli.Textures, examples: Examples
) -> Shown:
    order = np.random.default_rng(0).permutation(len(examples.images))
    chosen = np.sort(order[:MOST_EXAMPLES])
    kept = {
        name: None if value is None else value[chosen]
        for name, value in examples._asdict().items()
        if name != "class_names"
    }
    return Shown(
        frequencies=stimuli.frequencies(size),
        gratings=stimuli.gratings(size, channels),
        edges=stimuli.edges(size, channels),
        textures=textures,
        texture_pair=texture.pairs(textures),
        oriented=stimuli.oriented(size, channels),
        examples=examples._replace(**kept),
    )


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(-1, *images.shape[-3:])


def _tuning(
    found: Found, name: str, network: Network, shown: Shown, layers: Sequence[str]
) -> None:
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
            put(found, measure_name, name, layer, network, summary)


def _textures_and_probes(
    found: Found,
    name: str,
    network: Network,
    shown: Shown,
    layers: Sequence[str],
    notes: list[str],
) -> None:
    textures, examples = shown.textures, shown.examples
    at_texture, at_noise = (
        respond(network, images, layers) for images in shown.texture_pair
    )
    images, orientations, groups = shown.oriented
    # What a probe reads, its labels, and what it must not have seen in training.
    asked = {
        "probe_texture": (at_texture, textures.labels, textures.groups),
        "probe_orientation": (respond(network, images, layers), orientations, groups),
    }
    if examples.labels is not None:
        responses = respond(network, examples.images, layers)
        asked["probe_target"] = (responses, examples.labels, examples.groups)
    for layer in layers:
        pair = at_texture[layer].mean, at_noise[layer].mean
        index = texture.modulation_index(*pair, textures.labels)
        summary = of_layer(index, np.concatenate(pair))
        put(found, "texture_modulation", name, layer, network, summary)
        for measure_name, (responses, labels, groups) in asked.items():
            one = probes.probe(responses[layer].mean, labels, groups)
            if one.reason:
                notes.append(f"{measure_name}, {name}, {layer}: {one.reason}.")
            put(found, measure_name, name, layer, network, one)


def _first_layer(found: Found, name: str, network: Network, notes: list[str]) -> None:
    kernel = gabor.first_kernel(network.variables["params"], network.channels)
    if kernel is None:
        notes.append(f"{name}: no single first convolution, so no Gabor fits.")
        return
    fits = gabor.fit(kernel[1])
    filters = kernel[1].reshape(-1, kernel[1].shape[-1])
    good = np.where(np.isfinite(fits.explained), fits.good, np.nan)
    for measure_name, values in (
        ("gabor_share", good),
        ("gabor_explained", fits.explained),
    ):
        summary = of_layer(values.astype(float), filters)
        put(found, measure_name, name, kernel[0], network, summary)


def _reliance(found: Found, name: str, network: Network, examples: Examples) -> None:
    def classify(images: np.ndarray) -> np.ndarray:
        scaled = networks.scaled(network, images)
        return networks.logits(network.module, network.variables, scaled).argmax(1)

    scores = reliance.scores(
        classify, examples.images, examples.labels, reliance.changes(network.size)
    )
    for change, score in scores.items():
        put(found, "accuracy", name, change, network, score.accuracy)
        put(found, "kept", name, change, network, score.kept)
