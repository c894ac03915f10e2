"""Patches of HRCT phantoms: seven lung textures, by the path that real files take.

Each patient is drawn, written as a DICOM series with region masks into a temporary
folder, and read back as `ct_patches` reads a real one.
"""

import functools
import tempfile
from pathlib import Path

from twostage_jax.ct.phantom import CLASS_NAMES, DISEASES, phantom_slices, write_patient
from twostage_jax.data.ct_patches import Cut, check, patient_examples
from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.errors import UserError

# Bump when the same settings give other images or facts.
VERSION = 2
# All classes are there from this many patients on: see `DISEASES`.
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
    """Returns the recipe of phantom patches in HU, one task a patient.

    With the defaults about 3,000 patches: about 1,100 normal, 200 to 400 of each
    disease from 9 or 10 patients.

    Args:
      size: Height and width of a patch, pixels (0.65 to 0.9 mm each).
      channels: Ignored: HU have one channel.
      patients: Phantom patients, the groups of the set; at least 4. Of each 12, 4 have
        a given disease.
      slices: Axial sections a patient.
      stride: Distance between neighbouring patches, pixels.
      coverage: Share of a patch that its region must cover at least.
      per_class: Most patches of one class and patient, drawn at random; 0 = all.
      spacing: Millimetres a pixel to which sections are resampled; None = as they are.
      seed: Seed of the phantoms and of the draw.

    Raises:
      UserError: A setting is impossible.
    """
    check(Cut(size=size, stride=stride, coverage=coverage, per_class=per_class))
    for name, value, fewest in (
        ("patients", patients, FEWEST_PATIENTS),
        ("slices", slices, 1),
        ("seed", seed, 0),
    ):
        if value < fewest:
            raise UserError(
                f"phantoms: {name} is {value}: at least {fewest} needed.", where=name
            )
    if spacing is not None and not 0.1 <= spacing <= 5:
        raise UserError(
            f"phantoms: spacing is {spacing}: expected 0.1 to 5 mm.", where="spacing"
        )
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
