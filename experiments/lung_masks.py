"""How well the rule-based lung masks fit masks drawn by people, and phantoms' own.

    python experiments/lung_masks.py --data=FOLDER --out=experiments/lung_masks.md

`--data` is a folder `covid_ct` of 8-bit slices, lung masks, infection masks and
slices.csv (see the data source 'slices'). Writes the table of Dice scores and a sheet
of the worst slices beside it. Minutes on a CPU.
"""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_otsu

# Half of the usual 512 pixels over 360 mm; the slices do not say.
PIXEL_MM = 1.4
# Grey level of the air around the patients: the median of the patients' commonest one.
AIR_GREY = 29.0


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


def covid(data: Path):
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
