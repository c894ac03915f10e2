"""Sentences and tables of the feature analysis, derived from its numbers.

Each question about the measures has one paragraph: the answer, then the numbers behind
it. Differences are tested (see `compare.told`) over all comparisons of the paragraph.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostage_jax.explain.checks import RANDOM_ORDER
from twostage_jax.explain.compare import ALL_LAYERS, RANDOM, Pair, Told, told
from twostage_jax.explain.figures import MARKS, PANELS, foot_notes, method_label
from twostage_jax.explain.measures import MEASURES
from twostage_jax.explain.saliency import SIGNED
from twostage_jax.report.figures import arm_label
from twostage_jax.report.tables import listed, markdown_table, minus, plural

# A method that beats the random order by less than this counts as no better.
MARGIN = 0.01
# Layers with a larger fraction of silent channels are named in the text.
MANY_SILENT = 1 / 3


def study_words(explained: Mapping[str, Any]) -> list[str]:
    """Returns paragraphs derived from the numbers of `explain.json`."""
    return [
        _images_words(explained),
        _dead(explained["dead_channels"]),
        *_saliency(explained["saliency"]),
    ]


def _images_words(explained: Mapping[str, Any]) -> str:
    images, arms = explained["images"], explained["arms"]
    seeds = max(len(of_arm["seeds"]) for of_arm in arms.values())
    count = str(images["count"])
    if images["most"] > images["count"]:
        count += f" to {images['most']}"
    whose = ", different for each seed" if images["sets"] > 1 else ""
    first = min(set.intersection(*(set(one["seeds"]) for one in arms.values())))
    pictures = (
        "Pictures, and maps with re-initialised weights, are those of seed "
        f"{first}, the first that all arms share."
    )
    return (
        f"{plural(len(arms), 'arm')} ({listed(map(arm_label, arms))}), "
        f"{plural(seeds, 'seed')}; {count} images ({images['source']}{whose}). "
        f"{' '.join([*explained['chosen'], pictures])}"
    )


def _dead(dead: Mapping[str, Mapping[str, Any]]) -> str:
    found = []
    for layer in next(iter(dead.values())):
        of_layer = {arm: of_arm[layer] for arm, of_arm in dead.items()}
        most = {arm: max(entry["dead"]) for arm, entry in of_layer.items()}
        if any(most.values()):
            total = next(iter(of_layer.values()))["channels"]
            counts = ", ".join(f"{arm_label(arm)} {n}" for arm, n in most.items())
            found.append(f"{layer} {counts} of {total}")
    if not found:
        return "No channel in these layers is dead: each responds to some image."
    return (
        "Dead channels, never above 0 or, in a layer without a ReLU, the same on all "
        f"images (largest count over seeds): {'; '.join(found)}."
    )


def _saliency(saliency: Mapping[str, Any]) -> list[str]:
    methods = saliency["methods"]
    undefined = saliency.get("undefined", [])  # not in files of earlier versions
    tests = []
    if undefined:
        tests.append(
            f"The maps of {listed(map(method_label, undefined))} are constant here, so "
            "they cannot be checked."
        )
    if saliency["unchanged"]:
        tests.append(
            f"{_hardly_change(saliency['unchanged'])} when all weights are "
            "re-initialised: they show the image, not what the network learned."
        )
    if saliency["class_blind"]:
        tests.append(
            f"{_hardly_change(saliency['class_blind'])} when only the head is "
            "re-initialised: they show what the features respond to, but do not "
            "distinguish classes."
        )
    if saliency["unchanged"] or saliency["class_blind"]:
        tests.append("These methods are marked in the figures.")
    elif len(undefined) < len(methods):
        count = len(methods) - len(undefined)
        which = "All" if not undefined else "The other"
        tests.append(
            f"{which} {count} saliency methods depend on the weights: their maps change "
            "when the weights are re-initialised."
        )
    deleted, inserted = (
        {
            method: float(
                np.mean(
                    [arm[method]["area"]["mean"] for arm in saliency[kind].values()]
                )
            )
            for method in (*methods, RANDOM_ORDER)
        }
        for kind in ("deletion", "insertion")
    )
    # Smaller is better for deletion, larger for insertion.
    falls = min(methods, key=deleted.__getitem__)
    rises = max(methods, key=inserted.__getitem__)
    fall = (
        "falls fastest when pixels are deleted in the order of "
        f"{method_label(falls)} (area {deleted[falls]:.2f}; "
        f"random order {deleted[RANDOM_ORDER]:.2f})"
    )
    if deleted[RANDOM_ORDER] - deleted[falls] < MARGIN:
        fall = (
            "falls no faster when pixels are deleted in the order of any method than in "
            f"random order (area {deleted[RANDOM_ORDER]:.2f}; best method "
            f"{method_label(falls)}, {deleted[falls]:.2f})"
        )
    rise = (
        "rises fastest when they are inserted in the order of "
        f"{method_label(rises)} ({inserted[rises]:.2f}; {inserted[RANDOM_ORDER]:.2f})"
    )
    if inserted[rises] - inserted[RANDOM_ORDER] < MARGIN:
        rise = (
            "rises no faster when they are inserted in the order of any method than in "
            f"random order ({inserted[RANDOM_ORDER]:.2f}; {method_label(rises)}, "
            f"{inserted[rises]:.2f})"
        )
    text = f"Averaged over arms, the class probability {fall}, and {rise}."
    weak = [
        method
        for method in methods
        if deleted[RANDOM_ORDER] - deleted[method] < MARGIN
        and inserted[method] - inserted[RANDOM_ORDER] < MARGIN
    ]
    if weak:
        text += (
            " No better than random order on either curve: "
            f"{listed(map(method_label, weak))}."
        )
    return [" ".join(tests), text]


def _hardly_change(methods: Sequence[str]) -> str:
    signs = ", apart from their signs," if set(methods) & set(SIGNED) else ""
    return f"The maps of {listed(map(method_label, methods))} hardly change{signs}"


def page(explained: Mapping[str, Any]) -> str:
    """Returns `explain.md`: paragraphs, tables, and notes on skipped items."""
    saliency, notes = explained["saliency"], explained["left_out"]
    arms = list(saliency["deletion"])
    failed = {what: saliency[what] for what in MARKS}
    rows = [
        [
            method_label(method, failed),
            *(
                " / ".join(
                    f"{saliency[kind][arm][method]['area']['mean']:.2f}"
                    for kind in ("deletion", "insertion")
                )
                for arm in arms
            ),
        ]
        for method in (*saliency["methods"], RANDOM_ORDER)
    ]
    links = (f"- [{name}]({path}.png)" for name, path in explained["figures"].items())
    parts = [
        "# What the features respond to",
        *explained["words"],
        "## Area under the curve: deletion (lower is better) / insertion (higher is "
        "better)",
        markdown_table(["method", *map(arm_label, arms)], rows),
        *foot_notes(failed),
        *(tables(explained["measures"]) if explained["measures"] else ()),
        "## Figures",
        "\n".join(links),
    ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def measure_words(measured: Mapping[str, Any]) -> list[str]:
    """Returns paragraphs on the result of `measure.measure`."""
    questions = (m.sentence.question for m in MEASURES.values() if m.sentence)
    paragraphs = [
        _beginning(measured),
        *(_question(measured, title) for title in dict.fromkeys(questions)),
        _reliance(measured),
        _silent(measured),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def _beginning(measured: Mapping[str, Any]) -> str:
    counts = measured["counts"]
    target = f"{counts['examples']} images of the target"
    limits = "on these images; they do not cover other images or patients"
    if counts["example_sets"] > 1:
        target = f"up to {target}, different for each seed"
        limits = "and their target images; they do not cover patients outside the study"
    text = (
        f"Measured in {listed(measured['layers'])}, on {counts['texture_images']} images "
        f"of {counts['texture_families']} texture families and {target}."
    )
    if _most_seeds(measured) < 2:
        return (
            f"{text} With a single seed, differences cannot be separated from chance."
        )
    return (
        f"{text} Brackets give 95 % intervals over seeds {limits}. A difference is "
        "significant if p < 0.05 in a paired t test over seeds, corrected (Holm) "
        "within its paragraph. The test needs two seeds with unequal differences."
    )


def _most_seeds(measured: Mapping[str, Any]) -> int:
    return max(len(measured["seeds"][arm]) for arm in measured["chains"])


def _question(measured: Mapping[str, Any], title: str) -> str:
    """Returns a paragraph on the measures of a question, averaged over layers.

    The answers come first, then the numbers.
    """
    asked = {
        m.name: m.sentence
        for m in MEASURES.values()
        if m.sentence and m.sentence.question == title
    }
    arms = list(measured["chains"])
    others = [(arms[-1], arm) for arm in arms[:-1]]
    pairs = [*((arm, RANDOM) for arm in arms), *others]
    found = told(measured, [(name, *p, ALL_LAYERS) for name in asked for p in pairs])
    answers, numbers = [], []
    for name, one in asked.items():
        of_measure = {pair[1:3]: t for pair, t in found.items() if pair[0] == name}
        trained = {p[0]: t for p, t in of_measure.items() if p[1] == RANDOM}
        between = {p[1]: t for p, t in of_measure.items() if p[1] != RANDOM}
        if not of_measure:
            numbers.append(f"{one.number}: {_missing(measured, name)}.")
            continue
        if _most_seeds(measured) > 1:
            answers.append(_answer(one.makes, trained, arms[-1], between))
        numbers.append(_numbers(one.number, trained, arms[-1], between))
    if _most_seeds(measured) < 2:
        answers = ["A single seed cannot answer this."]
    if any(one.shown for one in asked.values()):
        answers.append(_shown(measured))
    return " ".join([title, *answers, *numbers])


def _answer(
    makes: str, trained: Mapping[str, Told], last: str, between: Mapping[str, Told]
) -> str:
    higher, lower, same, untested = (_by_sign(trained, s) for s in (1, -1, 0, None))
    parts = [
        f"{listed(names)} {_are(names)} {how} {makes} than the untrained network"
        for how, names in (("more", higher), ("less", lower))
        if names
    ]
    if same and parts:
        do = "do" if len(same) > 1 else "does"
        parts.append(f"{listed(same)} {do} not differ significantly from it")
    elif same:
        who = "no arm is" if len(same) > 1 else f"{same[0]} is not"
        parts.append(
            f"{who} significantly more or less {makes} than the untrained network"
        )
    if untested:
        whom = "it" if parts else "the untrained network"
        parts.append(f"{listed(untested)} cannot be tested against {whom}")
    if between:
        parts.append(_against(last, between))
    return _sentence("; ".join(parts))


def _against(last: str, between: Mapping[str, Told]) -> str:
    above, below, same, untested = (_by_sign(between, s) for s in (1, -1, 0, None))
    parts = [
        f"is {what} {listed(names)}"
        for what, names in (("above", above), ("below", below))
        if names
    ]
    if same:
        parts.append(f"does not differ significantly from {listed(same)}")
    if untested:
        parts.append(f"cannot be tested against {listed(untested)}")
    return f"{label(last)} {listed(parts)}"


def _numbers(
    number: str, trained: Mapping[str, Told], last: str, between: Mapping[str, Told]
) -> str:
    parts = [f"{number}, mean over layers."]
    for what, found in (
        ("each arm minus the untrained network", trained),
        (f"{label(last)} minus each other arm", between),
    ):
        if found:
            numbers = (f"{label(a)} {_interval(t.entry)}" for a, t in found.items())
            parts.append(_sentence(f"{what}: {', '.join(numbers)}"))
    return " ".join(parts)


def _missing(measured: Mapping[str, Any], name: str) -> str:
    """Returns why no arm has a difference, as an entry states it."""
    by_name = measured["values"].get(name, {})
    entries = [by_name.get(arm, {}).get(ALL_LAYERS) for arm in measured["chains"]]
    reasons = [entry["reason"] for entry in entries if entry and entry["reason"]]
    return reasons[0] if reasons else "not measured in every layer"


def _shown(measured: Mapping[str, Any]) -> str:
    """Returns sentences on whether a stage was trained on textures of these kinds."""
    textures = measured["textures"]
    favoured, unknown = (
        [label(arm) for arm in textures[which]] for which in ("trained_on", "unknown")
    )
    folder = textures["folder"]
    which = f"of folder {folder}" if folder else "embedded"
    kinds = "from the folder" if folder else "other pieces of the materials"
    text = f"The textures shown ({which}) are not the source of any stage."
    if favoured:
        text = (
            f"The textures shown ({which}) are {kinds} that a stage of "
            f"{listed(favoured)} was trained on, which favours {listed(favoured)} by "
            "construction; choose others with --textures."
        )
    if unknown:
        text += (
            f" Whether the imported stage of {listed(unknown)} was trained on them is not "
            "known."
        )
    return text


def _reliance(measured: Mapping[str, Any]) -> str:
    kept = measured["values"].get("kept", {})
    arms = [arm for arm in measured["chains"] if arm in kept]
    if not arms:
        return ""
    side = measured["size"] // 4
    changes = {
        f"shuffled {side} px": f"squares of {side} px in random order (no layout)",
        "mean only": "each image's mean only (no structure)",
        "mean removed": "each image's mean removed (structure only)",
    }
    title = "Cue reliance."
    without = [
        f"{label(arm)} ({kept[arm]['mean only']['reason']})"
        for arm in arms
        if kept[arm]["mean only"]["mean"] is None
    ]
    known = [arm for arm in arms if kept[arm]["mean only"]["mean"] is not None]
    left_out = f" The fraction is not given for {listed(without)}." if without else ""
    if not known:
        return f"{title} Accuracy retained on changed images is unknown.{left_out}"
    shares = {c: [kept[arm][c]["mean"] for arm in known] for c in changes}
    ranked = sorted(changes, key=lambda c: -sum(shares[c]))
    parts = [f"{changes[c]} {_range(shares[c])}" for c in ranked]
    text = (
        f"{title} Fraction of above-chance accuracy retained on changed images, range "
        f"over arms: {'; '.join(parts)}.{left_out}"
    )
    others = [arm for arm in arms if arm != arms[-1]]
    pairs = [("kept", arms[-1], arm, c) for arm in others for c in changes]
    return f"{text} {_differences(measured, label(arms[-1]), pairs)}".rstrip()


def _differences(measured: Mapping[str, Any], last: str, pairs: list[Pair]) -> str:
    found = told(measured, pairs)
    if not found or _most_seeds(measured) < 2:
        return ""
    seen = [
        f"{last} minus {label(other)} on '{change}' {_interval(t.entry, '+.0f', 100)}"
        for (_, _, other, change), t in found.items()
        if t.sign
    ]
    parts, which = [], f"Differences between {last} and the other arms"
    if seen:
        text = f"Significant differences, in percentage points: {'; '.join(seen)}."
        parts, which = [text], "The other differences"
    if same := sum(t.sign == 0 for t in found.values()):
        parts.append(f"{which} are not significant ({same}).")
        which = "The other differences"
    if untested := sum(t.sign is None for t in found.values()):
        parts.append(f"{which} cannot be tested ({untested}).")
    return " ".join(parts)


def _silent(measured: Mapping[str, Any]) -> str:
    """Returns a sentence naming layers whose selectivity covers only a part of them."""
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
        "More than a third of the channels do not respond to any edge in "
        f"{'; '.join(places)}: selectivity there is that of the other channels."
    )


def _by_sign(found: Mapping[str, Told], sign: int | None) -> list[str]:
    return [label(name) for name, one in found.items() if one.sign == sign]


def _interval(entry: Mapping[str, Any], form: str = "+.2f", scale: float = 1) -> str:
    """Returns 'mean [low, high]', or the mean alone without an interval."""
    mean, *ends = (
        None if value is None else minus(format(scale * value, form))
        for value in (entry["mean"], entry["low"], entry["high"])
    )
    return mean if None in ends else f"{mean} [{', '.join(ends)}]"


def _range(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _are(names: Sequence[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def tables(measured: Mapping[str, Any]) -> list[str]:
    """Returns tables: measures of all networks, and accuracy on changed images."""
    values = measured["values"]
    shown = {name: panel.title for name, panel in PANELS.items() if name in values}
    rows = [
        [
            label(network),
            *(_cell(values[m].get(network, {}).get(ALL_LAYERS)) for m in shown),
        ]
        for network in measured["order"]
    ]
    named = (f"`{name}`, {MEASURES[name].title}" for name in values if name in MEASURES)
    parts = [
        "## Mean over layers [95 % interval over seeds]",
        markdown_table(["network", *shown.values()], rows),
        f"All measures in `explain.json`: {'; '.join(named)}.",
    ]
    if "accuracy" not in values:
        return parts
    accuracy, kept = values["accuracy"], values["kept"]
    arms = [arm for arm in measured["chains"] if arm in accuracy]

    def cell(arm: str, change: str) -> str:
        share = kept[arm][change]
        text = share["reason"]
        if share["mean"] is not None:
            text = f"{100 * share['mean']:.0f} %"
        return f"{accuracy[arm][change]['mean']:.2f}; {text}"

    rows = [
        [change, *(cell(arm, change) for arm in arms)] for change in accuracy[arms[0]]
    ]
    return [
        *parts,
        "## Balanced accuracy on changed images; fraction above chance retained",
        "Means over seeds; for each seed, all arms see the same test images.",
        markdown_table(["images", *map(label, arms)], rows),
    ]


def label(network: str) -> str:
    """Returns the name of a network in text and tables."""
    if network == RANDOM:
        return "the untrained network"
    return network if network.startswith("after ") else arm_label(network)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["mean"] is None:
        return f"– ({entry['reason']})"
    return _interval(entry, ".2f")
