"""How well the rule-based lung masks fit masks drawn by people, and phantoms' own.

    python experiments/lung_masks.py --data=FOLDER --out=experiments/lung_masks.md

`--data` is a folder `covid_ct` of 8-bit slices, lung masks, infection masks and
slices.csv (see the data source 'slices'). Writes the table of Dice scores and a sheet
of the worst slices beside it. Minutes on a CPU.
"""

import argparse
import csv
import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pages
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.phantom import CLASS_NAMES, Phantom, phantom_slices

# Half of the usual 512 pixels over 360 mm; the slices do not say.
PIXEL_MM = 1.4
# Grey level of the air around the patients: the median of the patients' commonest one.
AIR_GREY = 29.0
# Millimetres between slices of the phantom series: both ends of what is joined in depth
# in practice, and the usual ones between them.
STEPS_MM = (1.0, 1.5, 2.5, 5.0)
TEXT = """# Lung masks without training

    python experiments/lung_masks.py --data=DATA/covid_ct --out=experiments/lung_masks.md

`ct/lungs.py` finds the lungs by threshold and morphology. Here its masks are compared
with masks drawn by people, and with those that phantoms bring along. Dice = 2 |A and B|
/ (|A| + |B|). "Disease kept" is the share of the voxels marked as disease, inside the
reference mask, that the found mask holds. As JSON, with each phantom and each slice:
[lung_masks.json](lung_masks.json).

## {slices} slices of 17 patients with COVID-19

Masks and infections from the COVID-19 CT Lung and Infection Segmentation Dataset (Ma et
al. 2020), every second slice, 256 x 256. **These slices are a hard and somewhat unfair
test**: they are 8-bit pictures, windowed and locally enhanced in a way nobody wrote
down. Their HU are estimated (see `hounsfield`) without a look at the masks, and their
pixel size is taken as {pixel} mm. Slices are masked one by one, since their distance is
not known either. {milliseconds} ms a slice on one core.

{real}

{share:.0f} % of the slices have a Dice above 0.9. The worst slices with at least 10 cm2
of lung (reference green, found red, both yellow):

![worst slices]({picture})

## {phantoms} phantom patients, 3 sections each

Here HU and pixel size are known. Disease is consolidation, the hardest to keep.

{made}

## {series} phantom series of {thin} thin slices

Masked as a volume, joined in depth, as `predict` does. The masks are told that slices lie
so far apart; those of a phantom lie further, so that less overlaps from one to the next
than in a patient.

{volumes}
"""


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice, `[H, W]` arrays: HU, the reference mask, the mask found, disease."""

    patient: str
    name: str
    hu: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    disease: np.ndarray

    @property
    def dice(self) -> float:
        return dice(self.mask, self.truth)


def hounsfield(grey: np.ndarray) -> np.ndarray:
    """Returns about the HU of slices `[Z, H, W]` uint8, int16.

    They were windowed and locally enhanced before they were published, and nothing says
    how. A line through two guesses, which see no mask: the usual grey of air is -1000
    HU, and Otsu's threshold between dark and light in that slice is -400 HU.
    """
    smooth = [ndimage.gaussian_filter(image.astype(np.float32), 1) for image in grey]
    middle = np.array([threshold_otsu(image) for image in smooth]).reshape(-1, 1, 1)
    hu = -1000 + (grey.astype(np.float32) - AIR_GREY) * 600 / (middle - AIR_GREY)
    return np.rint(np.clip(hu, -1100, 1500)).astype(np.int16)


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Returns 2 |A and B| / (|A| + |B|); 1 where both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def read(folder: Path, names: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(folder / name)) for name in names])


def covid(data: Path) -> Iterator[tuple]:
    """Yields (patient, names, hu, lungs, dense) of every patient."""
    by_patient = defaultdict(list)
    with (data / "slices.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            by_patient[row["patient"]].append(row["slice"])
    for patient, names in sorted(by_patient.items()):
        hu = hounsfield(read(data / "ct", names))
        infected = read(data / "infection", names) > 0
        lungs = read(data / "lungs", names) > 0
        yield patient, names, hu, lungs, infected


def outlined(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns RGB with the truth's outline in green, the mask's in red."""
    grey = np.clip((image.astype(np.float32) + 1350) / 1500, 0, 1) * 255
    picture = np.stack([grey] * 3, -1).astype(np.uint8)
    for channel, where in ((1, truth), (0, mask)):
        edge = where & ~ndimage.binary_erosion(where)
        picture[edge] = 0
        picture[edge, channel] = 255
    both = truth & ~ndimage.binary_erosion(truth) & mask & ~ndimage.binary_erosion(mask)
    picture[both] = (255, 255, 0)
    return picture


def measure_covid(data: Path) -> list[Slice]:
    """Returns the scores of every slice of the real patients."""
    scores = []
    for patient, names, hu, truth, infected in covid(data):
        mask = lung_mask(hu, (PIXEL_MM, PIXEL_MM))
        for z, name in enumerate(names):
            scores.append(
                Slice(patient, name, hu[z], truth[z], mask[z], infected[z] & truth[z])
            )
    return scores


def measure_phantoms(patients: int) -> list[Slice]:
    """Returns the scores of three sections of each phantom patient."""
    return [
        one
        for patient in range(patients)
        for one in masked(f"phantom-{patient:03d}", phantom_slices(patient, seed=1))
    ]


def measure_series(slices: int) -> list[Slice]:
    """Returns the scores of a phantom series a step of `STEPS_MM`, masked as volumes.

    Args:
      slices: Of each series.
    """
    scores = []
    # The patients have different diseases: see `DISEASES` in ct/phantom.py.
    for patient, step in enumerate(STEPS_MM, start=1):
        phantom = phantom_slices(patient, seed=2, slices=slices)
        scores += masked(f"phantom-{patient:03d}, {step:g} mm", phantom, step)
    return scores


def masked(name: str, phantom: Phantom, step: float | None = None) -> list[Slice]:
    """Returns the scores of a phantom's slices, `step` mm apart; None: one by one."""
    mask = lung_mask(phantom.hu, (step, phantom.spacing, phantom.spacing))
    consolidated = phantom.labels == 1 + CLASS_NAMES.index("consolidation")
    dense = phantom.lungs & consolidated
    stacks = zip(phantom.hu, phantom.lungs, mask, dense, strict=True)
    return [Slice(name, str(z), *arrays) for z, arrays in enumerate(stacks)]


def summary(slices: list[Slice]) -> list[dict[str, Any]]:
    """Returns the scores of each patient, by name, and of all."""
    by_patient = defaultdict(list)
    for one in slices:
        by_patient[one.patient].append(one)
    return [
        {
            "patient": name,
            "slices": len(members),
            "dice": pooled(members),
            "median": float(np.median([one.dice for one in members])),
            "worst": min(one.dice for one in members),
            "disease_kept": kept(members),
        }
        for name, members in [*sorted(by_patient.items()), ("all", slices)]
    ]


def each(slices: list[Slice]) -> list[dict[str, Any]]:
    """Returns the Dice of each slice."""
    return [{"patient": s.patient, "slice": s.name, "dice": s.dice} for s in slices]


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the Markdown table of some rows of `summary`."""
    lines = [
        "| patient | slices | Dice, all voxels | median slice | worst slice "
        "| disease kept |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        share = "" if row["disease_kept"] is None else f"{row['disease_kept']:.3f}"
        lines.append(
            f"| {row['patient']} | {row['slices']} | {row['dice']:.3f} "
            f"| {row['median']:.3f} | {row['worst']:.3f} | {share} |"
        )
    return "\n".join(lines)


def pooled(slices: list[Slice]) -> float:
    """Returns the Dice of all voxels of the slices taken together."""
    both = sum(int((s.mask & s.truth).sum()) for s in slices)
    total = sum(int(s.mask.sum()) + int(s.truth.sum()) for s in slices)
    return 2 * both / total if total else 1.0


def kept(slices: list[Slice]) -> float | None:
    """Returns the share of diseased voxels that the masks keep, None without any."""
    total = sum(int(s.disease.sum()) for s in slices)
    inside = sum(int((s.disease & s.mask).sum()) for s in slices)
    return inside / total if total else None


def failures(scores: list[Slice], path: Path, count: int = 12) -> None:
    """Draws the slices with the worst Dice: drawn mask green, ours red, both yellow.

    Slices with less than 10 cm^2 of lung are left out: there Dice punishes a few pixels.
    """
    fewest = 1000 / PIXEL_MM**2
    worst = sorted((s for s in scores if s.truth.sum() > fewest), key=lambda s: s.dice)
    figure, axes = plt.subplots(3, count // 3, figsize=(2.6 * count / 3, 8.4))
    for axis, score in zip(axes.flat, worst[:count], strict=True):
        axis.imshow(outlined(score.hu, score.truth, score.mask))
        axis.set_title(f"{score.patient}, {score.name}\nDice {score.dice:.2f}", size=8)
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder covid_ct")
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    parser.add_argument("--phantoms", type=int, default=24, help="phantom patients")
    parser.add_argument("--thin", type=int, default=12, help="slices a phantom series")
    options = parser.parse_args()
    began = time.perf_counter()
    real = measure_covid(options.data)
    seconds = time.perf_counter() - began
    made = measure_phantoms(options.phantoms)
    volumes = measure_series(options.thin)
    picture = options.out.with_suffix(".png")
    failures(real, picture)
    found = {
        "milliseconds_a_slice": round(1000 * seconds / len(real)),
        "share_above_0.9": float(np.mean([one.dice > 0.9 for one in real])),
        "real": summary(real),
        "phantoms": summary(made),
        "phantom_series": summary(volumes),
        "real_slices": each(real),
        "phantom_slices": each(made),
        "phantom_series_slices": each(volumes),
    }
    page = TEXT.format(
        phantoms=options.phantoms,
        slices=len(real),
        pixel=PIXEL_MM,
        milliseconds=found["milliseconds_a_slice"],
        share=100 * found["share_above_0.9"],
        real=table(found["real"]),
        made=table(found["phantoms"][-1:]),
        series=len(STEPS_MM),
        thin=options.thin,
        volumes=table(found["phantom_series"]),
        picture=picture.name,
    )
    pages.leave(options.out, found, page)


if __name__ == "__main__":
    main()
