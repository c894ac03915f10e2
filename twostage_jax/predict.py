"""Maps disease in CT series with a finished stage run.

    python -m twostage_jax.predict --run=runs/two_stage --dicom=FOLDER --out=maps
    python -m twostage_jax.predict --run=runs/two_stage/stages/target-0123456789ab \\
        --dicom=FOLDER --out=maps --stride=16 --window=-600,1500

finds the CT series below FOLDER, masks the lungs, classifies overlapping windows, and
writes a folder per series (`maps/<patient hash>_<series hash>/`):

    probabilities.npz     class probabilities; class, lung and unlike masks, geometry
    probabilities.nii.gz  class probabilities; classes.nii.gz: 1 + class index
    unlike_training.nii.gz  1 where the lung is unlike the training images
    segmentation.dcm      DICOM SEG over the source images; carries their identity
    overlays/*.png        each slice with lung, plain and in colour
    contact_sheet.png     the whole series on one sheet
    report.csv            volume and fraction of lung of each class, by region
    series.json           model, settings and remarks

and in `maps` itself

    report.csv            the reports of the series in `maps`, by the model and settings
                          of this call
    skipped.csv           skipped files and refused series, with reasons

Each window is classified once, as it is: the scores of a study whose target has
`augment.average` are those of means over orientations, maps those of means over
overlapping windows.

A row of report.csv is a class in a region (the lungs, or a third of their height or depth)
of one series: volume in ml and fraction of the region. A patient's rows share the hash in
`patient`; in the joint report, `series_of_patient` is the number of series they come from,
or empty if the patient is unknown. Do not add these up: most show the same lungs with
another kernel or on another day, so choose one.
`files_left_out` counts files of the series that could not be used: if the first or last
slice is among them, nothing else reveals the loss.

Lungs are found by threshold and morphology; `remarks` says where they are uncertain. With
--lungs=FOLDER they are read from existing masks, NIfTI or DICOM SEG, as TotalSegmentator
and lungmask write them. A series without a mask there is then refused.

Lung that differs from the training images (see `train/novelty.py`) is hatched in the
pictures, reported in `fraction_unlike_training` as a fraction of the region's classified
lung, and unclassified in the DICOM SEG. A series is refused if this is more than half of
its lung, or if the model was trained on synthetic images and the series is not marked as
synthetic; --go_on maps it anyway. Unmarked lung may be misjudged as well: the check finds
gross differences, not every disease that is missing from the training
(`experiments/unseen.md`).

A series that the same model with the same settings has mapped already is skipped, unless
its files have changed or moved.
Research use only, not for diagnosis.
"""

from collections.abc import Sequence
from pathlib import Path

from twostage_jax import cli
from twostage_jax.errors import UserError, require


def predict(
    *,
    run: str,
    dicom: str,
    out: str,
    arm: str = "",
    ensemble: bool = False,
    stride: int = 12,
    window: str = "",
    spacing: float | None = None,
    lungs: str = "",
    go_on: bool = False,
    salt: str = "",
    show_paths: bool = False,
) -> None:
    """Maps every CT series below a folder and prints a summary.

    Args:
      run: Workdir of a study, or folder of a stage run.
      dicom: Folder of DICOM files, in any order.
      out: Output folder.
      arm: Arm of the study; default: two_stage.
      ensemble: Average the probabilities of the networks of all seeds of the arm.
      stride: Pixels between neighbouring windows, at most the side of a window; fewer
        take longer, and gain little (experiments/predict_cost.md).
      window: Window of the training images, centre,width in HU; required if the
        training images were not in HU.
      spacing: Millimetres per pixel of the training images, to which slices are
        resampled; 0: do not resample; default: as in training; required if that is
        unknown, as for folders of images.
      lungs: Folder of existing lung masks; default: find the lungs.
      go_on: Also map series that differ from the training images.
      salt: Secret mixed into the hashes of identifiers.
      show_paths: Name the skipped files, also in skipped.csv; paths may contain
        patients' names.

    Raises:
      UserError: A setting is invalid, or none of the series could be mapped.
    """
    require(stride >= 1, "--stride", stride, "at least 1 pixel")
    # Imported after jax is set up, and not for --help.
    from twostage_jax.ct import lung_files
    from twostage_jax.maps import write
    from twostage_jax.maps.extent import UNLIKE

    masks = lung_files.folder(lungs)
    if masks is None and lungs not in ("", "found"):
        raise UserError.flag(
            "--lungs", lungs, "give a folder of lung masks, or 'found'."
        )
    write.check_installed()
    cli.use_cores()
    from twostage_jax.maps import scale
    from twostage_jax.maps.classify import Classifier, How
    from twostage_jax.maps.run import map_folder
    from twostage_jax.study import artifacts

    find = artifacts.find_ensemble if ensemble else artifacts.find
    found = find(Path(run), arm)
    if len(found.class_names) < 2:
        raise UserError.at(
            found.folder,
            "this stage was imported from a file without a head, so it has no classes "
            "to map. Give the folder of a target stage, or the workdir.",
        )
    size = found.model.image_size
    require(
        stride <= size,
        "--stride",
        stride,
        f"at most {size} pixels, the side of a window",
    )
    how = How(
        stride=stride,
        window=scale.parse_window(window, found),
        spacing=scale.parse_spacing(spacing, found),
    )
    classifier = Classifier(found, how.window)
    unlike = classifier.reference or "not judged: the stage run lacks novelty.npz"
    print(f"{found}\n{how}\n{UNLIKE}: {unlike}")
    print("\n".join(found.notices), flush=True)
    map_folder(
        Path(dicom),
        Path(out),
        classifier,
        how,
        lungs=masks,
        salt=salt,
        show_paths=show_paths,
        go_on=go_on,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(predict, argv)


if __name__ == "__main__":
    main()
