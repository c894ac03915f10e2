"""A folder tree of DICOM files -> series of slices, in order."""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct.dicom import Header, NotCTError, read_headers, read_slices
from twostage_jax.errors import UserError

Skipped = list[tuple[Path, str]]
# Direction cosines and positions are written with a few decimals only.
ORIENTATION_TOLERANCE = 1e-3
POSITION_TOLERANCE_MM = 0.01
# Steps that differ from the median by more than this share are reported.
STEP_TOLERANCE = 0.05
# Between the way from slice to slice and their normal: a tilted gantry.
TILT_TOLERANCE_DEGREES = 0.5


@dataclasses.dataclass(frozen=True)
class Series:
    """Slices of one scan, sorted along their common normal.

    For axial slices the order is from the feet to the head, in whatever order the
    files were named or numbered.

    Attributes:
      uid: SeriesInstanceUID.
      patient: Salted hash of the PatientID; '' if it has none.
      headers: One a slice.
      step: Median distance between neighbouring slices, mm; None for a single slice.
      notes: What keeps the slices from being an even volume: doubled, missing or
        unevenly spaced ones, by their numbers in this order, from 1, and then, in
        brackets, by the names of their files.
      remarks: What else is odd: a tilted gantry, mixed kernels or slice thicknesses,
        compression with loss.
    """

    uid: str
    patient: str
    headers: tuple[Header, ...]
    step: float | None
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    @property
    def plain_notes(self) -> tuple[str, ...]:
        """The notes without names of files, which may hold patients' names."""
        return tuple(note.partition(" (")[0] for note in self.notes)


def find_series(
    folder: Path, *, salt: str = "", go_on: bool = False
) -> tuple[list[Series], Skipped]:
    """Returns the CT series below a folder, and (path, reason) of all files left out.

    File and folder names do not matter, nor do extensions.

    Args:
      folder: Searched with its sub-folders.
      salt: For the patient hash.
      go_on: Leave out, and list, what would be refused.

    Raises:
      UserError: A CT file cannot be trusted, or a series has mixed orientations, shapes
        or patients, or slices without a position.
    """
    headers, skipped = scan(folder, salt=salt, go_on=go_on)
    found, refused = group(headers, go_on=go_on)
    return found, skipped + refused


def group(
    headers: Sequence[Header], *, go_on: bool = False
) -> tuple[list[Series], Skipped]:
    """Returns the series that slices belong to, and (path, reason) of those left out.

    Raises:
      UserError: Slices of a series do not fit together, and `go_on` is false.
    """
    skipped: Skipped = []
    by_uid = defaultdict(list)
    for header in headers:
        by_uid[header.series_uid].append(header)
    found = []
    for uid in sorted(by_uid):
        try:
            found.append(sort_series(by_uid[uid]))
        except UserError as error:
            if not go_on:
                raise
            skipped += _refused(by_uid[uid], str(error))
    return found, skipped


def _refused(headers: Sequence[Header], reason: str) -> Skipped:
    """Returns what to list where the slices of a series are refused together."""
    paths = dict.fromkeys(header.path for header in headers)
    culprit = next((p for p in paths if reason.startswith(f"{p}: ")), next(iter(paths)))
    why = "left out with the other slices of its series, one of which is refused."
    return [(path, reason if path == culprit else why) for path in paths]


def scan(
    folder: Path,
    *,
    salt: str = "",
    go_on: bool = False,
    leave_out: Sequence[str] = (),
) -> tuple[list[Header], Skipped]:
    """Returns the headers of all CT slices below a folder, and what was left out.

    Localisers, secondary captures, other modalities and files that are not DICOM are
    left out; so is a second copy of the same SOPInstanceUID.

    Args:
      folder: Searched with its sub-folders, in the order of names.
      salt: For the patient hash.
      go_on: Leave out, and list, what would be refused.
      leave_out: Sub-folders of `folder` that are not searched.

    Raises:
      UserError: A CT file cannot be trusted.
    """
    headers: dict[tuple[str, int], Header] = {}
    skipped: Skipped = []
    for path in files_below(folder, leave_out):
        try:
            if not is_dicom(path):
                if path.suffix.lower() in (".dcm", ".dicom"):
                    raise UserError(f"{path}: is no DICOM file, in spite of its name.")
                skipped.append((path, "not a DICOM file"))
                continue
            found = read_headers(path, salt)
        except UserError as error:
            if not (go_on or isinstance(error, NotCTError)):
                raise
            skipped.append((path, str(error)))
            continue
        first = headers.get(found[0].key)
        if first is not None:
            why = f"doubled: the same SOPInstanceUID as {first.path}"
            if first.patient != found[0].patient:
                # Which of them a mask or a reference means cannot be told.
                why = f"{path}: {why}, of another patient."
                if not go_on:
                    raise UserError(why)
            skipped.append((path, why))
            continue
        headers |= {header.key: header for header in found}
    return list(headers.values()), skipped


def sort_series(headers: Sequence[Header]) -> Series:
    """Returns the slices of one series, sorted along their normal.

    Raises:
      UserError: The slices do not fit together, or cannot be ordered.
    """
    _check_alike(headers)
    along = [0.0]
    if len(headers) > 1:
        normal = _normal(headers[0])
        along = [float(np.dot(header.position, normal)) for header in headers]
    order = sorted(
        range(len(headers)), key=lambda i: (along[i], headers[i].number or 0, i)
    )
    steps = np.diff([along[i] for i in order])
    real = steps[steps > POSITION_TOLERANCE_MM]
    return Series(
        uid=headers[0].series_uid,
        patient=headers[0].patient,
        headers=tuple(headers[i] for i in order),
        step=float(np.median(real)) if len(real) else None,
        notes=tuple(_notes(steps, [headers[i] for i in order])),
        remarks=tuple(_remarks([headers[i] for i in order])),
    )


def read_volume(series: Series) -> np.ndarray:
    """Returns the HU of a series, `[D, H, W]` int16, in the order of its headers.

    Raises:
      UserError: The series is not evenly spaced, has doubled slices, or a file cannot
        be decoded.
    """
    if series.notes:
        raise UserError(
            f"{series.headers[0].path.parent}: the slices make no even volume: "
            f"{'; '.join(series.notes)}."
        )
    volume = np.empty((len(series.headers), *series.headers[0].shape), np.int16)
    for index, hu in read_in_turn(series.headers):
        volume[index] = hu
    return volume


def read_in_turn(headers: Sequence[Header]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, HU `[H, W]` int16) of slices, file by file.

    A multi-frame file is read once for all of its frames.

    Raises:
      UserError: A file cannot be decoded, or is no longer what it was.
    """
    by_path = defaultdict(list)
    for index, header in enumerate(headers):
        by_path[header.path].append(index)
    for path, indices in by_path.items():
        frames = [headers[index].frame for index in indices]
        slices = read_slices(path, frames)
        for index, (header, hu) in zip(indices, slices, strict=True):
            if header.key != headers[index].key:
                raise UserError(f"{path}: has changed since the folder was searched.")
            yield index, hu


def files_below(folder: Path, leave_out: Sequence[str] = ()) -> Iterator[Path]:
    """Yields the files below a folder, in the order of names.

    Args:
      folder: Searched with its sub-folders.
      leave_out: Sub-folders of `folder` that are not searched.

    Raises:
      UserError: There is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    for root, folders, names in os.walk(folder):
        if Path(root) == folder:
            folders[:] = [name for name in folders if name not in leave_out]
        folders.sort()
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file():  # not a pipe or a broken link
                yield path


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do, whatever its name."""
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _normal(header: Header) -> np.ndarray:
    if header.orientation is None or header.position is None:
        raise UserError(
            f"{header.path}: ImageOrientationPatient or ImagePositionPatient is "
            "missing: the slices of its series cannot be ordered."
        )
    return np.cross(*np.reshape(header.orientation, (2, 3)))


def _check_alike(headers: Sequence[Header]) -> None:
    if len(headers) < 2:
        return
    first = headers[0]
    for header in headers:
        _normal(header)
        turn = np.subtract(header.orientation, first.orientation)
        reason = ""
        if np.abs(turn).max() > ORIENTATION_TOLERANCE:
            reason = "orientations"
        elif header.shape != first.shape:
            reason = "image sizes"
        elif header.patient != first.patient:
            reason = "patients"
        elif header.spacing != first.spacing:
            reason = "pixel spacings"
        if reason:
            raise UserError(
                f"{header.path}: the series has mixed {reason}: this file and "
                f"{first.path} cannot belong to one scan."
            )


def _notes(steps: np.ndarray, headers: Sequence[Header]) -> Iterator[str]:
    real = steps[steps > POSITION_TOLERANCE_MM]
    typical = float(np.median(real)) if len(real) else 0.0
    pairs = zip(steps, headers, headers[1:], strict=False)
    for number, (step, left, right) in enumerate(pairs, start=1):
        slices = f"slices {number} and {number + 1}"
        names = f"({left.path.name} and {right.path.name})"
        if step <= POSITION_TOLERANCE_MM:
            yield f"doubled: at one position lie {slices} {names}"
        elif abs(step / typical - 1) > STEP_TOLERANCE:
            times = step / typical
            if times > 1.5 and abs(times - round(times)) < 2 * STEP_TOLERANCE:
                yield f"{round(times) - 1} missing between {slices} {names}"
            else:
                yield (
                    f"uneven: {step:.2f} mm, where {typical:.2f} mm is usual, between "
                    f"{slices} {names}"
                )


def _remarks(headers: Sequence[Header]) -> Iterator[str]:
    first, last = headers[0], headers[-1]
    if len(headers) > 1:
        way = np.subtract(last.position, first.position)
        along = abs(float(np.dot(way, _normal(first))))
        across = np.sqrt(max(0.0, float(np.dot(way, way)) - along**2))
        tilt = float(np.degrees(np.arctan2(across, along)))
        if tilt > TILT_TOLERANCE_DEGREES and along > POSITION_TOLERANCE_MM:
            yield f"tilted gantry: slices are shifted by {tilt:.1f} degrees"
    kernels = sorted({header.kernel for header in headers})
    if len(kernels) > 1:
        yield f"mixed kernels: {', '.join(map(repr, kernels))}"
    thick = sorted({header.thickness or 0.0 for header in headers})
    if len(thick) > 1:
        yield f"mixed slice thicknesses: {thick[0]:g} to {thick[-1]:g} mm"
    lossy = sum(header.lossy for header in headers)
    if lossy:
        yield f"compressed with loss: {lossy} of {len(headers)} slices"
