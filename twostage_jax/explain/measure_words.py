"""What the measures say, in words that follow from the numbers."""

from collections.abc import Mapping
from typing import Any

from twostage_jax.explain.comparisons import ALL_LAYERS, RANDOM
from twostage_jax.explain.reliance import UNCHANGED
from twostage_jax.report.figures import arm_label

# Measure -> how a sentence begins; what the question of edges and textures rests on.
ASKED = {
    "edge_selectivity": (
        "Edges. Orientation selectivity for step edges (1 less the circular variance)"
    ),
    "texture_modulation": (
        "Textures. The modulation index (textures against noise of the same spectrum)"
    ),
    "probe_texture": "Texture families read off by a linear probe (balanced accuracy)",
}
# More silent channels than this share are worth a word.
MANY_SILENT = 1 / 3


def words(measured: Mapping[str, Any]) -> list[str]:
    """Returns paragraphs on what `measure.measure` returned.

    A difference is stated only where the 95 % interval over seeds of the paired
    difference leaves out zero; the intervals are not corrected for their number.
    """
    paragraphs = [_beginning(measured)]
    paragraphs += [_responses(measured, name) for name in ASKED]
    paragraphs.append(_reliance(measured))
    paragraphs.append(_answer(measured))
    paragraphs.append(_silent(measured))
    return [paragraph for paragraph in paragraphs if paragraph]


def _beginning(measured: Mapping[str, Any]) -> str:
    arms = list(measured["chains"])
    seeds = sorted({seed for arm in arms for seed in measured["seeds"][arm]})
    counts = measured["counts"]
    text = (
        f"Measured on {_and(map(arm_label, arms))}, the stages before and the untrained "
        f"network, in {_and(measured['layers'])}; {counts['texture_images']} images of "
        f"{counts['texture_families']} texture families, {counts['examples']} images of "
        "the target."
    )
    if len(seeds) == 1:
        return (
            f"{text} There is one seed, so there are no intervals over seeds: no "
            "difference below can be told from chance."
        )
    return (
        f"{text} {len(seeds)} seeds; in brackets 95 % intervals over seeds, not "
        "corrected for their number."
    )


def _responses(measured: Mapping[str, Any], name: str) -> str:
    """Returns a paragraph on one measure, mean of all layers."""
    by_name = measured["values"].get(name, {})
    chains = measured["chains"]
    known = {
        network: entry["mean"]
        for network in (*chains, RANDOM)
        if (entry := by_name.get(network, {}).get(ALL_LAYERS)) is not None
        and entry["mean"] is not None
    }
    if not known:
        return ""
    levels = _and(f"{_label(network)} {mean:.2f}" for network, mean in known.items())
    arms = [arm for arm in chains if arm in known]
    pairs = [(arm, RANDOM) for arm in arms]
    pairs += [(arm, chains[arm][-2]) for arm in arms]
    pairs += [(arms[-1], arm) for arm in arms[:-1]] if arms else []
    return (
        f"{ASKED[name]}, mean of the layers: {levels}. "
        f"{_contrasts(measured, name, list(dict.fromkeys(pairs)))}"
    )


def _contrasts(
    measured: Mapping[str, Any], name: str, pairs: list[tuple[str, str]]
) -> str:
    """Returns sentences on the differences that can be seen, and on those that cannot."""
    if _most_seeds(measured) < 2:
        return "With one seed, no difference can be seen."
    seen, unseen = [], []
    for first, second in pairs:
        entry = _difference(measured, name, first, second)
        if entry is None or entry["mean"] is None:
            continue
        text = f"{_label(first)} less {_label(second)}"
        if verdict(entry):
            seen.append(
                f"{text} {entry['mean']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}]"
            )
        else:
            unseen.append(f"{text} ({entry['mean']:+.2f})")
    sentences = []
    if seen:
        sentences.append(_sentence(_and(seen, "; ")))
    if unseen:
        sentences.append(f"No difference can be seen: {_and(unseen, '; ')}.")
    return " ".join(sentences)


def _most_seeds(measured: Mapping[str, Any]) -> int:
    return max(len(measured["seeds"][arm]) for arm in measured["chains"])


def verdict(entry: Mapping[str, Any] | None) -> int:
    """Returns 1 (higher) or -1 (lower) if the interval leaves out zero, else 0."""
    if entry is None or entry["low"] is None:
        return 0
    return int(entry["low"] > 0) - int(entry["high"] < 0)


def _difference(
    measured: Mapping[str, Any], name: str, first: str, second: str
) -> Mapping[str, Any] | None:
    pairs = measured["differences"].get(name, {})
    return pairs.get(f"{first} - {second}", {}).get(ALL_LAYERS)


def _reliance(measured: Mapping[str, Any]) -> str:
    kept = measured["values"].get("kept", {})
    arms = [arm for arm in measured["chains"] if arm in kept]
    if not arms:
        return ""
    size = measured["size"]
    changes = [c for c in kept[arms[0]] if c not in (UNCHANGED, ALL_LAYERS)]
    chosen = [f"shuffled {size // 4} px", "mean only", "mean removed"]
    lines = []
    for change in (c for c in chosen if c in changes):
        shares = [
            f"{_label(arm)} {kept[arm][change]['mean']:.0%}"
            for arm in arms
            if kept[arm][change]["mean"] is not None
        ]
        if shares:
            lines.append(f"{change}: {_and(shares)}")
    if not lines:
        return (
            "No arm is above chance on the unchanged images, so nothing can be said of "
            "what its predictions rest on."
        )
    pairs = measured["differences"].get("kept", {})
    seen = [
        f"{_label(arms[-1])} less {_label(arm)} on '{change}' "
        f"{100 * entry['mean']:+.0f} points"
        for arm in arms[:-1]
        for change, entry in pairs.get(f"{arms[-1]} - {arm}", {}).items()
        if change in chosen and verdict(entry)
    ]
    told = (
        f"Differences that can be seen: {_and(seen, '; ')}."
        if seen
        else f"No difference between {_label(arms[-1])} and the others can be seen here."
    )
    return (
        "What predictions rest on: of the accuracy above chance on unchanged images, "
        f"what is kept on changed ones. {_sentence(_and(lines, '; '))} {told}"
    )


def _answer(measured: Mapping[str, Any]) -> str:
    """Returns which arms respond to edges, to textures, to both, beyond no training."""
    chains = measured["chains"]
    if _most_seeds(measured) < 2:
        return (
            "Whether an arm responds to edges, to textures or to both more than the "
            "untrained network does cannot be answered with one seed."
        )
    rises = {
        arm: tuple(
            verdict(_difference(measured, name, arm, RANDOM)) > 0
            for name in ("edge_selectivity", "texture_modulation")
        )
        for arm in chains
    }
    both = [_label(arm) for arm, rise in rises.items() if all(rise)]
    edges = [_label(arm) for arm, rise in rises.items() if rise == (True, False)]
    textures = [_label(arm) for arm, rise in rises.items() if rise == (False, True)]
    neither = [_label(arm) for arm, rise in rises.items() if not any(rise)]
    parts = [
        f"{what}, {_and(arms)}"
        for what, arms in (
            ("to both edges and textures", both),
            ("to edges only", edges),
            ("to textures only", textures),
            ("to neither, as far as can be seen", neither),
        )
        if arms
    ]
    return (
        "Arms that respond more than the untrained network, mean of the layers: "
        f"{_and(parts, '; ')}."
    )


def _silent(measured: Mapping[str, Any]) -> str:
    """Returns where so many channels are silent that selectivity is of the rest only."""
    places = []
    for network in (*measured["chains"], RANDOM):
        of_network = measured["values"].get("edge_selectivity", {}).get(network, {})
        layers = [
            layer
            for layer in measured["layers"]
            if max(of_network.get(layer, {}).get("silent", [0]))
            > MANY_SILENT * of_network.get(layer, {}).get("channels", 1)
        ]
        if layers:
            places.append(f"{_label(network)} ({', '.join(layers)})")
    if not places:
        return ""
    return (
        "More than a third of the channels pass nothing on to any edge in "
        f"{_and(places, '; ')}: selectivity there is that of the others."
    )


def _label(network: str) -> str:
    if network == RANDOM:
        return "the untrained network"
    return network if network.startswith("after ") else arm_label(network)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _and(parts: Any, comma: str = ", ") -> str:
    parts = list(parts)
    if len(parts) < 2 or comma != ", ":
        return comma.join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
