"""Patches of annotated regions from folders of DICOM patients, in HU.

    <path>/<any name of the patient>/*.dcm            any names, sub-folders too
                                    /rois/<SOPInstanceUID>.png   0, or 1 + class index
                                    /lungs/<SOPInstanceUID>.png  optional, 0 or not 0

or, as the MedGIFT database has it, `CT-*-NNNN.dcm` files and one `.txt` of contours
in each patient's folder.
"""

import functools
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from twostage_jax.ct import patches, rois
from twostage_jax.ct.dicom import Header, patient_hash, read_slice
from twostage_jax.ct.series import scan
from twostage_jax.data import annotations, files
from twostage_jax.data.dataset import Example, Recipe, digest
from twostage_jax.errors import UserError

VERSION = 1


def recipe(
    *,
    path: str,
    size: int = 32,
    channels: int = 1,
    classes: str = "",
    stride: int = 16,
    coverage: float = 0.75,
    lungs: bool = True,
    per_class: int = 100,
    spacing: float | None = None,
    salt: str = "",
    seed: int = 0,
) -> Recipe:
    """Returns the recipe of the patches below `path`, one task a patient folder.

    Args:
      path: Folder with one folder a patient.
      size: Height and width of a patch, pixels.
      channels: Ignored: HU have one channel.
      classes: Class names in the order of the mask values 1, 2, ...: 'normal,ggo', or
        the name of a file below `path`: JSON (a list of names) or CSV (columns value,
        name). Empty: `classes.json` or `classes.csv`; for MedGIFT folders all labels
        that occur. MedGIFT labels that are not named are left out.
      stride: Distance between neighbouring patches, pixels.
      coverage: Share of a patch that its region must cover at least.
      lungs: Count only what lies inside the `lungs` masks, where there are any.
      per_class: Most patches of one class and patient, drawn at random; 0 = all.
      spacing: Millimetres a pixel to which slices are resampled; None = as they are.
      salt: Secret mixed into the patients' hashes.
      seed: Of the random draw.

    Raises:
      UserError: A setting is impossible, or the folder holds no annotated patient.
    """
    root = files.below(Path(path), "path")
    check_cut(
        size=size, stride=stride, coverage=coverage, per_class=per_class, seed=seed
    )
    if spacing is not None and not (math.isfinite(spacing) and spacing > 0):
        raise UserError(f"spacing is {spacing}: it must be positive (mm a pixel).")
    folders = [
        f for f in sorted(root.iterdir()) if f.is_dir() and annotations.is_annotated(f)
    ]
    if not folders:
        raise UserError(
            f"{root}: no folder in it has a sub-folder 'rois' or a MedGIFT .txt file."
        )
    settings = {
        "class_names": annotations.class_names_of(root, folders, classes),
        "size": size,
        "stride": stride,
        "coverage": coverage,
        "lungs": lungs,
        "per_class": per_class,
        "spacing": spacing,
        "salt": salt,
        "seed": seed,
    }
    read = (f for folder in folders for f in folder.rglob("*") if f.is_file())
    key = digest("dicom", VERSION, settings, files.stamps(root, read))
    return Recipe(
        name="dicom",
        kind="ct",
        class_names=settings["class_names"],
        key=key,
        tasks=tuple(folders),
        make=functools.partial(patient_examples, **settings),
    )


def patient_examples(
    folder: Path,
    *,
    class_names: Sequence[str],
    size: int,
    stride: int,
    coverage: float,
    lungs: bool = True,
    per_class: int = 0,
    spacing: float | None = None,
    salt: str = "",
    seed: int = 0,
) -> list[Example]:
    """Returns the patches of one patient's folder: `[size, size, 1]` int16 HU.

    The group is the salted hash of the PatientID, or of the folder's name where the
    files have none. For the other arguments see `recipe`.

    Raises:
      UserError: A file cannot be trusted, a mask does not fit its slice, or the folder
        holds several patients.
    """
    folder = Path(folder)
    headers, skipped = scan(folder, salt=salt, leave_out=("rois", "lungs"))
    for path, reason in skipped:
        if path.suffix.lower() != ".txt":
            logging.info("left out: %s: %s", path, reason)
    if not headers:
        raise UserError(f"{folder}: holds no CT slices.")
    patient = _patient(folder, headers, salt)
    labelled = annotations.labelled_slices(folder, headers, class_names)
    lung_masks = _lung_masks(folder, headers, labelled) if lungs else {}
    found = []
    for number, (header, load) in enumerate(labelled):
        shape = _shape(header, spacing)
        patches.check_size(shape, size, header.path)
        inside = lung_masks.get(header.sop_uid)
        cuts = patches.positions(
            patches.resample_mask(load(), shape),
            size=size,
            stride=stride,
            coverage=[coverage] * len(class_names),
            lungs=None
            if inside is None
            else patches.resample_mask(inside() > 0, shape),
        )
        found += [(number, *map(int, cut)) for cut in cuts]
    chosen = patches.choose(
        np.array([cut[3] for cut in found], int),
        per_class=per_class,
        seed=seed,
        patient=patient,
    )
    by_slice = defaultdict(list)
    for index in chosen:
        by_slice[found[index][0]].append(found[index][1:])
    return [
        example
        for number, cuts in by_slice.items()
        for example in _cut(labelled[number][0], cuts, size, spacing, patient, salt)
    ]


def check_cut(
    *, size: int, stride: int, coverage: float, per_class: int, seed: int = 0
) -> None:
    """Raises a UserError for settings of patches that are impossible."""
    for name, value in (("size", size), ("stride", stride)):
        if value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1 pixel.")
    if not 0 < coverage <= 1:
        raise UserError(f"coverage is {coverage}: it must be above 0, at most 1.")
    if per_class < 0:
        raise UserError(f"per_class is {per_class}: a number of patches, or 0 for all.")
    if seed < 0:
        raise UserError(f"seed is {seed}: it must not be negative.")


def slice_hash(uid: str, salt: str) -> str:
    """Returns a short name of a slice that does not give its UID away."""
    return "slice-" + patient_hash(uid, salt).removeprefix("patient-")


def _cut(
    header: Header,
    cuts: list[tuple[int, int, int]],
    size: int,
    spacing: float | None,
    patient: str,
    salt: str,
) -> list[Example]:
    hu = read_slice(header.path, salt)[1]
    shape = _shape(header, spacing)
    if shape != hu.shape:
        hu = np.rint(patches.resample_image(hu, shape)).astype(np.int16)
    name = f"{patient}/{slice_hash(header.sop_uid, salt)}"
    return [
        Example(
            id=f"{name}/r{row:04d}c{column:04d}",
            image=hu[row : row + size, column : column + size, None].copy(),
            label=label,
            group=patient,
        )
        for row, column, label in cuts
    ]


def _lung_masks(
    folder: Path, headers: Sequence[Header], labelled: annotations.Labelled
) -> dict[str, rois.Load]:
    if not (folder / "lungs").is_dir():
        return {}
    masks = rois.masks_of(folder / "lungs", headers)
    for header, _ in labelled:
        if header.sop_uid not in masks:
            raise UserError(f"{header.path}: has regions, but no lung mask in 'lungs'.")
    return masks


def _shape(header: Header, spacing: float | None) -> tuple[int, int]:
    if spacing is None:
        return header.shape
    if header.spacing is None:
        raise UserError(
            f"{header.path}: PixelSpacing is missing, so it cannot be resampled to "
            f"{spacing} mm a pixel."
        )
    return patches.resampled_shape(header.shape, header.spacing, spacing, header.path)


def _patient(folder: Path, headers: Sequence[Header], salt: str) -> str:
    first = headers[0]
    for header in headers:
        if header.patient != first.patient:
            raise UserError(
                f"{folder}: holds several patients: {first.path.name} and "
                f"{header.path.name} have unlike PatientIDs. One folder a patient."
            )
    return first.patient or patient_hash(f"folder {folder.name}", salt)
