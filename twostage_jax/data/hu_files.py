"""Reads patches in Hounsfield units: TIFF, NumPy, NIfTI, and 16-bit PNG and PGM.

A file contains one patch, or several patches of one label and one patient:

    TIFF     pages; signed 16 or 32 bits, or floating point; the calibration of ImageJ,
             which stores signed pixels as unsigned ones, is applied
    .npy     `[H, W]`, `[N, H, W]`, and both with a last axis of 1
    NIfTI    `[X, Y]` or `[X, Y, 1]`: rows are Y, columns X; slope and intercept applied
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from twostage_jax.ct.decode import refusing
from twostage_jax.ct.regions import nifti
from twostage_jax.errors import UserError
from twostage_jax.io import shown

FORM = "patches in HU"
# Suffixes of files that may contain values below 0.
SIGNED_SUFFIXES = (".npy", ".nii", ".nii.gz", ".tif", ".tiff")
UNSIGNED_SUFFIXES = (".png", ".pgm", ".pnm")
# In HU, only air and lung are below this. Grey values that were centred (-128 to 127, or
# with the mean of ImageNet) or standardised are not.
PROOF = -150
# CT scanners store 12 bits, from -1024; 16 bits of the extended scale reach 30,710.
# Padding is -2000, -2048 or -3024.
LOWEST, HIGHEST = -4096, 32767
# Soft tissue with contrast medium is below this. In patches of lung without values below
# 0, higher values mean that the RescaleIntercept (-1024) was lost.
LOST_INTERCEPT = 600
MIN_SIDE, MAX_SIDE = 4, 4096
# A stack of larger images is a volume instead of several patches.
MAX_STACK_SIDE = 128


def shape(path: Path) -> tuple[int, int, int]:
    """Returns (patches, height, width) of a file.

    Raises:
      UserError: The file cannot be read, or does not contain patches.
    """
    suffix = path.suffix.lower()
    with refusing(path, FORM):
        if suffix == ".npy":
            return _read_numpy(path).shape
        if suffix in UNSIGNED_SUFFIXES:
            with Image.open(path) as image:
                return 1, image.height, image.width
        if suffix in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                return len(tiff.pages), page.imagelength, page.imagewidth
    return read(path).shape


def read(path: Path) -> np.ndarray:
    """Returns the values of a file's patches `[N, H, W]`, in their stored type.

    Raises:
      UserError: The file cannot be read, or does not contain single-channel patches.
    """
    suffix = path.suffix.lower()
    with refusing(path, FORM):
        if suffix == ".npy":
            return np.array(_read_numpy(path))
        if suffix in (".tif", ".tiff"):
            array = _read_tiff(path)
        elif suffix in UNSIGNED_SUFFIXES:
            array = _read_picture(path)
        else:
            array = _read_nifti(path)
        return _patches(array)


def is_signed(path: Path) -> bool:
    """Returns whether the values of a file are signed or floating point.

    Raises:
      UserError: The file cannot be read.
    """
    suffix = path.suffix.lower()
    with refusing(path, FORM):
        if suffix == ".npy":
            dtype = np.load(path, mmap_mode="r", allow_pickle=False).dtype
        elif suffix in (".tif", ".tiff"):
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                dtype = np.dtype(np.int16) if _calibration(tiff) else page.dtype
        else:
            dtype = read(path).dtype
    return dtype is not None and dtype.kind in "if"


def prove(
    root: Path, classes: Mapping[str, Sequence[str]], offset: float, *, said: bool
) -> tuple[str, ...]:
    """Returns the names of the classes whose files do not prove that they are in HU.

    A value below `PROOF` proves it; reading stops at the first file of each class with
    such a value. Soft tissue lacks such values.

    Args:
      root: Folder of the files.
      classes: Paths of the files, relative to `root`, by name of the class.
      offset: Number to add to the stored values.
      said: Whether the user declared HU, so that only impossible values are refused.

    Raises:
      UserError: All classes lack proof, and the values are not HU, or this is uncertain
        and must be declared.
    """
    unproven, low, high = [], np.inf, -np.inf
    for name, paths in classes.items():
        for path in paths:
            values = read(root / path).astype(np.float64) + offset
            values = values[np.isfinite(values)]
            low, high = values.min(initial=low), values.max(initial=high)
            if values.min(initial=np.inf) < PROOF:
                break
        else:
            unproven.append(name)
    if len(unproven) < len(classes):
        return tuple(unproven)
    count = sum(map(len, classes.values()))
    seen = f"the values of {count} files in {shown(root)} run from {low:g} to {high:g}"
    if not said:
        raise UserError(
            f"units is not set, and {seen}: without values below {PROOF} it is unclear "
            "whether they are Hounsfield units. If so, set units='hu', with offset=-1024 "
            "if the RescaleIntercept was not applied. Save grey values as unsigned 8- or "
            "16-bit images.",
            where="units",
        )
    if low >= 0 and high >= LOST_INTERCEPT:
        raise UserError(
            f"units is 'hu', but {seen}, whereas CT of lung reaches below -500 HU. The "
            "RescaleIntercept seems to be lost: set offset, the number to add "
            "(-1024 for most scanners).",
            where="units",
        )
    if abs(low) <= 20 and abs(high) <= 20:
        raise UserError(
            f"units is 'hu', but {seen}, so they seem to be scaled: save them in HU.",
            where="units",
        )
    return tuple(unproven)


def in_hu(path: Path, offset: float) -> np.ndarray:
    """Returns the patches of a file in HU, rounded, `[N, H, W]` float32.

    Args:
      path: Path of the file.
      offset: Number to add to the stored values.

    Raises:
      UserError: The file cannot be read, or contains values that are not HU.
    """
    values = read(path)
    with refusing(path, FORM):
        if values.dtype.kind not in "iuf" or values.dtype.itemsize == 1:
            raise UserError(
                f"contains {values.dtype.name} values in a set of images in HU: keep "
                "grey images and images in HU in separate sets."
            )
        values = values.astype(np.float64)
        # Noise alone exceeds 1 HU.
        if np.abs(values).max() <= 1 and (values % 1).any():
            raise UserError(
                f"the values run from {values.min():g} to {values.max():g}, as if scaled, "
                "in a set of images in HU: save the patch in HU, or remove it."
            )
        values += offset
        wrong = int((~np.isfinite(values)).sum())
        if wrong:
            raise UserError(
                f"{wrong:,} of {values.size:,} values are not finite (NaN or "
                "infinity): cut the patch again without them, or remove it."
            )
        if values.min() < LOWEST or values.max() > HIGHEST:
            raise UserError(
                f"the values run from {values.min():g} to {values.max():g}; HU lie "
                f"between {LOWEST} and {HIGHEST}. Cut the patch again, or remove it."
            )
    return np.rint(values).astype(np.float32)


def _patches(array: np.ndarray) -> np.ndarray:
    """Returns an array of one of the accepted shapes as `[N, H, W]`."""
    given = list(array.shape)
    if array.ndim >= 3 and given[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    most = MAX_SIDE if array.shape[:1] == (1,) else MAX_STACK_SIDE
    sides = array.shape[1:]
    sound = array.ndim == 3 and array.size and MIN_SIDE <= min(sides)
    if not sound or max(sides) > most:
        raise UserError(
            f"has shape {given}, but patches are [H, W] or, several in a file, "
            f"[N, H, W] of up to {MAX_STACK_SIDE} pixels. Cut volumes into patches."
        )
    if array.dtype.kind not in "iuf":
        raise UserError(f"contains {array.dtype} values, not numbers in HU.")
    return array


def _read_numpy(path: Path) -> np.ndarray:
    """Returns the patches of a NumPy file `[N, H, W]`, mapped from the file."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    shape = array.shape
    if array.ndim == 3 and shape[0] == shape[1] != shape[2] != 1:
        raise UserError(
            f"has shape {list(shape)}: {shape[2]} square patches along the last axis, or "
            f"{shape[0]} patches of {shape[1]} x {shape[2]} pixels? Save the former as "
            "[N, H, W], with np.moveaxis(patches, -1, 0), and the latter in several files."
        )
    return _patches(array)


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        decoder, *_, arguments = image.tile[0]
        values = np.asarray(image)
    if decoder in ("ppm", "ppm_plain") and values.dtype == np.int32:
        # Pillow scales the largest value that a PGM file states to 65535, and rounds.
        # The way back is exact because it scales down.
        values = np.rint(values * (arguments[-1] / 65535)).astype(np.int32)
    return values


def _read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        pages = list(tiff.pages)
        first = pages[0]
        calibration = _calibration(tiff)
        for page in pages:
            if page.shape != first.shape or page.dtype != first.dtype:
                raise ValueError("its pages are of different sizes or types")
        if first.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            raise ValueError("its values are inverted (WhiteIsZero)")
        if first.samplesperpixel != 1:
            raise ValueError(f"it has {first.samplesperpixel} channels")
        try:
            array = np.stack([page.asarray() for page in pages])
        # For some compressions, such as LZW, tifffile needs another package.
        except (KeyError, ValueError, ImportError):
            array = _read_compressed(path, first.dtype)
    if calibration:
        # For signed pixels stored as unsigned ones: -32768 and 1.
        intercept, slope = calibration
        array = intercept + slope * array.astype(np.float64)
    return array


def _read_compressed(path: Path, dtype: np.dtype) -> np.ndarray:
    if dtype not in (np.int16, np.uint16, np.int32, np.float32):
        raise ValueError(f"its compression of {dtype} values is not supported")
    with Image.open(path) as image:
        frames = []
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(np.array(image))
    return np.stack(frames).astype(dtype)


def _calibration(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """Returns (intercept, slope) of a linear calibration by ImageJ, or None."""
    about = tiff.imagej_metadata or {}
    if about.get("cf") != 0 or "c0" not in about or "c1" not in about:
        return None
    return float(about["c0"]), float(about["c1"])


def _read_nifti(path: Path) -> np.ndarray:
    with nifti.opened(path) as image:
        given = image.shape
        while len(given) > 2 and given[-1] == 1:
            given = given[:-1]
        if len(given) != 2:
            raise UserError(
                f"has shape {list(image.shape)}, a volume, but a patch is [X, Y] or "
                "[X, Y, 1]. Cut volumes into patches."
            )
        return np.asanyarray(image.dataobj).reshape(given).T
