"""Runs `python -m twostage_jax.prepare`, and reads its tables."""

import csv
import re
import subprocess
import sys

import numpy as np
from ct_files import SERIES, write_marked


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
    mask = np.zeros((matrix, matrix), np.uint8)
    mask[:, : matrix // 2], mask[:, matrix // 2 :] = 1, 2
    for number, name in enumerate(patients):
        stored = np.random.default_rng(number).integers(0, 1500, (2, matrix, matrix))
        write_marked(
            root / f"{number}-{re.sub(r'[^A-Za-zЖ]', '', name)[:80]}-19471102",
            stored.astype(np.int16),
            [mask] * 2,
            name="20190304-{}",
            uid=10 * number + 1,
            step=5,
            SeriesInstanceUID=f"{SERIES}.77.{number}",
            SpecificCharacterSet="ISO_IR 192",
            PatientID=name[:64] if number == 3 else name,
            PatientName=name[:64],
            PatientBirthDate="19471102",
            StudyDate="20190304",
            InstitutionName="St. Mary",
            AccessionNumber="ACC778",
        )
