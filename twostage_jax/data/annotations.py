"""Files of regions in a folder tree: which there are, and whose slices they mark."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from twostage_jax.ct import (
    loading,
    roi_nifti,
    roi_rtstruct,
    roi_seg,
    roi_table,
    rois,
)
from twostage_jax.ct.dicom import Header
from twostage_jax.ct.refusing import refusing
from twostage_jax.errors import UserError
from twostage_jax.walk import Skipped, walk

ROIS, LUNGS = "rois", "lungs"


@dataclasses.dataclass(frozen=True)
class RoiFile:
    """A file of regions.

    Attributes:
      path: Of the file.
      kind: 'mask' (PNG, TIFF, NumPy), 'nifti', 'seg', 'rtstruct', 'csv' or 'medgift'.
      home: The folder in whose slices its regions lie, if it does not name the series.
      series: SeriesInstanceUIDs that it names.
      labels: What it calls its regions; none if it numbers them.
      empty: Number of its regions and contours that enclose nothing, such as points.
    """

    path: Path
    kind: str
    home: Path
    series: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    empty: int = 0


def find(
    root: Path, given: Path | None, left_out: Skipped
) -> tuple[list[RoiFile], list[RoiFile], Skipped]:
    """Returns files of regions, files of lung masks, and what is neither.

    Args:
      root: Folder of the slices. Without `given`, regions are its `rois` folders at
        any depth, its MedGIFT contour files, and its SEG and RTSTRUCT objects.
      given: A file of regions, or a folder of them; below it, files that do not name a
        series belong to the slices in the folder of the same name below `root`.
      left_out: (path, reason) of the files below `root` that hold no slices.

    Raises:
      UserError: A file of regions is broken.
    """
    regions: list[RoiFile] = []
    lungs: list[RoiFile] = []
    rest: Skipped = []
    if given is None:
        above = root
        places = [(path, _home(path, root, root), why) for path, why in left_out]
    else:
        paths = [given]
        if given.is_dir():
            tree = walk(given)
            paths, rest = tree.files, tree.skipped
        above = given if given.is_dir() else given.parent
        why = "no file of regions"
        places = [(path, _home(path, above, root), why) for path in paths]
        listed = {*paths, *(path for path, _ in rest)}
        rest += [
            (path, why)
            for path, why in left_out
            if not _is_in(path, root, LUNGS) and path not in listed
        ]
        places += [
            (path, _home(path, root, root), why)
            for path, why in left_out
            if _is_in(path, root, LUNGS)
        ]
    for path, home, why in places:
        within = root if path.is_relative_to(root) else above
        marked = _is_in(path, within, ROIS) or given is not None
        file = _recognised(path, home, marked or _is_in(path, within, LUNGS))
        if marked and file is None and roi_nifti.is_pair(path.with_suffix(".hdr")):
            continue  # voxels of a pair of files
        if file is None:
            rest.append((path, why))
        elif file.empty and not file.labels:
            rest.append((path, "none of its regions encloses an area"))
        else:
            (lungs if _is_in(path, within, LUNGS) else regions).append(file)
    return regions, lungs, rest


def assign(
    files: Iterable[RoiFile], headers: Sequence[Header], *, go_on: bool = False
) -> tuple[dict[str, list[RoiFile]], Skipped]:
    """Returns the files of each patient (a hash), and (path, reason) of the others.

    Raises:
      UserError: A file names a series that is not there, or could belong to several
        patients or to none, and `go_on` is false.
    """
    by_uid = defaultdict(set)
    by_name = defaultdict(list)
    by_folder = defaultdict(set)
    for header in headers:
        for uid in (header.sop_uid, header.series_uid):
            by_uid[uid].add(header.patient)
        by_name[rois.file_stem(header.path)].append(header)
        by_folder[header.path.parent].add(header.patient)
    for folder in list(by_folder):
        for above in folder.parents:
            by_folder[above] |= by_folder[folder]
    found: dict[str, list[RoiFile]] = defaultdict(list)
    skipped: Skipped = []
    for file in files:
        try:
            for patient in _patients(file, by_uid, by_name, by_folder):
                found[patient].append(file)
        except UserError as error:
            if not go_on:
                raise
            skipped.append((file.path, str(error)))
    return dict(found), skipped


def _home(path: Path, above: Path, root: Path) -> Path:
    """Returns the folder below `root` that is named like that of `path`."""
    parts = path.parent.relative_to(above).parts
    for name in (ROIS, LUNGS):
        if name in parts:
            parts = parts[: parts.index(name)]
    home = root.joinpath(*parts)
    return home if home.is_dir() else root


def _is_in(path: Path, root: Path, name: str) -> bool:
    return path.is_relative_to(root) and name in path.parent.relative_to(root).parts


def stem(path: Path) -> str:
    """Returns a file's name without its ending, which for NIfTI may have two parts."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem


def _recognised(path: Path, home: Path, marked: bool) -> RoiFile | None:
    """Returns what kind of regions a file holds, or None.

    Images, arrays and tables are taken for regions only in a place for them (`marked`).
    """
    name = path.name.lower()
    if marked and path.suffix.lower() in rois.MASK_SUFFIXES:
        return RoiFile(path, "mask", home)
    if marked and (name.endswith(roi_nifti.SUFFIXES) or roi_nifti.is_pair(path)):
        return RoiFile(path, "nifti", home)
    if marked and name.endswith(".csv") and name != "classes.csv":
        rows = [row.values for row in roi_table.rows_of(path)]
        series = sorted({row["series"] for row in rows})
        labels = sorted({rois.clean_label(row["label"]) for row in rows})
        return RoiFile(path, "csv", home, tuple(series), tuple(labels))
    if name.endswith(".txt") and rois.is_medgift(path):
        labels = sorted({region[0] for region in rois.read_medgift(path)[1]})
        return RoiFile(path, "medgift", home, (), tuple(labels))
    if loading.is_dicom(path):
        return _recognised_dicom(path, home)
    return None


def _recognised_dicom(path: Path, home: Path) -> RoiFile | None:
    with refusing(path):
        sop_class = str(loading.peek(path, "SOPClassUID").get("SOPClassUID") or "")
        if sop_class in roi_seg.SEGMENTATION:
            kind, module = "seg", roi_seg
        elif sop_class == roi_rtstruct.STRUCTURE_SET:
            kind, module = "rtstruct", roi_rtstruct
        else:
            return None
        dataset = loading.load(path, pixels=False)
        series = module.referenced_series(dataset)
        labels = module.labels(dataset)
        empty = module.count_empty(dataset) if module is roi_rtstruct else 0
    return RoiFile(path, kind, home, series, tuple(sorted({*labels.values()})), empty)


def _patients(
    file: RoiFile,
    by_uid: dict[str, set[str]],
    by_name: dict[str, list[Header]],
    by_folder: dict[Path, set[str]],
) -> list[str]:
    if file.series:
        # Regions on a series that is not there are found when they are read; rows of a
        # table would be skipped.
        missing = [uid for uid in file.series if uid not in by_uid]
        if len(missing) == len(file.series) or (missing and file.kind == "csv"):
            raise UserError(
                f"{file.path}: marks series {', '.join(missing)}, which is not there.",
                where=file.path,
            )
        return sorted(set.union(*(by_uid.get(uid, set()) for uid in file.series)))
    for uid in (stem(file.path), file.path.parent.name):
        if len(by_uid.get(uid, ())) == 1:
            return sorted(by_uid[uid])
    patients = by_folder.get(file.home, set())
    if len(patients) != 1 and file.kind == "mask":
        named = by_name.get(rois.file_stem(file.path), ())
        patients = {h.patient for h in named if h.path.is_relative_to(file.home)}
    if len(patients) != 1:
        raise UserError(
            f"{file.path}: there are slices of {len(by_folder.get(file.home, ()))} "
            f"patients in {file.home}, and the file does not name a series: name it "
            "after the SOPInstanceUID or the SeriesInstanceUID.",
            where=file.path,
        )
    return sorted(patients)
