"""Writes tiny DICOM files."""

import shutil
import subprocess

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from twostage_jax.ct.decode import quiet

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
SERIES = "1.2.826.0.1.3680043.8.498.1"
# HU of the slice at row r, column c: 10 r + c - 500.
RAMP = (10 * np.arange(8)[:, None] + np.arange(8) + 524).astype(np.int16)


def write_ct(path, stored, *, uid=1, raw=None, **tags):
    """Writes `stored` `[H, W]` int16 or uint16; a tag given as None is omitted.

    Tags may have values that DICOM forbids, such as texts in place of numbers.
    """
    stored = np.asarray(stored)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_IMAGE
    meta.MediaStorageSOPInstanceUID = f"{SERIES}.{uid}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    values = {
        "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": f"{SERIES}.{uid}",
        "SeriesInstanceUID": SERIES,
        "Modality": "CT",
        "PatientID": "Smith^1",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelSpacing": [0.5, 0.5],
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        **tags,
    }
    values.setdefault("HighBit", values["BitsStored"] - 1)
    body = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    with quiet(), pydicom.config.disable_value_validation():
        for keyword, value in values.items():
            if value is not None:
                _add(dataset, keyword, value)
        dataset.add_new("PixelData", "OW", body if raw is None else raw)
        dataset.save_as(path, enforce_file_format=True)
    return path


def _add(dataset, keyword, value):
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag)
    if keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        dataset.add_new(tag, "SS" if value < 0 else "US", value)
    elif vr == "DS" and any(isinstance(v, str) for v in np.ravel(value)):
        dataset.add(pydicom.DataElement(tag, vr, value, already_converted=True))
    else:
        setattr(dataset, keyword, value)


def write_marked(folder, stored, masks=(), *, name="{}", uid=1, step=1, **tags):
    """Writes slices `step` mm apart, and a mask `[H, W]` uint8 (or None) of the first ones.

    Args:
      folder: New folder; masks are in its sub-folder `rois`.
      stored: Stored values of each slice.
      masks: Masks, named after the SOPInstanceUIDs.
      name: Pattern of the names of the slices' files.
      uid: Number of the first slice; see `write_ct`.
      step: Distance between slices, mm.
      tags: Tags as in `write_ct`.
    """
    (folder / "rois").mkdir(parents=True)
    for z, image in enumerate(stored):
        place = {"ImagePositionPatient": [0, 0, step * z]}
        write_ct(folder / name.format(z), image, uid=uid + z, **{**place, **tags})
    for z, mask in enumerate(masks):
        if mask is not None:
            Image.fromarray(mask).save(folder / "rois" / f"{SERIES}.{uid + z}.png")


def write_patient(folder, *, patient="p1", labels=None, lungs=None, uid=5, **tags):
    """Writes a patient with one slice, `RAMP`, half of it of each of two classes."""
    if labels is None:
        labels = np.zeros((8, 8), np.uint8)
        labels[:, :4], labels[:, 4:] = 1, 2
    write_marked(
        folder, [RAMP], [labels], name="one.dcm", uid=uid, PatientID=patient, **tags
    )
    if lungs is not None:
        (folder / "lungs").mkdir()
        Image.fromarray(lungs).save(folder / "lungs" / f"{SERIES}.{uid}.png")


def write_enhanced(path, stored, heights, *, own=None, shared=None, **tags):
    """Writes `stored` `[Z, H, W]` int16 as one enhanced CT file, frames at `heights` mm.

    Args:
      path: Path of the file.
      stored: Stored values.
      heights: z coordinate of each frame, mm.
      own: {sequence keyword: {keyword: value}} of single frames, by frame index.
      shared: {sequence keyword: {keyword: value}} of all frames, updating the defaults.
      tags: Tags as in `write_ct`.
    """

    def groups(contents):
        item = pydicom.Dataset()
        for sequence, values in contents.items():
            inner = pydicom.Dataset()
            for keyword, value in values.items():
                setattr(inner, keyword, value)
            setattr(item, sequence, [inner])
        return item

    rescale = {"RescaleSlope": 1, "RescaleIntercept": -1024, "RescaleType": "HU"}
    shared = {
        "PixelMeasuresSequence": {"PixelSpacing": [0.7, 0.6], "SliceThickness": 1},
        "PlaneOrientationSequence": {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
        "PixelValueTransformationSequence": rescale,
        **(shared or {}),
    }
    frames = []
    for index, z in enumerate(heights):
        position = {"ImagePositionPatient": [-5, 3, z]}
        contents = {"PlanePositionSequence": position, **(own or {}).get(index, {})}
        frames.append(groups(contents))
    write_ct(
        path,
        stored[0],
        raw=stored.astype("<i2").tobytes(),
        SOPClassUID=f"{CT_IMAGE}.1",
        **{
            "NumberOfFrames": len(heights),
            "SharedFunctionalGroupsSequence": [groups(shared)],
            "PerFrameFunctionalGroupsSequence": frames,
            "RescaleSlope": None,
            "RescaleIntercept": None,
            "PixelSpacing": None,
            "ImagePositionPatient": None,
            "ImageOrientationPatient": None,
            **tags,
        },
    )
    return path


def compress(path, syntax=RLELossless):
    """Compresses the pixels of a file, and returns its data set."""
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)
    return dataset


def errors_of(path):
    """Returns the errors that dciodvfy of dicom3tools finds in a segmentation."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    done = subprocess.run(
        ["dciodvfy", str(path)], capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert "Segmentation" in lines
    return [line for line in lines if line.startswith("Error")]
