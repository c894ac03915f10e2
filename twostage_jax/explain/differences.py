"""Which differences between networks are told from chance.

Those whose p-value, corrected (Holm) over all comparisons that are looked at together,
is below 0.05.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from twostage_jax.stats.intervals import holm

ALPHA = 0.05
# (measure, one network, another, layer or change of the images).
Pair = tuple[str, str, str, str]


class Told(NamedTuple):
    """A difference: its entry, and 1 (higher), -1 (lower) or 0 (not told from chance)."""

    entry: Mapping[str, Any]
    sign: int


def told(measured: Mapping[str, Any], pairs: Iterable[Pair]) -> dict[Pair, Told]:
    """Returns the differences that have a mean, told from chance by Holm over them.

    Args:
      pairs: (measure, one network, another, layer or change).
    """
    entries = {}
    for pair in pairs:
        name, first, second, place = pair
        of_pair = measured["differences"].get(name, {}).get(f"{first} - {second}", {})
        if place in of_pair and of_pair[place]["mean"] is not None:
            entries[pair] = of_pair[place]
    corrected = holm([entry["p_value"] for entry in entries.values()])
    return {
        pair: Told(entry, 0 if p is None or p >= ALPHA else _sign(entry["mean"]))
        for (pair, entry), p in zip(entries.items(), corrected, strict=True)
    }


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
