"""Maps CT slices of patients from another collection with the models of a study.

    python experiments/predict_real.py --run=runs/covid --dicom=FOLDER \\
        --window=-300,1950 --spacing=1.4 --stride=4 --out=experiments/predict_real.md

maps the series below FOLDER as `python -m twostage_jax.predict` does, once per arm of the
study, and writes the page, and the numbers next to it as JSON: the number of slices
mapped, and the median over them of the fraction of lung in each class. No reader has
annotated these slices: this shows whether maps are plausible, not whether they are right.
No picture and no identifier of a patient is written. Minutes on a CPU.
"""

import argparse
import collections
import contextlib
import csv
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pages

from twostage_jax import cli
from twostage_jax.ct.series import find_series
from twostage_jax.maps import scale
from twostage_jax.maps.classify import Classifier, How
from twostage_jax.maps.extent import UNCLASSIFIED
from twostage_jax.maps.run import map_folder, series_name
from twostage_jax.notices import NOTICE
from twostage_jax.study import artifacts

# Words in the reason for which a series without lung is refused.
NO_LUNG = "lung was not found"
TEXT = """# Maps of slices from another collection

    python experiments/predict_real.py --run=RUN --dicom=DATA --window={window} \\
        --spacing={spacing} --stride={stride} --arms={arms} \\
        --out=experiments/{stem}.md

{slices} slices of {patients} patients from another collection than the training data.
Slices without lung: {slices_without_lung}. Series refused for another reason:
{series_refused}. Numbers are the median and quartiles, over the mapped slices, of the
fraction of lung in each class, in %; all slices have equal weight. These slices are not
annotated: the fractions do not measure disease, and only show the output of a model
outside its training data. As JSON: [{json}]({json}). {notice}.

| arm | slices mapped | class | median, % | quartiles, % |
|---|--:|---|--:|--:|
{rows}
"""


def measure(run: Path, arm: str, dicom: Path, options: How) -> dict[str, Any]:
    """Returns the model of an arm, the outcome per slice, and fractions by class."""
    model = artifacts.find(run, arm)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        # The output would name series by their hashes.
        with contextlib.redirect_stdout(io.StringIO()):
            classifier = Classifier(model, options.window)
            map_folder(dicom, out, classifier, options, go_on=True)
        found, empty = shares(out)
        refused = reasons(out)
    series, _ = find_series(dicom.absolute(), go_on=True)
    total = {series_name(one, ""): len(one.headers) for one in series}
    lungless = [name for name, why in refused.items() if NO_LUNG in why]
    spread = {
        label: np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        for label, values in found.items()
    }
    return {
        "model": model.hash,
        "patients": len({one.patient for one in series}),
        "slices": sum(total.values()),
        "slices_mapped": len(found[UNCLASSIFIED]),
        "slices_without_lung": empty + sum(total[name] for name in lungless),
        "series_refused": len(refused) - len(lungless),
        "share_of_lung_quartiles": spread,
    }


def shares(maps: Path) -> tuple[dict[str, list[float]], int]:
    """Returns the fraction of lung per class and slice, and the slices without lung."""
    found = collections.defaultdict(list)
    empty = 0
    for path in sorted(maps.glob("patient-*/probabilities.npz")):
        with np.load(path, allow_pickle=False) as saved:
            names = [UNCLASSIFIED, *saved["class_names"].tolist()]
            stacks = list(zip(saved["labels"], saved["lungs"], strict=True))
        for labels, lungs in stacks:
            if not lungs.any():
                empty += 1
                continue
            counts = np.bincount(labels[lungs], minlength=len(names))
            for name, count in zip(names, counts, strict=True):
                found[name].append(float(count / lungs.sum()))
    return dict(found), empty


def reasons(maps: Path) -> dict[str, str]:
    """Returns the reasons for which series were refused, by name."""
    with (maps / "skipped.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {r["file"]: r["reason"] for r in rows if r["file"].startswith("patient-")}


def page(stem: str, options: How, arms: dict[str, dict[str, Any]]) -> str:
    """Returns the page of the results of `measure`, by arm."""
    lines = []
    for arm, one in arms.items():
        for label, quartiles in one["share_of_lung_quartiles"].items():
            low, median, high = (f"{100 * share:.0f}" for share in quartiles)
            cells = (arm, one["slices_mapped"], label, median, f"{low} to {high}")
            lines.append(f"| {' | '.join(map(str, cells))} |")
    # All arms have the same slices.
    return TEXT.format(
        **next(iter(arms.values())),
        stem=stem,
        json=f"{stem}.json",
        window=",".join(f"{v:g}" for v in options.window),
        spacing=f"{options.spacing or 0:g}",
        stride=options.stride,
        arms=",".join(arms),
        notice=NOTICE,
        rows="\n".join(lines),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, required=True, help="a study's workdir")
    parser.add_argument("--dicom", type=Path, required=True, help="a folder of DICOM")
    parser.add_argument("--window", required=True, help="centre,width in HU")
    parser.add_argument("--spacing", type=float, required=True, help="mm; 0: as it is")
    parser.add_argument("--stride", type=int, default=4, help="pixels")
    parser.add_argument("--arms", default="two_stage,scratch")
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    flags = parser.parse_args()
    cli.use_cores()
    arms = flags.arms.split(",")
    first = artifacts.find(flags.run, arms[0])
    options = How(
        stride=flags.stride,
        window=scale.parse_window(flags.window, first),
        spacing=scale.parse_spacing(flags.spacing, first),
    )
    found = {arm: measure(flags.run, arm, flags.dicom, options) for arm in arms}
    numbers = {"settings": options.settings(), "notice": NOTICE, "arms": found}
    pages.leave(flags.out, numbers, page(flags.out.stem, options, found))


if __name__ == "__main__":
    main()
