"""Regions of NIfTI label volumes."""

import contextlib
import gzip
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax.ct import geometry
from twostage_jax.ct.decode import refusing
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.regions.masks import Key, Load
from twostage_jax.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# 2,000 slices of 1024 x 1024 pixels.
MAX_VOXELS = 2**31
# Two matrices that put the corner voxels as near as this, in voxels, are one.
SAME_VOXELS = 0.1
# Farther apart, they put marks on other pixels.
OTHER_VOXELS = 0.5
# Read by a pattern: a parser of XML would follow entities.
_LABEL = re.compile(
    r'<Label\b[^>]*?\bKey="(\d{1,9})"[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]*)'
)


def is_pair(path: Path) -> bool:
    """Whether a file is a NIfTI header whose voxels are in an `.img` file beside it."""
    if path.suffix.lower() != ".hdr" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(348)[344:] == b"ni1\0"


def read(path: Path, headers: Sequence[Header]) -> dict[Key, Load]:
    """Returns the masks, whole numbers, of the slices of one series.

    Volume and slices meet by where they lie, by the nearest voxel. A file that is not
    compressed may be called `.nii.gz`, and the other way round.

    Raises:
      UserError: The file cannot be trusted; says nothing, or two things, about where it
        lies; or marks planes where there is no slice, or several; or nibabel is not
        installed.
    """
    with refusing(path, "NIfTI"):
        stack = geometry.Stack(headers)
        with _opened(path) as image:
            shape = image.shape
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_VOXELS:
                raise UserError(
                    f"{path}: is {list(image.shape)}, not a volume of labels.",
                    where=path,
                )
            to_mm = _to_mm(image.header, shape, stack, path)
            volume = np.asanyarray(image.dataobj).reshape(shape, order="F")
        if volume.dtype.kind == "f" and np.array_equal(volume, np.rint(volume)):
            # Many tools write labels as floating-point numbers.
            if abs(volume).max() < 2**31:
                volume = volume.astype(np.int32)
        if volume.dtype.kind not in "bui":
            raise UserError(f"{path}: a mask must hold whole numbers.", where=path)
        return _slices(volume, to_mm, path, stack)


def fits(path: Path, headers: Sequence[Header]) -> bool:
    """Whether a volume's voxels are the pixels of the slices of one series.

    By its header alone, under one of its matrices.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    try:
        stack = geometry.Stack(headers)
    except UserError:
        return False
    with refusing(path, "NIfTI"), _opened(path) as image:
        matrices = (
            image.header.get_sform(coded=True),
            image.header.get_qform(coded=True),
        )
        for matrix, code in matrices:
            if code and np.isfinite(matrix).all() and np.linalg.det(matrix):
                to_mm = np.diag([-1, -1, 1, 1]) @ matrix
                if _is_grid(to_mm, image.shape[:3], stack):
                    return True
    return False


def label_names(path: Path) -> dict[int, str]:
    """Returns the names of a volume's labels where the file has a table of them.

    The table is the XML of Caret and Connectome Workbench, which TotalSegmentator
    writes into the header's extensions as well.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    found = {}
    with refusing(path, "NIfTI"), _opened(path) as image:
        for extension in image.header.extensions:
            content = extension.get_content()
            if isinstance(content, bytes) and b"<LabelTable" in content:
                text = content.decode("utf-8", "replace")
                found |= {int(key): name.strip() for key, name in _LABEL.findall(text)}
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Gives a NIfTI image, by what the file holds and not by its name.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    try:
        import nibabel
    except ImportError:
        raise UserError(
            f"{path}: NIfTI masks need nibabel: pip install 'twostage_jax[dicom]'.",
            where=path,
        ) from None
    if is_pair(path):
        yield nibabel.Nifti1Pair.from_filename(path)
        return
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if packed else path.open("rb") as stream:
        first = stream.read(4)
        stream.seek(0)
        sizes = {int.from_bytes(first, order) for order in ("little", "big")}
        if 348 in sizes:
            yield nibabel.Nifti1Image.from_stream(stream)
        elif 540 in sizes:
            yield nibabel.Nifti2Image.from_stream(stream)
        else:
            raise UserError(
                f"{path}: does not begin as NIfTI files do, despite its name.",
                where=path,
            )


def _to_mm(
    header: Any, shape: tuple[int, ...], stack: geometry.Stack, path: Path
) -> np.ndarray:
    """Returns the matrix `[4, 4]` from voxels to mm in DICOM's axes.

    Where sform and qform differ, the one under which the volume is the very grid of the
    slices.

    Raises:
      UserError: There is none, or two and neither or both are that.
    """
    found = {}
    for name, (matrix, code) in (
        ("sform", header.get_sform(coded=True)),
        ("qform", header.get_qform(coded=True)),
    ):
        if code:
            # NIfTI's axes point to the right and front, DICOM's to the left and back.
            found[f"{name} (code {code})"] = np.diag([-1, -1, 1, 1]) @ matrix
    if not found:
        raise UserError(
            f"{path}: does not say where it lies (sform and qform 0).", where=path
        )
    for name, matrix in found.items():
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
            raise UserError(f"{path}: its {name} is not a valid matrix.", where=path)
    matrices = list(found.values())
    if len(matrices) == 1 or _apart(*matrices, shape) <= SAME_VOXELS:
        chosen = matrices[0]
    else:
        fitting = [m for m in matrices if _is_grid(m, shape, stack)]
        if len(fitting) != 1:
            (one, first), (two, second) = (
                (name, _mm_text(matrix)) for name, matrix in found.items()
            )
            raise UserError(
                f"{path}: says twice where it lies, and differently: the first voxel is "
                f"at {first} by its {one}, at {second} by its {two}, and "
                f"{'both' if fitting else 'neither'} would make it the grid of the "
                "slices. Set the code of the wrong one to 0.",
                where=path,
            )
        (chosen,) = fitting
    _check_shear(chosen, shape, stack, path)
    return chosen


def _mm_text(matrix: np.ndarray) -> str:
    return "({}) mm".format(", ".join(f"{v:.1f}" for v in matrix[:3, 3]))


def _corner_voxels(shape: Sequence[int]) -> np.ndarray:
    """Returns the voxels at the corners of a volume, `[8, 4]`, the last column 1."""
    ends = [(0, size - 1) for size in shape]
    return np.array([(*corner, 1) for corner in itertools.product(*ends)], float)


def _apart(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Returns how far two matrices put a corner voxel apart, in voxels."""
    away = _corner_voxels(shape) @ (one - other).T
    size = np.linalg.norm(one[:3, :3], axis=0).min()
    return float(np.linalg.norm(away, axis=1).max() / size)


def _grids(
    matrix: np.ndarray, shape: Sequence[int], stack: geometry.Stack
) -> np.ndarray | None:
    """Returns how far each slice's corner pixels lie from voxels, `[Z, 4, 3]` voxels.

    Along the volume's axes for columns, rows and slices. The voxels are those that they
    are if the volume is the grid of the slices, whichever way its axes run; None if its
    size shows that it cannot be.
    """
    corners = np.stack([geometry.corners(plane) for plane in stack.planes])
    order = np.argsort(
        [plane.position @ stack.planes[0].normal for plane in stack.planes]
    )
    inverse = np.linalg.inv(matrix)
    voxels = corners[order] @ inverse[:3, :3].T + inverse[:3, 3]
    rows, columns = stack.planes[0].shape
    # Which axis of the volume a row, a column and the stack run along, and which way.
    steps = np.stack(
        [
            inverse[:3, :3] @ stack.planes[0].row,
            inverse[:3, :3] @ stack.planes[0].column,
            inverse[:3, :3] @ stack.planes[0].normal,
        ]
    )
    axes = np.abs(steps).argmax(axis=1)
    if sorted(axes) != [0, 1, 2] or tuple(np.array(shape)[axes]) != (
        columns,
        rows,
        len(order),
    ):
        return None
    expected = np.zeros((len(order), 4, 3))
    counted = (
        np.array([0, columns - 1, 0, columns - 1])[None],
        np.array([0, 0, rows - 1, rows - 1])[None],
        np.arange(len(order))[:, None],
    )
    for step, axis, count in zip(steps, axes, counted, strict=True):
        forward = step[axis] > 0
        expected[..., axis] = count if forward else shape[axis] - 1 - count
    return (voxels - expected)[..., axes]


def _is_grid(matrix: np.ndarray, shape: Sequence[int], stack: geometry.Stack) -> bool:
    """Whether the volume's voxels are the pixels of the slices."""
    away = _grids(matrix, shape, stack)
    return away is not None and float(np.abs(away).max()) <= SAME_VOXELS


def _check_shear(
    matrix: np.ndarray, shape: Sequence[int], stack: geometry.Stack, path: Path
) -> None:
    """Raises a UserError if a volume is the grid of a tilted series but for the tilt.

    Programs that know no shear write such volumes: their voxels belong to the pixels of
    the same indices, and say that they lie elsewhere.
    """
    away = _grids(matrix, shape, stack)
    if away is None:
        return
    least = np.abs(away).max(axis=(1, 2)).min()
    most = np.abs(away[..., :2]).max()
    if least <= SAME_VOXELS and most > OTHER_VOXELS:
        raise UserError(
            f"{path}: has the size of the series, and its voxels lie on the pixels of "
            f"one slice, but up to {most:.1f} voxels from those of others: the "
            "program that wrote it took no account of the tilt of the gantry, so that "
            "position and index contradict each other. Save it with a sheared sform, as "
            "one mask per slice, or as DICOM SEG.",
            where=path,
        )


def _slices(
    volume: np.ndarray, to_mm: np.ndarray, path: Path, stack: geometry.Stack
) -> dict[Key, Load]:
    count, lost = 0, [np.zeros(0)]
    for last in range(volume.shape[2]):
        marked = np.insert(np.argwhere(volume[..., last]), 2, last, axis=1)
        places = marked @ to_mm[:3, :3].T + to_mm[:3, 3]
        count += len(places)
        lost.append(places[~stack.holds(places), 2])
    heights = np.concatenate(lost)
    if len(heights):
        raise UserError(
            f"{path}: {100 * len(heights) / count:.0f} % of what it marks, from z = "
            f"{heights.min():.1f} to {heights.max():.1f} mm, lies where there is no "
            "slice: was it drawn on another series, or resampled, or is a slice missing?",
            where=path,
        )
    inverse = np.linalg.inv(to_mm)
    masks = {}
    for index, (header, at) in enumerate(zip(stack.headers, stack.planes, strict=True)):
        mask = _sampled(volume, inverse, at)
        if not mask.any():
            continue
        other = stack.doubled(index)
        if other is not None:
            raise UserError(
                f"{path}: marks {geometry.height_text(header)}, where two slices lie: "
                f"{header.path} and {stack.headers[other].path}. Remove the phase that "
                "it was not drawn on.",
                where=path,
            )
        masks[header.key] = lambda mask=mask: mask
    return masks


def _sampled(volume: np.ndarray, inverse: np.ndarray, at: geometry.Plane) -> np.ndarray:
    """Returns the voxels of `[X, Y, Z]` nearest to a plane's pixels; 0 outside."""
    places = geometry.centres(at) @ inverse[:3, :3].T + inverse[:3, 3]
    voxels = np.rint(places).astype(np.int64)
    inside = np.all((voxels >= 0) & (voxels < volume.shape), axis=-1)
    found = np.zeros(at.shape, volume.dtype)
    found[inside] = volume[tuple(voxels[inside].T)]
    return found
