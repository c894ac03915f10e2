"""Pictures, checks and measures of the features of a study's arms, in one folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from twostage_jax import io
from twostage_jax.explain import (
    checks,
    figures,
    measure,
    networks,
    stimuli,
    strongest,
    text,
)
from twostage_jax.explain.networks import Examples, Network
from twostage_jax.report.figures import save
from twostage_jax.report.tables import file_name

# Bump when the same networks and images give other numbers or other fields.
SCHEMA = 2
Arms = Mapping[str, Sequence[Network]]
# Strongest patches per channel; channels per page.
PATCHES, CHANNELS_A_PAGE = 4, 8


def explain(
    arms: Arms,
    examples: Mapping[int, Examples],
    source: str,
    out: Path,
    *,
    layers: Sequence[str] = (),
    channels: int = CHANNELS_A_PAGE,
    measured: bool = True,
    textures: stimuli.Textures | None = None,
    chosen: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes `explain.json`, `explain.md` and `figures/` into a folder.

    `explain.json` holds

        schema, layers
        arms            arm -> 'seeds' and 'chain' (names of its stages)
        stage_runs      names of the target stage runs of these networks
        chosen          lines that identify the networks within the study
        images          'source', 'sets' (1 if all seeds share their images), 'count' and
                        'most' (fewest and most images per seed), 'saliency' (most
                        images per seed used by the methods)
        dead_channels   arm -> layer -> 'channels' and 'dead' (one number per seed)
        saliency        see `checks.check_saliency`
        measures        see `measure.measure`; null if not requested
        figures         name -> path without suffix; .png and .pdf exist
        words           paragraphs
        left_out        lines on skipped items

    Args:
      arms: Arm -> its networks, one per seed.
      examples: Seed -> images `[N, H, W, C]` that its networks were not trained on;
        the pictures are of the first seed that all arms share.
      source: Origin of the images, in words.
      out: Output folder; replaced as a whole if it holds an `explain.json`.
      layers: Names of taps; those of `strongest.default_layers` if empty.
      channels: Number of channels per layer to draw; 0 for all.
      measured: Whether to measure as well as to draw.
      textures: Textures to measure with; the embedded ones if None.
      chosen: Lines that identify the networks within the study.
      left_out: Lines on skipped items.

    Returns:
      Contents of `explain.json`.

    Raises:
      UserError: A layer does not exist, no seed has networks of all arms, or the
        folder holds something else.
    """
    io.check_out(out, "output of explain", ["explain.json"])
    layers = _layers(arms, examples, layers)
    counts = [len(of_seed.images) for of_seed in examples.values()]
    explained: dict[str, Any] = {
        "schema": SCHEMA,
        "layers": layers,
        "arms": {
            arm: {
                "seeds": [network.seed for network in of_arm],
                "chain": [network.stage for network in of_arm[0].chain()],
            }
            for arm, of_arm in arms.items()
        },
        "stage_runs": sorted({n.run for of_arm in arms.values() for n in of_arm}),
        "chosen": list(chosen),
        "images": {
            "source": source,
            "sets": networks.distinct(examples),
            "count": min(counts),
            "most": max(counts),
            "saliency": min(checks.IMAGES, max(counts)),
        },
    }
    drawn: dict[str, Figure] = {}
    explained["dead_channels"] = _strongest(drawn, arms, examples, layers, channels)
    _first_layer(drawn, arms)
    explained["saliency"], maps = checks.check_saliency(arms, examples)
    drawn.update(figures.saliency_figures(explained["saliency"], maps))
    texts, notes = text.study_words(explained), list(left_out)
    explained["measures"] = None
    if measured and min(counts) < measure.FEWEST:
        notes.append(
            f"Measures: they need {measure.FEWEST} images, but only {min(counts)} are "
            "available."
        )
    elif measured:
        explained["measures"] = measure.measure(arms, examples, layers, textures)
        drawn.update(figures.draw_measures(explained["measures"]))
        texts += text.measure_words(explained["measures"])
        notes += explained["measures"]["notes"]
    explained["figures"] = {name: f"figures/{name}" for name in drawn}
    explained["words"], explained["left_out"] = texts, notes
    _write(out, explained, drawn)
    return explained


def _layers(
    arms: Arms, examples: Mapping[int, Examples], layers: Sequence[str]
) -> list[str]:
    first = next(iter(arms.values()))[0]
    images = examples[first.seed].images
    shapes = networks.tap_shapes(first.module, first.variables, images)
    for layer in layers:
        networks.check_tap(shapes, layer)
    return list(layers) or strongest.default_layers(first.module, shapes)


def _strongest(
    drawn: dict[str, Figure],
    arms: Arms,
    examples: Mapping[int, Examples],
    layers: Sequence[str],
    wanted: int,
) -> dict[str, dict[str, Any]]:
    """Draws the strongest patches of the first seed; returns the dead channels of all."""
    dead: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    firsts, of_first = networks.of_first_seed(arms), {}
    for arm, of_arm in arms.items():
        networks.say(f"strongest patches: {arm}")
        for network in of_arm:
            images = examples[network.seed].images
            found = strongest.find_strongest(network, images, layers, PATCHES)
            if network is firsts[arm]:
                of_first[arm] = found
            for layer, one in found.items():
                entry = dead[arm].setdefault(
                    layer, {"channels": len(one.dead), "dead": []}
                )
                entry["dead"].append(int(one.dead.sum()))
    first = next(iter(firsts.values()))
    images, method = examples[first.seed].images, strongest.best_method(first.module)
    for layer in layers:
        networks.say(f"pictures: {layer}")
        found = {arm: (firsts[arm], of_arm[layer]) for arm, of_arm in of_first.items()}
        silent = np.stack([one.dead for _, one in found.values()])
        chosen = strongest.spread_channels(silent, wanted)
        pages = [
            chosen[i : i + CHANNELS_A_PAGE]
            for i in range(0, len(chosen), CHANNELS_A_PAGE)
        ]
        for number, page in enumerate(pages, 1):
            shown = strongest.show(found, images, layer, page)
            name = f"strongest_{file_name(layer)}"
            name += f"_{number}" if len(pages) > 1 else ""
            drawn[name] = figures.strongest_patches(shown, layer, page, method)
    return dead


def _first_layer(drawn: dict[str, Figure], arms: Arms) -> None:
    firsts = networks.of_first_seed(arms)
    first = next(iter(firsts.values()))
    shown = {"untrained": networks.randomised(first), **firsts}
    kernels = {name: networks.first_kernel(network) for name, network in shown.items()}
    layer = first.module.FIRST_LAYER
    drawn["first_layer"] = figures.first_layer(kernels, layer, list(arms))


def _write(
    out: Path, explained: Mapping[str, Any], drawn: Mapping[str, Figure]
) -> None:
    """Writes everything into a new folder, which then replaces `out`."""
    lock = io.locked(out.with_name(f".{out.name}.lock"), f"--out={out}", wait=True)
    with lock, io.replacing_folder(out) as new:
        for name, figure in drawn.items():
            save(figure, new / "figures" / name)
        io.write_text(new / "explain.md", text.page(explained))
        io.write_json(new / "explain.json", explained)
