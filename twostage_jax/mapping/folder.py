"""The disease maps of all CT series below a folder, and what is said about them.

What is said names series by hashes only: the paths of DICOM files often hold patients'
names.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from twostage_jax import atomic
from twostage_jax.ct import files
from twostage_jax.ct.dicom import patient_hash
from twostage_jax.ct.series import Series, find_series
from twostage_jax.data import hiding, lung_files
from twostage_jax.errors import UserError
from twostage_jax.mapping.classify import Classifier, How
from twostage_jax.mapping.series import is_made, make
from twostage_jax.walk import shown


def map_folder(
    root: Path,
    out: Path,
    classifier: Classifier,
    how: How,
    *,
    lungs: Path | None = None,
    salt: str = "",
    show_paths: bool = False,
    go_on: bool = False,
) -> None:
    """Maps every CT series below `root` into a folder of `out`, unless it is there.

    Writes `out/report.csv` with the reports of all series in `out`, and
    `out/skipped.csv` with the files below `root` that were left out and the series that
    were refused; prints what was made, left out and refused, and why.

    Args:
      root: Folder of DICOM files.
      out: Folder of the maps.
      classifier: The network.
      how: How it is applied.
      lungs: Folder or file of lung masks; series without one are refused. None to find
        the lungs.
      salt: Secret mixed into the hashes of identifiers.
      show_paths: Name files in skipped.csv and in what is printed.
      go_on: Map series even if most of their lung is unlike the training images.

    Raises:
      UserError: There is no CT series, or none could be mapped.
    """
    root = root.absolute()
    found, skipped = find_series(root, salt=salt, go_on=True)
    listed = [
        (shown(path), shown(why.removeprefix(f"{path}: "))) for path, why in skipped
    ]
    if not show_paths:
        listed = hiding.hide(skipped, [root], salt)
    _say_skipped(listed, show_paths)
    if not found:
        hiding.write_skipped(out, listed)
        reasons = f"Left out: {hiding.counted(listed)}."
        if not listed:
            reasons = "The folder holds no files."
        raise UserError(f"{root}: CT series were not found. {reasons}", where=root)
    masks = None
    if lungs is not None:
        masks = lung_files.match(lungs, root, found, salt=salt)
        unread = [(str(path), why) for path, why in masks.skipped]
        listed += unread if show_paths else hiding.hide(masks.skipped, [lungs], salt)
    done = 0
    with atomic.locked(out / ".lock", str(out)):
        for number, series in enumerate(found, start=1):
            name = series_name(series, salt)
            try:
                given = masks and masks.of(series.uid)
                said = _map(series, classifier, how, out / name, given, go_on)
                done += 1
            except UserError as error:
                said = f"refused: {error}"
                if not show_paths:
                    paths = [header.path for header in series.headers]
                    said = without_names(str(error), root, paths)
                    if lungs is not None:
                        ((_, said),) = hiding.hide([(lungs, said)], [lungs], salt="")
                    said = f"refused: {said}"
                listed.append((name, said))
            print(f"{number}/{len(found)} {name}: {said}", flush=True)
        hiding.write_skipped(out, listed)
        _join_reports(out)
    print(f"{done} of {len(found)} series mapped: {out / 'report.csv'}")
    if listed:
        print(f"What was left out and refused: {out / 'skipped.csv'}")
    if not done:
        raise UserError(
            f"none of the {len(found)} series could be mapped: "
            f"{hiding.counted(listed[-len(found) :])}.",
            where=root,
        )


def series_name(series: Series, salt: str) -> str:
    """Returns the name of a series' folder, made of hashes."""
    digits = patient_hash(series.uid, salt).removeprefix("patient-")
    return f"{series.patient or 'patient-unknown'}_series-{digits}"


def without_names(text: str, root: Path, paths: Sequence[Path]) -> str:
    """Returns a message without paths, file names and UIDs.

    Args:
      text: The message, which may begin with one of the paths or its folder.
      root: Folder of all files; absolute.
      paths: The files that the message is about.
    """
    for path in sorted(paths, key=lambda path: len(path.name), reverse=True):
        text = text.removeprefix(f"{path}: ").removeprefix(f"{path.parent}: ")
        text = re.sub(rf"(?<!\w){re.escape(path.name)}(?!\w)", "a file", text)
    ((_, plain),) = hiding.hide([(paths[0], text)], [root], salt="")
    return plain


def _map(
    series: Series,
    classifier: Classifier,
    how: How,
    folder: Path,
    given: lung_files.GivenLungs | None,
    go_on: bool,
) -> str:
    if is_made(folder, series, classifier, how, given):
        return "is there already"
    return make(series, classifier, how, folder, given, go_on=go_on)


def _join_reports(out: Path) -> None:
    reports = sorted(out.glob("patient-*_series-*/report.csv"))
    rows = [row for path in reports for row in files.read_report(path)]
    with atomic.replacing(out / "report.csv") as temporary:
        files.write_report(temporary, rows)


def _say_skipped(listed: hiding.Hidden, show_paths: bool) -> None:
    if show_paths:
        for path, reason in listed:
            print(f"left out: {path}: {reason}")
        return
    for reason, count in Counter(reason for _, reason in listed).most_common():
        print(f"left out: {count} file{'s' if count > 1 else ''}: {reason}")
