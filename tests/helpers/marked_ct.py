"""Writes a patient with one CT slice and its regions."""

import numpy as np
from ct_files import SERIES, write_ct
from PIL import Image

# HU of the slice at row r, column c: 10 r + c - 500.
RAMP = (10 * np.arange(8)[:, None] + np.arange(8) + 524).astype(np.int16)


def write_patient(folder, *, patient="p1", labels=None, lungs=None, uid=5, **tags):
    (folder / "rois").mkdir(parents=True)
    write_ct(folder / "one.dcm", RAMP, uid=uid, PatientID=patient, **tags)
    if labels is None:
        labels = np.zeros((8, 8), np.uint8)
        labels[:, :4], labels[:, 4:] = 1, 2
    Image.fromarray(labels).save(folder / "rois" / f"{SERIES}.{uid}.png")
    if lungs is not None:
        (folder / "lungs").mkdir()
        Image.fromarray(lungs).save(folder / "lungs" / f"{SERIES}.{uid}.png")
