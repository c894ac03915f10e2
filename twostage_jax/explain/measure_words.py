"""What the measures say, in words that follow from the numbers.

A question has a paragraph: the answer, then the numbers that it rests on. Differences
are told from chance (see `differences`) over all comparisons of the paragraph. The rest
is in the tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from twostage_jax.explain.comparisons import ALL_LAYERS, RANDOM
from twostage_jax.explain.differences import Pair, Told, told
from twostage_jax.explain.measure_tables import label
from twostage_jax.report.tables import listed

# More silent channels than this share are worth a word.
MANY_SILENT = 1 / 3


class Measure(NamedTuple):
    """How a measure is spoken of: what it makes an arm, and what the numbers are."""

    name: str
    makes: str
    number: str


EDGES = [
    Measure(
        "edge_selectivity",
        "selective for the orientation of edges",
        "Orientation selectivity for step edges (0 to 1)",
    )
]
TEXTURES = [
    Measure(
        "texture_modulation",
        "selective for textures (against noise of the same spectrum)",
        "Modulation index (-1 to 1)",
    ),
    Measure(
        "probe_texture",
        "informative of the texture family (linear probe)",
        "Balanced accuracy of the probe",
    ),
]


def words(measured: Mapping[str, Any]) -> list[str]:
    """Returns paragraphs on what `measure.measure` returned."""
    paragraphs = [
        _beginning(measured),
        _question(measured, "Edges.", EDGES),
        _question(measured, "Textures.", TEXTURES),
        _reliance(measured),
        _silent(measured),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def _beginning(measured: Mapping[str, Any]) -> str:
    counts = measured["counts"]
    target = f"{counts['examples']} images of the target"
    limits = "on these images: other images or patients are not in them"
    if counts["example_sets"] > 1:
        target = f"up to {target}, each seed its own"
        limits = (
            "each on its own images of the target: patients outside of the study are "
            "not in them"
        )
    text = (
        f"Measured in {listed(measured['layers'])}, on {counts['texture_images']} images "
        f"of {counts['texture_families']} texture families and {target}."
    )
    if _most_seeds(measured) < 2:
        return f"{text} There is one seed: no difference can be told from chance."
    return (
        f"{text} In brackets are 95 % intervals over seeds, {limits}. A difference is "
        "told from chance by a paired t test over seeds, p < 0.05 corrected (Holm) "
        "within its paragraph."
    )


def _most_seeds(measured: Mapping[str, Any]) -> int:
    return max(len(measured["seeds"][arm]) for arm in measured["chains"])


def _question(measured: Mapping[str, Any], title: str, asked: Sequence[Measure]) -> str:
    """Returns a paragraph on measures, mean of the layers: answers, then numbers."""
    arms = list(measured["chains"])
    others = [(arms[-1], arm) for arm in arms[:-1]]
    pairs = [*((arm, RANDOM) for arm in arms), *others]
    found = told(measured, [(m.name, *p, ALL_LAYERS) for m in asked for p in pairs])
    answers, numbers = [], []
    for one in asked:
        of_measure = {pair[1:3]: t for pair, t in found.items() if pair[0] == one.name}
        trained = {p[0]: t for p, t in of_measure.items() if p[1] == RANDOM}
        between = {p[1]: t for p, t in of_measure.items() if p[1] != RANDOM}
        if not of_measure:
            numbers.append(f"{one.number}: {_missing(measured, one.name)}.")
            continue
        if _most_seeds(measured) > 1:
            answers.append(_answer(one.makes, trained, arms[-1], between))
        numbers.append(_numbers(one.number, trained, arms[-1], between))
    if _most_seeds(measured) < 2:
        answers = ["One seed cannot answer this."]
    if asked is TEXTURES:
        answers.append(_shown(measured))
    return " ".join([title, *answers, *numbers])


def _answer(
    makes: str, trained: Mapping[str, Told], last: str, between: Mapping[str, Told]
) -> str:
    higher, lower, same = (_by_sign(trained, sign) for sign in (1, -1, 0))
    parts = [
        f"{listed(names)} {_are(names)} {how} {makes} than the untrained network"
        for how, names in (("more", higher), ("less", lower))
        if names
    ]
    if same and parts:
        parts.append(f"{listed(same)} cannot be told from it")
    elif same:
        who = "no arm" if len(same) > 1 else same[0]
        can = "can" if len(same) > 1 else "cannot"
        parts.append(
            f"{who} {can} be shown to be more or less {makes} than the untrained network"
        )
    if between:
        parts.append(_against(last, between))
    return _sentence("; ".join(parts))


def _against(last: str, between: Mapping[str, Told]) -> str:
    above, below, same = (_by_sign(between, sign) for sign in (1, -1, 0))
    parts = [
        f"is {what} {listed(names)}"
        for what, names in (("above", above), ("below", below))
        if names
    ]
    if same:
        parts.append(f"cannot be told from {listed(same)}")
    return f"{label(last)} {listed(parts)}"


def _numbers(
    number: str, trained: Mapping[str, Told], last: str, between: Mapping[str, Told]
) -> str:
    parts = []
    if trained:
        parts.append(
            "less the untrained network "
            + ", ".join(f"{label(a)} {_interval(t.entry)}" for a, t in trained.items())
        )
    if between:
        parts.append(
            f"{label(last)} less "
            + ", ".join(f"{label(a)} {_interval(t.entry)}" for a, t in between.items())
        )
    return f"{number}, mean of the layers: {'; '.join(parts)}."


def _missing(measured: Mapping[str, Any], name: str) -> str:
    """Returns why no arm has a difference, in the words of an entry."""
    by_name = measured["values"].get(name, {})
    entries = [by_name.get(arm, {}).get(ALL_LAYERS) for arm in measured["chains"]]
    reasons = [entry["reason"] for entry in entries if entry and entry["reason"]]
    return reasons[0] if reasons else "not measured in every layer"


def _shown(measured: Mapping[str, Any]) -> str:
    """Returns whether the textures are of the kinds that a stage was trained on."""
    textures = measured["textures"]
    favoured = [label(arm) for arm in textures["trained_on"]]
    folder = textures["folder"]
    which = f"of folder {folder}" if folder else "embedded"
    if not favoured:
        return f"No stage's training data are the textures shown ({which})."
    kinds = "from the folder" if folder else "other pieces of the materials"
    return (
        f"The textures shown ({which}) are {kinds} that a stage of {listed(favoured)} was "
        f"trained on, which favours {listed(favoured)} by construction: --textures takes "
        "others."
    )


def _reliance(measured: Mapping[str, Any]) -> str:
    kept = measured["values"].get("kept", {})
    arms = [arm for arm in measured["chains"] if arm in kept]
    if not arms:
        return ""
    side = measured["size"] // 4
    changes = {
        f"shuffled {side} px": f"squares of {side} px in random order (no layout)",
        "mean only": "each image's mean alone (no structure)",
        "mean removed": "each image's mean removed (structure alone)",
    }
    title = "What predictions rest on."
    without = [
        f"{label(arm)} ({kept[arm]['mean only']['reason']})"
        for arm in arms
        if kept[arm]["mean only"]["mean"] is None
    ]
    known = [arm for arm in arms if kept[arm]["mean only"]["mean"] is not None]
    left_out = f" No share is given for {listed(without)}." if without else ""
    if not known:
        return f"{title} Nothing can be said.{left_out}"
    shares = {c: [kept[arm][c]["mean"] for arm in known] for c in changes}
    ranked = sorted(changes, key=lambda c: -sum(shares[c]))
    parts = [f"{changes[c]} {_range(shares[c])}" for c in ranked]
    text = (
        f"{title} Share of the accuracy above chance that is kept on changed images, "
        f"from arm to arm: {'; '.join(parts)}.{left_out}"
    )
    others = [arm for arm in arms if arm != arms[-1]]
    pairs = [("kept", arms[-1], arm, c) for arm in others for c in changes]
    return f"{text} {_differences(measured, label(arms[-1]), pairs)}".rstrip()


def _differences(measured: Mapping[str, Any], last: str, pairs: list[Pair]) -> str:
    found = told(measured, pairs)
    if not found or _most_seeds(measured) < 2:
        return ""
    seen = [
        f"{last} less {label(other)} on '{change}' {_points(t.entry)}"
        for (_, _, other, change), t in found.items()
        if t.sign
    ]
    rest = sum(not t.sign for t in found.values())
    parts = [f"Told from chance, in points: {'; '.join(seen)}."] if seen else []
    if rest:
        all_of = (
            "Other differences" if seen else f"Differences of {last} from the others"
        )
        parts.append(f"{all_of} on these cannot be told from chance ({rest}).")
    return " ".join(parts)


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
            places.append(f"{label(network)} ({', '.join(layers)})")
    if not places:
        return ""
    return (
        "More than a third of the channels pass nothing on to any edge in "
        f"{'; '.join(places)}: selectivity there is that of the others."
    )


def _by_sign(found: Mapping[str, Told], sign: int) -> list[str]:
    return [label(name) for name, one in found.items() if one.sign == sign]


def _interval(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['mean']:+.2f}"
    return f"{entry['mean']:+.2f} [{entry['low']:+.2f}, {entry['high']:+.2f}]"


def _points(entry: Mapping[str, Any]) -> str:
    mean, low, high = (100 * entry[field] for field in ("mean", "low", "high"))
    return f"{mean:+.0f} [{low:+.0f}, {high:+.0f}]"


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{share:.0%}" for share in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
