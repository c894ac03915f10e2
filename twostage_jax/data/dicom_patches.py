"""The patches of one patient's annotated CT slices."""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax.ct import patches
from twostage_jax.ct.dicom import Header, patient_hash
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.rois import Key, Load, Numbered
from twostage_jax.ct.series import check_air, read_in_turn
from twostage_jax.data import annotation_masks, hiding
from twostage_jax.data.annotations import RoiFile
from twostage_jax.data.cut import Cut
from twostage_jax.data.dataset import Example, Facts, Made
from twostage_jax.data.lung_files import Matched
from twostage_jax.errors import UserError
from twostage_jax.walk import Skipped

EMPTY = "of structure sets enclose nothing, being points or lines or without contour."
# Series of which a remark says how their numbered masks were placed.
MOST_NUMBERED = 8


@dataclasses.dataclass(frozen=True, repr=False)
class Patient:
    """A patient's slices and regions.

    Attributes:
      name: Salted hash.
      headers: Of the slices, of any number of series.
      regions: Files of regions.
      lungs: Files of lung masks next to the slices.
      masks: Lung masks made elsewhere, which then take the place of `lungs`.
    """

    name: str
    headers: tuple[Header, ...]
    regions: tuple[RoiFile, ...]
    lungs: tuple[RoiFile, ...]
    masks: Matched | None = None

    def __repr__(self) -> str:
        # Paths may hold the patient's name.
        return self.name


def make(
    patient: Patient,
    *,
    class_names: Sequence[str],
    cut: Cut,
    salt: str = "",
    go_on: bool = False,
    roots: Sequence[Path] = (),
) -> Made:
    """Returns the patches of a patient: `[size, size, 1]` int16 HU.

    Slices are read one after another, and one is held at a time. An example's id is
    '<patient>/<slice>/r<row>c<column>', of hashes and of the patch's first pixel in
    the (resampled) slice; for its details see `_details`.

    Args:
      patient: What to cut from.
      class_names: In label order.
      cut: Which patches.
      salt: Secret mixed into hashes.
      go_on: Leave out, and list, slices that would be refused.
      roots: Folders whose names shall not show in the reasons of what is left out.

    Raises:
      UserError: A file cannot be trusted, or regions do not fit the slices.
    """
    made, skipped = Made(), []
    if empty := sum(file.empty for file in patient.regions):
        made.notes.add("ROIs or contours", EMPTY, empty)
    try:
        _patches(patient, class_names, cut, salt, go_on, made, skipped)
    except UserError as error:
        if not go_on:
            raise
        skipped += _refused(patient, str(error))
    made.skipped = hiding.hide(skipped, roots, salt)
    return made


def remarks(facts: Facts) -> Iterator[str]:
    """Yields sentences on the facts that `make` finds, over all patients."""
    marked, overlaps = Counter(), defaultdict(Counter)
    for row in facts.get("marked", ()):
        marked[row["class"]] += row["pixels"]
    for row in facts.get("overlaps", ()):
        counts = {name: row[name] for name in ("pixels", "slices")}
        overlaps[tuple(row["classes"])].update(patients=1, **counts)
    for names, count in overlaps.items():
        shares = [
            f"{100 * count['pixels'] / marked[name]:.0f} % of {name!r}"
            for name in names
        ]
        yield (
            f"{names[0]!r} and {names[1]!r}: {count['pixels']:,} pixels "
            f"({' and '.join(shares)}), on {count['slices']:,} slices, are marked as both "
            f"and count for neither (patients: {count['patients']:,}). To use one of "
            "them, name it without the other in 'classes'."
        )
    numbered = facts.get("numbered_masks", ())
    for row in numbered[:MOST_NUMBERED]:
        instance = row["instance_number"]
        yield (
            f"{row['masks']} numbered masks of {row['kind']}, {row['series']}: number "
            f"{row['number']} is the slice with InstanceNumber "
            f"{'unknown' if instance is None else instance} at z = "
            f"{'unknown' if row['z_mm'] is None else row['z_mm']} mm, by "
            f"{', '.join(row['clues'])}."
        )
    if len(numbered) > MOST_NUMBERED:
        yield (
            f"numbered masks of {len(numbered) - MOST_NUMBERED} more series: `prepare` "
            "lists them in dataset.json."
        )


def _patches(
    patient: Patient,
    class_names: Sequence[str],
    cut: Cut,
    salt: str,
    go_on: bool,
    made: Made,
    skipped: Skipped,
) -> None:
    """Adds patches, and facts about the regions, to `made`."""
    loads, numbered = annotation_masks.labelled(
        patient.regions, patient.headers, class_names, salt
    )
    given, numbered_lungs = annotation_masks.masks(patient.lungs, patient.headers)
    made.facts["numbered_masks"] = [
        *_numbered(numbered, "regions", patient.name, salt),
        *_numbered(numbered_lungs, "lungs", patient.name, salt),
    ]
    headers = [header for header in patient.headers if header.key in loads]
    headers = _with_air(headers, patient, go_on, skipped)
    if cut.lungs == "off":
        given = {}
    if patient.masks is not None:
        given, headers = _given(patient, headers, go_on, skipped)
    found, marked, overlaps = [], Counter(), defaultdict(Counter)
    for number, lungs in _lungs(headers, given, cut, go_on, skipped):
        header = headers[number]
        try:
            labels = loads[header.key]()
            places = _places(header, labels.mask, lungs, len(class_names), cut)
        except UserError as error:
            if not go_on:
                raise
            culprit = _culprit(patient, str(error)) or header.path
            skipped.append((culprit, str(error)))
            continue
        found += [(number, *place) for place in places]
        marked.update(labels.marked)
        for pair, pixels in labels.overlaps.items():
            overlaps[pair].update(pixels=pixels, slices=1)
    made.facts["marked"] = [
        {"patient": patient.name, "class": class_names[label], "pixels": pixels}
        for label, pixels in sorted(marked.items())
    ]
    made.facts["overlaps"] = [
        {
            "patient": patient.name,
            "classes": [class_names[label] for label in pair],
            **counts,
        }
        for pair, counts in sorted(overlaps.items())
    ]
    chosen = _chosen(found, cut, patient.name)
    by_slice = defaultdict(list)
    for index in chosen:
        by_slice[found[index][0]].append(found[index][1:])
    for number, hu in _read(headers, by_slice, go_on, skipped):
        for place in by_slice[number]:
            made.append(_example(hu, headers[number], place, patient.name, cut, salt))


def _given(
    patient: Patient, headers: Sequence[Header], go_on: bool, skipped: Skipped
) -> tuple[dict[Key, Load], list[Header]]:
    """Returns the lung masks made elsewhere, and the slices of series that have one."""
    found: dict[Key, Load] = {}
    for uid in dict.fromkeys(header.series_uid for header in headers):
        own = [header for header in patient.headers if header.series_uid == uid]
        try:
            masks = patient.masks.of(uid).read(own)
        except UserError as error:
            if not go_on:
                raise
            skipped.append((own[0].path, str(error)))
            continue
        found |= {key: lambda mask=mask: mask for key, mask in masks.items()}
    return found, [header for header in headers if header.key in found]


def _numbered(
    placed: Sequence[Numbered], kind: str, patient: str, salt: str
) -> list[dict[str, Any]]:
    """Returns, for each series, the slice of the mask with the smallest number."""
    by_series = defaultdict(list)
    for one in placed:
        by_series[one.header.series_uid].append(one)
    rows = []
    for uid, own in by_series.items():
        first = min(own, key=lambda one: one.number)
        position = first.header.position
        rows.append(
            {
                "patient": patient,
                "series": series_hash(uid, salt),
                "kind": kind,
                "masks": sum(one.masks for one in own),
                "number": first.number,
                "instance_number": first.header.number,
                "z_mm": None if position is None else round(position[2], 3),
                "clues": list(first.clues),
            }
        )
    return rows


def _with_air(
    headers: Sequence[Header], patient: Patient, go_on: bool, skipped: Skipped
) -> list[Header]:
    """Returns the slices without those of series that are not in HU; see `check_air`."""
    by_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        by_series[header.series_uid].append(header)
    refused = set()
    for uid, marked in by_series.items():
        keys = {header.key for header in marked}
        rest = [h for h in patient.headers if h.series_uid == uid and h.key not in keys]
        try:
            # Files that cannot be decoded are refused or listed where they are used.
            slices = (hu for _, hu in _read([*marked, *rest], go_on=True))
            check_air(slices, marked[0].path)
        except UserError as error:
            if not go_on:
                raise
            skipped.append((marked[0].path, str(error)))
            refused.add(uid)
    return [header for header in headers if header.series_uid not in refused]


def _culprit(patient: Patient, reason: str) -> Path | None:
    """Returns the file that a reason begins with."""
    paths = [file.path for file in (*patient.regions, *patient.lungs)]
    paths += [header.path for header in patient.headers]
    return next((path for path in paths if reason.startswith(f"{path}: ")), None)


def _refused(patient: Patient, reason: str) -> Skipped:
    """Returns what to list where the regions of a patient are refused together."""
    culprit = _culprit(patient, reason) or patient.regions[0].path
    why = "left out with the patient's other regions, one of which is refused."
    others = [file.path for file in patient.regions if file.path != culprit]
    return [(culprit, reason), *((path, why) for path in others)]


def slice_hash(uid: str, salt: str) -> str:
    """Returns a short name of a slice that does not give its UID away."""
    return "slice-" + patient_hash(uid, salt).removeprefix("patient-")


def series_hash(uid: str, salt: str) -> str:
    """Returns a short name of a series that does not give its UID away."""
    return "series-" + patient_hash(uid, salt).removeprefix("patient-")


# Row, column, class index, coverage, region.
Place = tuple[int, int, int, float, int]


def _places(
    header: Header,
    mask: np.ndarray,
    lungs: np.ndarray | None,
    num_classes: int,
    cut: Cut,
) -> list[Place]:
    """Returns the patches of a slice that coverage and overlap allow."""
    shape = _shape(header, cut.spacing)
    patches.check_size(shape, cut.size, header.path)
    labels = patches.resample_mask(mask, shape)
    if lungs is not None:
        labels = np.where(patches.resample_mask(lungs, shape), labels, 0)
    cuts, shares = patches.covered(
        labels,
        size=cut.size,
        stride=cut.stride,
        coverage=[cut.coverage] * num_classes,
    )
    kept = patches.apart(cuts[:, :2], shares, size=cut.size, overlap=cut.overlap)
    cuts, shares = cuts[kept], shares[kept]
    regions = patches.regions_of(labels, cuts, size=cut.size)
    return [
        (*map(int, place), float(share), int(region))
        for place, share, region in zip(cuts, shares, regions, strict=True)
    ]


def _chosen(found: list[tuple], cut: Cut, patient: str) -> np.ndarray:
    """Returns the indices, in order, of the patches that the caps leave."""
    chosen = np.arange(len(found))
    caps = (
        (cut.per_roi, lambda place: (place[0], place[5]), "roi"),
        (cut.per_class, lambda place: place[3], ""),
        (cut.per_patient, lambda place: 0, "patient"),
    )
    for most, group, name in caps:
        groups = [group(found[index]) for index in chosen]
        numbers = {value: i for i, value in enumerate(sorted(set(groups)))}
        picked = patches.choose(
            np.array([numbers[value] for value in groups], int),
            per_class=most,
            seed=cut.seed,
            patient=f"{patient} {name}".strip(),
        )
        chosen = chosen[picked]
    return chosen


def _lungs(
    headers: Sequence[Header],
    given: dict[Key, Load],
    cut: Cut,
    go_on: bool,
    skipped: Skipped,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yields (index, lung mask `[H, W]` bool) of slices; None where all counts."""
    missing = []
    for number, header in enumerate(headers):
        if header.key in given:
            yield number, given[header.key]() > 0
        elif cut.lungs == "found":
            missing.append(number)
        elif given:
            raise UserError(f"{header.path}: has regions, but no lung mask in 'lungs'.")
        else:
            yield number, None
    for number, hu in _read(headers, missing, go_on, skipped):
        header = headers[number]
        if header.spacing is None:
            raise UserError(
                f"{header.path}: PixelSpacing is missing, so lungs cannot be found."
            )
        yield number, lung_mask(hu[None], header.spacing)[0]


def _read(
    headers: Sequence[Header],
    numbers: Sequence[int] | None = None,
    go_on: bool = False,
    skipped: Skipped | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (number, HU) of some slices, or of all, file by file."""
    numbers = range(len(headers)) if numbers is None else numbers
    skipped = [] if skipped is None else skipped
    by_path: dict[Path, list[int]] = defaultdict(list)
    for number in numbers:
        by_path[headers[number].path].append(number)
    for path, own in by_path.items():
        try:
            for index, hu in read_in_turn([headers[number] for number in own]):
                yield own[index], hu
        except UserError as error:
            if not go_on:
                raise
            skipped.append((path, str(error)))


def _example(
    hu: np.ndarray,
    header: Header,
    place: Place,
    patient: str,
    cut: Cut,
    salt: str,
) -> Example:
    row, column, label, share, _ = place
    shape = _shape(header, cut.spacing)
    if shape != hu.shape:
        hu = np.rint(patches.resample_image(hu, shape)).astype(np.int16)
    uid = header.key[0] + (f"/{header.frame}" if header.frame else "")
    name = slice_hash(uid, salt)
    patch = hu[row : row + cut.size, column : column + cut.size, None]
    return Example(
        id=f"{patient}/{name}/r{row:04d}c{column:04d}",
        image=patch.copy(),
        label=label,
        group=patient,
        details=_details(header, name, place, shape, share, salt),
        synthetic=header.synthetic,
    )


def _details(
    header: Header,
    name: str,
    place: Place,
    shape: tuple[int, int],
    share: float,
    salt: str,
) -> dict[str, str | int | float]:
    """Returns where a patch comes from.

    Hashes of series and slice; the slice's InstanceNumber; the patch's first pixel in
    the (resampled) slice and the size of a pixel in mm; the share that its region
    covers.
    """
    spacing: tuple = ("", "")
    if header.spacing is not None:
        spacing = tuple(
            round(mm * old / new, 5)
            for mm, old, new in zip(header.spacing, header.shape, shape, strict=True)
        )
    return {
        "series": series_hash(header.series_uid, salt),
        "slice": name,
        "slice_number": "" if header.number is None else header.number,
        "row": place[0],
        "column": place[1],
        "row_mm": spacing[0],
        "column_mm": spacing[1],
        "coverage": round(share, 4),
    }


def _shape(header: Header, spacing: float | None) -> tuple[int, int]:
    if spacing is None:
        return header.shape
    if header.spacing is None:
        raise UserError(
            f"{header.path}: PixelSpacing is missing, so it cannot be resampled to "
            f"{spacing} mm a pixel."
        )
    return patches.resampled_shape(header.shape, header.spacing, spacing, header.path)
