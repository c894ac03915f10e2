"""Searches a folder tree for CT slices, and sorts them into series."""

import dataclasses
import filecmp
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax.ct import decode
from twostage_jax.ct.decode import skipping
from twostage_jax.ct.dicom import (
    AIR_HU,
    CT_CLASSES,
    Header,
    NotCTError,
    read_headers,
    read_slices,
    series_uid,
)
from twostage_jax.errors import UserError
from twostage_jax.folders import Skipped, walk

# Reason for valid slices of a series that is refused because of another slice.
TOGETHER = "skipped with the other slices of its series, one of which is refused."
# Direction cosines and positions are rounded to a few decimals.
ORIENTATION_TOLERANCE = 1e-3
POSITION_TOLERANCE_MM = 0.01
# Spacings are rounded: this fraction of a pixel over the whole image is negligible.
FIELD_TOLERANCE = 0.1
THICKNESS_TOLERANCE_MM = 0.005
# Relative difference from the median step above which a step is reported.
STEP_TOLERANCE = 0.05
# Angle between the direction from slice to slice and their normal: a tilted gantry.
TILT_TOLERANCE_DEGREES = 0.5
# Fat is at -100 HU; lung and the air around the patient are far below.
NO_AIR_ABOVE_HU, MOST_BELOW = -100, 1e-3
# If the rescale is lost, water is at 1024 HU, and at least this fraction of the image
# exceeds this limit, which otherwise only dense bone does.
BRIGHT_HU, LEAST_BRIGHT = 700, 0.1


@dataclasses.dataclass(frozen=True)
class Series:
    """Slices of one scan, sorted along their common normal.

    Axial slices are ordered from the feet to the head, whatever the names and numbers of
    their files.

    Attributes:
      uid: SeriesInstanceUID.
      patient: Salted hash of the PatientID; '' if it is missing.
      headers: Header of each slice.
      step: Median distance between neighbouring slices, mm; None for a single slice.
      notes: Reasons why the slices are not an evenly spaced volume: doubled, missing or
        unevenly spaced slices, by their numbers in this order, from 1, followed by the
        names of their files in brackets.
      remarks: Other peculiarities: a tilted gantry, mixed kernels or slice thicknesses,
        lossy compression, files that may belong to the series and were not read.
      left_out: Number of unusable files that belong to the series, or may belong to it
        because they lie in its folders. Copies of its slices do not count.
    """

    uid: str
    patient: str
    headers: tuple[Header, ...]
    step: float | None
    notes: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def plain_notes(self) -> tuple[str, ...]:
        """Notes without the names of files, which may contain patients' names."""
        return tuple(note.partition(" (")[0] for note in self.notes)


def find_series(
    folder: Path, *, salt: str = "", go_on: bool = False
) -> tuple[list[Series], Skipped]:
    """Returns the CT series below a folder, and (path, reason) of all skipped files.

    Names of files and folders do not matter.

    Args:
      folder: Folder to search, with its sub-folders.
      salt: Secret mixed into the patients' hashes.
      go_on: Skip, and list, files that would be refused.

    Raises:
      UserError: A CT file cannot be trusted, or a series has mixed orientations, shapes
        or patients, or slices without a position.
    """
    found = scan(folder, salt=salt, go_on=go_on)
    series, refused = group(found.headers, found.lost, go_on=go_on)
    return series, found.unread + found.others + refused


def by_series(headers: Iterable[Header]) -> dict[str, list[Header]]:
    """Returns the slices by SeriesInstanceUID, in their order."""
    found = defaultdict(list)
    for header in headers:
        found[header.series_uid].append(header)
    return dict(found)


def group(
    headers: Sequence[Header], lost: Sequence[Path] = (), *, go_on: bool = False
) -> tuple[list[Series], Skipped]:
    """Returns the series of slices, and (path, reason) of skipped slices.

    Args:
      headers: Headers of the slices.
      lost: Files that may contain slices and were not read; see `Scan`.
      go_on: Skip, and list, series that would be refused.

    Raises:
      UserError: Slices of a series do not fit together, and `go_on` is false.
    """
    skipped: Skipped = []
    found = []
    for _, slices in sorted(by_series(headers).items()):
        try:
            found.append(sort_series(slices))
        except UserError as error:
            if not go_on:
                raise
            for path in dict.fromkeys(header.path for header in slices):
                culprit = str(path) == error.where
                skipped.append((path, str(error) if culprit else TOGETHER))
    return list(_with_parts(_with_left_out(found, lost))), skipped


def _with_left_out(found: Sequence[Series], lost: Sequence[Path]) -> Iterator[Series]:
    """Yields the series with the number of unusable files that may belong to each."""
    named, unnamed = Counter(), Counter()
    for path in lost:
        uid = series_uid(path)
        if uid:
            named[uid] += 1
        else:
            unnamed[path.parent] += 1
    for series in found:
        folders = {header.path.parent for header in series.headers}
        count = named[series.uid] + sum(unnamed[folder] for folder in folders)
        if count:
            remark = (
                f"perhaps incomplete: {count} files with its UID or in its folders "
                "could not be used"
            )
            remarks = (*series.remarks, remark)
            series = dataclasses.replace(series, left_out=count, remarks=remarks)
        yield series


def _with_parts(found: Iterable[Series]) -> Iterator[Series]:
    """Yields the series, with a remark on single slices that may be one scan."""
    found = list(found)
    alike = defaultdict(set)

    def scan_of(series: Series) -> tuple | None:
        first = series.headers[0]
        if len(series.headers) > 1 or not (first.study or first.reference):
            return None
        if first.position is None or first.orientation is None:
            return None
        return _geometry(first), first.study, first.reference

    for series in found:
        if scan_of(series) is not None:
            alike[scan_of(series)].add(tuple(series.headers[0].position))
    for series in found:
        count = len(alike.get(scan_of(series), ()))
        if count > 1:
            remark = (
                f"a single slice that looks like one of {count} of one scan: they share "
                "study and frame of reference, but each has its own SeriesInstanceUID"
            )
            series = dataclasses.replace(series, remarks=(*series.remarks, remark))
        yield series


class Scan(NamedTuple):
    """Result of searching a folder for CT slices.

    Attributes:
      headers: Headers of the slices.
      others: (path, reason) of files without slices and of refused files.
      unread: (path, reason) of files that cannot or should not be opened; see `walk`.
      lost: Paths of both lists that may contain slices: refused CT files, broken links,
        unreadable and empty files.
    """

    headers: list[Header]
    others: Skipped
    unread: Skipped
    lost: list[Path]


def scan(folder: Path, *, salt: str = "", go_on: bool = False) -> Scan:
    """Returns the headers of all CT slices below a folder, and the skipped files.

    Skips localisers, secondary captures, other modalities, files that are not DICOM, and
    copies of a slice (with the same series, SOPInstanceUID, position and pixels).

    Args:
      folder: Folder to search, with its sub-folders, in the order of names; see `walk`.
      salt: Secret mixed into the patients' hashes.
      go_on: Skip, and list, files that would be refused.

    Raises:
      UserError: A CT file cannot be trusted.
    """
    tree = walk(folder)
    by_uid: dict[tuple, list[Header]] = defaultdict(list)
    headers: list[Header] = []
    skipped: Skipped = []
    unread, lost = tree.skipped, [path for path, _ in tree.lost]
    for path in tree.files:
        found: list[Header] = []
        try:
            reason = _not_dicom(path)
            if reason:
                skipped.append((path, reason))
                named_like_dicom = not path.suffix or path.suffix[1:].isdigit()
                if reason in decode.EMPTY and named_like_dicom:
                    lost.append(path)
                continue
            found = read_headers(path, salt)
            first = _copied(found, by_uid[_uids(found[0])])
            if first is not None:
                reason = f"doubled: a copy of {first.path}"
                if first.patient != found[0].patient:
                    # A mask or a reference could mean either of them.
                    raise UserError.at(path, f"{reason}, of another patient.")
                skipped.append((path, reason))
                continue
        except OSError as error:
            unread.append((path, f"cannot be read: {error.strerror}"))
            lost.append(path)
            continue
        except NotCTError as error:
            skipped.append((path, str(error)))
            continue
        except UserError as error:
            other = decode.other_class(path, CT_CLASSES)
            if other:
                skipped.append((path, f"damaged, and not a CT image but {other}"))
                continue
            if not go_on:
                raise
            of_uids = by_uid[_uids(found[0])] if found else []
            damaged = [one for one in of_uids if str(one.path) == error.where]
            if not damaged:
                skipped.append((path, str(error)))
                lost.append(path)
                continue
            # An earlier copy cannot be decoded: this one takes its place.
            (copy,) = damaged
            skipped.append((copy.path, str(error)))
            of_uids.remove(copy)
            headers = [one for one in headers if one.path != copy.path]
        by_uid[_uids(found[0])].append(found[0])
        headers += found
    series = Counter(sop_uid for _, sop_uid, _ in by_uid)
    lowest: dict[str, float] = {}
    for header in headers:
        if header.intercept is not None:
            known = lowest.get(header.series_uid, header.intercept)
            lowest[header.series_uid] = min(known, header.intercept)
    headers = [
        dataclasses.replace(
            header,
            repeated=series[header.sop_uid] > 1,
            raised=header.intercept is not None
            and header.intercept > lowest[header.series_uid],
        )
        for header in headers
    ]
    return Scan(headers, skipped, unread, lost)


def _uids(header: Header) -> tuple[str, str, int]:
    """Returns UIDs and frame, which are equal only for copies of a slice."""
    return header.series_uid, header.sop_uid, header.frame


def _not_dicom(path: Path) -> str:
    """Returns the reason to skip a file that is not DICOM, or '' if it is DICOM.

    Raises:
      UserError: The file is not DICOM despite its extension.
    """
    if path.name.upper() == "DICOMDIR":
        return "a DICOMDIR, the table of contents of a medium"
    reason = decode.why_not_dicom(path)
    if reason and path.suffix.lower() in (".dcm", ".dicom"):
        raise UserError.at(path, f"{reason}, despite its extension.")
    return reason


def _copied(found: Sequence[Header], known: Sequence[Header]) -> Header | None:
    """Returns the header of the slice of which a file is a copy, or None.

    Args:
      found: Headers of the file's frames.
      known: First headers of other files with the same `_uids`.

    Raises:
      UserError: One of the files cannot be decoded.
    """
    for first in known:
        if filecmp.cmp(first.path, found[0].path, shallow=False):
            return first
        frames = [header.frame for header in found]
        others = read_headers(first.path)
        if len(others) != len(found) or not all(map(_same_place, found, others)):
            continue
        slices = (read_slices(header.path, frames) for header in (first, found[0]))
        if all(np.array_equal(a, b) for (_, a), (_, b) in zip(*slices, strict=True)):
            return first
    return None


def _same_place(one: Header, other: Header) -> bool:
    if one.shape != other.shape:
        return False
    pairs = (
        (one.position, other.position, POSITION_TOLERANCE_MM),
        (one.orientation, other.orientation, ORIENTATION_TOLERANCE),
    )
    for a, b, tolerance in pairs:
        if (a is None) != (b is None):
            return False
        if a is not None and np.abs(np.subtract(a, b)).max() > tolerance:
            return False
    return _same_spacing(one, other)


def _same_spacing(one: Header, other: Header) -> bool:
    if one.spacing is None or other.spacing is None:
        return one.spacing == other.spacing
    away = np.abs(np.subtract(one.spacing, other.spacing)) * one.shape
    return bool(
        (away <= FIELD_TOLERANCE * np.minimum(one.spacing, other.spacing)).all()
    )


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
    ordered = [headers[i] for i in order]
    steps = np.diff([along[i] for i in order])
    real = steps[steps > POSITION_TOLERANCE_MM]
    return Series(
        uid=headers[0].series_uid,
        patient=headers[0].patient,
        headers=tuple(ordered),
        step=float(np.median(real)) if len(real) else None,
        notes=tuple(_notes(steps, ordered)),
        remarks=tuple(_remarks(ordered)),
    )


def read_volume(series: Series) -> np.ndarray:
    """Returns the HU of a series, `[D, H, W]` int16, in the order of its headers.

    Raises:
      UserError: The series is not evenly spaced, has doubled slices, or a file cannot
        be decoded.
    """
    if series.notes:
        raise UserError.at(
            series.headers[0].path.parent,
            f"the slices are not an evenly spaced volume: {'; '.join(series.notes)}.",
        )
    volume = np.empty((len(series.headers), *series.headers[0].shape), np.int16)
    for index, hu in read_in_turn(series.headers):
        volume[index] = hu
    return volume


def read_in_turn(
    headers: Sequence[Header], skipped: Skipped | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, HU `[H, W]` int16) of slices, file by file.

    Each multi-frame file is read once.

    Args:
      headers: Headers of the slices.
      skipped: List of files that would be refused; None: refuse them.

    Raises:
      UserError: A file cannot be decoded, or has changed since the search.
    """
    by_path = defaultdict(list)
    for index, header in enumerate(headers):
        by_path[header.path].append(index)
    for path, indices in by_path.items():
        frames = [headers[index].frame for index in indices]
        with skipping(path, skipped):
            slices = read_slices(path, frames)
            for index, (header, hu) in zip(indices, slices, strict=True):
                if _uids(header) != _uids(headers[index]):
                    raise UserError.at(
                        path, "has changed since the folder was searched."
                    )
                yield index, hu


def check_air(slices: Iterable[np.ndarray], path: Path) -> None:
    """Raises a UserError if a series does not contain air, so that its values are not HU.

    Air surrounds every patient and fills every lung. A series without air has lost its
    RescaleIntercept, or does not show a chest.

    Args:
      slices: HU `[H, W]` of the slices of one series, consumed until air is found.
      path: File of one of the slices, for the error.
    """
    total = below = bright = padding = 0
    for hu in slices:
        measured = hu[hu != AIR_HU]
        total += measured.size
        padding += hu.size - measured.size
        below += np.count_nonzero(measured < NO_AIR_ABOVE_HU)
        bright += np.count_nonzero(measured > BRIGHT_HU)
        if below > MOST_BELOW * total:
            return
        # Pixels of exactly `AIR_HU` may be air or padding.
        if padding > MOST_BELOW * total and bright <= LEAST_BRIGHT * total:
            return
    if total:
        raise UserError.at(
            path,
            "its series does not contain any air: its values are not HU. Was "
            "RescaleIntercept lost (usually -1024)? Export the series again.",
        )


def check_slice(hu: np.ndarray, header: Header) -> None:
    """Raises a UserError if a slice `[H, W]` of a series in HU is not in HU itself.

    No pixel is below 0 HU, as air and fat are, and another slice of the series has a lower
    RescaleIntercept.
    """
    if header.raised and hu.min() >= 0:
        raise UserError.at(
            header.path,
            f"no value of the slice is below 0, and its RescaleIntercept is "
            f"{header.intercept:g}, higher than that of other slices of its series. Was "
            "it lost? Export the slice again.",
        )


def _normal(header: Header) -> np.ndarray:
    if header.orientation is None or header.position is None:
        raise UserError.at(
            header.path,
            "ImageOrientationPatient or ImagePositionPatient is missing: the slices "
            "of its series cannot be ordered.",
        )
    normal = np.cross(*np.reshape(header.orientation, (2, 3)))
    return normal / np.linalg.norm(normal)


def _check_alike(headers: Sequence[Header]) -> None:
    if len(headers) < 2:
        return
    # Compares with the most frequent geometry, so that the error names the odd slice.
    common = Counter(map(_geometry, headers)).most_common(1)[0][0]
    first = next(header for header in headers if _geometry(header) == common)
    named: dict[tuple, Header] = {}
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
        elif not _same_spacing(header, first):
            reason = "pixel spacings"
        if reason:
            raise UserError.at(
                header.path,
                f"the series has mixed {reason}, which cannot belong to one scan: "
                f"compare {first.path}.",
            )
        other = named.setdefault(_uids(header), header)
        if other is not header:
            differ = "pixels" if _same_place(header, other) else "positions"
            raise UserError.at(
                header.path,
                "has the same SOPInstanceUID as another file of its series, but their "
                f"{differ} differ. Neither is a copy, and regions cannot name one of "
                "them. Anonymise or export the series again, with a UID for each "
                f"slice. The other file is {other.path}.",
            )


def _geometry(header: Header) -> tuple:
    """Returns the properties that are equal for all slices of a scan."""
    turn = tuple(round(v, 2) + 0.0 for v in header.orientation or ())
    return turn, header.shape, header.patient


def _notes(steps: np.ndarray, headers: Sequence[Header]) -> Iterator[str]:
    real = steps[steps > POSITION_TOLERANCE_MM]
    typical = float(np.median(real)) if len(real) else 0.0
    pairs = zip(steps, headers, headers[1:], strict=False)
    for number, (step, left, right) in enumerate(pairs, start=1):
        slices = f"slices {number} and {number + 1}"
        names = f"({left.path.name} and {right.path.name})"
        if step <= POSITION_TOLERANCE_MM:
            yield f"doubled: equal position of {slices} {names}"
        elif abs(step / typical - 1) > STEP_TOLERANCE:
            times = step / typical
            if times > 1.5 and abs(times - round(times)) < 2 * STEP_TOLERANCE:
                yield f"{round(times) - 1} missing between {slices} {names}"
            else:
                yield (
                    f"uneven: {step:.2f} mm instead of {typical:.2f} mm between {slices} "
                    f"{names}"
                )


def _remarks(headers: Sequence[Header]) -> Iterator[str]:
    first, last = headers[0], headers[-1]
    if len(headers) > 1:
        shift = np.subtract(last.position, first.position)
        along = abs(float(np.dot(shift, _normal(first))))
        across = np.sqrt(max(0.0, float(np.dot(shift, shift)) - along**2))
        tilt = float(np.degrees(np.arctan2(across, along)))
        if tilt > TILT_TOLERANCE_DEGREES and along > POSITION_TOLERANCE_MM:
            yield f"tilted gantry: slices are shifted by {tilt:.1f} degrees"
    kernels = sorted({header.kernel for header in headers})
    if len(kernels) > 1:
        yield f"mixed kernels: {', '.join(map(repr, kernels))}"
    thick = sorted({header.thickness or 0.0 for header in headers})
    if thick[-1] - thick[0] > THICKNESS_TOLERANCE_MM:
        yield f"mixed slice thicknesses: {thick[0]:g} to {thick[-1]:g} mm"
    if len({header.reference for header in headers}) > 1:
        yield "mixed frames of reference"
    lossy = sum(header.lossy for header in headers)
    if lossy:
        yield f"compressed with loss: {lossy} of {len(headers)} slices"
