"""Runs `prepare` on real CT slices, with regions drawn by thresholds.

    python experiments/prepare_real.py --data=FOLDER --out=experiments/prepare_real.md

`--data` is a folder of DICOM files of CT. Finds the lungs of each slice, writes a PNG
mask of three ranges of HU in them, runs `python -m twostage_jax.prepare` on slices and
masks, and checks each patch: at least the fraction that patches.csv states must lie in
the range of its class. About a minute on a CPU. No picture and no identifier of a patient
is written.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pages
from PIL import Image

from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.series import find_series, read_in_turn
from twostage_jax.data import prepared_folder
from twostage_jax.data.store import prepare

# Ranges of HU of air-filled holes, of lung, and of disease (and vessels).
CLASSES = {
    "emphysema": (-1100, -951),
    "other lung": (-950, -500),
    "dense lung": (-499, 300),
}
SETTINGS = ["--patch=32", "--stride=16", "--coverage=0.5", "--per_class=0"]
TEXT = """# Patches from real DICOM

    python experiments/prepare_real.py --data=DATA/ct_dicom \\
        --out=experiments/prepare_real.md

CT slices of patients with COVID-19 from The Cancer Imaging Archive (COVID-19-NY-SBU, CC
BY 4.0): {slices} slices of {series} series and {patients} patients. Regions are ranges
of HU in the lungs that `ct/lungs.py` finds in each slice: below -950 ("emphysema"),
above -500 ("dense lung", vessels too), and between ("other lung"). **They are
thresholds, not a reader's annotations**: this only shows that the command copes with
real files. `prepare` ran with `{settings}`.

| class | patches | patients |
|---|--:|--:|
{rows}

In {without_lung} of {slices} slices no lung was found, and no mask drawn; these slices
show the abdomen. Skipped: {left_out} files. Series reported as odd: {odd}. Of {total:,}
patches, {right:,} contain at least the fraction of their class that `patches.csv`
states. Seconds on two cores shared with other work: {drawing} for finding lungs and
drawing, {preparing} for `prepare` including start-up. As JSON:
[prepare_real.json](prepare_real.json).
"""


def draw(data: Path, masks: Path) -> dict[str, int]:
    """Writes a mask per slice with lung; returns counts of slices and patients."""
    series, skipped = find_series(data)
    counts = Counter(series=len(series), not_ct=len(skipped))
    counts["patients"] = len({one.patient for one in series})
    for one in series:
        for index, hu in read_in_turn(one.headers):
            header = one.headers[index]
            lungs = lung_mask(hu[None], header.spacing)[0]
            counts["slices"] += 1
            counts["without_lung"] += not lungs.any()
            labels = np.zeros(hu.shape, np.uint8)
            for value, (low, high) in enumerate(CLASSES.values(), start=1):
                labels[lungs & (hu >= low) & (hu <= high)] = value
            if labels.any():
                Image.fromarray(labels).save(masks / f"{header.sop_uid}.png")
    return dict(counts)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def right(out: Path, rows: list[dict[str, str]]) -> int:
    """Returns the number of patches with the stated fraction of their class."""
    data = prepare(prepared_folder.recipe(path=str(out)), out)
    assert data.ids.tolist() == [row["id"] for row in rows]
    count = 0
    for patch, row in zip(data.images, rows, strict=True):
        low, high = CLASSES[row["label"]]
        share = np.mean((patch >= low) & (patch <= high))
        count += bool(share >= float(row["coverage"]) - 1e-4)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder of DICOM")
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        masks, out = Path(name, "masks"), Path(name, "out")
        masks.mkdir()
        began = time.monotonic()
        found = draw(options.data, masks)
        drawn = time.monotonic()
        command = [sys.executable, "-m", "twostage_jax.prepare", f"--out={out}"]
        command += [f"--source={options.data}", f"--rois={masks}", "--salt=s"]
        subprocess.run(
            [*command, f"--classes={','.join(CLASSES)}", *SETTINGS], check=True
        )
        ended = time.monotonic()
        rows = rows_of(out / "patches.csv")
        classes = {
            label: {
                "patches": sum(row["label"] == label for row in rows),
                "patients": len({r["patient"] for r in rows if r["label"] == label}),
            }
            for label in CLASSES
        }
        odd = [r for r in rows_of(out / "series.csv") if r["notes"] or r["remarks"]]
        found |= {
            "left_out": len(rows_of(out / "skipped.csv")),
            "odd": len(odd),
            "total": len(rows),
            "right": right(out, rows),
            "drawing": round(drawn - began, 1),
            "preparing": round(ended - drawn, 1),
        }
    lines = [
        f"| {k} | {v['patches']:,} | {v['patients']} |" for k, v in classes.items()
    ]
    settings = " ".join(SETTINGS)
    text = TEXT.format(**found, rows="\n".join(lines), settings=settings)
    numbers = {"settings": SETTINGS, "classes": classes, **found}
    pages.leave(options.out, numbers, text)


if __name__ == "__main__":
    main()
