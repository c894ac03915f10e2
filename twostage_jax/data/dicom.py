"""Patches of annotated regions from folders of DICOM files, in HU.

Slices may lie below the folder in any order, mixed by series and patient. Regions are
found beside them, or in a folder of their own (see `annotations.find`):

    rois/<SOPInstanceUID>.png      0, or 1 + class index; TIFF and NumPy too
    rois/im001.png                 the same, for the slice im001.dcm; numbers and pages
                                   where they can be counted in one way only
    rois/<SeriesInstanceUID>.nii.gz   a NIfTI volume of the same numbers
    *.txt                          MedGIFT contours, beside `CT-*-NNNN.dcm`
    SEG and RTSTRUCT objects       anywhere, under any name
    rois/*.csv                     polygons: patient, series, slice, label, points
    lungs/<SOPInstanceUID>.png     optional lung masks, 0 or not 0
"""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from twostage_jax.ct.dicom import Header, patient_hash
from twostage_jax.ct.series import Series, group, scan
from twostage_jax.data import (
    annotations,
    class_names,
    dicom_patches,
    files,
    hiding,
    lung_files,
    prepared_files,
)
from twostage_jax.data.cut import Cut, check
from twostage_jax.data.dataset import Facts, Made, Recipe, digest
from twostage_jax.data.dicom_patches import Patient
from twostage_jax.errors import UserError
from twostage_jax.walk import Skipped, walk

VERSION = 3
# PatientIDs that anonymisers write into the files of everybody (lower case).
CONSTANT_IDS = (
    *("anon", "anonym", "anonymous", "anonymized", "anonymised", "anonymize"),
    *("deidentified", "de-identified", "removed", "redacted", "unknown", "none"),
    *("nobody", "noname", "no name", "noid", "patient", "patientid", "patient id"),
    *("subject", "test", "id", "na", "n/a", "null", "nil", "xxx", "xxxx", "xxxxx"),
    *("0", "00", "000", "0000", "00000", "000000", "0000000", "00000000", "1"),
    *("123", "1234", "12345", "123456", "12345678", "99999", "999999", "-", "--"),
)


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
    """Returns the recipe of the patches below `path`, one task a patient.

    Args:
      path: Folder of DICOM files.
      rois: File of regions or folder of such files; empty: those below `path`.
      size: Height and width of a patch, pixels.
      channels: Ignored: HU have one channel.
      classes: Class names in the order of the mask values 1, 2, ...: 'normal,ggo', or
        the name of a file below `path`: JSON (a list of names) or CSV (columns value,
        name). Empty: `classes.json` or `classes.csv`, or all labels that occur.
        Regions with labels that are not named are left out.
      stride: Distance between neighbouring patches, pixels.
      coverage: Share of a patch that its region must cover at least.
      overlap: Largest share of a patch that another of its slice may cover.
      lungs: 'given': count only what lies inside the lung masks, where there are any;
        'found': find lungs where there is no mask; 'off': count everything. Or a
        folder or file of lung masks made elsewhere (see `lung_files`), one for each
        series with regions.
      per_roi: Most patches of one region of a slice, drawn at random; 0 = all.
      per_class: Most patches of one class and patient, drawn at random; 0 = all.
      per_patient: Most patches of a patient, drawn at random; 0 = all.
      spacing: Millimetres a pixel to which slices are resampled; None = as they are.
      salt: Secret mixed into the patients' hashes.
      seed: Of the random draws.
      go_on: Leave out, and list, what would be refused.

    Raises:
      UserError: A setting is impossible; or, when tasks or class names are asked for,
        the folder holds no annotated patient, a file cannot be trusted, or a series has
        mixed patients, orientations, image sizes or pixel spacings.
    """
    root = files.below(Path(path), "path")
    given = Path(rois).expanduser().absolute() if rois else None
    if given is not None and not given.exists():
        raise UserError(f"rois = '{rois}': there is no such file or folder.")
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
    check(cut)
    patients = Patients(root, given, salt, go_on, masks)
    names = class_names.given(root, classes)
    if not names:
        names = class_names.occurring(root, patients.regions)
    else:
        class_names.check(names, patients.regions)
    stamps = files.stamps(root, walk(root).files)
    if given is not None:
        above = given if given.is_dir() else given.parent
        marked = walk(given).files if given.is_dir() else [given]
        stamps += files.stamps(above, marked)
    if masks is not None:
        above = masks if masks.is_dir() else masks.parent
        stamps += files.stamps(above, walk(masks).files if masks.is_dir() else [masks])
    settings = {"class_names": names, "cut": cut, "salt": salt, "go_on": go_on}
    roots = [root, *filter(None, (given, masks))]
    return Recipe(
        name="dicom",
        kind="ct",
        class_names=names,
        key=digest("dicom", VERSION, settings, stamps),
        tasks=patients,
        make=functools.partial(
            dicom_patches.make,
            **settings,
            roots=roots,
        ),
        remarks=functools.partial(_remarks, patients=patients, roots=roots, salt=salt),
        resumable=True,
    )


def _remarks(
    skipped: hiding.Hidden,
    facts: Facts,
    *,
    patients: "Patients",
    roots: Sequence[Path],
    salt: str,
) -> Iterator[str]:
    """Yields lines on what is left out of the folder, and on what is odd in it."""
    yield from patients.notes
    yield from dicom_patches.remarks(facts)
    skipped = [*skipped, *hiding.hide(patients.skipped, roots, salt)]
    series = prepared_files.about_series(patients.series, salt, show_paths=False)
    yield from prepared_files.notes(skipped, series)


def patient_examples(
    folder: Path, *, class_names: Sequence[str], salt: str = "", **cut
) -> Made:
    """Returns the patches of all patients in a folder; `cut` as in `Cut`.

    Raises:
      UserError: A file or series cannot be trusted, or regions do not fit their slices.
    """
    made = Made()
    for patient in Patients(Path(folder), None, salt, go_on=False):
        new = dicom_patches.make(
            patient, class_names=class_names, cut=Cut(**cut), salt=salt
        )
        made += new
    return made


class Patients(Sequence[Patient]):
    """The annotated patients below a folder, searched for when first asked for.

    Reading the headers of an archive takes a while, and what is prepared already does
    not need it.

    Attributes:
      root: Folder of the slices.
    """

    def __init__(
        self,
        root: Path,
        given: Path | None,
        salt: str,
        go_on: bool,
        masks: Path | None = None,
    ) -> None:
        self.root = root
        self._given, self._salt, self._go_on = given, salt, go_on
        self._masks = masks

    def __len__(self) -> int:
        return len(self._found[0])

    def __getitem__(self, index: int) -> Patient:
        return self._found[0][index]

    @property
    def regions(self) -> list[annotations.RoiFile]:
        """The files of regions."""
        return self._found[1]

    @property
    def skipped(self) -> Skipped:
        """(path, reason) of what was left out."""
        return self._found[2]

    @property
    def series(self) -> list[Series]:
        """The series of the annotated patients, with what is odd about them."""
        return self._found[3]

    @property
    def notes(self) -> list[str]:
        """Lines on patients who may be several people under one PatientID."""
        constants = {
            patient_hash(form, self._salt)
            for name in CONSTANT_IDS
            for form in (name, name.upper(), name.capitalize())
        }
        found = []
        for patient in self:
            studies = {header.study for header in patient.headers}
            axes = {header.reference for header in patient.headers}
            constant = patient.name in constants
            if len(studies) > 1 and (constant or len(self) == 1):
                found.append(
                    f"one patient, {len(studies)} studies in {len(axes)} frames of "
                    f"reference: {patient.name}. Is the PatientID a constant that an "
                    "anonymiser wrote (or, without a PatientID, the outermost folder "
                    "not the patient's)? Patients under one name count as one: they "
                    "cannot be split between training and test."
                )
        return found

    @functools.cached_property
    def _found(
        self,
    ) -> tuple[list[Patient], list[annotations.RoiFile], Skipped, list[Series]]:
        found = scan(self.root, salt=self._salt, go_on=self._go_on)
        headers = [_named(header, self.root, self._salt) for header in found.headers]
        series, refused = group(headers, found.lost, go_on=self._go_on)
        # Not in the order of the series: random draws depend on that of the files.
        unfit = {path for path, _ in refused}
        headers = [header for header in headers if header.path not in unfit]
        if not headers:
            left_out = refused + found.unread + found.others
            reasons = hiding.first_reasons(left_out, [self.root])
            raise UserError(
                f"{self.root}: CT slices that can be used were not found. "
                f"{reasons or 'The folder holds no files.'}",
                where=self.root,
            )
        regions, lungs, rest = annotations.find(self.root, self._given, found.others)
        by_region, wrong = annotations.assign(regions, headers, go_on=self._go_on)
        by_lung, wrong_lungs = annotations.assign(lungs, headers, go_on=self._go_on)
        matched = None
        if self._masks is not None:
            matched = lung_files.match(self._masks, self.root, series, salt=self._salt)
        by_patient = defaultdict(list)
        for header in headers:
            by_patient[header.patient].append(header)
        patients = [
            Patient(
                name,
                tuple(by_patient[name]),
                tuple(by_region[name]),
                tuple(by_lung.get(name, ())),
                matched,
            )
            for name in by_patient
            if name in by_region
        ]
        skipped = found.unread + rest
        unusable = refused + wrong + wrong_lungs
        unusable += matched.skipped if matched else []
        if not patients:
            roots = [self.root, *([self._given] if self._given else [])]
            reasons = (hiding.first_reasons(s, roots) for s in (unusable, skipped))
            raise UserError(
                f"{self._given or self.root}: regions of the {len(headers)} CT slices "
                "were not found. Masks in folders named 'rois', MedGIFT .txt files, SEG "
                "and RTSTRUCT objects are read, and what the setting 'rois' names. "
                f"{' '.join(filter(None, reasons))}".rstrip(),
                where=self._given or self.root,
            )
        series = [one for one in series if one.patient in by_region]
        return patients, regions, skipped + unusable, series


def _named(header: Header, root: Path, salt: str) -> Header:
    """Returns the header with a patient: without an id, the outermost folder."""
    if header.patient:
        return header
    parts = header.path.relative_to(root).parts
    folder = parts[0] if len(parts) > 1 else root.name
    name = patient_hash(f"folder {folder}", salt)
    return dataclasses.replace(header, patient=name)
