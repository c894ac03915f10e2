"""A phantom with regions in every format."""

import shutil

import numpy as np
import pydicom
import pytest
import roi_files
from PIL import Image

from twostage_jax.ct.phantom import CLASS_NAMES, phantom_slices, write_patient
from twostage_jax.data import ct_patches

PATCHES = {"size": 6, "stride": 3, "coverage": 0.7, "lungs": "off", "per_class": 0}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Returns a folder of slices and masks, their data sets, labels `[Z, H, W]`, names."""
    folder = tmp_path_factory.mktemp("phantom") / "007"
    made = phantom_slices(7, slices=3, matrix=96)
    write_patient(folder, made)
    images = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    used = [k for k in np.unique(made.labels) if k]
    labels = np.zeros_like(made.labels)
    for index, value in enumerate(used):
        labels[made.labels == value] = index + 1
    for image, mask in zip(images, labels, strict=True):
        Image.fromarray(mask).save(folder / "rois" / f"{image.SOPInstanceUID}.png")
    return folder, images, labels, [CLASS_NAMES[k - 1] for k in used]


def write_slices(phantom, folder, *, from_feet=False):
    """Writes the slices of the phantom; InstanceNumber 1 is at the head by default."""
    paths = sorted(phantom[0].glob("*.dcm"))
    for path, other in zip(paths, reversed(paths), strict=True):
        if from_feet:
            image = pydicom.dcmread(path)
            image.InstanceNumber = len(paths) + 1 - image.InstanceNumber
            image.save_as(folder / other.name)
        else:
            shutil.copy(path, folder / path.name)


def write(form, phantom, folder):
    """Writes the phantom's regions into a folder."""
    _, images, labels, names = phantom
    drawn = list(roi_files.polygons(labels, names))
    # Series are ordered from the feet to the head, these slices from the head.
    stack = labels[::-1]
    uid = images[0].SeriesInstanceUID
    if form == "tiff":
        first, *rest = [Image.fromarray(mask) for mask in stack]
        first.save(folder / f"{uid}.tif", save_all=True, append_images=rest)
    elif form == "npy":
        np.save(folder / f"{uid}.npy", stack)
    elif form == "nifti":
        roi_files.write_nifti(folder / "any.nii.gz", images, labels)
    elif form.startswith("seg"):
        kind = form.removeprefix("seg").strip().upper() or "BINARY"
        roi_files.write_seg(folder / "any", images, labels, names, kind=kind)
    elif form == "rtstruct":
        roi_files.write_rtstruct(folder / "any", images, drawn, names)
    elif form == "csv":
        roi_files.write_csv(folder / "any.csv", images, drawn)
    elif form == "medgift":
        roi_files.write_medgift(folder / "any.txt", images, drawn)


def cut(path, names, rois="", **settings):
    recipe = ct_patches.recipe(
        path=str(path),
        rois=str(rois),
        classes=",".join(names),
        **{**PATCHES, **settings},
    )
    (patient,) = recipe.tasks
    return recipe.make(patient)
