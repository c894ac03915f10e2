"""Runs `python -m twostage_jax.prepare`, and reads its tables."""

import csv
import re
import subprocess
import sys

import numpy as np
from ct_files import SERIES, write_ct
from PIL import Image


def run(*arguments, check=True):
    result = subprocess.run(
        [sys.executable, "-m", "twostage_jax.prepare", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or result.returncode == 0, result.stderr
    return result


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# Names that must not appear in any output; some are hostile.
NAMES = ("Smith^Anna", "../../escape", "<script>alert(1)</script>", "Ж" * 300)


def write_archive(root, patients=NAMES, matrix=24):
    """Writes a folder per patient, with the patient's name, two slices and masks."""
    for number, name in enumerate(patients):
        folder = root / f"{number}-{re.sub(r'[^A-Za-zЖ]', '', name)[:80]}-19471102"
        (folder / "rois").mkdir(parents=True)
        rng = np.random.default_rng(number)
        for z in range(2):
            uid = 10 * number + z + 1
            write_ct(
                folder / f"20190304-{z}",
                rng.integers(0, 1500, (matrix, matrix)).astype(np.int16),
                uid=uid,
                SeriesInstanceUID=f"{SERIES}.77.{number}",
                SpecificCharacterSet="ISO_IR 192",
                PatientID=name[:64] if number == 3 else name,
                PatientName=name[:64],
                PatientBirthDate="19471102",
                StudyDate="20190304",
                InstitutionName="St. Mary",
                AccessionNumber="ACC778",
                ImagePositionPatient=[0, 0, 5 * z],
            )
            mask = np.zeros((matrix, matrix), np.uint8)
            mask[:, : matrix // 2], mask[:, matrix // 2 :] = 1, 2
            Image.fromarray(mask).save(folder / "rois" / f"{SERIES}.{uid}.png")
