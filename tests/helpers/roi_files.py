"""Writes regions of a series in every format that `prepare` reads."""

import csv

import numpy as np
import pydicom
import pytest
from ct_files import SERIES, write_ct
from pydicom.sr.codedict import codes

from twostage_jax.ct import annotations, patients

hd = pytest.importorskip("highdicom", reason="needs the extra 'dicom'")
nibabel = pytest.importorskip("nibabel", reason="needs the extra 'dicom'")

VERSION = "1"
SIDE, MM = 32, 0.8


def write_series(
    folder,
    count=6,
    *,
    phase=1,
    series=SERIES,
    numbers=None,
    names=None,
    start=(-10.0, -12.0, -100.0),
    step=(0.0, 0.0, 5.0),
    **tags,
):
    """Writes axial slices from the feet to the head; returns their data sets.

    Args:
      folder: Made if missing.
      count: Number of slices.
      phase: Makes SOPInstanceUIDs and HU (100 per phase, 10 per slice) distinct.
      series: SeriesInstanceUID.
      numbers: InstanceNumbers; from 1 at the feet if not given.
      names: Names of the files; 'a.dcm' ... if not given.
      start: Position of the first pixel of the first slice, mm.
      step: Distance from slice to slice, mm.
      tags: Tags of all slices; see `write_ct`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for index in range(count):
        stored = np.full((SIDE, SIDE), 1024 - 900 + 100 * phase + 10 * index, np.int16)
        path = folder / (names[index] if names else f"{chr(ord('a') + index)}.dcm")
        values = {
            "SeriesInstanceUID": series,
            "StudyInstanceUID": f"{SERIES}.7",
            "FrameOfReferenceUID": f"{SERIES}.8",
            "PatientName": "Nobody^Nora",
            "PatientBirthDate": "",
            "PatientSex": "",
            "StudyDate": "",
            "StudyTime": "",
            "StudyID": "",
            "AccessionNumber": "",
            "ReferringPhysicianName": "",
            "InstanceNumber": numbers[index] if numbers else index + 1,
            "ImagePositionPatient": np.add(start, np.multiply(step, index)).tolist(),
            "PixelSpacing": [MM, MM],
            "SliceThickness": 5,
        }
        uid = f"9.{phase}.{index + 1}"
        write_ct(path, stored, uid=uid, **{**values, **tags})
        images.append(pydicom.dcmread(path))
    return images


def label_masks(folder, names, rois=None):
    """Returns (header, label mask) of a patient's slices with regions.

    The second value is the positions of numbered masks.
    """
    (patient,) = patients.search(folder, rois)
    loads, placed = annotations.labelled(patient.regions, patient.headers, names)
    found = [(h, loads[h.key]().mask) for h in patient.headers if h.key in loads]
    return found, placed


def box(top, left, bottom, right):
    """Returns the corners (column, row) around pixels top..bottom-1, left..right-1."""
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return np.array(corners) - 0.5


def runs(mask):
    """Returns an exact polygon `[4, 2]` (column, row) per run of pixels in a row."""
    found = []
    for row in np.flatnonzero(mask.any(1)):
        edges = np.flatnonzero(np.diff(np.pad(mask[row].astype(int), 1)))
        for start, stop in edges.reshape(-1, 2) - 0.5:
            low, high = row - 0.5, row + 0.5
            found.append([[start, low], [stop, low], [stop, high], [start, high]])
    return found


def polygons(labels, names):
    """Yields (slice index, class name, polygon) of label masks `[Z, H, W]`."""
    for z, image in enumerate(labels):
        for index, name in enumerate(names):
            for points in runs(image == index + 1):
                yield z, name, np.array(points)


def write_seg(path, images, labels, names, *, kind="BINARY", **options):
    """Writes a DICOM segmentation with highdicom.

    `labels`: `[Z, H, W]` 1 + class index, or `[Z, H, W, K]` bool of segments that may
    overlap.
    """
    segments = [
        hd.seg.SegmentDescription(
            segment_number=index + 1,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for index, name in enumerate(names)
    ]
    pixels = labels.astype(np.uint8)
    if kind == "FRACTIONAL":
        pixels = np.stack([labels == k + 1 for k in range(len(names))], -1).astype(
            float
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=segments,
        series_instance_uid=hd.UID(),
        series_number=7,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="test",
        manufacturer_model_name="test",
        software_versions=VERSION,
        device_serial_number="1",
        **options,
    ).save_as(path)


def write_rtstruct(path, images, drawn, names):
    """Writes a structure set of (slice index, class name, polygon, type or none)."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID = meta.MediaStorageSOPClassUID
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Modality = "RTSTRUCT"
    file.PatientID = images[0].PatientID
    series = item(SeriesInstanceUID=images[0].SeriesInstanceUID)
    study = item(RTReferencedSeriesSequence=[series])
    frame = item(
        FrameOfReferenceUID=images[0].FrameOfReferenceUID,
        RTReferencedStudySequence=[study],
    )
    file.ReferencedFrameOfReferenceSequence = [frame]
    file.StructureSetROISequence = [
        item(
            ROINumber=number,
            ROIName=name,
            ReferencedFrameOfReferenceUID=images[0].FrameOfReferenceUID,
        )
        for number, name in enumerate(names, start=1)
    ]
    contours = {name: [] for name in names}
    for z, name, points, *kind in drawn:
        source = images[z]
        spacing = [float(v) for v in source.PixelSpacing]
        origin = [float(v) for v in source.ImagePositionPatient]
        row, column = np.reshape(
            [float(v) for v in source.ImageOrientationPatient], (2, 3)
        )
        mm = (
            origin
            + points[:, :1] * spacing[1] * row
            + points[:, 1:] * spacing[0] * column
        )
        image = item(ReferencedSOPInstanceUID=source.SOPInstanceUID)
        contours[name].append(
            item(
                ContourGeometricType=kind[0] if kind else "CLOSED_PLANAR",
                NumberOfContourPoints=len(mm),
                ContourData=[round(v, 4) for v in mm.ravel()],
                ContourImageSequence=[image],
            )
        )
    file.ROIContourSequence = [
        item(ReferencedROINumber=number, ContourSequence=contours[name])
        for number, name in enumerate(names, start=1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path, enforce_file_format=True)


def item(**values):
    """Returns an item of a sequence."""
    made = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def write_csv(path, images, drawn):
    """Writes polygons that name slices by InstanceNumber."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "series", "slice", "label", "points"])
        for z, name, points in drawn:
            image = images[z]
            text = "; ".join(f"{x} {y}" for x, y in points)
            place = image.SeriesInstanceUID, image.InstanceNumber
            writer.writerow([image.PatientID, *place, name, text])


def write_medgift(path, images, drawn):
    """Writes contours in mm that name slices by the number in their file's name."""
    y_mm, x_mm = (float(v) for v in images[0].PixelSpacing)
    lines = [f"SpacingX: {x_mm}", f"SpacingY: {y_mm}", "SpacingZ: 10", ""]
    for z, name, points in drawn:
        lines += [f"label: {name}", f"slice_number: {z + 1}"]
        lines += [f"nb_points_on_contour: {len(points)}"]
        lines += [f"{x * x_mm:.5f} {y * y_mm:.5f}" for x, y in points]
    path.write_text("\n".join(lines) + "\n")


def write_nifti(path, images, labels):
    """Writes a volume in the axes of NIfTI: towards the right, the front and the head.

    `labels` `[Z, H, W]` lie in the order of the images; all axial, rows along x.
    """
    order = np.argsort([float(i.ImagePositionPatient[2]) for i in images])
    first = images[order[0]]
    y_mm, x_mm = (float(v) for v in first.PixelSpacing)
    x, y, z = (float(v) for v in first.ImagePositionPatient)
    step = float(images[order[1]].ImagePositionPatient[2]) - z
    affine = np.diag([-x_mm, -y_mm, step, 1.0])
    affine[:3, 3] = -x, -y, z
    volume = labels[order].transpose(2, 1, 0).astype(np.uint8)
    # Flipped to RAS, as most tools write it.
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(volume, affine))
    nibabel.save(image, path)
