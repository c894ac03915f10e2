"""The tables of the measures, in Markdown."""

from collections.abc import Mapping
from typing import Any

from twostage_jax.explain.comparisons import ALL_LAYERS, RANDOM
from twostage_jax.explain.measure_figures import PANELS
from twostage_jax.report.figures import arm_label


def tables(measured: Mapping[str, Any]) -> list[str]:
    """Returns lines: measures of all networks, and accuracy on changed images."""
    values = measured["values"]
    shown = {name: title for name, title in PANELS.items() if name in values}
    lines = [
        "",
        "## Mean of the layers [95 % interval over seeds]",
        "",
        *_head(["network", *shown.values()]),
    ]
    for network in measured["order"]:
        cells = [_cell(values[m].get(network, {}).get(ALL_LAYERS)) for m in shown]
        lines.append(_row([label(network), *cells]))
    if "accuracy" not in values:
        return lines
    accuracy, kept = values["accuracy"], values["kept"]
    arms = [arm for arm in measured["chains"] if arm in accuracy]
    lines += [
        "",
        "## Balanced accuracy on changed images; share of that above chance kept",
        "",
        "Means over seeds; all arms on the same test images of a seed.",
        "",
        *_head(["images", *map(label, arms)]),
    ]
    for change in accuracy[arms[0]]:
        cells = []
        for arm in arms:
            share = kept[arm][change]
            text = share["reason"] if share["mean"] is None else f"{share['mean']:.0%}"
            cells.append(f"{accuracy[arm][change]['mean']:.2f}; {text}")
        lines.append(_row([change, *cells]))
    return lines


def label(network: str) -> str:
    """Returns how a network is called in words and tables."""
    if network == RANDOM:
        return "the untrained network"
    return network if network.startswith("after ") else arm_label(network)


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "–"
    if entry["mean"] is None:
        return f"– ({entry['reason']})"
    if entry["low"] is None:
        return f"{entry['mean']:.2f}"
    return f"{entry['mean']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _head(names: list[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
