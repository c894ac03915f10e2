"""Label masks of a series as a DICOM segmentation that refers to its images."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from twostage_jax.ct.decode import quiet
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.series import sort_series
from twostage_jax.errors import UserError, plain
from twostage_jax.maps.draw import colour, is_normal
from twostage_jax.maps.extent import UNLIKE
from twostage_jax.notices import SHORT_ORIGINS, notices
from twostage_jax.runtime import versions

# Attributes that every image must have but may leave empty (DICOM type 2); some
# writers omit them.
MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# Types of value that, if invalid, readers refuse or highdicom cannot use. Texts and UIDs
# identify the patient and the images, so they are kept.
STRICT = ("AS", "CS", "DA", "TM")
NUMBERS = ("DS", "IS")
SEXES = ("M", "F", "O")
PATIENT_GROUP = 0x0010
NEEDED_OF_FRAMES = ("StudyInstanceUID", "FrameOfReferenceUID")
NEEDED = (
    *NEEDED_OF_FRAMES,
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
)
LUNG = ("39607008", "SCT", "Lung structure")
ANATOMY = ("91723000", "SCT", "Anatomical Structure")
ABNORMAL = ("49755003", "SCT", "Morphologically Abnormal Structure")
CONCEPT = ("309825002", "SCT", "Spatial and Relational Concept")
NEURAL_NETWORK = ("123110", "DCM", "Artificial Intelligence")
# Classes are the user's own terms: a private scheme names them without guessing.
SCHEME = "99TWOSTAGE"
MANUFACTURER = "twostage_jax"
# A series number far from those of scanners.
SERIES_NUMBER = 9701


def write_segmentation(
    path: Path,
    sources: Sequence[Header],
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    model: str,
    model_hash: str,
    settings: Mapping[str, str],
    unlike: np.ndarray | None = None,
    synthetic: bool | None = False,
) -> None:
    """Writes a binary segmentation, one segment per class, over its source images.

    Pixels that differ from the training images are in a separate segment, the last one,
    instead of a class: viewers show segments in calm colours and cannot hatch.

    The file carries the patient's and the study's identity, as DICOM requires, except for
    invalid dates, times, codes and numbers. Segment k is class k, counted from 1; frames
    without a pixel of a class are skipped.

    Args:
      path: Path of the new file.
      sources: Slices of the series: files of one slice, or frames of one file.
      labels: `[Z, H, W]` uint8 in the order of `sources`: 1 + class index, 0 = none.
      class_names: Names of the classes.
      model: Description of the model.
      model_hash: Digest of its stage run.
      settings: Names and values of the settings of the mapping.
      unlike: Pixels that differ from the training images, `[Z, H, W]` bool; None if not
        judged.
      synthetic: Whether the model was trained on synthetic images; None if unknown.

    Raises:
      UserError: All pixels are unclassified, or the source lacks attributes to which a
        segmentation must refer.
      ImportError: highdicom is not installed.
    """
    if not labels.any():
        raise UserError(
            "all pixels are unclassified: there is nothing to write.", where="labels"
        )
    try:
        with quiet():
            images = _sources(sources)
            if unlike is not None:
                labels = np.where(unlike, np.uint8(len(class_names) + 1), labels)
            if len(images) < len(sources):
                labels = _in_order_of_frames(images, sources, labels)
            made = (labels, class_names, model, model_hash, settings)
            hatched = unlike is not None
            _segmentation(images, *made, hatched, synthetic).save_as(path)
    except (UserError, ImportError, OSError):
        raise
    except Exception as error:
        path.unlink(missing_ok=True)
        # The message and traceback may identify the patient.
        raise UserError.at(
            sources[0].path,
            f"a header of its series cannot be copied ({type(error).__name__}): check "
            "it with a DICOM validator.",
        ) from None


def _segmentation(
    images: list[pydicom.Dataset],
    labels: np.ndarray,
    class_names: Sequence[str],
    model: str,
    model_hash: str,
    settings: Mapping[str, str],
    hatched: bool,
    synthetic: bool | None,
) -> pydicom.Dataset:
    import highdicom

    notice = ". ".join(notices(synthetic))
    short = SHORT_ORIGINS[synthetic]
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=Code(*NEURAL_NETWORK),
        version=model_hash[:12],
        source=MANUFACTURER,
        parameters={
            name: _text(value)
            for name, value in {
                "model": model,
                "model hash": model_hash,
                **settings,
                "use": notice,
            }.items()
        },
    )
    segments = [
        _class_segment(index, class_names, algorithm, f"{notice}. {_text(model)}")
        for index in range(len(class_names))
    ]
    if hatched:
        segments.append(
            _segment(
                len(segments) + 1,
                UNLIKE,
                CONCEPT,
                ("UNLIKE", SCHEME, UNLIKE),
                algorithm,
                (255, 255, 255),
                f"{notice}. Lung that is {UNLIKE} of the model: unclassified here",
            )
        )
    segmentation = highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=_text(model, 64),
        software_versions=versions()["twostage_jax"],
        device_serial_number=model_hash[:12],
        content_description="; ".join(notices(synthetic, short=True)),
        content_label="DISEASE_MAP",
        # Lists in viewers show only its beginning.
        series_description=f"Not for diagnosis ({short}): map, research use only"
        if short
        else "Not for diagnosis: disease map, research use only",
        # Names of classes may contain any letter.
        specific_character_set="ISO_IR 192",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    # Archives sort the maps of a series by these attributes.
    segmentation.SeriesDate = segmentation.ContentDate
    segmentation.SeriesTime = segmentation.ContentTime
    scheme = pydicom.Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Class names of the training data"
    segmentation.CodingSchemeIdentificationSequence = [scheme]
    return segmentation


def _class_segment(
    index: int, class_names: Sequence[str], algorithm: pydicom.Sequence, text: str
) -> pydicom.Dataset:
    name = _text(class_names[index], 64) or f"class {index + 1}"
    normal = is_normal(class_names[index])
    digits = hashlib.sha256(class_names[index].encode()).hexdigest()[:12].upper()
    category, kind = ANATOMY, LUNG
    if not normal:
        category, kind = ABNORMAL, (digits, SCHEME, name)
    rgb = colour(index, class_names) or (128, 128, 128)
    return _segment(index + 1, name, category, kind, algorithm, rgb, text)


def _segment(
    number: int,
    label: str,
    category: tuple[str, str, str],
    kind: tuple[str, str, str],
    algorithm: pydicom.Sequence,
    rgb: tuple[int, int, int],
    text: str,
) -> pydicom.Dataset:
    import highdicom

    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=Code(*category),
        segmented_property_type=Code(*kind),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        anatomic_regions=None if kind == LUNG else [Code(*LUNG)],
        display_color=highdicom.color.CIELabColor.from_rgb(*rgb),
    )
    segment.SegmentDescription = text
    return segment


def _in_order_of_frames(
    images: list[pydicom.Dataset], sources: Sequence[Header], labels: np.ndarray
) -> np.ndarray:
    """Returns labels of all frames of the single file that contains the slices."""
    if len(images) > 1:
        raise UserError(f"the series lies in {len(images)} multi-frame files.")
    ordered = np.zeros((int(images[0].NumberOfFrames), *labels.shape[1:]), labels.dtype)
    ordered[[header.frame for header in sources]] = labels
    return ordered


def _sources(sources: Sequence[Header]) -> list[pydicom.Dataset]:
    """Returns the headers of the files, with the attributes that a segmentation copies."""
    first = sources[0]
    thickness = first.thickness or sort_series(sources).step
    if thickness is None:
        raise UserError.at(
            first.path,
            "SliceThickness is missing, and the series has a single slice: the volume "
            "of its segmentation would be undefined.",
        )
    images = [_source(file) for file in dict.fromkeys(h.path for h in sources)]
    for image in images:
        _set_thickness(image, thickness)
    return images


def _source(path: Path) -> pydicom.Dataset:
    image = pydicom.dcmread(path, stop_before_pixels=True)
    needed = NEEDED_OF_FRAMES if "NumberOfFrames" in image else NEEDED
    missing = [keyword for keyword in needed if not image.get(keyword)]
    if missing:
        raise UserError.at(
            path, f"a segmentation cannot refer to it: {', '.join(missing)} missing."
        )
    if "NumberOfFrames" in image:
        _share(image, path)
    for tag in list(image.keys()):
        known = pydicom.datadict.keyword_for_tag(tag) in MAY_BE_EMPTY
        if (known or tag.group == PATIENT_GROUP) and not _is_valid(image, tag):
            del image[tag]
    for keyword in MAY_BE_EMPTY:
        if keyword not in image:
            setattr(image, keyword, "")
    return image


def _share(image: pydicom.Dataset, path: Path) -> None:
    """Copies the geometry of a multi-frame image to where it stands for all frames.

    DICOM also allows it to stand with each frame, where highdicom does not look for it.
    """
    shared = image.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    image.SharedFunctionalGroupsSequence = shared
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if not shared[0].get(keyword):
            frames = image.PerFrameFunctionalGroupsSequence
            first, *others = (frame.get(keyword) for frame in frames)
            if not first or any(other != first for other in others):
                raise UserError.at(
                    path,
                    f"a segmentation cannot refer to it: {keyword} varies by frame.",
                )
            setattr(shared[0], keyword, first)


def _is_valid(image: pydicom.Dataset, tag: pydicom.tag.BaseTag) -> bool:
    """Returns whether a value is valid for its type (VR), if that type matters."""
    name = pydicom.datadict.keyword_for_tag(tag)
    kind = pydicom.datadict.dictionary_VR(tag) if name else ""
    if kind not in STRICT + NUMBERS:
        return True
    try:
        value = image[tag].value
        if value and kind in NUMBERS:
            np.asarray(value, float)
        elif value:
            pydicom.valuerep.validate_value(kind, value, pydicom.config.RAISE)
        if value and kind in ("DA", "TM"):
            getattr(pydicom.valuerep, kind)(value)  # refuses a 99th day of a month
    except (ValueError, TypeError, OverflowError):
        return False
    return name != "PatientSex" or not value or value in SEXES


def _set_thickness(image: pydicom.Dataset, thickness: float) -> None:
    measures = image
    if "NumberOfFrames" in image:
        shared = image.SharedFunctionalGroupsSequence[0]
        measures = shared.PixelMeasuresSequence[0]
    measures.SliceThickness = pydicom.valuerep.DS(thickness, auto_format=True)
    # Often wrong, and redundant with the positions.
    if "SpacingBetweenSlices" in measures:
        del measures.SpacingBetweenSlices


def _text(text: str, longest: int = 1024) -> str:
    """Returns one line that fits a DICOM string of at most `longest` bytes.

    The standard counts characters, some readers bytes; a backslash separates values.
    """
    line = plain(text.replace("\\", "/"))
    return line.encode()[:longest].decode(errors="ignore")
