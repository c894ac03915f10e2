"""Finds the patients with annotated CT slices below a folder of DICOM files.

Slices may be anywhere below the folder, with series and patients mixed. Regions are next
to them, or in a separate folder (see `annotations.find`):

    rois/<SOPInstanceUID>.png      0, or 1 + class index (of one class: 1 or 255); TIFF
                                   and NumPy too
    rois/im001.png                 the same, for the slice im001.dcm; numbers and pages
                                   if they can be counted in only one way
    rois/<SeriesInstanceUID>.nii.gz   a NIfTI volume of the same numbers
    *.txt                          MedGIFT contours, next to `CT-*-NNNN.dcm`
    SEG and RTSTRUCT objects       anywhere, under any name
    rois/*.csv                     polygons: patient, series, slice, label, points
    lungs/<SOPInstanceUID>.png     optional lung masks, 0 or not 0
"""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from twostage_jax.ct import annotations, lung_files, privacy
from twostage_jax.ct.annotations import RoiFile
from twostage_jax.ct.dicom import Header, patient_hash
from twostage_jax.ct.lung_files import Matched
from twostage_jax.ct.series import Series, group, scan
from twostage_jax.errors import UserError
from twostage_jax.folders import Skipped

# PatientIDs that anonymisers write into the files of all patients, in lower case.
CONSTANT_IDS = (
    *("anon", "anonym", "anonymous", "anonymized", "anonymised", "anonymize"),
    *("deidentified", "de-identified", "removed", "redacted", "unknown", "none"),
    *("nobody", "noname", "no name", "noid", "patient", "patientid", "patient id"),
    *("subject", "test", "id", "na", "n/a", "null", "nil", "xxx", "xxxx", "xxxxx"),
    *("0", "00", "000", "0000", "00000", "000000", "0000000", "00000000", "1"),
    *("123", "1234", "12345", "123456", "12345678", "99999", "999999", "-", "--"),
)


@dataclasses.dataclass(frozen=True, repr=False)
class Patient:
    """Slices and regions of a patient.

    Attributes:
      name: Salted hash of the PatientID.
      headers: Headers of the slices, of any number of series.
      regions: Files of regions.
      lungs: Files of lung masks next to the slices.
      masks: Lung masks made by other programs, which replace `lungs`.
    """

    name: str
    headers: tuple[Header, ...]
    regions: tuple[RoiFile, ...]
    lungs: tuple[RoiFile, ...]
    masks: Matched | None = None

    def __repr__(self) -> str:
        # Paths may contain the patient's name.
        return self.name


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Patients(Sequence[Patient]):
    """Annotated patients below a folder.

    Attributes:
      patients: Patients with regions, in the order of their files.
      regions: Files of regions.
      skipped: (path, reason) of skipped files.
      series: Series of the annotated patients, with their peculiarities.
      without_regions: Number of patients with CT slices but without regions.
      folders: Names of the patients whose files lack a PatientID.
      roots: Files and folders that were searched.
      salt: Secret mixed into hashes.
    """

    patients: list[Patient]
    regions: list[RoiFile]
    skipped: Skipped
    series: list[Series]
    without_regions: int
    folders: frozenset[str]
    roots: list[Path]
    salt: str

    def __len__(self) -> int:
        return len(self.patients)

    def __getitem__(self, index: int) -> Patient:
        return self.patients[index]

    def warnings(self) -> list[str]:
        """Returns warnings about patients who may be several people, or the same person."""
        constants = {
            patient_hash(form, self.salt)
            for name in CONSTANT_IDS
            for form in (name, name.upper(), name.capitalize())
        }
        found = []
        for patient in self:
            studies = {header.study for header in patient.headers}
            axes = {header.reference for header in patient.headers}
            doubtful = patient.name in constants | self.folders or len(self) == 1
            if len(studies) > 1 and doubtful:
                found.append(
                    f"one patient, {len(studies)} studies in {len(axes)} frames of "
                    f"reference: {patient.name}. Is the PatientID a constant written by "
                    "an anonymiser (or, without a PatientID, does the outermost folder "
                    "contain several patients)? Patients with one name count as one: "
                    "they cannot be split between training and test."
                )
        return found + self._of_one_study()

    def _of_one_study(self) -> list[str]:
        """Returns a warning for each study of several patients."""
        names: dict[str, dict[str, None]] = defaultdict(dict)
        for patient in self:
            for header in patient.headers:
                if header.study:
                    names[header.study][patient.name] = None
        return [
            f"{len(of_study)} patients have files of one study (StudyInstanceUID): "
            f"{', '.join(list(of_study)[:3])}{', ...' if len(of_study) > 3 else ''}. Is "
            "it one person, whose PatientID is missing or written differently in some "
            "files? They count as several: they may be on both sides of a split."
            for of_study in names.values()
            if len(of_study) > 1
        ]


def search(
    root: Path,
    given: Path | None = None,
    masks: Path | None = None,
    *,
    salt: str = "",
    go_on: bool = False,
) -> Patients:
    """Returns the annotated patients below a folder, whose headers are all read.

    Args:
      root: Folder of DICOM files.
      given: File or folder of regions; None for those below `root`.
      masks: File or folder of lung masks made by other programs.
      salt: Secret mixed into hashes.
      go_on: Skip, and list, files that would be refused.

    Raises:
      UserError: The folder lacks slices or regions, or a file cannot be trusted.
    """
    roots = [root, *filter(None, (given, masks))]
    found = scan(root, salt=salt, go_on=go_on)
    headers = [_named(header, root, salt) for header in found.headers]
    pairs = zip(found.headers, headers, strict=True)
    folders = frozenset(
        named.patient for as_read, named in pairs if not as_read.patient
    )
    series, refused = group(headers, found.lost, go_on=go_on)
    # Keeps the order of the files, on which random draws depend.
    unfit = {path for path, _ in refused}
    headers = [header for header in headers if header.path not in unfit]
    if not headers:
        unusable = refused + found.unread + found.others
        reasons = privacy.first_reasons(unusable, roots)
        raise UserError.at(
            root,
            f"usable CT slices were not found. {reasons or 'The folder is empty.'}",
        )
    of_slices = {header.path.parent for header in headers}
    regions, lungs, rest = annotations.find(root, given, found.others, of_slices)
    by_region, wrong = annotations.assign(regions, headers, go_on=go_on)
    by_lung, wrong_lungs = annotations.assign(lungs, headers, go_on=go_on)
    matched = None
    if masks is not None:
        matched = lung_files.match(masks, root, series, salt=salt)
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
        reasons = (privacy.first_reasons(paths, roots) for paths in (unusable, skipped))
        raise UserError(
            f"{given or root}: regions of the {len(headers)} CT slices "
            "were not found. Masks in folders named 'rois', MedGIFT .txt files, SEG "
            "and RTSTRUCT objects are read, and files given by the setting 'rois'. "
            f"{' '.join(filter(None, reasons))}".rstrip(),
            where=given or root,
        )
    series = [one for one in series if one.patient in by_region]
    without = len(by_patient) - len(patients)
    skipped += unusable
    return Patients(patients, regions, skipped, series, without, folders, roots, salt)


def _named(header: Header, root: Path, salt: str) -> Header:
    """Returns a header with the outermost folder as the patient if the id is missing."""
    if header.patient:
        return header
    parts = header.path.relative_to(root).parts
    folder = parts[0] if len(parts) > 1 else root.name
    name = patient_hash(f"folder {folder}", salt)
    return dataclasses.replace(header, patient=name)
