"""Multi-frame (enhanced) CT: each frame as a single-frame file would describe it."""

from pathlib import Path

import pydicom

from twostage_jax.ct import loading
from twostage_jax.errors import UserError

ENHANCED_CT = (
    "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT Image Storage
    "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT Image Storage
)
# A study of a few thousand slices is large; the counter goes up to 2**31.
MAX_FRAMES = 20_000
# Functional group (DICOM PS3.3 C.7.6.16) -> what a single-frame file has at the top.
_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelValueTransformationSequence": (
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
    ),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}
_NOT_OF_A_FRAME = {
    pydicom.datadict.tag_for_keyword(keyword)
    for keyword in (
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "NumberOfFrames",
        "PixelData",
    )
}


def count(dataset: pydicom.Dataset, path: Path) -> int:
    """Returns the number of frames; 1 for what is no multi-frame CT.

    Raises:
      UserError: The number is absurd, or contradicts the frames' descriptions.
    """
    if dataset.get("SOPClassUID") not in ENHANCED_CT:
        return 1
    number = int(dataset.get("NumberOfFrames") or 0)
    if not 0 < number <= MAX_FRAMES:
        raise UserError(
            f"{path}: claims {number} frames; 1 to {MAX_FRAMES} are believed."
        )
    described = len(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if described != number:
        raise UserError(
            f"{path}: has {number} frames, but describes {described} of them."
        )
    return number


def of(dataset: pydicom.Dataset, path: Path) -> list[pydicom.Dataset]:
    """Returns the description of each frame, with the tags of a single-frame CT image.

    What a frame says of itself comes before what all frames share. Pixels are left out.

    Raises:
      UserError: See `count` and `loading.check_elements`.
    """
    number = count(dataset, path)
    if dataset.get("SOPClassUID") not in ENHANCED_CT:
        return [dataset]
    common = [e for e in dataset if e.tag not in _NOT_OF_A_FRAME]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    found = []
    for index in range(number):
        frame = pydicom.Dataset()
        for element in common:
            frame.add(element)
        own = dataset.PerFrameFunctionalGroupsSequence[index]
        for group, keywords in _GROUPS.items():
            items = own.get(group) or shared.get(group)
            if items:
                loading.check_elements(items[0], path)
            for keyword in keywords if items else ():
                if keyword in items[0]:
                    setattr(frame, keyword, items[0].get(keyword))
        if "FrameType" in frame:
            frame.ImageType = frame.FrameType
        frame.InstanceNumber = index + 1
        found.append(frame)
    return found
