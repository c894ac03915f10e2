"""The disease maps of one CT series: classified, averaged, measured, and written."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from twostage_jax import runtime
from twostage_jax.ct import files, maps, overlay, patches, volumes
from twostage_jax.ct.dicom import AIR_HU
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.overlay import NOTICE
from twostage_jax.ct.segmentation import write_segmentation
from twostage_jax.ct.series import Series, read_volume
from twostage_jax.data.dataset import digest
from twostage_jax.errors import UserError
from twostage_jax.trained import Classifier, Trained

# Raised when the same model and settings give other files.
VERSION = 1
# Windows with less lung than this show mostly what no training patch shows.
LEAST_LUNG = 0.5
# Slices on the device at a time.
SLAB = 16
# Slices whose normal leaves the body's long axis by more than about 37 degrees.
LEAST_AXIAL = 0.8


@dataclasses.dataclass(frozen=True)
class How:
    """How a model is applied to series.

    Attributes:
      stride: Distance between neighbouring windows, pixels as the network sees them.
      window: (centre, width) pairs in HU, flattened.
      spacing: Millimetres a pixel as the network sees them; None = as they are.
      salt: Secret mixed into hashes.
    """

    stride: int
    window: tuple[float, ...]
    spacing: float | None
    salt: str

    def settings(self) -> dict[str, str]:
        """Returns what may be told, in words."""
        return {
            "window HU (centre, width)": ", ".join(f"{v:g}" for v in self.window),
            "stride in pixels": str(self.stride),
            "mm a pixel": f"{self.spacing:g}" if self.spacing else "as scanned",
        }

    def __str__(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in self.settings().items())


class Maps(NamedTuple):
    """What the windows of a series say.

    Attributes:
      probabilities: `[K, Z, H, W]` uint8, 255 = certain; 0 outside the lungs.
      labels: `[Z, H, W]` uint8: 1 + the likeliest class, 0 = none.
      windows: How many windows were classified.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    windows: int


def is_made(folder: Path, series: Series, model: Trained, how: How) -> bool:
    """Whether the folder holds the maps of this series, by this model, made this way."""
    try:
        made = json.loads((folder / "series.json").read_text(encoding="utf-8"))
        return made["key"] == _key(series, model, how)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def make(
    series: Series, classifier: Classifier, how: How, folder: Path, name: str
) -> str:
    """Makes all maps of a series in `folder`, whole or not at all.

    Returns:
      What was done, in a line.

    Raises:
      UserError: The series cannot be trusted or has no lung in it.
    """
    began = time.monotonic()
    check(series)
    hu = read_volume(series)
    spacing = series.headers[0].spacing
    lungs = lung_mask(hu, (series.step, *spacing))
    if not lungs.any():
        raise UserError("no lung was found in it.")
    classified = classify(hu, lungs, spacing, classifier, how)
    seconds = time.monotonic() - began
    with _replacing_folder(folder) as temporary:
        notes = _write(temporary, series, hu, lungs, classified, classifier, how, name)
    rate = classified.windows / seconds
    return "; ".join(
        [
            f"{len(hu)} slices, {classified.windows} windows in {seconds:.1f} s "
            f"({rate:.0f} a second)",
            *notes,
        ]
    )


def check(series: Series) -> None:
    """Raises a UserError if disease cannot be mapped and measured in the series."""
    first = series.headers[0]
    if first.spacing is None:
        raise UserError(f"{first.path}: PixelSpacing is missing: nothing has a size.")
    if first.orientation is None:
        raise UserError(f"{first.path}: ImageOrientationPatient is missing.")
    row, column = np.reshape(first.orientation, (2, 3))
    if abs(np.cross(row, column)[2]) < LEAST_AXIAL:
        raise UserError("its slices are not axial.")


def classify(
    hu: np.ndarray,
    lungs: np.ndarray,
    spacing: tuple[float, float],
    classifier: Classifier,
    how: How,
) -> Maps:
    """Returns the maps of a series.

    Windows that lie in the lungs by half or more are classified; a pixel of lung
    that none of them reaches has no class.

    Args:
      hu: `[Z, H, W]` int16.
      lungs: `[Z, H, W]` bool.
      spacing: Distance between rows and between columns, mm.
      classifier: The network.
      how: Stride and resolution of the windows.
    """
    classes, size = len(classifier.trained.class_names), classifier.size
    shape = hu.shape[1:]
    if how.spacing:
        shape = patches.resampled_shape(shape, spacing, how.spacing, Path("series"))
    padded = tuple(max(n, size) for n in shape)
    rows, columns = (maps.starts(n, size, how.stride) for n in padded)
    down, across = (
        maps.weights(first, size, length, shown)
        for first, length, shown in zip(
            (rows, columns), shape, hu.shape[1:], strict=True
        )
    )
    probabilities = np.zeros((classes, *hu.shape), np.uint8)
    labels = np.zeros(hu.shape, np.uint8)
    windows = 0

    def begin(first: int) -> tuple[int, np.ndarray, Callable[[], np.ndarray]]:
        slab = np.full((SLAB, *padded), AIR_HU, np.int16)
        used = np.zeros((SLAB, len(rows), len(columns)), bool)
        for i, z in enumerate(range(first, min(first + SLAB, len(hu)))):
            if not lungs[z].any():
                continue
            slab[i, : shape[0], : shape[1]] = _resampled(hu[z], shape)
            inside = np.zeros(padded, bool)
            inside[: shape[0], : shape[1]] = patches.resample_mask(lungs[z], shape)
            used[i] = maps.shares(inside, rows, columns, size) >= LEAST_LUNG
        at = np.argwhere(used)
        corners = np.stack([at[:, 0], rows[at[:, 1]], columns[at[:, 2]]], axis=1)
        return first, used, classifier.start(slab, corners)

    def finish(first: int, used: np.ndarray, wait: Callable[[], np.ndarray]) -> None:
        grid = np.zeros((*used.shape, classes), np.float32)
        grid[used] = wait()
        for i in np.flatnonzero(used.any((1, 2))):
            z = first + i
            mean, reached = maps.average(grid[i], used[i], down, across)
            reached &= lungs[z]
            probabilities[:, z] = np.rint(255 * np.where(reached, mean, 0))
            labels[z] = np.where(reached, 1 + mean.argmax(0), 0)

    # The device works on the next slab while the host averages this one.
    waiting = None
    for first in range(0, len(hu), SLAB):
        started = begin(first)
        windows += int(started[1].sum())
        if waiting:
            finish(*waiting)
        waiting = started
    finish(*waiting)
    return Maps(probabilities, labels, windows)


def _resampled(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if image.shape == shape:
        return image
    return np.rint(patches.resample_image(image, shape)).astype(np.int16)


def _write(
    folder: Path,
    series: Series,
    hu: np.ndarray,
    lungs: np.ndarray,
    made: Maps,
    classifier: Classifier,
    how: How,
    name: str,
) -> list[str]:
    """Writes all files of a series; returns what could not be written, and why."""
    model = classifier.trained
    first = series.headers[0]
    matrix = files.affine(series)
    patient, series_hash = name.split("_")
    files.write_numpy(
        folder / "probabilities.npz",
        probabilities_255=made.probabilities,
        labels=made.labels,
        lungs=lungs,
        affine=matrix,
        class_names=np.array(model.class_names),
        model=np.array(f"{model} {model.hash}"),
        notice=np.array(NOTICE),
    )
    rows = files.report_rows(
        volumes.measure(
            made.labels,
            lungs,
            made.probabilities,
            model.class_names,
            first.spacing,
            series.step,
        ),
        {
            "patient": patient,
            "series": series_hash,
            "slices": str(len(hu)),
            "step_mm": "" if series.step is None else f"{series.step:.3f}",
            "model": model.hash,
            "arm": model.arm,
            "trained_on": model.data,
            "notice": NOTICE,
        },
    )
    files.write_report(folder / "report.csv", rows)
    style = overlay.Style(
        class_names=model.class_names,
        pixel_mm=first.spacing,
        sides=overlay.sides(first.orientation),
        title=f"{patient}  {series_hash}",
        model=f"{model}; {how}",
    )
    _draw(folder, hu, lungs, made.labels, style)
    notes = _extras(folder, series, made, matrix, model, how)
    runtime.write_json(
        folder / "series.json",
        {
            "key": _key(series, model, how),
            "notice": NOTICE,
            "model": model.hash,
            "arm": model.arm,
            "trained_on": model.data,
            "class_names": list(model.class_names),
            "settings": how.settings(),
            "slices": len(hu),
            "windows": made.windows,
            "not_written": notes,
        },
    )
    return notes


def _draw(
    folder: Path,
    hu: np.ndarray,
    lungs: np.ndarray,
    labels: np.ndarray,
    style: overlay.Style,
) -> None:
    (folder / "overlays").mkdir()
    count = len(hu)
    for z in np.flatnonzero(lungs.any((1, 2))):
        number = count - int(z)
        picture = overlay.draw_slice(
            hu[z], labels[z], lungs[z], style, f"slice {number} of {count}"
        )
        # Fast and a little larger: hundreds of these are written.
        picture.save(folder / "overlays" / f"{number:04d}.png", compress_level=3)
    overlay.draw_sheet(hu, labels, lungs, style).save(folder / "contact_sheet.png")


def _extras(
    folder: Path,
    series: Series,
    made: Maps,
    matrix: np.ndarray,
    model: Trained,
    how: How,
) -> list[str]:
    """Writes the files that need other packages; returns what is missing, and why."""

    def nifti() -> None:
        text = f"{NOTICE}; model {model.hash[:12]}"
        path = folder / "probabilities.nii.gz"
        files.write_nifti(path, made.probabilities, matrix, text, scale=1 / 255)
        files.write_nifti(folder / "classes.nii.gz", made.labels, matrix, text)

    def dicom() -> None:
        write_segmentation(
            folder / "segmentation.dcm",
            [header.path for header in series.headers],
            made.labels,
            model.class_names,
            model=str(model),
            model_hash=model.hash,
            settings=how.settings(),
        )

    notes = []
    for what, write in (("NIfTI", nifti), ("DICOM SEG", dicom)):
        try:
            write()
        except UserError as error:
            paths = [str(header.path) for header in series.headers]
            text = str(error)
            for path in paths:
                text = text.replace(path, "a slice")
            notes.append(f"no {what}: {text}")
    return notes


def _key(series: Series, model: Trained, how: How) -> str:
    uids = [header.sop_uid for header in series.headers]
    return digest(
        VERSION, model.hash, how.stride, how.window, how.spacing, how.salt, uids
    )


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
