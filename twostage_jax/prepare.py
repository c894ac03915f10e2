"""Cuts patches of annotated regions out of folders of CT series.

    python -m twostage_jax.prepare --source=FOLDER --rois=FOLDER --out=patches \
        --patch=32 --stride=16 --salt=SECRET

finds the CT slices below --source, whatever their names, and the regions in --rois (or
beside the slices): PNG, TIFF, NumPy or NIfTI masks, DICOM SEG, RTSTRUCT, CSV polygons or
MedGIFT contours; see `data/dicom.py`. It writes

    prepared/      the patches in HU, as ArrayRecord
    dataset.json   what they are
    patches.csv    each patch: hashes of patient, series and slice, place, class, coverage
    skipped.csv    each file that was left out, and why
    series.csv     each series of an annotated patient, and what is odd about it
    preview.png    some patches of each class

With --beam='--runner=DirectRunner', or a runner of a cluster, an Apache Beam pipeline cuts
the patches (extra 'beam').

Names, ids, UIDs and dates of patients do not get there: only hashes do. A run that was cut
off goes on where it was. To train on it, set a stage's data to source 'prepared' with the
folder as its path. Patches are kept in HU: one window, or three as the three channels of
the network, is the stage's setting `window`.
"""

import contextlib
import shlex
from pathlib import Path

import numpy as np
from absl import flags

from twostage_jax import cli
from twostage_jax.data import beam, dicom, hiding, prepared_files
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.prepare import folder_of, metadata_of, prepare
from twostage_jax.errors import UserError
from twostage_jax.spreadsheet import inert
from twostage_jax.walk import shown, walk

SOURCE = flags.DEFINE_string("source", None, "Folder of DICOM files, in any order.")
ROIS = flags.DEFINE_string(
    "rois", "", "File or folder of regions; default: those beside the slices."
)
OUT = flags.DEFINE_string("out", None, "Folder of the patches.")
CLASSES = flags.DEFINE_string(
    "classes", "", "Names of the classes of mask values 1, 2, ...; 'normal,ggo'."
)
PATCH = flags.DEFINE_integer("patch", 32, "Height and width of a patch, pixels.")
STRIDE = flags.DEFINE_integer("stride", 16, "Pixels between neighbouring patches.")
SPACING = flags.DEFINE_float(
    "spacing", None, "Millimetres a pixel to resample to; default: pixels as they are."
)
COVERAGE = flags.DEFINE_float("coverage", 0.75, "Least share of a patch in its region.")
OVERLAP = flags.DEFINE_float(
    "overlap", 1.0, "Largest share of a patch that another of its slice may cover."
)
LUNGS = flags.DEFINE_enum(
    "lungs", "given", ["given", "found", "off"], "Lung masks that patches must lie in."
)
PER_ROI = flags.DEFINE_integer("per_roi", 0, "Most patches of a region; 0 = all.")
PER_CLASS = flags.DEFINE_integer(
    "per_class", 100, "Most patches of a class and patient; 0 = all."
)
PER_PATIENT = flags.DEFINE_integer(
    "per_patient", 0, "Most patches of a patient; 0 = all."
)
SALT = flags.DEFINE_string("salt", "", "Secret mixed into the hashes of identifiers.")
SEED = flags.DEFINE_integer("seed", 0, "Of the random draws.")
GO_ON = flags.DEFINE_boolean("go_on", False, "Leave out and list what is refused.")
BEAM = flags.DEFINE_string(
    "beam",
    "",
    "Options of an Apache Beam pipeline that cuts the patches, such as "
    "'--runner=DirectRunner'; default: processes of this machine.",
)
WORKERS = flags.DEFINE_integer("workers", None, "Processes; default: one a core.")
SHOW_PATHS = flags.DEFINE_boolean(
    "show_paths",
    False,
    "Name files in errors and in the list of what was left out; paths may hold "
    "patients' names.",
)


def main() -> None:
    """Prepares the patches that the flags ask for."""
    for flag in (SOURCE, OUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing.")
    if WORKERS.value is not None and WORKERS.value < 1:
        raise UserError(f"--workers={WORKERS.value}: at least 1 is needed.")
    hidden = hiding.errors(_roots(), SALT.value)
    with contextlib.nullcontext() if SHOW_PATHS.value else hidden:
        _prepare()


def _prepare() -> None:
    recipe = dicom.recipe(
        path=SOURCE.value,
        rois=ROIS.value,
        classes=CLASSES.value,
        size=PATCH.value,
        stride=STRIDE.value,
        spacing=SPACING.value,
        coverage=COVERAGE.value,
        overlap=OVERLAP.value,
        lungs=LUNGS.value,
        per_roi=PER_ROI.value,
        per_class=PER_CLASS.value,
        per_patient=PER_PATIENT.value,
        salt=SALT.value,
        seed=SEED.value,
        go_on=GO_ON.value,
    )
    if not SALT.value:
        print(
            "Note: without --salt, somebody with a list of patient ids can find theirs "
            "again among the hashes.",
            flush=True,
        )
    out = Path(OUT.value).expanduser().absolute()
    if out == Path(SOURCE.value).expanduser().absolute():
        raise UserError("--out is the folder of the slices: give another.")
    if BEAM.value:
        beam.run(recipe, out, shlex.split(BEAM.value))
    made = prepare(recipe, out, workers=WORKERS.value)
    metadata = metadata_of(folder_of(recipe, out))
    skipped = list(map(tuple, metadata.get("skipped", ())))
    skipped += hiding.hide(recipe.tasks.skipped, list(_roots().values()), SALT.value)
    names = _paths() if SHOW_PATHS.value else {}
    shown = [(names.get(name, name), why) for name, why in skipped]
    series = prepared_files.about_series(
        recipe.tasks.series, SALT.value, show_paths=SHOW_PATHS.value
    )
    prepared_files.write(out, recipe, made, metadata, shown, series)
    _report(made)


def _report(made: Dataset) -> None:
    print(f"{len(made)} patches of {len(np.unique(made.groups))} patients:")
    for label, name in enumerate(made.class_names):
        own = made.labels == label
        patients = len(np.unique(made.groups[own]))
        print(f"  {inert(name)[:80]}: {own.sum()} of {patients} patients")
    for note in made.notes:
        print(f"  {note}")
    print(f"Written to {OUT.value}; the files left out are in skipped.csv.")


def _roots() -> dict[str, Path]:
    """Returns the files and folders that are read, by flag."""
    given = [flag for flag in (SOURCE, ROIS) if flag.value]
    return {f"--{f.name}": Path(f.value).expanduser().absolute() for f in given}


def _paths() -> dict[str, str]:
    """Returns the path of each file's hash."""
    found = {}
    for root in _roots().values():
        tree = walk(root) if root.is_dir() else None
        skipped = [path for path, _ in tree.skipped] if tree else []
        for path in [*tree.files, *skipped] if tree else [root]:
            found[hiding.file_hash(path, SALT.value)] = shown(path)
    return found


if __name__ == "__main__":
    cli.run(main)
