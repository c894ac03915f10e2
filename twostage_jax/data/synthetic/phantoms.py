"""Patches of HRCT phantoms with seven lung textures, read like real DICOM files.

Each patient is drawn, written as a DICOM series with region masks to a temporary folder,
and read back as `ct_patches` reads a real one.
"""

import functools
import tempfile
from pathlib import Path

from twostage_jax.ct.patches import Cut, check
from twostage_jax.ct.phantom import CLASS_NAMES, DISEASES, phantom_slices, write_patient
from twostage_jax.data import synthetic
from twostage_jax.data.ct_patches import patient_examples
from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.errors import require

# Bump when the same settings give different images or facts.
VERSION = 2
# Fewer patients would not have all classes: see `DISEASES`.
FEWEST_PATIENTS = 4


def recipe(
    *,
    size: int = 32,
    channels: int = 1,
    patients: int = 28,
    slices: int = 3,
    stride: int = 16,
    coverage: float = 0.7,
    per_class: int = 40,
    spacing: float | None = None,
    seed: int = 0,
) -> Recipe:
    """Returns the recipe of phantom patches in HU, one task per patient.

    The defaults give about 3,000 patches: about 1,100 normal ones, and 200 to 400 of each
    disease, from 9 or 10 patients.

    Args:
      size: Height and width of a patch, pixels (0.65 to 0.9 mm each).
      channels: Ignored: HU have one channel.
      patients: Number of phantom patients, which are the groups of the set; at least 4.
        In every 12 patients, 4 have a given disease.
      slices: Number of axial sections per patient.
      stride: Distance between neighbouring patches, pixels.
      coverage: Smallest fraction of a patch that its region covers, above 0 to 1.
      per_class: Largest number of patches per class and patient, drawn at random; 0 =
        all.
      spacing: Millimetres per pixel to which sections are resampled, 0.1 to 5; None = do
        not resample.
      seed: Seed of the phantoms and of the random draw.

    Raises:
      UserError: A setting is out of its range.
    """
    limits = {
        "patients": (patients, FEWEST_PATIENTS, None),
        "slices": (slices, 1, None),
        "seed": (seed, 0, None),
    }
    synthetic.check(channels, limits)
    check(Cut(size=size, stride=stride, coverage=coverage, per_class=per_class))
    possible = spacing is None or 0.1 <= spacing <= 5
    require(possible, "spacing", spacing, "0.1 to 5 mm")
    cut = {
        "size": size,
        "stride": stride,
        "coverage": coverage,
        "per_class": per_class,
        "spacing": spacing,
        "seed": seed,
    }
    return Recipe(
        name="phantoms",
        kind="ct",
        class_names=CLASS_NAMES,
        key=digest("phantoms", VERSION, CLASS_NAMES, DISEASES, patients, slices, cut),
        tasks=tuple(range(patients)),
        make=functools.partial(_patient, slices=slices, seed=seed, cut=cut),
        synthetic=True,
    )


def _patient(patient: int, *, slices: int, seed: int, cut: dict) -> list[Example]:
    phantom = phantom_slices(patient, seed=seed, slices=slices)
    with tempfile.TemporaryDirectory(prefix="phantom-") as folder:
        write_patient(Path(folder), phantom, seed=seed)
        return patient_examples(Path(folder), class_names=CLASS_NAMES, **cut)
