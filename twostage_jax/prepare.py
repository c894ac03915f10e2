"""Cuts patches of annotated regions out of folders of CT series.

    python -m twostage_jax.prepare --source=FOLDER --rois=FOLDER --out=patches \\
        --patch=32 --stride=16 --salt=SECRET
    python -m twostage_jax.prepare --source=FOLDER --out=patches --spacing=0.7 \\
        --classes=normal,fibrosis

finds the CT slices below --source, whatever their names, and the regions in --rois (or
next to the slices): PNG, TIFF, NumPy or NIfTI masks, DICOM SEG, RTSTRUCT, CSV polygons or
MedGIFT contours; see `data/ct_patches.py`. It writes

    prepared/      the patches in HU, as ArrayRecord
    dataset.json   description of the set
    patches.csv    patches: hashes of patient, series and slice, position, class, coverage
    skipped.csv    skipped files, with reasons
    series.csv     series of annotated patients, with their peculiarities
    preview.png    some patches of each class

With --lungs=FOLDER, patches lie in existing lung masks, NIfTI or DICOM SEG, as
TotalSegmentator and lungmask write them; each series with regions needs one.

With --beam='--runner=DirectRunner', or a runner of a cluster, an Apache Beam pipeline cuts
the patches (extra 'beam').

Names, ids, UIDs and dates of patients are not written, only hashes. An interrupted run
resumes when the same command is given again. To train on the patches, set a stage's data
to source 'prepared' with the folder as its path. Patches are stored in HU: the stage's
setting `window` is one window, or three for the three channels of the network.
"""

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twostage_jax import cli, io
from twostage_jax.errors import UserError, require

if TYPE_CHECKING:
    from twostage_jax.data.dataset import Dataset


def prepare(
    *,
    source: str,
    out: str,
    rois: str = "",
    classes: str = "",
    patch: int = 32,
    stride: int = 16,
    spacing: float | None = None,
    coverage: float = 0.75,
    overlap: float = 1.0,
    lungs: str = "given",
    per_roi: int = 0,
    per_class: int = 100,
    per_patient: int = 0,
    salt: str = "",
    seed: int = 0,
    go_on: bool = False,
    beam: str = "",
    workers: int | None = None,
    show_paths: bool = False,
) -> None:
    """Cuts the patches of annotated regions, writes them and prints a summary.

    Args:
      source: Folder of DICOM files, in any order.
      out: Output folder.
      rois: File or folder of regions; default: those next to the slices.
      classes: Names of the classes of mask values 1, 2, ..., such as 'normal,ggo'.
      patch: Height and width of a patch, pixels.
      stride: Pixels between neighbouring patches.
      spacing: Millimetres per pixel to resample to; default: do not resample.
      coverage: Smallest fraction of a patch that its region must cover.
      overlap: Largest fraction of a patch that another patch of its slice may cover.
      lungs: Lung masks that patches must lie in: given, found, off, or a folder of
        existing masks.
      per_roi: Largest number of patches per region; 0 = all.
      per_class: Largest number of patches per class and patient; 0 = all.
      per_patient: Largest number of patches per patient; 0 = all.
      salt: Secret mixed into the hashes of identifiers.
      seed: Seed of the random draws.
      go_on: Skip, and list, files that would be refused.
      beam: Options of an Apache Beam pipeline that cuts the patches, such as
        '--runner=DirectRunner'; default: processes of this machine.
      workers: Number of processes; default: one per core.
      show_paths: Name files in errors and in the list of skipped files; paths may
        contain patients' names.

    Raises:
      UserError: A setting or the content of a folder cannot be used.
    """
    # These imports take a second, which --help should not wait for.
    from twostage_jax.ct import lung_files, privacy
    from twostage_jax.data import beam as beam_pipeline
    from twostage_jax.data import ct_patches, prepared_folder, store
    from twostage_jax.folders import every_path

    require(workers is None or workers >= 1, "--workers", workers, "at least 1")
    given = {"--source": source, "--rois": rois}
    if lung_files.folder(lungs):
        given["--lungs"] = lungs
    roots = {f: Path(p).expanduser().absolute() for f, p in given.items() if p}
    folder = Path(out).expanduser().absolute()
    hidden = privacy.errors(roots, salt)
    with contextlib.nullcontext() if show_paths else hidden:
        recipe = ct_patches.recipe(
            path=source,
            rois=rois,
            classes=classes,
            size=patch,
            stride=stride,
            spacing=spacing,
            coverage=coverage,
            overlap=overlap,
            lungs=lungs,
            per_roi=per_roi,
            per_class=per_class,
            per_patient=per_patient,
            salt=salt,
            seed=seed,
            go_on=go_on,
        )
        if not salt:
            print(
                "Note: without --salt, anyone with a list of patient ids can match it to "
                "the hashes.",
                flush=True,
            )
        if folder == roots["--source"]:
            raise UserError(
                "--out is the folder of the slices: give another folder.", where="--out"
            )
        if beam:
            beam_pipeline.run(recipe, folder, shlex.split(beam))
        made = store.prepare(recipe, folder, workers=workers)
        metadata = store.metadata_of(store.folder_of(recipe, folder))
        found = recipe.tasks
        skipped = list(map(tuple, metadata.get("skipped", ())))
        skipped += privacy.hide(found.skipped, found.roots, salt)
        names = {}
        if show_paths:
            names = {
                privacy.file_hash(path, salt): io.shown(path)
                for root in roots.values()
                for path in every_path(root) or [root]
            }
        shown = [(names.get(name, name), why) for name, why in skipped]
        series = prepared_folder.about_series(found.series, salt, show_paths=show_paths)
        prepared_folder.write(folder, recipe, made, metadata, shown, series)
        _report(made)
        print(f"Written to {folder}; skipped.csv lists the skipped files.")


def _report(made: "Dataset") -> None:
    import numpy as np

    print(f"{len(made)} patches of {len(np.unique(made.groups))} patients:")
    for label, name in enumerate(made.class_names):
        own = made.labels == label
        patients = len(np.unique(made.groups[own]))
        print(f"  {io.inert(name)[:80]}: {own.sum()} of {patients} patients")
    for note in made.notes:
        print(f"  {note}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(prepare, argv, jax=False)


if __name__ == "__main__":
    main()
