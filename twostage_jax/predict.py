"""Maps disease in CT series with a finished stage run.

    python -m twostage_jax.predict --run=runs/two_stage --dicom=FOLDER --out=maps

finds the CT series below FOLDER, masks the lungs, classifies overlapping windows, and
writes a folder a series (`maps/<patient hash>_<series hash>/`):

    probabilities.npz     class probabilities; class, lung and unlike masks, geometry
    probabilities.nii.gz  class probabilities; classes.nii.gz: 1 + class index
    unlike_training.nii.gz  1 where the lung is unlike the training images
    segmentation.dcm      DICOM SEG over the source images; carries their identity
    overlays/*.png        each slice with lung, plain and in colour
    contact_sheet.png     the whole series on one sheet
    report.csv            volume and share of lung of each class, by region
    series.json           what was made, with what

and in `maps` itself

    report.csv            the reports of all series in `maps`
    skipped.csv           each file left out, each series refused, and why

A row of report.csv is a class in a region (the lungs, or a third of their height or depth)
of one series: volume in ml and fraction of the region. A patient's rows share the hash in
`patient`; `series_of_patient` says how many series they come from. These are not added up:
most are the same lungs again, with another kernel or on another day, so choose one.
`files_left_out` counts files of the series that could not be used: a first or last slice
among them leaves no gap and is not missed otherwise.

Lung whose windows are unlike the training images (see `novelty.py`) is hatched in the
pictures, counted in `fraction_unlike_training`, as a fraction of the region's classified
lung, and has no class in the DICOM SEG. A series is refused if this is more than half of
its lung, or if the model was trained on synthetic images and the series does not say that
it is synthetic; --go_on maps it all the same. Lung that is not marked may be misjudged,
too: the measure finds gross differences, not every disease that the training lacks
(`experiments/unseen.md`).

A series that is there already, made by the same model in the same way, is not made again.
Research use only, not for diagnosis.
"""

from pathlib import Path

from absl import flags

from twostage_jax import cli
from twostage_jax.ct import files
from twostage_jax.ct.palette import UNLIKE
from twostage_jax.errors import UserError
from twostage_jax.mapping import trained
from twostage_jax.mapping.classify import Classifier, How
from twostage_jax.mapping.folder import map_folder

RUN = flags.DEFINE_string("run", None, "A study's workdir, or a stage run's folder.")
ARM = flags.DEFINE_string("arm", "", "Arm of the study; default: two_stage.")
DICOM = flags.DEFINE_string("dicom", None, "Folder of DICOM files, in any order.")
OUT = flags.DEFINE_string("out", None, "Folder of the maps.")
STRIDE = flags.DEFINE_integer("stride", 8, "Pixels between neighbouring windows.")
WINDOW = flags.DEFINE_string(
    "window",
    "",
    "centre,width in HU that the training images were shown with; needed where the "
    "training did not see HU.",
)
SPACING = flags.DEFINE_float(
    "spacing",
    None,
    "Millimetres a pixel of the training images, to which slices are resampled; 0: "
    "pixels as they are; default: as in the training.",
)
GO_ON = flags.DEFINE_boolean("go_on", False, "Map what is unlike the training images.")
SALT = flags.DEFINE_string("salt", "", "Secret mixed into the hashes of identifiers.")
SHOW_PATHS = flags.DEFINE_boolean(
    "show_paths",
    False,
    "Name the files left out, also in skipped.csv; paths may hold patients' names.",
)


def main() -> None:
    """Maps every series below the folder."""
    for flag in (RUN, DICOM, OUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing.")
    if STRIDE.value < 1:
        raise UserError(f"--stride={STRIDE.value}: it must be at least 1 pixel.")
    files.check_installed()
    cli.use_cores()
    run = trained.find(Path(RUN.value), ARM.value)
    how = How(
        stride=STRIDE.value,
        window=trained.parse_window(WINDOW.value, run),
        spacing=trained.parse_spacing(SPACING.value, run),
    )
    classifier = Classifier(run, how.window)
    unlike = classifier.reference or "not judged, as the stage run has no novelty.npz"
    print(f"{run}\n{how}\n{UNLIKE}: {unlike}")
    print("\n".join(run.notices), flush=True)
    map_folder(
        Path(DICOM.value),
        Path(OUT.value),
        classifier,
        how,
        salt=SALT.value,
        show_paths=SHOW_PATHS.value,
        go_on=GO_ON.value,
    )


if __name__ == "__main__":
    cli.run(main)
