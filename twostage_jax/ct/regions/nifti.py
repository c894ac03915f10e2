"""NIfTI label volumes."""

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
from twostage_jax.ct.regions.base import Contents, Format, Key, Load, Query
from twostage_jax.errors import UserError

SUFFIXES = (".nii", ".nii.gz")
# 2,000 slices of 1024 x 1024 pixels.
MAX_VOXELS = 2**31
# Two matrices are equal if all corner voxels are within this distance, in voxels.
SAME_VOXELS = 0.1
# At a larger distance, they mark different pixels.
OTHER_VOXELS = 0.5
# A pattern, because an XML parser would expand entities.
_LABEL = re.compile(
    r'<Label\b[^>]*?\bKey="(\d{1,9})"[^>]*>\s*(?:<!\[CDATA\[)?([^<\]]*)'
)


def is_pair(path: Path) -> bool:
    """Returns whether a file is a NIfTI header with voxels in an `.img` file next to it."""
    if path.suffix.lower() != ".hdr" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(348)[344:] == b"ni1\0"


def recognise(path: Path) -> Contents | None:
    """Returns the contents of a NIfTI file, recognised by its extension, or of a pair."""
    named = path.name.lower().endswith(SUFFIXES)
    return Contents() if named or is_pair(path) else None


def load(query: Query) -> tuple[dict[Key, Load], None]:
    """Returns the masks of slices, which must be of one series; see `read`."""
    number = len({header.series_uid for header in query.headers})
    if number != 1:
        raise UserError.at(
            query.path,
            f"could belong to any of {number} series. Name it after its "
            "SeriesInstanceUID.",
        )
    return read(query.path, query.headers), None


def read(path: Path, headers: Sequence[Header]) -> dict[Key, Load]:
    """Returns a function per slice of one series that gives its mask, `[H, W]` integers.

    Volume and slices are matched by position; each pixel takes the value of the nearest
    voxel. Slices without marked pixels are omitted. Whether a file is compressed follows
    from its content, not from its name.

    Raises:
      UserError: The file cannot be trusted, its position is missing or ambiguous, it
        marks planes without slices or with several, or nibabel is not installed.
    """
    with refusing(path, "NIfTI"):
        stack = geometry.Stack(headers)
        with opened(path) as image:
            shape = image.shape
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) != 3 or not 0 < math.prod(shape) <= MAX_VOXELS:
                raise UserError(
                    f"has the shape {list(image.shape)}; a volume has three axes."
                )
            to_mm = _to_mm(image.header, shape, stack)
            volume = np.asanyarray(image.dataobj).reshape(shape, order="F")
        if volume.dtype.kind == "f" and np.array_equal(volume, np.rint(volume)):
            # Many tools write labels as floating-point numbers.
            if abs(volume).max() < 2**31:
                volume = volume.astype(np.int32)
        if volume.dtype.kind not in "bui":
            raise UserError(
                "a mask must contain integers. Threshold probabilities at 0.5."
            )
        return _slices(volume, to_mm, stack)


def fits(path: Path, headers: Sequence[Header]) -> bool:
    """Returns whether the voxels of a volume are the pixels of the slices of a series.

    Reads the header only; one of its matrices must fit.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    try:
        stack = geometry.Stack(headers)
    except UserError:
        return False
    with refusing(path, "NIfTI"), opened(path) as image:
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
    """Returns the names of labels by value; empty if the file lacks a label table.

    The table is XML of Caret and Connectome Workbench in an extension of the header,
    which TotalSegmentator also writes.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    found = {}
    with refusing(path, "NIfTI"), opened(path) as image:
        for extension in image.header.extensions:
            content = extension.get_content()
            if isinstance(content, bytes) and b"<LabelTable" in content:
                text = content.decode("utf-8", "replace")
                found |= {int(key): name.strip() for key, name in _LABEL.findall(text)}
    return found


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a NIfTI image according to its content, not its name.

    Raises:
      UserError: nibabel is not installed, or the file is not NIfTI.
    """
    try:
        import nibabel
    except ImportError:
        raise UserError(
            "NIfTI files need nibabel: pip install 'twostage_jax[dicom]'."
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
            raise UserError("does not begin as NIfTI files do, despite its name.")


FORMAT = Format(recognise, load=load)


def _to_mm(header: Any, shape: tuple[int, ...], stack: geometry.Stack) -> np.ndarray:
    """Returns the matrix `[4, 4]` from voxels to mm in DICOM's axes.

    If sform and qform differ, returns the one that maps the volume onto the grid of the
    slices.

    Raises:
      UserError: Both are missing, or they differ and neither or both fit the slices.
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
        raise UserError("its position is missing (sform and qform have code 0).")
    for name, matrix in found.items():
        if not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-6:
            raise UserError(f"its {name} is not a valid matrix.")
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
                f"gives two different positions: the first voxel is at {first} "
                f"by its {one}, at {second} by its {two}, and "
                f"{'both fit' if fitting else 'neither fits'} the grid of the slices. "
                "Set the code of the wrong one to 0."
            )
        (chosen,) = fitting
    _check_shear(chosen, shape, stack)
    return chosen


def _mm_text(matrix: np.ndarray) -> str:
    return "({}) mm".format(", ".join(f"{v:.1f}" for v in matrix[:3, 3]))


def _apart(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Returns the largest distance in voxels between corner voxels under two matrices."""
    corners = itertools.product(*((0, size - 1) for size in shape))
    away = np.array([(*corner, 1) for corner in corners]) @ (one - other).T
    size = np.linalg.norm(one[:3, :3], axis=0).min()
    return float(np.linalg.norm(away, axis=1).max() / size)


def _grids(
    matrix: np.ndarray, shape: Sequence[int], stack: geometry.Stack
) -> np.ndarray | None:
    """Returns the offsets of the corner pixels of slices from their voxels, `[Z, 4, 3]`.

    Offsets are in voxels along the axes of the volume for columns, rows and slices. The
    voxel of a pixel is the one with the same indices, where each axis may be reversed.
    None if the volume has another size than the slices.
    """
    corners = np.stack([geometry.corners(plane) for plane in stack.planes])
    order = np.argsort(
        [plane.position @ stack.planes[0].normal for plane in stack.planes]
    )
    inverse = np.linalg.inv(matrix)
    voxels = corners[order] @ inverse[:3, :3].T + inverse[:3, 3]
    rows, columns = stack.planes[0].shape
    # Directions of rows, columns and the stack in the volume, and their axes.
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
    """Returns whether the voxels of a volume are the pixels of the slices."""
    away = _grids(matrix, shape, stack)
    return away is not None and float(np.abs(away).max()) <= SAME_VOXELS


def _check_shear(
    matrix: np.ndarray, shape: Sequence[int], stack: geometry.Stack
) -> None:
    """Raises a UserError if a volume ignores the tilt of a series.

    Programs without support for sheared volumes write such files, whose voxels belong to
    the pixels of the same indices but have other positions.
    """
    away = _grids(matrix, shape, stack)
    if away is None:
        return
    least = np.abs(away).max(axis=(1, 2)).min()
    most = np.abs(away[..., :2]).max()
    if least <= SAME_VOXELS and most > OTHER_VOXELS:
        raise UserError(
            f"has the size of the series, and its voxels lie on the pixels of "
            f"one slice, but up to {most:.1f} voxels from those of others: the "
            "program that wrote it ignored the tilt of the gantry, so that position and "
            "index contradict each other. Save it with a sheared sform, as one mask per "
            "slice, or as DICOM SEG."
        )


def _slices(
    volume: np.ndarray, to_mm: np.ndarray, stack: geometry.Stack
) -> dict[Key, Load]:
    count, lost = 0, [np.zeros(0)]
    for last in range(volume.shape[2]):
        marked = np.insert(np.argwhere(volume[..., last]), 2, last, axis=1)
        positions = marked @ to_mm[:3, :3].T + to_mm[:3, 3]
        count += len(positions)
        lost.append(positions[~stack.holds(positions), 2])
    heights = np.concatenate(lost)
    if len(heights):
        raise UserError(
            f"{100 * len(heights) / count:.0f} % of what it marks, from z = "
            f"{heights.min():.1f} to {heights.max():.1f} mm, does not lie on any "
            "slice. Was it drawn on another series, or resampled, or is a slice missing?"
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
                f"marks {geometry.height_text(header)}, where there are two slices: "
                f"{header.path} and {stack.headers[other].path}. Remove the phase that "
                "it was not drawn on."
            )
        masks[header.key] = lambda mask=mask: mask
    return masks


def _sampled(volume: np.ndarray, inverse: np.ndarray, at: geometry.Plane) -> np.ndarray:
    """Returns the nearest voxels of `[X, Y, Z]` at the pixels of a plane; 0 outside."""
    positions = geometry.centres(at) @ inverse[:3, :3].T + inverse[:3, 3]
    voxels = np.rint(positions).astype(np.int64)
    inside = np.all((voxels >= 0) & (voxels < volume.shape), axis=-1)
    found = np.zeros(at.shape, volume.dtype)
    found[inside] = volume[tuple(voxels[inside].T)]
    return found
