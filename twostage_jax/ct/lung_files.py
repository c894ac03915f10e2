"""Lung masks made by other programs, and the series that they belong to.

Reads NIfTI volumes and DICOM SEG as written by these programs:

    TotalSegmentator   a folder per case with a file per structure, such as
                       lung_upper_lobe_left.nii.gz, or one file with a table of labels,
                       or a SEG
    lungmask           one NIfTI per case: 1 right and 2 left, or the lobes 1 to 5

A mask belongs to the series that it names. A SEG names the series in its references. A
NIfTI file names it by a SeriesInstanceUID, StudyInstanceUID or PatientID (or its hash) in
the name of the file or of a folder, or by the name of its folder, if the series has a
folder of that name. Otherwise, a mask belongs to the series whose pixels are its voxels,
if all such series show the same scan.
"""

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from twostage_jax.ct import annotations, decode, privacy
from twostage_jax.ct.annotations import RoiFile
from twostage_jax.ct.decode import refusing, skipping
from twostage_jax.ct.dicom import Header, patient_hash
from twostage_jax.ct.lungs import AIR_BELOW_HU
from twostage_jax.ct.regions import nifti, seg
from twostage_jax.ct.regions.base import Key, Query, clean_label
from twostage_jax.ct.series import Series
from twostage_jax.errors import UserError
from twostage_jax.folders import Skipped

# Values of the setting `lungs` that are not paths; see `patches.Cut`.
WORDS = ("given", "found", "off")
# Words in labels and file names (see `_words`) of structures other than lungs, which
# programs write next to lung masks.
_OTHER = re.compile(
    r"vessel|arter|vein|airway|\bwalls?\b|trache|bronch|heart|atri|ventric|aort|liver|"
    r"thyroid|thymus|prostate|brain|frontal|caudate|pleura|effusion|spleen|stomach|"
    r"colon|bowel|intestin|duoden|esophag|kidney|vertebra|\bribs?\b|spin(e|al)|\bbody\b|"
    r"muscle|\bskin\b|mediastin|fissure|lymph|diaphragm"
)
# Words of disease in labels and file names.
_DISEASE = re.compile(
    r"nodul|lesion|tumou?r|cancer|infiltrat|infect|opacit|consolid|\bggo\b|fibros|"
    r"emphys|\b[gpci]tv|metast|covid|abnormal"
)
# A UID in a path; dates and versions have fewer components.
_UID = re.compile(r"\d+(?:\.\d+){4,}")
# Values of masks without labels: right and left lung, the same in the numbering of LUNA16,
# and the five lobes.
_PLAIN_VALUES = ({1, 2}, {3, 4}, {1, 2, 3, 4, 5})
# Files of lobes overlap by at most this fraction of the smaller one.
_MOST_SHARED = 0.05
# Fractions of air in a lung mask: below the first, the mask is shifted or of another
# patient; below the second, there is a remark.
_LEAST_AIR, _USUAL_AIR = 0.05, 0.5
# Lung that continues outside a mask, as a fraction of its largest slice.
_MOST_CUT = 0.1


@dataclasses.dataclass(frozen=True, repr=False)
class GivenLungs:
    """Lung mask of a series, from one or more files.

    Attributes:
      files: Files that make up the mask, NIfTI or SEG. Their `labels` are the values
        (NIfTI) or labels (SEG) that mean lung; empty for a NIfTI file without names of
        labels.
      digest: SHA-256 of their contents, as hexadecimal digits.
    """

    files: tuple[RoiFile, ...]
    digest: str

    def __str__(self) -> str:
        count = len(self.files)
        return f"given: {count} file{'s' * (count > 1)}, SHA-256 {self.digest[:16]}"

    def read(self, headers: Sequence[Header]) -> dict[Key, np.ndarray]:
        """Returns the mask of every slice of the series, `[H, W]` bool.

        Raises:
          UserError: A file does not match the slices, does not mark any of their pixels,
            or has values of unknown meaning; or two files mark the same pixels.
        """
        found = {header.key: np.zeros(header.shape, bool) for header in headers}
        for file in self.files:
            new = _read(file, headers)
            size = sum(int(mask.sum()) for mask in new.values())
            shared = sum(int((found[key] & new[key]).sum()) for key in new)
            before = sum(int(mask.sum()) for mask in found.values())
            if shared > _MOST_SHARED * min(size, before):
                raise UserError.at(
                    file.path,
                    "marks the same lung as another file for this series. Keep one of "
                    f"them. The other could be {self.files[0].path}.",
                )
            for key, mask in new.items():
                found[key] |= mask
        # A single lobe may be empty, because programs write a file for each.
        if not any(mask.any() for mask in found.values()):
            raise UserError.at(
                self.files[0].path, "does not mark any lung on the slices."
            )
        return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Matched:
    """Lung masks by SeriesInstanceUID.

    Attributes:
      folder: File or folder of the masks.
      found: Masks of the series that have one.
      reasons: Reason why each of the others lacks one.
      skipped: (path, reason) of files that are not lung masks.
    """

    folder: Path
    found: dict[str, GivenLungs]
    reasons: dict[str, str]
    skipped: Skipped

    def of(self, series_uid: str) -> GivenLungs:
        """Returns the lung mask of a series.

        Raises:
          UserError: The mask is missing or ambiguous.
        """
        if series_uid not in self.found:
            raise UserError(
                "A lung mask for the series was not found among the given files. "
                f"{self.reasons[series_uid]}",
                where=self.folder,
            )
        return self.found[series_uid]


def folder(given: str) -> Path | None:
    """Returns the folder or file of masks in the setting `lungs`.

    None if the setting is '' or one of `WORDS`.

    Raises:
      UserError: The setting is neither one of these words nor an existing path.
    """
    if given in ("", *WORDS):
        return None
    path = Path(given).expanduser().absolute()
    if not path.exists():
        raise UserError(
            f"lungs = '{given}': this is neither 'given', 'found' or 'off' nor an "
            "existing file or folder of lung masks.",
            where="lungs",
        )
    return path


def match(
    given: Path, root: Path, series: Sequence[Series], *, salt: str = ""
) -> Matched:
    """Returns the lung masks of series.

    Args:
      given: File of lung masks, or folder of such files.
      root: Folder of the slices.
      series: Series of all patients.
      salt: Secret mixed into the patients' hashes.

    Raises:
      UserError: The folder does not exist or does not contain a lung mask.
    """
    regions, lungs, skipped = annotations.find(root, given, [])
    files = []
    for file in sorted([*regions, *lungs], key=lambda file: file.path):
        with skipping(file.path, skipped), refusing(file.path):
            files.append(dataclasses.replace(file, labels=_lung_labels(file)))
    if not files:
        why = privacy.counted(privacy.hide(skipped, [given], salt))
        raise UserError.at(
            given,
            "lung masks were not found. NIfTI files with 'lung' in their name or "
            "labels, NIfTI files of one structure, and DICOM SEG with a segment "
            f"called lung are read. Skipped: {why or 'nothing'}.",
        )
    above = given if given.is_dir() else given.parent
    fitting: dict[str, list[tuple[bool, RoiFile]]] = defaultdict(list)
    reasons = {
        one.uid: f"None of the {len(files)} mask files lies on its slices."
        for one in series
    }
    for file in files:
        own, named = _series_of(file, series, above, root, salt)
        scans = {_scan(one) for one in own}
        if len(scans) > 1:
            for one in own:
                reasons[one.uid] = (
                    f"A file could belong to any of {len(scans)} scans, which share "
                    "their geometry: name it, or its folder, after the "
                    "SeriesInstanceUID."
                )
            continue
        for one in own:
            fitting[one.uid].append((named, file))
    found = {}
    for uid, candidates in fitting.items():
        best = max(named for named, _ in candidates)
        try:
            chosen = _chosen([file for named, file in candidates if named == best])
        except UserError as error:
            reasons[uid] = str(error)
            continue
        found[uid] = GivenLungs(chosen, _digest(file.path for file in chosen))
    return Matched(given, found, reasons, skipped)


def air_remark(hu: np.ndarray, lungs: np.ndarray) -> str:
    """Returns a remark on a lung mask that contains little air, or ''.

    Args:
      hu: Hounsfield units, `[Z, H, W]`.
      lungs: Lung mask, `[Z, H, W]` bool.

    Raises:
      UserError: The mask contains almost no air.
    """
    air = float(np.mean(hu[lungs] < AIR_BELOW_HU))
    text = f"{100 * air:.0f} % of the given lung is darker than {AIR_BELOW_HU} HU"
    if air < _LEAST_AIR:
        raise UserError(
            f"the given mask does not lie on its lungs: only {text}. Was it made from "
            "another series?",
            where="lungs",
        )
    return f"only {text}" if air < _USUAL_AIR else ""


def cut_remark(hu: np.ndarray, lungs: np.ndarray) -> str:
    """Returns a remark on a lung mask that ends where lung continues, or ''.

    Args:
      hu: Hounsfield units, `[Z, H, W]`.
      lungs: Lung mask, `[Z, H, W]` bool.
    """
    areas = lungs.sum((1, 2))
    empty = areas == 0
    for here, beyond in ((np.s_[:-1], np.s_[1:]), (np.s_[1:], np.s_[:-1])):
        lost = (lungs[here] & (hu[beyond] < AIR_BELOW_HU)).sum((1, 2))
        if (lost[empty[beyond]] > _MOST_CUT * areas.max()).any():
            return (
                f"the given lung ends where lung continues: {empty.sum()} of {len(hu)} "
                "slices are not marked"
            )
    return ""


def _words(name: str) -> str:
    return " ".join(re.findall(r"[a-z]+|\d+", name.lower()))


def _is_lung(label: str) -> bool:
    """Returns whether a label names a lung or one of its lobes."""
    words = _words(label)
    lobe = re.search(r"\blobes?\b", words) and re.search(r"upper|middle|lower", words)
    return ("lung" in words or bool(lobe)) and not (
        _OTHER.search(words) or _DISEASE.search(words)
    )


def _lung_labels(file: RoiFile) -> tuple[int, ...] | tuple[str, ...]:
    """Returns the values or labels in a file that mean lung; see `GivenLungs`.

    Raises:
      UserError: The file is not a lung mask.
    """
    if file.format == nifti.FORMAT:
        names = nifti.label_names(file.path)
        lung = tuple(value for value, name in names.items() if _is_lung(name))
        if names and not lung:
            raise UserError(f"its {len(names)} labels do not include a lung.")
        if not names:
            _check_name(_words(annotations.stem(file.path)))
        return lung
    if file.format == seg.FORMAT:
        lung = _lung_segments(file.path)
        if not lung:
            raise UserError("its segments do not include a lung.")
        return lung
    raise UserError("lung masks are read from NIfTI and SEG.")


def _check_name(words: str) -> None:
    """Raises a UserError if a file is named after something other than lung."""
    if _OTHER.search(words):
        raise UserError("its name is that of another structure than lung.")
    # In data sets of COVID-19, this word is often part of the case's name.
    disease = _DISEASE.search(words.replace("covid", "") if "lung" in words else words)
    if disease:
        raise UserError(
            f"its name contains '{disease[0]}', so it may mark disease instead of lungs. "
            "Rename it if it marks the lungs."
        )


def _lung_segments(path: Path) -> tuple[str, ...]:
    """Returns the labels of the lung segments of a SEG, found by label or coded type."""
    found = set()
    for item in decode.load(path, pixels=False).get("SegmentSequence") or ():
        label = clean_label(str(item.get("SegmentLabel") or ""))
        kinds = item.get("SegmentedPropertyTypeCodeSequence") or ()
        meaning = str(kinds[0].get("CodeMeaning") or "") if kinds else ""
        words = _words(label)
        other = _OTHER.search(words) or _DISEASE.search(words)
        if _is_lung(label) or (not other and _is_lung(meaning)):
            found.add(label)
    return tuple(sorted(found))


def _series_of(
    file: RoiFile,
    series: Sequence[Series],
    above: Path,
    root: Path,
    salt: str,
) -> tuple[list[Series], bool]:
    """Returns the series that a file matches, and whether the file names them."""
    if file.series:
        return [one for one in series if one.uid in file.series], True
    inside = file.path.relative_to(above)
    names = {*inside.parts[:-1], annotations.stem(file.path)}
    # 'PATIENT_lungs.nii.gz'
    names |= {re.split(r"(?i)[_. -]+(?:r?lungs?|mask|seg)", name)[0] for name in names}
    hashes = {patient_hash(name, salt) for name in names}
    text = inside.as_posix()
    for named in (
        [one for one in series if _names(text, one.uid)],
        [one for one in series if _names(text, one.headers[0].study)],
        [one for one in series if one.patient and one.patient in names | hashes],
    ):
        if named:
            break
    else:
        if _UID.search(text):
            return [], True  # It names a series that is not among these.
    pool = named
    if not pool and file.home != root:
        pool = [one for one in series if one.headers[0].path.is_relative_to(file.home)]
    pool = pool or list(series)
    if file.format == seg.FORMAT:
        with refusing(file.path):
            dataset = decode.load(file.path, pixels=False)
            reference = str(dataset.get("FrameOfReferenceUID") or "")
        own = [one for one in pool if one.headers[0].reference == reference]
        return own, bool(named)
    fitting = [one for one in pool if nifti.fits(file.path, one.headers)]
    if not fitting and len({_scan(one) for one in pool}) == 1:
        # The volume may be cropped, for instance to the lungs: its reader decides.
        fitting = pool
    return fitting, bool(named)


def _names(text: str, uid: str) -> bool:
    """Returns whether a UID is in a text, and not as a part of another UID."""
    whole = rf"(?<![\d.]){re.escape(uid)}(?!\.?\d)"
    return bool(uid) and re.search(whole, text) is not None


def _scan(series: Series) -> tuple[str, str, str]:
    """Returns identifiers that are equal for all reconstructions of a scan.

    Scans in inspiration and expiration may share the frame of reference, but they are two
    acquisitions.
    """
    first = series.headers[0]
    frame = first.reference or first.study or series.uid
    return series.patient, frame, first.acquisition


def _chosen(files: Sequence[RoiFile]) -> tuple[RoiFile, ...]:
    """Returns those files among the candidates that make up the mask of a series.

    Raises:
      UserError: The files could be several masks.
    """
    folders = {file.path.parent for file in files}
    called = {file: _words(annotations.stem(file.path)) for file in files}
    lung = [file for file in files if file.labels or "lung" in called[file]]
    lung += [file for file in files if file not in lung and _is_lung(called[file])]
    chosen = lung or list(files)
    if len(folders) > 1 or (len(chosen) > 1 and not lung):
        raise UserError(
            "Several files could be its mask. Keep one, or name each after its "
            f"SeriesInstanceUID: {files[0].path}, {files[-1].path}.",
            where=files[0].path,
        )
    return tuple(chosen)


def _read(file: RoiFile, headers: Sequence[Header]) -> dict[Key, np.ndarray]:
    """Returns the lung masks `[H, W]` bool of a file by slice, for slices of a series."""
    if file.format == seg.FORMAT:
        drawn = seg.draw(Query(file.path, headers, file.labels))
        shapes = {header.key: header.shape for header in headers}
        return {
            key: np.any([mask for _, mask in draw()] or [np.zeros(shapes[key])], axis=0)
            for key, draw in drawn.items()
        }
    masks = {key: load() for key, load in nifti.read(file.path, headers).items()}
    values = {int(v) for mask in masks.values() for v in np.unique(mask)} - {0}
    labels = file.labels
    if not labels:
        plain = len(values) < 2 or any(values <= known for known in _PLAIN_VALUES)
        if not plain or values in ({1, 2, 3}, {3, 4, 5}):
            shown = ", ".join(map(str, sorted(values)[:12]))
            raise UserError.at(
                file.path,
                f"has the values {shown}{', ...' if len(values) > 12 else ''}, whose "
                "meaning is unknown (1 and 2 are read as the lungs, 1 to 5 as the "
                "lobes). Save only the lungs.",
            )
        labels = tuple(values)
    return {key: np.isin(mask, labels) for key, mask in masks.items()}


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
