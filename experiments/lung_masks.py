"""Compares the rule-based lung masks with manual masks and with those of phantoms.

    python experiments/lung_masks.py --data=DATA --trunk=FOLDER \\
        --out=experiments/lung_masks.md

`--data` holds a folder `covid_ct` of 8-bit slices, lung masks, infection masks and
slices.csv (see the data source 'slices'), and a folder `ct_dicom` of DICOM slices.
`--trunk` is the folder tests/reference_files of github.com/wasserth/TotalSegmentator.
Writes the tables and a sheet of the worst slices next to them. Minutes on a CPU.
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
import nibabel
import numpy as np
import pages
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

from twostage_jax.ct import lungs as lungs_module
from twostage_jax.ct.lungs import find_lungs, lung_mask
from twostage_jax.ct.phantom import CLASS_NAMES, Phantom, phantom_slices
from twostage_jax.ct.series import find_series, read_volume

# Half of the usual 512 pixels over 360 mm, because the slices do not give it.
PIXEL_MM = 1.4
# Grey level of the air around the patients: median of the most frequent level of each.
AIR_GREY = 29.0
# Millimetres between slices of the phantom series, over the range in which slices are
# joined.
STEPS_MM = (1.0, 1.5, 2.5, 5.0)
# Files of ct_dicom whose slice shows the abdomen, and those that show the bases of the
# lungs with gas in the stomach, by visual inspection.
ABDOMEN = (
    "19001127-136",
    "19010108-078",
    "19001231-084",
    "19000925-116",
    "19001231-131",
    "19001228-131",
)
STOMACH = ("19001006-028", "19001231-270")
# Distances to the ribs that are compared, mm, including that of the package.
RIBS_MM = (4.0, 8.0, 12.0, 16.0, 24.0)
TEXT = """# Lung masks without training

    python experiments/lung_masks.py --data=DATA --trunk=FOLDER \\
        --out=experiments/lung_masks.md

`ct/lungs.py` finds the lungs by threshold and morphology. Here its masks are compared
with manual masks and with the true masks of phantoms, and cases in which gas in the
abdomen is taken for lung are counted. Dice = 2 |A and B| / (|A| + |B|). "Disease kept"
is the fraction of the voxels marked as disease, inside the reference mask, that the
found mask contains. As JSON, with each phantom and each slice:
[lung_masks.json](lung_masks.json).

## {slices} slices of 17 patients with COVID-19

Masks and infections from the COVID-19 CT Lung and Infection Segmentation Dataset (Ma et
al. 2020), every second slice, 256 x 256. **These slices are a hard and somewhat unfair
test**: they are 8-bit images, windowed and locally enhanced in an undocumented way.
Their HU are estimated without the masks (see `hounsfield` in `lung_masks.py`), and
their pixel size is assumed to be {pixel} mm. Slices are masked one by one, since their
spacing is unknown, too. {milliseconds} ms per slice on one core.

{real}

Before gas was judged by the ribs, Dice was 0.904 and disease kept 0.843 over all
voxels. {share:.0f} % of the slices have a Dice above 0.9. The worst slices with at
least 10 cm2 of lung (reference green, found red, both yellow):

![worst slices]({picture})

## 20 single slices of 10 patients, six of them of the abdomen

DICOM slices of COVID-19-NY-SBU (The Cancer Imaging Archive), labelled by eye: six show
the abdomen, two the bases of the lungs with gas in the stomach. "Gas" is the fraction
of the air inside the body that was taken for gas in stomach or bowel. Before gas was
judged by the ribs, two of the six abdominal slices had a mask, and the gas in both
stomachs counted as lung.

{dicom}

A piece of air counts as lung if a rib lies within 12 mm outside of it. That distance
was chosen on these slices. Errors with other distances, in patients with even and with
odd numbers (an abdominal slice with a mask, or a slice of the chest that loses more
than 3 % of the largest mask):

{ribs}

Each half alone allows 12 mm, which makes no error in the other half. From 16 mm on, the
gas in the stomach of 19001006-028 counts as lung. Ten patients are too few to
distinguish an error rate of several per cent from none.

## A trunk of 112 slices

CT of TotalSegmentator's tests, 3 mm, from the thighs to the bases of the lungs, with
bowel full of gas under the ribs. The reference is TotalSegmentator's mask, for the
upper 30 slices. This trunk was used when the rules were chosen.

| slices taken | Dice, all voxels | ml found | ml of reference | ml in the lower 82 slices |
|---|--:|--:|--:|--:|
{trunk}

## {heavy} constructed slices of heavy consolidation, {abdomens} of the abdomen

Phantoms in which the lower 40 to 85 % of the lungs are consolidated, with bronchi; and
phantoms without lungs, with four to eight gas-filled loops 15 mm or more from the ribs,
which suits the rule. Of {abdomens} abdominal slices, {wrong} have a mask; {sure} of
these without a doubt. **Solid consolidation of whole lower lobes is lost**: without
air, it looks like the chest wall. Use external masks for such patients
(`--lungs=FOLDER`).

{solid}

## {phantoms} phantom patients, 3 sections each

Here HU and pixel size are known. Disease is consolidation, the hardest class to keep.

{made}

## {series} phantom series of {thin} thin slices

Masked as a volume, joined in depth, as `predict` does. The masks use the stated
spacing; the sections of a phantom lie further apart, so that neighbouring slices
overlap less than in a patient.

{volumes}
"""


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: HU, reference mask, found mask and disease, `[H, W]` each."""

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
    """Returns estimates of the HU of slices `[Z, H, W]` uint8, as int16.

    They were windowed and locally enhanced before they were published, and nothing says
    how. A line through two guesses, which see no mask: the usual grey of air is -1000
    HU, and Otsu's threshold between dark and light in that slice is -400 HU.
    """
    smooth = [ndimage.gaussian_filter(image.astype(np.float32), 1) for image in grey]
    middle = np.array([threshold_otsu(image) for image in smooth]).reshape(-1, 1, 1)
    hu = -1000 + (grey.astype(np.float32) - AIR_GREY) * 600 / (middle - AIR_GREY)
    return np.rint(np.clip(hu, -1100, 1500)).astype(np.int16)


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Returns the Dice coefficient 2 |A and B| / (|A| + |B|); 1 if both are empty."""
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
    """Returns an RGB image with the outline of the truth in green, of the mask in red."""
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
    """Returns the scores of a phantom series per step of `STEPS_MM`, masked as volumes.

    Args:
      slices: Number of slices of each series.
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


def measure_dicom(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the lungs found on each slice of `ct_dicom`, and the choice of a distance."""
    found, _ = find_series(folder)
    slices = [(one, read_volume(one)) for one in found]
    patients = sorted({one.headers[0].path.parent.name for one in found})
    areas = defaultdict(dict)
    rows = []
    for mm in RIBS_MM:
        kept, lungs_module.RIB_MM = lungs_module.RIB_MM, mm
        for one, hu in slices:
            header = one.headers[0]
            result = find_lungs(hu, header.spacing)
            area = float(result.mask.sum() * np.prod(header.spacing) / 100)
            areas[header.path.stem][mm] = area
            if mm == kept:
                name = header.path.stem
                rows.append(
                    {
                        "slice": name,
                        "by_eye": "abdomen"
                        if name in ABDOMEN
                        else "bases, stomach gas"
                        if name in STOMACH
                        else "chest",
                        "patient": patients.index(header.path.parent.name),
                        "lung_cm2": area,
                        "gas": result.gas[0],
                        "doubt": result.doubts[0],
                    }
                )
        lungs_module.RIB_MM = kept
    errors = []
    for mm in RIBS_MM:
        wrong = [0, 0]
        for row in rows:
            own = areas[row["slice"]]
            lost = own[mm] < 0.97 * max(own.values())
            bad = own[mm] > 0 if row["by_eye"] == "abdomen" else lost
            # With gas in the stomach, the largest mask contains it.
            if row["by_eye"] != "bases, stomach gas":
                wrong[row["patient"] % 2] += bool(bad)
        errors.append({"mm": mm, "even": wrong[0], "odd": wrong[1]})
    return sorted(rows, key=lambda row: (row["by_eye"], row["slice"])), errors


def measure_trunk(folder: Path) -> list[dict[str, Any]]:
    """Returns the scores of TotalSegmentator's test CT, whole and slice by slice."""

    def volume(name: str) -> np.ndarray:
        image = nibabel.as_closest_canonical(nibabel.load(folder / name))
        return np.asanyarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, ::-1]

    hu = volume("example_ct.nii.gz").astype(np.int16)
    lobes = volume("example_seg.nii.gz")
    truth = np.zeros(hu.shape, bool)
    truth[-len(lobes) :] = (lobes >= 10) & (lobes <= 14)
    rows = []
    for how, step in (("as a volume", 3.0), ("one by one", None)):
        mask = lung_mask(hu, (step, 3.0, 3.0))
        below = mask[: -len(lobes)].sum()
        ml = [float(m.sum() * 0.027) for m in (mask, truth, below)]
        rows.append(
            {
                "how": how,
                "dice": dice(mask, truth),
                **dict(zip(("found_ml", "reference_ml", "below_ml"), ml, strict=True)),
            }
        )
    return rows


def measure_constructed(count: int) -> tuple[list[Slice], list[tuple[bool, str]]]:
    """Returns scores of heavily consolidated lungs; (mask, doubt) of abdomens."""
    solid, abdomens = [], []
    for patient in range(count):
        rng = np.random.default_rng(patient)
        phantom = phantom_slices(patient, seed=3, slices=1)
        hu, lungs, mm = phantom.hu[0].astype(float), phantom.lungs[0], phantom.spacing
        rows, columns = np.nonzero(lungs)
        start = np.quantile(rows, 1 - rng.uniform(0.4, 0.85))
        y, x = np.indices(lungs.shape)
        disease = lungs & (y > start + 6 / mm * np.sin(x * mm / 15))
        bronchi = ndimage.gaussian_filter(rng.normal(size=lungs.shape), 2.5 / mm)
        bronchi = disease & (bronchi > np.quantile(bronchi, 0.97))
        noise = rng.normal(0, 20, lungs.shape)
        dense = np.where(bronchi, -700, 40)
        made = np.where(disease, ndimage.gaussian_filter(dense, 0.7 / mm) + noise, hu)
        mask = lung_mask(np.rint(made).astype(np.int16)[None], (mm, mm))[0]
        name = f"constructed-{patient:03d}"
        solid.append(Slice(name, "0", made.astype(np.int16), lungs, mask, disease))
        tissue = ndimage.binary_fill_holes(
            lungs | (ndimage.gaussian_filter(hu, 1) > -200)
        )
        body = ndimage.distance_transform_edt(tissue) * mm
        empty = np.where(ndimage.binary_dilation(lungs, iterations=3), 30, hu)
        cavity = (
            ndimage.distance_transform_edt(~(ndimage.gaussian_filter(empty, 1) > 180))
            * mm
        )
        gas = np.zeros(lungs.shape, bool)
        for _ in range(rng.integers(4, 9)):
            row = rng.uniform(rows.min(), np.median(rows))
            column = rng.uniform(columns.min(), columns.max())
            tall, wide = rng.uniform(4, 22, 2) / mm
            gas |= ((y - row) / tall) ** 2 + ((x - column) / wide) ** 2 <= 1
        gas &= (cavity > 15) & (body > 25)
        made = ndimage.gaussian_filter(np.where(gas, -1000, empty), 0.8 / mm) + noise
        result = find_lungs(np.rint(made).astype(np.int16)[None], (mm, mm))
        abdomens.append((bool(result.mask.any()), result.doubts[0]))
    return solid, abdomens


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


def plain(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pooled(slices: list[Slice]) -> float:
    """Returns the Dice of all voxels of the slices taken together."""
    both = sum(int((s.mask & s.truth).sum()) for s in slices)
    total = sum(int(s.mask.sum()) + int(s.truth.sum()) for s in slices)
    return 2 * both / total if total else 1.0


def kept(slices: list[Slice]) -> float | None:
    """Returns the fraction of diseased voxels inside the masks, None without any."""
    total = sum(int(s.disease.sum()) for s in slices)
    inside = sum(int((s.disease & s.mask).sum()) for s in slices)
    return inside / total if total else None


def failures(scores: list[Slice], path: Path, count: int = 12) -> None:
    """Draws the slices with the lowest Dice: manual mask green, ours red, both yellow.

    Slices with less than 10 cm^2 of lung are excluded: there Dice punishes a few pixels.
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
    parser.add_argument("--data", type=Path, required=True, help="real data")
    parser.add_argument("--trunk", type=Path, required=True, help="see the module")
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    parser.add_argument("--phantoms", type=int, default=24, help="phantom patients")
    parser.add_argument("--thin", type=int, default=12, help="slices a phantom series")
    options = parser.parse_args()
    began = time.perf_counter()
    real = measure_covid(options.data / "covid_ct")
    seconds = time.perf_counter() - began
    made = measure_phantoms(options.phantoms)
    volumes = measure_series(options.thin)
    dicom, ribs = measure_dicom(options.data / "ct_dicom")
    trunk = measure_trunk(options.trunk)
    solid, abdomens = measure_constructed(2 * options.phantoms)
    picture = options.out.with_suffix(".jpg")
    failures(real, picture)
    found = {
        "milliseconds_a_slice": round(1000 * seconds / len(real)),
        "share_above_0.9": float(np.mean([one.dice > 0.9 for one in real])),
        "real": summary(real),
        "phantoms": summary(made),
        "phantom_series": summary(volumes),
        "ct_dicom": dicom,
        "distance_to_ribs": ribs,
        "trunk": trunk,
        "heavy_consolidation": summary(solid),
        "abdomens_with_a_mask": [doubt for found, doubt in abdomens if found],
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
        dicom=plain(
            ("slice", "by eye", "lung, cm2", "gas", "doubt"),
            [
                (
                    row["slice"],
                    row["by_eye"],
                    f"{row['lung_cm2']:.1f}",
                    f"{row['gas']:.2f}",
                    row["doubt"],
                )
                for row in dicom
            ],
        ),
        ribs=plain(
            ("distance, mm", "errors, even patients", "errors, odd patients"),
            [(f"{row['mm']:g}", str(row["even"]), str(row["odd"])) for row in ribs],
        ),
        trunk="\n".join(
            f"| {row['how']} | {row['dice']:.3f} | {row['found_ml']:.0f} "
            f"| {row['reference_ml']:.0f} | {row['below_ml']:.0f} |"
            for row in trunk
        ),
        heavy=len(solid),
        abdomens=len(abdomens),
        wrong=sum(found for found, _ in abdomens),
        sure=sum(found and not doubt for found, doubt in abdomens),
        solid=table(summary(solid)[-1:]),
        series=len(STEPS_MM),
        thin=options.thin,
        volumes=table(found["phantom_series"]),
        picture=picture.name,
    )
    pages.leave(options.out, found, page)


if __name__ == "__main__":
    main()
