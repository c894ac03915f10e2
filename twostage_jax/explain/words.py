"""What the pictures and the checks of saliency methods show, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twostage_jax.explain import measure_tables
from twostage_jax.explain.faithfulness import RANDOM_ORDER
from twostage_jax.explain.figures import MARKS, foot_notes, method_label
from twostage_jax.report.figures import arm_label
from twostage_jax.report.tables import listed

# Areas nearer to those of the random order than this are called no better.
MARGIN = 0.01


def paragraphs(explained: Mapping[str, Any]) -> list[str]:
    """Returns paragraphs that follow from the numbers of `explain.json`."""
    return [
        _shown(explained),
        _dead(explained["dead_channels"]),
        *_saliency(explained["saliency"]),
    ]


def _shown(explained: Mapping[str, Any]) -> str:
    images, arms = explained["images"], explained["arms"]
    seeds = max(len(of_arm["seeds"]) for of_arm in arms.values())
    count = str(images["count"])
    if images["most"] > images["count"]:
        count += f" to {images['most']}"
    whose = ", each seed its own" if images["sets"] > 1 else ""
    first = min(set.intersection(*(set(one["seeds"]) for one in arms.values())))
    pictures = (
        "The pictures, and the maps with weights drawn anew, are those of seed "
        f"{first}, the first that all arms have."
    )
    return (
        f"{len(arms)} arm{_s(len(arms))} ({listed(map(arm_label, arms))}), "
        f"{seeds} seed{_s(seeds)}; {count} images ({images['source']}{whose}). "
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
        return "No channel of these layers is dead: each answers to some image."
    return (
        "Dead channels, which no image brings above 0 (the most over seeds): "
        f"{'; '.join(found)}."
    )


def _saliency(saliency: Mapping[str, Any]) -> list[str]:
    methods = saliency["methods"]
    tests = []
    if saliency["unchanged"]:
        tests.append(
            f"The maps of {listed(map(method_label, saliency['unchanged']))} stay much "
            "the same when all weights are drawn anew: they show the image, not what a "
            "network learned."
        )
    if saliency["class_blind"]:
        tests.append(
            f"The maps of {listed(map(method_label, saliency['class_blind']))} stay much "
            "the same when the head alone is drawn anew: they show what the features "
            "see, and do not tell classes apart."
        )
    if tests:
        tests.append("These methods are marked in the figures.")
    else:
        tests.append(
            f"All {len(methods)} saliency methods follow the weights: no map stays the "
            "same when they are drawn anew."
        )
    area = {
        kind: {
            method: float(
                np.mean([of_arm[method]["area"]["mean"] for of_arm in by_arm.values()])
            )
            for method in (*methods, RANDOM_ORDER)
        }
        for kind, by_arm in (
            (kind, saliency[kind]) for kind in ("deletion", "insertion")
        )
    }
    # Smaller is better for deletion, larger for insertion.
    gain = {
        method: (
            area["deletion"][RANDOM_ORDER] - area["deletion"][method],
            area["insertion"][method] - area["insertion"][RANDOM_ORDER],
        )
        for method in methods
    }
    falls = min(methods, key=area["deletion"].__getitem__)
    rises = max(methods, key=area["insertion"].__getitem__)
    deleted, inserted = area["deletion"], area["insertion"]
    text = (
        "Averaged over arms, the probability of the class falls fastest when pixels are "
        f"deleted in the order of {method_label(falls)} (area {deleted[falls]:.2f}; "
        f"random order {deleted[RANDOM_ORDER]:.2f}), and rises fastest when they are "
        f"inserted in that of {method_label(rises)} ({inserted[rises]:.2f}; "
        f"{inserted[RANDOM_ORDER]:.2f})."
    )
    weak = [m for m in methods if gain[m][0] < MARGIN and gain[m][1] < MARGIN]
    if weak:
        text += (
            f" No better than random order in both: {listed(map(method_label, weak))}."
        )
    return [" ".join(tests), text]


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def page(
    explained: Mapping[str, Any], texts: Sequence[str], notes: Sequence[str]
) -> str:
    """Returns `explain.md`: paragraphs, tables, and what was left out."""
    saliency = explained["saliency"]
    arms = list(saliency["deletion"])
    failed = {what: saliency[what] for what in MARKS}
    lines = ["# What the features respond to", ""]
    for text in texts:
        lines += [text, ""]
    lines += [
        "## Areas below the curves: deletion (small is good) / insertion (large is good)",
        "",
        "| method | " + " | ".join(map(arm_label, arms)) + " |",
        "|---" * (len(arms) + 1) + "|",
    ]
    for method in (*saliency["methods"], RANDOM_ORDER):
        label = method_label(method, failed)
        cells = [
            " / ".join(
                f"{saliency[kind][arm][method]['area']['mean']:.2f}"
                for kind in ("deletion", "insertion")
            )
            for arm in arms
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [text for note in foot_notes(failed) for text in ("", note)]
    if explained["measures"] is not None:
        lines += measure_tables.tables(explained["measures"])
    lines += ["", "## Figures", ""]
    lines += [f"- [{name}]({path}.png)" for name, path in explained["figures"].items()]
    if notes:
        lines += ["", "## Left out", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"
