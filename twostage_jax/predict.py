"""Maps disease in CT series with a finished stage run.

    python -m twostage_jax.predict --run=runs/two_stage --dicom=FOLDER --out=maps

finds the CT series below FOLDER, masks the lungs, classifies overlapping windows, and
writes a folder a series (`maps/<patient hash>_<series hash>/`):

    probabilities.npz     class probabilities, class and lung masks, geometry
    probabilities.nii.gz  class probabilities; classes.nii.gz: 1 + class index
    segmentation.dcm      DICOM SEG over the source images; carries their identity
    overlays/*.png        each slice with lung, plain and in colour
    contact_sheet.png     the whole series on one sheet
    report.csv            volume and share of lung of each class, by region
    series.json           what was made, with what

and `maps/report.csv`, the reports of all series in `maps`. A series that is there
already, made by the same model in the same way, is not made again. Research use only,
not for diagnosis.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from twostage_jax import cli, runtime, trained
from twostage_jax.classify import Classifier, How
from twostage_jax.ct import files
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.ct.palette import NOTICE
from twostage_jax.ct.series import Series, Skipped, find_series
from twostage_jax.errors import UserError
from twostage_jax.series_maps import is_made, make

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
    "Millimetres a pixel of the training images, to which slices are resampled; "
    "default: the training's, or pixels as they are.",
)
SALT = flags.DEFINE_string("salt", "", "Secret mixed into the hashes of identifiers.")
SHOW_PATHS = flags.DEFINE_boolean(
    "show_paths", False, "Name the files left out; paths may hold patients' names."
)


def main() -> None:
    """Maps every series below the folder."""
    for flag in (RUN, DICOM, OUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing.")
    if STRIDE.value < 1:
        raise UserError(f"--stride={STRIDE.value}: it must be at least 1 pixel.")
    if SPACING.value is not None and not 0.1 <= SPACING.value <= 10:
        raise UserError(f"--spacing={SPACING.value}: expected 0.1 to 10 mm.")
    files.check_installed()
    run = trained.find(Path(RUN.value), ARM.value)
    how = How(
        stride=STRIDE.value,
        window=parse_window(WINDOW.value, run),
        spacing=SPACING.value if SPACING.value is not None else run.spacing,
    )
    print(f"{run}\n{how}\n{NOTICE}", flush=True)
    root, out = Path(DICOM.value).absolute(), Path(OUT.value)
    found, skipped = find_series(root, salt=SALT.value, go_on=True)
    _say_skipped(root, skipped)
    if not found:
        raise UserError(f"{root}: no CT series to map.")
    with runtime.locked(out / ".lock", str(out)):
        done = _map_all(root, found, Classifier(run, how.window), how, out)
        reports = sorted(out.glob("patient-*_series-*/report.csv"))
        rows = [row for path in reports for row in files.read_report(path)]
        with runtime.replacing(out / "report.csv") as temporary:
            files.write_report(temporary, rows)
    print(f"{done} of {len(found)} series mapped: {out / 'report.csv'}")
    if not done:
        raise UserError("no series could be mapped.")


def parse_window(text: str, run: trained.Trained) -> tuple[float, ...]:
    """Returns the window in HU: what the flag says, or what the training used.

    Raises:
      UserError: The flag is no window, or is needed.
    """
    if not text:
        if run.window is None:
            raise UserError(
                f"{run.folder}: trained on images that were not in HU, so its window "
                "is not known: give --window=centre,width as those images were shown, "
                "such as --window=-600,1500."
            )
        return run.window
    try:
        window = tuple(float(part) for part in text.split(","))
    except ValueError:
        window = ()
    pairs = (2,) if run.model.channels == 1 else (2, 2 * run.model.channels)
    sound = len(window) in pairs and all(map(math.isfinite, window))
    if not sound or min(window[1::2]) <= 0:
        raise UserError(f"--window={text}: expected centre,width in HU, as -600,1500.")
    return window


def series_name(series: Series, salt: str) -> str:
    """Returns the name of a series' folder, made of hashes."""
    digits = patient_hash(series.uid, salt).removeprefix("patient-")
    return f"{series.patient or 'patient-unknown'}_series-{digits}"


def without_paths(text: str, root: Path, paths: Iterable[Path]) -> str:
    """Returns a message without paths and file names, which may hold patients' names.

    Args:
      text: The message, which may begin with one of the paths or its folder.
      root: Folder of all files; absolute.
      paths: The files that the message is about.
    """
    for path in paths:
        text = text.removeprefix(f"{path}: ").removeprefix(f"{path.parent}: ")
        text = re.sub(rf"(?<!\S){re.escape(path.name)}(?!\S)", "a file", text)
    text, found, _ = text.partition(str(root))
    return f"{text}another file" if found else text


def _map_all(
    root: Path, found: list[Series], classifier: Classifier, how: How, out: Path
) -> int:
    """Makes the maps that are not there yet; returns how many series have theirs."""
    done = 0
    for number, series in enumerate(found, start=1):
        name = series_name(series, SALT.value)
        try:
            if is_made(out / name, series, classifier.run, how):
                said = "is there already"
            else:
                said = make(series, classifier, how, out / name)
            done += 1
        except UserError as error:
            said = f"refused: {error}"
            if not SHOW_PATHS.value:
                paths = (header.path for header in series.headers)
                said = f"refused: {without_paths(str(error), root, paths)}"
        print(f"{number}/{len(found)} {name}: {said}", flush=True)
    return done


def _say_skipped(root: Path, skipped: Skipped) -> None:
    if SHOW_PATHS.value:
        for path, reason in skipped:
            print(f"left out: {path}: {reason.removeprefix(f'{path}: ')}")
        return
    reasons = Counter(without_paths(reason, root, [path]) for path, reason in skipped)
    for reason, count in reasons.most_common():
        print(f"left out: {count} file{'s' if count > 1 else ''}: {reason}")


if __name__ == "__main__":
    cli.run(main)
