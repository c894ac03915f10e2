"""Cuts patches of annotated regions, in HU, from folders of DICOM files.

`ct.patients` finds slices and regions; this module decides which patches of them become
examples. A task of the recipe is one patient, because the number of patches per patient is
limited. Only one slice is in memory at a time.
"""

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import folders
from twostage_jax.ct import annotations, lung_files, patches, privacy
from twostage_jax.ct.decode import skipping
from twostage_jax.ct.dicom import Header, hashed
from twostage_jax.ct.lung_files import air_remark
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.patches import Cut, Place
from twostage_jax.ct.patients import Patient, Patients, search
from twostage_jax.ct.regions.base import Key, Load, Numbered, clean_label
from twostage_jax.ct.series import (
    by_series,
    check_air,
    check_slice,
    read_in_turn,
)
from twostage_jax.data import cohort, prepared_folder
from twostage_jax.data.cohort import NO_PATCH, flow_row
from twostage_jax.data.dataset import Example, Facts, Made, Recipe, digest
from twostage_jax.errors import UserError
from twostage_jax.folders import Skipped, walk

# Bump when the same files and settings give different patches or facts.
VERSION = 4
# Largest number of series with a remark on their numbered masks.
MOST_NUMBERED = 8
# Reason for which patches are excluded.
OVERLAP = "overlaps a patch that its region covers better"
# Note on ROIs and contours; see `Notes.add`.
REFUSED = "the slice or its mask is refused: see the skipped files"
EMPTY = "of structure sets do not enclose an area: points, lines, or without contour."


def recipe(
    *,
    path: str,
    rois: str = "",
    size: int = 32,
    channels: int = 1,
    classes: str = "",
    stride: int = 16,
    coverage: float = 0.75,
    overlap: float = 1.0,
    lungs: str = "given",
    per_roi: int = 0,
    per_class: int = 100,
    per_patient: int = 0,
    spacing: float | None = None,
    salt: str = "",
    seed: int = 0,
    go_on: bool = False,
) -> Recipe:
    """Returns the recipe of the patches below `path`, one task per patient.

    Args:
      path: Folder of DICOM files.
      rois: File of regions or folder of such files; empty: those below `path`.
      channels: Ignored: HU have one channel.
      classes: Class names in the order of the mask values 1, 2, ...: 'normal,ggo', or
        the name of a file below `path`: JSON (a list of names) or CSV (columns value,
        name). Empty: `classes.json` or `classes.csv`, or all labels that occur.
        Regions with other labels are skipped.
      lungs: 'given', 'found' or 'off' (see `Cut`); or a folder or file of lung masks made
        by other programs (see `lung_files`), one per series with regions.
      size, stride, coverage, overlap, per_roi, per_class, per_patient, spacing, seed: See
        `Cut`.
      salt: Secret mixed into hashes.
      go_on: Skip, and list, files that would be refused.

    Raises:
      UserError: A setting is impossible, the folder lacks annotated patients, a file
        cannot be trusted, or a series has mixed patients, orientations, image sizes or
        pixel spacings.
    """
    root = folders.below(Path(path), "path")
    given = Path(rois).expanduser().absolute() if rois else None
    if given is not None and not given.exists():
        raise UserError(
            f"rois = '{rois}': the file or folder does not exist.", where="rois"
        )
    masks = lung_files.folder(lungs)
    cut = Cut(
        size=size,
        stride=stride,
        coverage=coverage,
        overlap=overlap,
        lungs="given" if masks else lungs,
        spacing=spacing,
        per_roi=per_roi,
        per_class=per_class,
        per_patient=per_patient,
        seed=seed,
    )
    patches.check(cut)
    names = annotations.given_classes(root, classes)
    patients = search(root, given, masks, salt=salt, go_on=go_on)
    if not names:
        names = annotations.occurring_classes(root, patients.regions)
    else:
        annotations.check_classes(names, patients.regions)
    stamps = []
    for path in patients.roots:
        if path.is_dir():
            stamps += folders.stamps(path, walk(path).files)
        else:
            stamps += folders.stamps(path.parent, [path])
    settings = {"class_names": names, "cut": cut, "salt": salt, "go_on": go_on}
    return Recipe(
        name="dicom",
        kind="ct",
        class_names=names,
        key=digest("dicom", VERSION, settings, stamps),
        tasks=patients,
        make=functools.partial(make, **settings, roots=patients.roots),
        remarks=functools.partial(remarks, patients, names),
        flow=functools.partial(flow, patients),
        resumable=True,
    )


def patient_examples(
    folder: Path, *, class_names: Sequence[str], salt: str = "", **cut
) -> Made:
    """Returns the patches of all patients in a folder; `cut` as in `Cut`.

    Raises:
      UserError: A file or series cannot be trusted, or regions do not fit their slices.
    """
    made = Made()
    for patient in search(folder, salt=salt):
        new = make(patient, class_names=class_names, cut=Cut(**cut), salt=salt)
        made += new
        made.gather(new)
    return made


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

    An example's id is '<patient>/<slice>/r<row>c<column>': hashes, and the patch's first
    pixel in the (resampled) slice. Its details are the hashes of series and slice, the
    slice's InstanceNumber, the first pixel, the pixel size in mm, and the fraction that
    the region covers.

    Args:
      patient: Slices and regions to cut from.
      class_names: Class names in label order.
      cut: Settings of the patches.
      salt: Secret mixed into hashes.
      go_on: Skip, and list, slices that would be refused.
      roots: Folders whose names must not appear in the reasons of skipped files.

    Raises:
      UserError: A file cannot be trusted, or regions do not fit the slices.
    """
    made, skipped = Made(), []
    if empty := sum(file.empty for file in patient.regions):
        made.notes.add("ROIs or contours", EMPTY, empty)
    try:
        _patches(patient, class_names, cut, salt, skipped if go_on else None, made)
    except UserError as error:
        if not go_on:
            raise
        culprit = _culprit(patient, error) or patient.regions[0].path
        why = "skipped because another file of the patient's regions is refused."
        others = [file.path for file in patient.regions if file.path != culprit]
        skipped += [(culprit, str(error)), *((path, why) for path in others)]
        refused = "a file of the regions is refused"
        made.facts["flow"] = [flow_row("patients", 1, refused, patient=patient.name)]
    made.skipped = privacy.hide(skipped, roots, salt)
    made.facts.setdefault("flow", []).extend(_files(made.skipped, patient.name))
    return made


def _patches(
    patient: Patient,
    class_names: Sequence[str],
    cut: Cut,
    salt: str,
    skipped: Skipped | None,
    made: Made,
) -> None:
    """Adds patches, and facts about the regions, to `made`.

    `skipped` is the list of slices that would be refused; None: refuse them.
    """
    loads, numbered = annotations.labelled(
        patient.regions, patient.headers, class_names, salt
    )
    given, numbered_lungs = annotations.numbered_masks(patient.lungs, patient.headers)
    made.facts["numbered_masks"] = [
        *_numbered(numbered, "regions", patient.name, salt),
        *_numbered(numbered_lungs, "lungs", patient.name, salt),
    ]
    drawn = [header for header in patient.headers if header.key in loads]
    headers = _with_air(drawn, patient, skipped)
    if cut.lungs == "off":
        given = {}
    if patient.masks is not None:
        given, headers = _given(patient, headers, skipped)
    places: list[Place] = []
    sound: set[int] = set()
    marked, overlaps, dropped = Counter(), defaultdict(Counter), Counter()
    for number, lungs in _lungs(headers, given, cut, skipped):
        header = headers[number]
        try:
            labels = loads[header.key]()
            mask, size = labels.mask, len(class_names)
            found, apart = _places(number, header, mask, lungs, size, cut)
        except UserError as error:
            if skipped is None:
                raise
            skipped.append((_culprit(patient, error) or header.path, str(error)))
            continue
        sound.add(number)
        places += found
        dropped.update((OVERLAP, label) for label in apart)
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
    by_slice = defaultdict(list)
    for place in patches.chosen(places, cut, patient.name, dropped):
        by_slice[place.slice].append(place)
    used = []
    unread = dict(by_slice)
    for number, hu in _read(headers, by_slice, skipped):
        header = headers[number]
        used.append(header)
        del unread[number]
        shape = _shape(header, cut.spacing)
        if shape != hu.shape:
            hu = np.rint(patches.resample_image(hu, shape)).astype(np.int16)
        for place in by_slice[number]:
            made.append(_example(hu, header, place, patient.name, cut.size, salt))
    made.facts["acquisition"] = cohort.acquisition(used, patient.name, salt)
    dropped.update((REFUSED, p.label) for lost in unread.values() for p in lost)
    kept = [headers[number] for number in sorted(sound - unread.keys())]
    made.facts["flow"] = _patient_flow(
        patient, drawn, kept, used, made, dropped, class_names
    )


def _patient_flow(
    patient: Patient,
    drawn: Sequence[Header],
    sound: Sequence[Header],
    used: Sequence[Header],
    made: Made,
    dropped: Counter,
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Returns rows of the table 'flow' on a patient, from series to patches.

    Of the patient's slices, `drawn` have regions; of these, all but the `sound` ones are
    refused, and `used` have patches.
    """
    counts = []
    for level, name in (("series", "series_uid"), ("slices", "key")):
        total, in_regions, read, kept = (
            len({getattr(header, name) for header in headers})
            for headers in (patient.headers, drawn, sound, used)
        )
        counts += [
            (level, total - in_regions, "no regions of the classes are drawn"),
            (level, in_regions - read, REFUSED),
            (level, read - kept, NO_PATCH),
            (level, kept, ""),
        ]
    return cohort.patient_flow(patient.name, counts, made, dropped, class_names)


def _given(
    patient: Patient, headers: Sequence[Header], skipped: Skipped | None
) -> tuple[dict[Key, Load], list[Header]]:
    """Returns the lung masks of other programs, and the slices of series with one.

    A mask that does not lie on lung is refused; see `lung_files.air_remark`.
    """
    found: dict[Key, Load] = {}
    whole = by_series(patient.headers)
    for uid, marked in by_series(headers).items():
        own = whole[uid]
        with skipping(own[0].path, skipped):
            masks = patient.masks.of(uid).read(own)
            shown = [
                (hu, masks[marked[index].key])
                for index, hu in read_in_turn(marked, [])
                if masks[marked[index].key].any()
            ]
            if shown:  # Slices that cannot be decoded are refused where they are used.
                air_remark(*map(np.stack, zip(*shown, strict=True)))
            found |= {key: lambda mask=mask: mask for key, mask in masks.items()}
    return found, [header for header in headers if header.key in found]


def _lungs(
    headers: Sequence[Header],
    given: dict[Key, Load],
    cut: Cut,
    skipped: Skipped | None,
) -> Iterator[tuple[int, np.ndarray | None]]:
    """Yields (index, lung mask `[H, W]` bool) of slices; None if everything counts."""
    missing = []
    for number, header in enumerate(headers):
        if header.key in given:
            yield number, given[header.key]() > 0
        elif cut.lungs == "found":
            missing.append(number)
        elif given:
            raise UserError.at(
                header.path, "the slice has regions, but lacks a lung mask in 'lungs'."
            )
        else:
            yield number, None
    for number, hu in _read(headers, missing, skipped):
        header = headers[number]
        if header.spacing is None:
            raise UserError.at(
                header.path, "PixelSpacing is missing, so lungs cannot be found."
            )
        yield number, lung_mask(hu[None], header.spacing)[0]


def _with_air(
    headers: Sequence[Header], patient: Patient, skipped: Skipped | None
) -> list[Header]:
    """Returns the slices of those series that are in HU; see `check_air`."""
    whole = by_series(patient.headers)
    sound = set()
    for uid, marked in by_series(headers).items():
        keys = {header.key for header in marked}
        rest = [header for header in whole[uid] if header.key not in keys]
        with skipping(marked[0].path, skipped):
            # Files that cannot be decoded are refused or listed where they are used.
            slices = (hu for _, hu in read_in_turn([*marked, *rest], []))
            check_air(slices, marked[0].path)
            sound.add(uid)
    return [header for header in headers if header.series_uid in sound]


def _read(
    headers: Sequence[Header], numbers: Iterable[int], skipped: Skipped | None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (index, HU `[H, W]` int16) of the slices of some indices, file by file."""
    numbers = list(numbers)
    for index, hu in read_in_turn([headers[n] for n in numbers], skipped):
        header = headers[numbers[index]]
        with skipping(header.path, skipped):
            check_slice(hu, header)
            yield numbers[index], hu


def _places(
    number: int,
    header: Header,
    mask: np.ndarray,
    lungs: np.ndarray | None,
    num_classes: int,
    cut: Cut,
) -> tuple[list[Place], list[int]]:
    """Returns the patches of slice `number`, and the classes of those that overlap them.

    `mask` `[H, W]` int is 0 outside all regions, 1 + class index inside; `lungs` `[H, W]`
    bool is None if everything counts.

    Raises:
      UserError: A patch does not fit into the slice, or its pixel size is unknown.
    """
    shape = _shape(header, cut.spacing)
    patches.check_size(shape, cut.size, header.path)
    labels = patches.resample_mask(mask, shape)
    if lungs is not None:
        labels = np.where(patches.resample_mask(lungs, shape), labels, 0)
    cuts, coverage = patches.covered(
        labels,
        size=cut.size,
        stride=cut.stride,
        coverage=[cut.coverage] * num_classes,
    )
    kept = patches.apart(cuts[:, :2], coverage, size=cut.size, overlap=cut.overlap)
    apart = np.delete(cuts[:, 2], kept).tolist()
    cuts, coverage = cuts[kept], coverage[kept]
    regions = patches.regions_of(labels, cuts, size=cut.size)
    rows = zip(cuts.tolist(), coverage.tolist(), regions.tolist(), strict=True)
    return [Place(number, *corner, *rest) for corner, *rest in rows], apart


def _example(
    hu: np.ndarray,
    header: Header,
    place: Place,
    patient: str,
    size: int,
    salt: str,
) -> Example:
    """Returns a patch of a (resampled) slice `hu` `[H, W]`; see `make`."""
    row, column = place.row, place.column
    uid = header.key[0] + (f"/{header.frame}" if header.frame else "")
    name = hashed("slice", uid, salt)
    spacing = ["", ""]
    if header.spacing is not None:
        spacing = [
            round(mm * old / new, 5)
            for mm, old, new in zip(header.spacing, header.shape, hu.shape, strict=True)
        ]
    return Example(
        id=f"{patient}/{name}/r{row:04d}c{column:04d}",
        image=hu[row : row + size, column : column + size, None].copy(),
        label=place.label,
        group=patient,
        details={
            "series": hashed("series", header.series_uid, salt),
            "slice": name,
            "slice_number": "" if header.number is None else header.number,
            "row": row,
            "column": column,
            "row_mm": spacing[0],
            "column_mm": spacing[1],
            "coverage": round(place.coverage, 4),
        },
        synthetic=header.synthetic,
    )


def _shape(header: Header, spacing: float | None) -> tuple[int, int]:
    if spacing is None:
        return header.shape
    if header.spacing is None:
        raise UserError.at(
            header.path,
            f"PixelSpacing is missing, so the slice cannot be resampled to {spacing} "
            "mm per pixel.",
        )
    return patches.resampled_shape(header.shape, header.spacing, spacing, header.path)


def _numbered(
    placed: Sequence[Numbered], kind: str, patient: str, salt: str
) -> list[dict[str, Any]]:
    """Returns a row per series on its numbered masks, with the first mask's slice."""
    found = defaultdict(list)
    for one in placed:
        found[one.header.series_uid].append(one)
    rows = []
    for uid, own in found.items():
        first = min(own, key=lambda one: one.number)
        position = first.header.position
        rows.append(
            {
                "patient": patient,
                "series": hashed("series", uid, salt),
                "kind": kind,
                "masks": sum(one.masks for one in own),
                "number": first.number,
                "instance_number": first.header.number,
                "z_mm": None if position is None else round(position[2], 3),
                "clues": list(first.clues),
            }
        )
    return rows


def _culprit(patient: Patient, error: UserError) -> Path | None:
    """Returns the patient's file at which an error occurred, or None."""
    files = (*patient.regions, *patient.lungs, *patient.headers)
    return next((file.path for file in files if str(file.path) == error.where), None)


def remarks(
    patients: Patients,
    class_names: Sequence[str],
    skipped: privacy.Hidden,
    facts: Facts,
) -> Iterator[str]:
    """Yields remarks on patients, regions, skipped files and peculiar series."""
    yield from patients.warnings()
    used = set(map(clean_label, class_names))
    unused = Counter(name for f in patients.regions for name in {*f.labels} - used)
    if unused:
        listed = ", ".join(f"{name!r} ({n})" for name, n in unused.most_common(9))
        yield (
            f"regions with {len(unused)} other labels are not used: {listed}"
            f"{', ...' if len(unused) > 9 else ''} (in brackets: files). If they are of a "
            "class, name it in 'classes' as it is written there."
        )
    yield from _region_remarks(facts)
    skipped = [*skipped, *privacy.hide(patients.skipped, patients.roots, patients.salt)]
    series = prepared_folder.about_series(
        patients.series, patients.salt, show_paths=False
    )
    yield from prepared_folder.notes(skipped, series)


def flow(patients: Patients) -> Iterator[dict[str, Any]]:
    """Yields rows of the table 'flow' on files and patients without a task."""
    yield from _files(privacy.hide(patients.skipped, patients.roots, patients.salt))
    if count := patients.without_regions:
        yield flow_row("patients", count, "no regions are drawn")


def _files(skipped: privacy.Hidden, patient: str = "") -> Iterator[dict[str, Any]]:
    for reason, count in Counter(why for _, why in skipped).items():
        yield flow_row("files", count, reason, patient=patient)


def _region_remarks(facts: Facts) -> Iterator[str]:
    """Yields sentences on the facts of all patients (see `make`)."""
    marked, overlaps = Counter(), defaultdict(Counter)
    for row in facts.get("marked", ()):
        marked[row["class"]] += row["pixels"]
    for row in facts.get("overlaps", ()):
        counts = {name: row[name] for name in ("pixels", "slices")}
        overlaps[tuple(row["classes"])].update(patients=1, **counts)
    for names, count in overlaps.items():
        fractions = [
            f"{100 * count['pixels'] / marked[name]:.0f} % of {name!r}"
            for name in names
        ]
        yield (
            f"{names[0]!r} and {names[1]!r}: {count['pixels']:,} pixels "
            f"({' and '.join(fractions)}), on {count['slices']:,} slices, are marked as "
            f"both and count as neither (patients: {count['patients']:,}). To use one of "
            "the classes, name it without the other in 'classes'."
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
            f"numbered masks of {len(numbered) - MOST_NUMBERED} further series: `prepare` "
            "lists them in dataset.json."
        )
