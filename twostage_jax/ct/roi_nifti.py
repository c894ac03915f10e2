"""Regions of NIfTI label volumes."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct import geometry
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.refusing import refusing
from twostage_jax.ct.rois import Key, Load
from twostage_jax.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# 2,000 slices of 1024 x 1024 pixels.
MAX_VOXELS = 2**31


def read(path: Path, headers: Sequence[Header]) -> dict[Key, Load]:
    """Returns the masks, whole numbers, of the slices of one series.

    Volume and slices meet by where they lie, by the nearest voxel.

    Raises:
      UserError: The file cannot be trusted, has no geometry, or marks planes where
        there is no slice; or nibabel is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{path}: NIfTI masks need nibabel: pip install 'twostage_jax[dicom]'."
        ) from None
    with refusing(path):
        image = nibabel.load(path)
        if len(image.shape) != 3 or math.prod(image.shape) > MAX_VOXELS:
            raise UserError(f"{path}: is {list(image.shape)}, not a volume of labels.")
        if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
            raise UserError(f"{path}: does not say where it lies (sform and qform 0).")
        volume = np.asanyarray(image.dataobj)
        if volume.dtype.kind == "f" and np.array_equal(volume, np.rint(volume)):
            # Many tools write labels as floating-point numbers.
            volume = volume.astype(np.int32)
        if volume.dtype.kind not in "bui":
            raise UserError(f"{path}: a mask must hold whole numbers.")
        # NIfTI's axes point to the right and the front, DICOM's to the left and back.
        matrix = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ image.affine)
        return _slices(volume, matrix, path, headers)


def _slices(
    volume: np.ndarray, matrix: np.ndarray, path: Path, headers: Sequence[Header]
) -> dict[Key, Load]:
    stack = geometry.Stack(headers)
    marked = np.argwhere(volume)
    # Evenly spread over all of them; a stray slice has many.
    marked = marked[:: max(1, len(marked) // 100_000)]
    back = np.linalg.inv(matrix)
    places = marked @ back[:3, :3].T + back[:3, 3]
    held = stack.holds(places)
    if not held.all():
        heights = places[~held, 2]
        raise UserError(
            f"{path}: {100 * np.mean(~held):.0f} % of what it marks, from z = "
            f"{heights.min():.1f} to {heights.max():.1f} mm, lies where there is no "
            "slice: was it drawn on another series, or resampled, or is a slice missing?"
        )
    masks = {
        header.key: _sampled(volume, matrix, at)
        for header, at in zip(headers, stack.planes, strict=True)
    }
    return {key: lambda mask=mask: mask for key, mask in masks.items() if mask.any()}


def _sampled(volume: np.ndarray, matrix: np.ndarray, at: geometry.Plane) -> np.ndarray:
    """Returns the voxels of `[X, Y, Z]` nearest to a plane's pixels; 0 outside."""
    places = geometry.centres(at) @ matrix[:3, :3].T + matrix[:3, 3]
    voxels = np.rint(places).astype(np.int64)
    inside = np.all((voxels >= 0) & (voxels < volume.shape), axis=-1)
    found = np.zeros(at.shape, volume.dtype)
    found[inside] = volume[tuple(voxels[inside].T)]
    return found
