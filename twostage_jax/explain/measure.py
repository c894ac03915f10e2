"""Measures of what the features of each arm respond to, with intervals over seeds.

`measure` runs every measure on the final networks of the arms, on those of earlier
stages, and on untrained ones, and returns plain JSON values:

    schema, size, layers
    counts    numbers of images; 'examples' is the largest number per seed;
              'example_sets' is 1 if all seeds share their examples
    textures  'folder' (name; null: the embedded textures), 'grouped' (whether pieces of
              material are known), 'trained_on' (arms with a stage of such textures)
    seeds     network -> its seeds
    order     names of the networks: the arms, then 'after STAGES', then 'random'
    chains    arm -> names of its stages, from 'random' to the arm itself
    values    measure -> network -> layer -> entry
    differences   measure -> 'one - other' -> layer -> entry, paired by seed
    notes     skipped items, with reasons

An entry holds 'values' (one per seed, None if missing), 'mean', 'low' and 'high'
(95 % t interval over seeds, and over their examples if these differ) and 'reason', which
says why a value is missing; for a difference also 'p_value', of the paired t test over
seeds. For 'accuracy' and 'kept' a change of the images takes the place of the layer, for
'cka' a pair 'one ~ other' that of the network. The layer 'all layers' is the mean over
layers, if all have a value. Intervals and p-values are not corrected for multiplicity.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from twostage_jax.explain import compare, networks, of_network, stimuli
from twostage_jax.explain.networks import Examples, Network

SCHEMA = 1
# Fewest examples per seed: similarity needs as many.
FEWEST = 4


# The matrices of probes are small: several threads would mostly wait for each other.
@threadpool_limits.wrap(limits=1, user_api="blas")
def measure(
    arms: Mapping[str, Sequence[Network]],
    examples: Mapping[int, Examples],
    layers: Sequence[str],
    say: Callable[[str], None] = print,
    textures: stimuli.Textures | None = None,
) -> dict[str, Any]:
    """Measures what the layers of each arm respond to.

    Args:
      arms: Arm -> its networks, one per seed. All take images of one size.
      examples: Seed -> test images of the target, `[N, H, W, C]` in [0, 1], N at least
        `FEWEST`; without labels, measures that need them are skipped.
      layers: Names of taps that all networks have.
      say: Progress reporter, called with one line.
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
        say("drawing textures")
        textures = stimuli.embedded_textures(size, channels)
    shown = of_network.to_show(size, channels, textures, examples)
    found = compare.Findings()
    for name, by_seed in named.items():
        for seed, network in by_seed.items():
            say(f"measuring {name}, seed {seed}")
            of_network.add_tuning(found, name, network, shown, layers)
            of_network.add_textures_and_probes(found, name, network, shown, layers)
            of_network.add_first_layer(found, name, network)
            if name in arms:
                of_network.add_reliance(found, name, network, shown)
    say("comparing networks")
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
            "classes": len(next(iter(examples.values())).class_names),
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


def _notes_on(
    examples: Mapping[int, Examples], textures: stimuli.Textures
) -> list[str]:
    notes = []
    if any(of_seed.labels is None for of_seed in examples.values()):
        notes.append(
            "The images are not labelled with the target's classes: the probe of the "
            "target class and accuracy on changed images are skipped."
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
    stage that was trained on the same textures.
    """
    return {
        "folder": Path(textures.path).name if textures.path else None,
        "grouped": textures.groups is not None,
        "trained_on": [
            arm
            for arm, of_arm in arms.items()
            if any(
                stimuli.trained_on(textures, stage.source, stage.path)
                for network in of_arm
                for stage in network.chain()
            )
        ],
    }
