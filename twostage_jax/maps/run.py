"""Makes, measures and writes the disease maps of all CT series below a folder.

A series is mapped completely or not at all, into a folder named by hashes. Printed lines
and CSV files name series by these hashes only, because the paths of DICOM files often
contain patients' names.
"""

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage_jax import io
from twostage_jax.ct import lung_files, privacy
from twostage_jax.ct.dicom import hashed
from twostage_jax.ct.lung_files import GivenLungs, air_remark, cut_remark
from twostage_jax.ct.lungs import Lungs, find_lungs
from twostage_jax.ct.series import (
    Series,
    check_air,
    check_slice,
    find_series,
    read_volume,
)
from twostage_jax.data.dataset import digest
from twostage_jax.errors import UserError, plain
from twostage_jax.folders import stamps
from twostage_jax.io import shown
from twostage_jax.maps import draw, extent, write
from twostage_jax.maps.classify import Classifier, How, Maps, classify
from twostage_jax.maps.extent import UNLIKE
from twostage_jax.maps.seg import write_segmentation
from twostage_jax.notices import notices
from twostage_jax.study.artifacts import Trained

# Bump when the same model and settings give different files.
VERSION = 5
# Maps with a larger fraction that differs from the training images are refused.
MOST_UNLIKE = 0.5
# Slices whose normal leaves the body's long axis by more than about 37 degrees.
LEAST_AXIAL = 0.8


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
    """Maps every CT series below `root` into a folder of `out`, unless it exists.

    Writes `out/report.csv` with the reports of the series in `out` that have been mapped
    by this model with these settings and are not refused now, and `out/skipped.csv` with
    the skipped files and refused series below `root`; prints mapped, skipped and refused
    items, with reasons.

    Args:
      root: Folder of DICOM files.
      out: Folder of the maps.
      classifier: Network of a stage run.
      how: Stride, window and resolution.
      lungs: Folder or file of lung masks; series without one are refused. None to find
        the lungs.
      salt: Secret mixed into the hashes of identifiers.
      show_paths: Whether to name files in skipped.csv and in printed lines.
      go_on: Whether to map series even if most of their lung is unlike the training
        images.

    Raises:
      UserError: CT series are missing, or none could be mapped.
    """
    root = root.absolute()
    found, skipped = find_series(root, salt=salt, go_on=True)
    listed = [
        (shown(path), shown(why.removeprefix(f"{path}: "))) for path, why in skipped
    ]
    if not show_paths:
        listed = privacy.hide(skipped, [root], salt)
    _say_skipped(listed, show_paths)
    if not found:
        privacy.write_skipped(out, listed)
        reasons = f"Skipped: {privacy.counted(listed)}."
        if not listed:
            reasons = "The folder is empty."
        raise UserError.at(root, f"CT series were not found. {reasons}")
    masks = None
    if lungs is not None:
        masks = lung_files.match(lungs, root, found, salt=salt)
        unread = [(str(path), why) for path, why in masks.skipped]
        listed += unread if show_paths else privacy.hide(masks.skipped, [lungs], salt)
    refused = set()
    with io.locked(out / ".lock", str(out)):
        for number, series in enumerate(found, start=1):
            name = series_name(series, salt)
            if not show_paths:
                series = dataclasses.replace(series, notes=series.plain_notes)
            try:
                given = masks and masks.of(series.uid)
                made = _written(out / name)
                if made.get("key") == _key(series, classifier, how, given):
                    if not go_on:
                        by_features = made["unlike_training"]["by_features"]
                        _check_alike(series, classifier.run, by_features)
                    said = "exists already"
                else:
                    said = make(series, classifier, how, out / name, given, go_on=go_on)
            except UserError as error:
                refused.add(name)
                said = f"refused: {error}"
                if not show_paths:
                    paths = [header.path for header in series.headers]
                    said = without_names(str(error), root, paths)
                    if lungs is not None:
                        ((_, said),) = privacy.hide([(lungs, said)], [lungs], salt="")
                    said = f"refused: {said}"
                listed.append((name, said))
            print(f"{number}/{len(found)} {name}: {said}", flush=True)
        privacy.write_skipped(out, listed)
        left_out = _join_reports(out, classifier.run, how, refused)
    done = len(found) - len(refused)
    print(f"{done} of {len(found)} series mapped: {out / 'report.csv'}")
    if listed:
        print(f"Skipped files and refused series: {out / 'skipped.csv'}")
    if left_out:
        print(
            f"Not in the report: {left_out} series in {out} that are refused, or were "
            "mapped by another model or with other settings"
        )
    if not done:
        raise UserError(
            f"none of the {len(found)} series could be mapped: "
            f"{privacy.counted(listed[-len(found) :])}.",
            where=root,
        )


def make(
    series: Series,
    classifier: Classifier,
    how: How,
    folder: Path,
    given: GivenLungs | None = None,
    *,
    go_on: bool = False,
) -> str:
    """Makes all maps of a series in `folder`, completely or not at all.

    Args:
      series: Slices in any order along their axis.
      classifier: Network of a stage run.
      how: Stride, window and resolution.
      folder: Folder `PATIENT_SERIES`; both names appear in the files, and must not
        identify the patient.
      given: Lung mask made elsewhere; None to find the lungs.
      go_on: Whether to map the series even if most of its lung is unlike the training
        images.

    Returns:
      A summary in one line.

    Raises:
      UserError: The series cannot be trusted, does not show lung, or shows less of it
        than a window; or, without `go_on`, most of its lung differs from the training
        images: by its features, or because these are synthetic and the series is not.
    """
    began, run = time.monotonic(), classifier.run
    key = _key(series, classifier, how, given)
    series = from_feet(series)
    if not go_on:
        _check_alike(series, run, None)
    hu = read_volume(series)
    check_air(hu, series.headers[0].path)
    for header, one in zip(series.headers, hu, strict=True):
        check_slice(one, header)
    spacing = series.headers[0].spacing
    (lungs, doubts, _), remarks = _lungs(hu, series, given)
    maps = classify(hu, lungs, spacing, classifier, how)
    if not maps.windows:
        raise UserError(
            f"its lungs are smaller than a window of {classifier.size} x {classifier.size} "
            "pixels. Check the spacing.",
            where="spacing",
        )
    measured = maps.unlike_fraction
    if not go_on:
        _check_alike(series, run, measured)
    foreign = _is_foreign(series, run)
    if foreign:  # regardless of its features
        maps = maps._replace(unlike=maps.labels > 0)
    if extent.middle(lungs, _across(series)) is None:
        remarks.append("two lungs were not found: depth is not measured")
    about = _about(series, run, how, folder.name, given, remarks)
    mapped = Mapped(series, hu, lungs, doubts, maps, run, how, about)
    with io.replacing_folder(folder) as temporary:
        note = _write_files(temporary, mapped)
        written = {
            "key": key,
            **about,
            "class_names": run.class_names,
            "windows": maps.windows,
            "unlike_training": {
                "fraction_of_classified_lung": maps.unlike_fraction,
                "by_features": measured,
                "how": classifier.reference and str(classifier.reference),
            },
            "note": note,
        }
        io.write_json(temporary / "series.json", written)
    seconds = time.monotonic() - began
    slices = f"{len(hu)} slice{'s' if len(hu) > 1 else ''}"
    text = f"{slices}, {maps.windows} windows in {seconds:.1f} s"
    told = ""
    if maps.unlike is not None:
        told = f"{100 * maps.unlike_fraction:.0f} % of the lung is {UNLIKE}"
    if foreign and measured is not None:
        told += f" ({100 * measured:.0f} % by features alone)"
    return "; ".join(filter(None, (text, told, about["remarks"], note)))


def _written(folder: Path) -> dict[str, Any]:
    """Returns what `make` has recorded in a folder; empty if it is not there."""
    try:
        return dict(json.loads((folder / "series.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_foreign(series: Series, run: Trained) -> bool:
    """Returns whether a model of synthetic images is applied to other images."""
    return bool(run.synthetic) and not all(h.synthetic for h in series.headers)


def _check_alike(series: Series, run: Trained, by_features: float | None) -> None:
    """Raises a UserError if most of a series differs from the training images.

    Args:
      series: Slices of the series.
      run: Stage run.
      by_features: Fraction of the classified lung that differs by its features, 0 to 1;
        None if that was not judged.
    """
    if _is_foreign(series, run):
        raise UserError(
            f"100 % of its lung is {UNLIKE}: these are synthetic, but the series is not "
            "marked as synthetic. Classes found by the model are meaningless in a "
            "patient. Give --go_on to map the series anyway.",
            where="go_on",
        )
    if by_features is not None and by_features > MOST_UNLIKE:
        raise UserError(
            f"{100 * by_features:.0f} % of its classified lung is {UNLIKE}, more than "
            f"{100 * MOST_UNLIKE:g} %: the model was not trained for such images. Check "
            "the window and the spacing, or give --go_on to map the series anyway.",
            where="go_on",
        )


class Mapped(NamedTuple):
    """A series with its maps, about to be written.

    Attributes:
      series: Slices from the feet to the head.
      hu: `[Z, H, W]` int16.
      lungs: `[Z, H, W]` bool.
      doubts: Reason per slice why its lungs are uncertain, or ''.
      maps: Classes and their probabilities.
      run: Stage run that made the maps.
      how: Stride, window and resolution.
      about: Texts that every report holds, by the columns of `report.csv`.
    """

    series: Series
    hu: np.ndarray
    lungs: np.ndarray
    doubts: tuple[str, ...]
    maps: Maps
    run: Trained
    how: How
    about: dict[str, str]


def series_name(series: Series, salt: str) -> str:
    """Returns the name of a series' folder, which consists of hashes."""
    patient = series.patient or write.UNKNOWN_PATIENT
    return f"{patient}_{hashed('series', series.uid, salt)}"


def without_names(text: str, root: Path, paths: Sequence[Path]) -> str:
    """Returns a message without paths and UIDs.

    Args:
      text: Message, which may begin with one of the paths or its folder.
      root: Folder of all files; absolute.
      paths: Files that the message is about.
    """
    for path in paths:
        text = text.removeprefix(f"{path}: ").removeprefix(f"{path.parent}: ")
    ((_, plain),) = privacy.hide([(paths[0], text)], [root], salt="")
    return plain


def from_feet(series: Series) -> Series:
    """Returns an axial series in order from the feet to the head.

    Raises:
      UserError: Disease cannot be mapped and measured in the series: it is not axial,
        or its orientation or pixel size is unknown.
    """
    first = series.headers[0]
    if first.spacing is None:
        raise UserError.at(first.path, "PixelSpacing is missing, so sizes are unknown.")
    if first.orientation is None:
        raise UserError.at(first.path, "ImageOrientationPatient is missing.")
    upwards = np.cross(*np.reshape(first.orientation, (2, 3)))[2]
    if abs(upwards) < LEAST_AXIAL:
        raise UserError("its slices are not axial.")
    if upwards > 0:
        return series
    return dataclasses.replace(series, headers=series.headers[::-1])


def _across(series: Series) -> int:
    """Returns the axis of a slice that runs from side to side; see `extent.measure`."""
    return -1 if draw.sides(series.headers[0].orientation)[0] in "RL" else -2


def _lungs(
    hu: np.ndarray, series: Series, given: GivenLungs | None
) -> tuple[Lungs, list[str]]:
    """Returns the lungs of a series, and remarks on them.

    Raises:
      UserError: The series does not show lung, or the given mask does not fit.
    """
    if given is not None:
        masks = given.read(series.headers)
        mask = np.stack([masks[header.key] for header in series.headers])
        remarks = [air_remark(hu, mask), cut_remark(hu, mask)]
        sure = ("",) * len(hu)
        return Lungs(mask, sure, (0.0,) * len(hu)), list(filter(None, remarks))
    found = find_lungs(hu, (series.step, *series.headers[0].spacing))
    if not found.mask.any():
        gas = "; its air looks like gas in stomach or bowel"
        raise UserError(f"lung was not found in it{gas if any(found.gas) else ''}.")
    by_doubt: dict[str, list[int]] = {}
    for z, doubt in enumerate(found.doubts):
        if doubt:
            by_doubt.setdefault(doubt, []).append(len(hu) - z)
    return found, [
        f"lung on {_numbers_text(numbers)} is uncertain: {doubt}"
        for doubt, numbers in by_doubt.items()
    ]


def _numbers_text(numbers: list[int]) -> str:
    """Returns 'slice 3' or '14 slices (3 to 20 from the head)'."""
    if len(numbers) == 1:
        return f"slice {numbers[0]}"
    return f"{len(numbers)} slices ({min(numbers)} to {max(numbers)} from the head)"


def _about(
    series: Series,
    run: Trained,
    how: How,
    name: str,
    given: GivenLungs | None,
    remarks: Sequence[str],
) -> dict[str, str]:
    """Returns the texts that every report of a series holds; see `make`."""
    patient, series_hash = name.split("_")
    remarks = [*remarks, *series.remarks]
    members = run.members or (run,)
    count = sum(series.patient in one.patients() for one in members)
    if series.patient and count:
        networks = f"{count} of {len(members)} networks were"
        who = networks if len(members) > 1 else "the network was"
        remarks.append(f"{who} trained on patches of this patient")
    if any(header.synthetic for header in series.headers):
        remarks.append("the images are synthetic, or of a phantom")
    return {
        "patient": patient,
        "series": series_hash,
        "slices": str(len(series.headers)),
        "files_left_out": str(series.left_out),
        "step_mm": "" if series.step is None else f"{series.step:.3f}",
        "lungs": "found by threshold and morphology" if given is None else str(given),
        "remarks": plain("; ".join(remarks), 500),
        "model": run.hash,
        "arm": run.arm,
        "trained_on": run.data,
        "data_fingerprint": run.fingerprint,
        "settings": str(how),
        "notice": ". ".join(run.notices),
    }


def _write_files(folder: Path, mapped: Mapped) -> str:
    """Writes arrays, pictures and DICOM SEG at once; returns a remark, or ''."""
    with ThreadPoolExecutor() as pool:
        others = [pool.submit(one, folder, mapped) for one in (_write_arrays, _draw)]
        note = _write_dicom(folder, mapped)
    for other in others:
        other.result()
    return note


def _write_arrays(folder: Path, mapped: Mapped) -> None:
    maps, run, about = mapped.maps, mapped.run, mapped.about
    matrix = write.affine(mapped.series)
    said = ("model", "arm", "trained_on", "data_fingerprint", "settings", "notice")
    io.write_arrays(
        folder / "probabilities.npz",
        probabilities_255=maps.probabilities,
        labels=maps.labels,
        lungs=mapped.lungs,
        affine=matrix,
        class_names=np.array(run.class_names),
        **{name: np.array(about[name]) for name in said},
        **({} if maps.unlike is None else {"unlike_training": maps.unlike}),
    )
    text = "; ".join((*notices(run.synthetic, short=True), f"model {run.hash[:12]}"))
    path = folder / "probabilities.nii.gz"
    write.write_nifti(path, maps.probabilities, matrix, text, scale=1 / 255)
    write.write_nifti(folder / "classes.nii.gz", maps.labels, matrix, text)
    if maps.unlike is not None:
        path = folder / "unlike_training.nii.gz"
        write.write_nifti(path, maps.unlike.astype(np.uint8), matrix, text)
    first = mapped.series.headers[0]
    measures = extent.measure(
        maps.labels,
        mapped.lungs,
        maps.probabilities,
        run.class_names,
        first.spacing,
        mapped.series.step,
        maps.unlike,
        across=_across(mapped.series),
    )
    write.write_report(folder / "report.csv", write.report_rows(measures, about))


def _draw(folder: Path, mapped: Mapped) -> None:
    hu, lungs, labels = mapped.hu, mapped.lungs, mapped.maps.labels
    unlike = mapped.maps.unlike
    first, about = mapped.series.headers[0], mapped.about
    style = draw.Style(
        class_names=mapped.run.class_names,
        pixel_mm=first.spacing,
        sides=draw.sides(first.orientation),
        title=f"{about['patient']}, {about['series']}",
        made_by=(str(mapped.run), str(mapped.how)),
        notices=mapped.run.notices,
    )

    def draw_slice(z: int) -> None:
        number = len(hu) - z
        name = f"slice {number} of {len(hu)}"
        if doubt := mapped.doubts[z]:
            name += f"; lung is uncertain: {doubt}"
        hatched = None if unlike is None else unlike[z]
        picture = draw.draw_slice(hu[z], labels[z], lungs[z], style, name, hatched)
        # Fast, though files are a little larger: hundreds of them are written.
        picture.save(folder / "overlays" / f"{number:04d}.png", compress_level=3)

    (folder / "overlays").mkdir()
    with ThreadPoolExecutor() as pool:
        list(pool.map(draw_slice, np.flatnonzero(lungs.any((1, 2))).tolist()))
    sheet = draw.draw_sheet(hu, labels, lungs, style, unlike)
    sheet.save(folder / "contact_sheet.png")


def _write_dicom(folder: Path, mapped: Mapped) -> str:
    """Writes the DICOM SEG; returns the reason if that fails, or ''."""
    run, headers = mapped.run, mapped.series.headers
    try:
        write_segmentation(
            folder / "segmentation.dcm",
            headers,
            mapped.maps.labels,
            run.class_names,
            model=str(run),
            model_hash=run.hash,
            settings={"data fingerprint": run.fingerprint, **mapped.how.settings()},
            unlike=mapped.maps.unlike,
            synthetic=run.synthetic,
        )
    except UserError as error:
        reason = str(error)
        for header in headers:  # paths may contain patients' names
            reason = reason.removeprefix(f"{header.path}: ")
        return f"DICOM SEG not written: {reason}"
    return ""


def _key(
    series: Series, classifier: Classifier, how: How, given: GivenLungs | None
) -> str:
    paths = dict.fromkeys(header.path for header in series.headers)
    # The headers have the geometry, the files' times tell whether pixels may differ.
    slices = series.headers, stamps(Path("/"), paths)
    run, compared = classifier.run, classifier.reference
    model = (run.hash, run.synthetic, compared and compared.threshold)
    # Files added or lost next to the slices change only the remarks.
    about = series.remarks, series.left_out, "" if given is None else given.digest
    return digest(VERSION, model, how.stride, how.window, how.spacing, slices, about)


def _join_reports(out: Path, run: Trained, how: How, refused: Container[str]) -> int:
    """Writes the reports of a model and its settings; returns the number of others."""
    joined, others = [], 0
    for path in sorted(out.glob("patient-*_series-*/report.csv")):
        rows = write.read_report(path)
        made_by = {(row["model"], row["settings"]) for row in rows}
        if made_by == {(run.hash, str(how))} and path.parent.name not in refused:
            joined += rows
        else:
            others += 1
    write.write_joined(out / "report.csv", joined)
    return others


def _say_skipped(listed: privacy.Hidden, show_paths: bool) -> None:
    if show_paths:
        for path, reason in listed:
            print(f"skipped: {path}: {reason}")
        return
    for reason, count in Counter(reason for _, reason in listed).most_common():
        print(f"skipped: {count} file{'s' if count > 1 else ''}: {reason}")
