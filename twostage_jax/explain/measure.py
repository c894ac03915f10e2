"""Measures of what the features of each arm respond to, with intervals over seeds.

`measure` runs every measure on the networks that the arms end with, on those of the
stages before, and on untrained ones, and returns plain JSON values:

    schema, size, layers
    counts    of images; 'examples' of a seed, at most; 'example_sets' is 1 where all
              seeds see the same examples, else each sees those of its own
    textures  'folder' (its name; null: the embedded ones), 'grouped' (whether pieces of
              material are known), 'trained_on' (arms with a stage of such textures)
    seeds     network -> its seeds
    order     names of the networks: the arms, then 'after STAGES', then 'random'
    chains    arm -> the names it went through, from 'random' to the arm itself
    values    measure -> network -> layer -> entry
    differences   measure -> 'one - other' -> layer -> entry, paired by seed
    notes     what was skipped, and why

An entry holds 'values' (one per seed, None if missing), 'mean', 'low' and 'high'
(95 % t interval over seeds; where each has examples of its own, over these as well)
and 'reason', which says why something is missing; of a difference also 'p_value', of the
paired t test over seeds. For 'accuracy' and 'kept' a change of the images stands in place
of the layer, for 'cka' a pair 'one ~ other' in place of the network. The layer 'all
layers' is the mean of the layers, where all have a value. Intervals and p-values are not
corrected for their number.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from twostage_jax.errors import UserError
from twostage_jax.explain import compare, networks, of_network, stimuli
from twostage_jax.explain.compare import Found, Named
from twostage_jax.explain.networks import Examples, Network

SCHEMA = 1


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
      examples: Seed -> the target's test images `[N, H, W, C]` in [0, 1], which its
        networks are shown; without labels, what needs them is skipped.
      layers: Names of taps that all networks have.
      say: Takes a line on what is being done.
      textures: Families of textures; the embedded ones if None.

    Returns:
      See the module.

    Raises:
      UserError: A layer does not exist; there are no networks, or they differ in what
        they take; the textures or examples are of another size; or a seed has fewer
        than 4 examples.
    """
    named, chains = compare.name_networks(arms)
    size, channels = _checked(named, examples, textures)
    if textures is None:
        say("drawing textures")
        textures = stimuli.embedded_textures(size, channels)
    shown = of_network.to_show(size, channels, textures, examples)
    found: Found = {}
    notes = _notes_on(examples, textures)
    for name, by_seed in named.items():
        for seed, network in by_seed.items():
            say(f"measuring {name}, seed {seed}")
            of_network.add_tuning(found, name, network, shown, layers)
            of_network.add_textures_and_probes(
                found, name, network, shown, layers, notes
            )
            of_network.add_first_layer(found, name, network, notes)
            if name in arms:
                of_network.add_reliance(found, name, network, shown)
    say("comparing networks")
    compare.drift(found, named, chains, notes)
    compare.similarities(found, named, chains, shown.examples, layers, notes)
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
        "notes": list(dict.fromkeys(notes)),
    }


def _checked(
    named: Named,
    examples: Mapping[int, Examples],
    textures: stimuli.Textures | None,
) -> tuple[int, int]:
    """Returns size and channels of all images."""
    sizes = {
        (n.size, n.channels) for by_seed in named.values() for n in by_seed.values()
    }
    if len(sizes) > 1:
        raise UserError(
            f"the networks take images of different sizes or channels ({sizes}): "
            "measure them apart.",
            where="size",
        )
    size, channels = sizes.pop()
    given = [("the examples", of_seed.images) for of_seed in examples.values()]
    if textures is not None:
        given.append(("the textures", textures.images))
    for what, images in given:
        if images.shape[1:] != (size, size, channels):
            raise UserError(
                f"{what} are {images.shape[1:]}, the networks take "
                f"{(size, size, channels)}.",
                where=what,
            )
    fewest = min(len(of_seed.images) for of_seed in examples.values())
    if fewest < 4:
        raise UserError(
            f"{fewest} examples are too few: give 4 or more.", where="examples"
        )
    return size, channels


def _notes_on(
    examples: Mapping[int, Examples], textures: stimuli.Textures
) -> list[str]:
    notes = []
    if any(of_seed.labels is None for of_seed in examples.values()):
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


def describe_textures(
    textures: stimuli.Textures, arms: Mapping[str, Sequence[Network]]
) -> dict[str, Any]:
    """Returns a record of the textures, for the words and the figures.

    'folder' is its name, None for the embedded textures; 'grouped' is whether samples of
    one material are kept together; 'trained_on' lists the arms of which a stage was trained
    on the same textures.
    """

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
