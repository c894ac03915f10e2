"""Compares the numbers of two run folders of the same config, bit for bit.

    python experiments/same_numbers.py BEFORE AFTER

Compares `results.json` of both, value by value. For a change of the code that must not
change any result: run the same command before and after it.
"""

import json
import sys
from pathlib import Path


def numbers(value: object, path: str = "") -> dict[str, object]:
    """Returns the numbers and strings of a result by their path."""
    if isinstance(value, dict):
        parts = [(f"{path}.{key}", part) for key, part in value.items()]
    elif isinstance(value, list):
        parts = [(f"{path}[{index}]", part) for index, part in enumerate(value)]
    else:
        return {path: value}
    found = {}
    for name, part in parts:
        found |= numbers(part, name)
    return found


def main() -> None:
    """Prints the numbers that differ, and exits with status 1 if there are any."""
    before, after = (
        numbers(json.loads((Path(folder) / "results.json").read_text()))
        for folder in sys.argv[1:3]
    )
    differing = [
        f"{name}: {before.get(name)!r} -> {after.get(name)!r}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]
    print("\n".join([*differing, f"{len(before)} values, {len(differing)} differ"]))
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
