"""The disease maps of one CT series: made, measured, and written."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from twostage_jax import runtime
from twostage_jax.classify import Classifier, How, Maps, classify
from twostage_jax.ct import files, overlay, volumes
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.palette import NOTICE, printable
from twostage_jax.ct.segmentation import write_segmentation
from twostage_jax.ct.series import Series, read_volume
from twostage_jax.data.dataset import digest
from twostage_jax.errors import UserError
from twostage_jax.trained import Trained

# Raised when the same model and settings give other files.
VERSION = 1
# Slices whose normal leaves the body's long axis by more than about 37 degrees.
LEAST_AXIAL = 0.8


def is_made(folder: Path, series: Series, run: Trained, how: How) -> bool:
    """Whether the folder holds the maps of this series, by this model, made this way."""
    try:
        made = json.loads((folder / "series.json").read_text(encoding="utf-8"))
        return made["key"] == _key(series, run, how)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(series: Series, classifier: Classifier, how: How, folder: Path) -> str:
    """Makes all maps of a series in `folder`, whole or not at all.

    Args:
      series: The series.
      classifier: The network.
      how: How it is applied.
      folder: `PATIENT_SERIES`, by its two names, and nothing that identifies the
        patient: both appear in the files.

    Returns:
      What was done, in a line.

    Raises:
      UserError: The series cannot be trusted or has no lung in it.
    """
    began = time.monotonic()
    key = _key(series, classifier.run, how)
    series = from_feet(series)
    hu = read_volume(series)
    spacing = series.headers[0].spacing
    lungs = lung_mask(hu, (series.step, *spacing))
    if not lungs.any():
        raise UserError("no lung was found in it.")
    made = classify(hu, lungs, spacing, classifier, how)
    with _replacing_folder(folder) as temporary:
        patient, name = folder.name.split("_")
        about = {"patient": patient, "series": name, **_about(series, classifier.run)}
        _write_arrays(temporary, series, lungs, made, classifier.run, about, how)
        _draw(temporary, series, hu, lungs, made.labels, classifier.run, about, how)
        note = _write_dicom(temporary, series, made.labels, classifier.run, how)
        about |= {"key": key, "settings": how.settings(), "windows": made.windows}
        about |= {"class_names": classifier.run.class_names, "note": note}
        runtime.write_json(temporary / "series.json", about)
    seconds = time.monotonic() - began
    text = f"{len(hu)} slices, {made.windows} windows in {seconds:.1f} s"
    return "; ".join(filter(None, (text, about["remarks"], note)))


def from_feet(series: Series) -> Series:
    """Returns an axial series in order from the feet to the head.

    Raises:
      UserError: Disease cannot be mapped and measured in the series: it is not axial,
        or does not say so, or its pixels have no size.
    """
    first = series.headers[0]
    if first.spacing is None:
        raise UserError(f"{first.path}: PixelSpacing is missing: nothing has a size.")
    if first.orientation is None:
        raise UserError(f"{first.path}: ImageOrientationPatient is missing.")
    upwards = np.cross(*np.reshape(first.orientation, (2, 3)))[2]
    if abs(upwards) < LEAST_AXIAL:
        raise UserError("its slices are not axial.")
    if upwards > 0:
        return series
    return dataclasses.replace(series, headers=series.headers[::-1])


def _about(series: Series, run: Trained) -> dict[str, str]:
    return {
        "slices": str(len(series.headers)),
        "step_mm": "" if series.step is None else f"{series.step:.3f}",
        "remarks": printable("; ".join(series.remarks), 500),
        "model": run.hash,
        "arm": run.arm,
        "trained_on": run.data,
        "data_fingerprint": run.fingerprint,
        "notice": NOTICE,
    }


def _write_arrays(
    folder: Path,
    series: Series,
    lungs: np.ndarray,
    made: Maps,
    run: Trained,
    about: dict[str, str],
    how: How,
) -> None:
    matrix = files.affine(series)
    files.write_numpy(
        folder / "probabilities.npz",
        probabilities_255=made.probabilities,
        labels=made.labels,
        lungs=lungs,
        affine=matrix,
        class_names=np.array(run.class_names),
        **{name: np.array(about[name]) for name in ("model", "arm", "notice")},
        data_fingerprint=np.array(run.fingerprint),
    )
    text = f"{NOTICE}; model {run.hash[:12]}"
    path = folder / "probabilities.nii.gz"
    files.write_nifti(path, made.probabilities, matrix, text, scale=1 / 255)
    files.write_nifti(folder / "classes.nii.gz", made.labels, matrix, text)
    measures = volumes.measure(
        made.labels,
        lungs,
        made.probabilities,
        run.class_names,
        series.headers[0].spacing,
        series.step,
    )
    rows = files.report_rows(measures, {**about, "settings": str(how)})
    files.write_report(folder / "report.csv", rows)


def _draw(
    folder: Path,
    series: Series,
    hu: np.ndarray,
    lungs: np.ndarray,
    labels: np.ndarray,
    run: Trained,
    about: dict[str, str],
    how: How,
) -> None:
    first, count = series.headers[0], len(hu)
    style = overlay.Style(
        class_names=run.class_names,
        pixel_mm=first.spacing,
        sides=overlay.sides(first.orientation),
        title=f"{about['patient']}, {about['series']}",
        made_by=(str(run), str(how)),
    )
    (folder / "overlays").mkdir()
    for z in np.flatnonzero(lungs.any((1, 2))):
        number = count - int(z)
        name = f"slice {number} of {count}"
        picture = overlay.draw_slice(hu[z], labels[z], lungs[z], style, name)
        # Fast and a little larger: hundreds of these are written.
        picture.save(folder / "overlays" / f"{number:04d}.png", compress_level=3)
    overlay.draw_sheet(hu, labels, lungs, style).save(folder / "contact_sheet.png")


def _write_dicom(
    folder: Path, series: Series, labels: np.ndarray, run: Trained, how: How
) -> str:
    """Writes the DICOM SEG; returns why it could not be, or ''."""
    try:
        write_segmentation(
            folder / "segmentation.dcm",
            series.headers,
            labels,
            run.class_names,
            model=str(run),
            model_hash=run.hash,
            settings={"data fingerprint": run.fingerprint, **how.settings()},
        )
    except UserError as error:
        reason = str(error)
        for header in series.headers:  # paths may hold patients' names
            reason = reason.removeprefix(f"{header.path}: ")
        return f"no DICOM SEG: {reason}"
    return ""


def _key(series: Series, run: Trained, how: How) -> str:
    slices = [header.key for header in series.headers]
    return digest(VERSION, run.hash, how.stride, how.window, how.spacing, slices)


@contextlib.contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder that takes the place of another when the block succeeds."""
    new, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("new", "old"))
    for stale in (new, old):
        shutil.rmtree(stale, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        for stale in (new, old):
            shutil.rmtree(stale, ignore_errors=True)
