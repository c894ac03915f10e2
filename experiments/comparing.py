"""Compares two workdirs of one study, bit for bit."""

import json
from pathlib import Path

import numpy as np


def differences(one: Path, other: Path) -> list[str]:
    """Returns the files of rows (metrics or predictions) that are not bit-identical."""
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    if results[0]["rows"] != results[1]["rows"]:
        return ["results.json"]
    found = []
    for row in results[0]["rows"]:
        arrays = [np.load(run / row["predictions"]) for run in (one, other)]
        same = arrays[0].files == arrays[1].files and all(
            arrays[0][name].tobytes() == arrays[1][name].tobytes()
            for name in arrays[0].files
        )
        found += [] if same else [row["predictions"]]
    return found
