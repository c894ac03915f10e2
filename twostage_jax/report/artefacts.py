"""Contents of a run folder apart from its rows: stages, images, explanations.

Scores do not need them: the report skips missing or damaged files, and says so.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.io import read_arrays, read_json
from twostage_jax.report.parts import Saved
from twostage_jax.report.study_table import (
    Record,
    Study,
    some,
)
from twostage_jax.report.tables import file_name
from twostage_jax.stats.arms import checked

# Names that `stage.StageRun.folder_name` can have; they cannot leave the folder.
STAGE_FOLDER = re.compile(r"[\w-][\w. -]*-[0-9a-f]{12}")
PNG_START, PDF_START = b"\x89PNG\r\n\x1a\n", b"%PDF-"
LINEAGE = ("stage", "chain", "seed", "fraction", "fold", "settings", "data", "history",
           "scores", "versions")  # fmt: skip
TRANSFER = ("path", "action", "rule", "source_shape", "target_shape", "source_norm",
            "fresh_norm", "norm")  # fmt: skip
MISTAKES = ("arm", "ids", "groups", "labels", "probabilities", "images")


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """A finished stage run.

    Attributes:
      name: Name of its folder.
      lineage: Contents of `lineage.json`.
      transfer: Transfer report, or None.
      validation: Labels `[N]` and probabilities `[N, K]` of its validation examples;
        None for runs of earlier versions.
    """

    name: str
    lineage: Mapping[str, Any]
    transfer: Mapping[str, Any] | None
    validation: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def path(self) -> str:
        """Its chain of stages: 'natural > texture > target'."""
        return " > ".join(name.rsplit("-", 1)[0] for name in self.lineage["chain"])


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images of a stage's data: `[N, H, W, C]` uint8, labels `[N]`, names."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """The worst mistakes of an arm.

    Attributes:
      ids, groups: Names of examples and patients, `[N]` strings; groups are '' if
        unknown.
      labels: True classes, `[N]`.
      probabilities: Means over the seeds, `[N, K]`.
      images: `[N, H, W, C]` uint8.
    """

    ids: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    images: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Output of `explain`: paragraphs, figures, skipped items."""

    words: Sequence[str]
    figures: Sequence[Saved]
    left_out: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Artefacts:
    """All contents of the run folders apart from rows.

    Attributes:
      stages: Folder name -> stage run, in the order of the rows.
      examples: Stage -> examples of its data.
      mistakes: Arm -> its worst mistakes.
      explanation: Output of `explain`, or None.
      notes: Skipped items, with reasons.
    """

    stages: Mapping[str, StageRecord]
    examples: Mapping[str, Examples]
    mistakes: Mapping[str, Mistakes]
    explanation: Explanation | None
    notes: Sequence[str]

    def last_stage(self, record: Record) -> StageRecord | None:
        """Returns the last stage run of a row; None if it is unknown."""
        return self.stages.get(record.stage_runs[-1]) if record.stage_runs else None


def gather(study: Study) -> Artefacts:
    """Reads the run folders of a study apart from their rows."""
    notes: list[str] = []

    def read(what: str, reader: Callable[..., Any], *more: list[str]) -> Any:
        """Returns what the reader finds, or None and a note why it is skipped."""
        try:
            return reader(study, *more)
        except UserError as error:
            notes.append(f"{what} skipped: {error}")
            return None

    return Artefacts(
        _stages(study, notes),
        read("Example patches are", _examples) or {},
        read("Worst mistakes are", _mistakes, notes) or {},
        _explanation(study, notes),
        notes,
    )


def _stages(study: Study, notes: list[str]) -> dict[str, StageRecord]:
    wanted = {
        name: record.source
        for record in study.records.values()
        for name in record.stage_runs
    }
    found, absent = {}, []
    for name, source in wanted.items():
        folder = source / "stages" / name
        if not STAGE_FOLDER.fullmatch(name) or not (folder / "lineage.json").is_file():
            absent.append(name)
            continue
        try:
            found[name] = stage_record(folder)
        except UserError as error:
            notes.append(f"A stage run is skipped: {error}")
    shared, about_files = {}, {}
    for one in found.values():
        data = one.lineage["data"]
        if line := data.get("copies"):
            shared.setdefault(one.lineage["stage"], f"{one.path}, {line}")
        for line in data.get("notes", ()):
            about_files[f"Data set '{data.get('name')}': {line}"] = None
    notes += [*shared.values(), *about_files]
    if absent:
        notes.append(f"Stage runs without a lineage.json are skipped: {some(absent)}.")
    return found


def stage_record(folder: Path) -> StageRecord:
    """Reads a stage run; raises a UserError if it lacks files or fields."""
    lineage, transfer = read_json(folder / "lineage.json"), None
    _check_fields(folder / "lineage.json", lineage, LINEAGE)
    if (folder / "transfer.json").is_file():
        transfer = read_json(folder / "transfer.json")
        _check_fields(folder / "transfer.json", transfer, ("rows",))
        for row in transfer["rows"]:
            _check_fields(folder / "transfer.json", row, TRANSFER)
    validation = None
    if (folder / "validation.npz").is_file():
        saved = read_arrays(folder / "validation.npz", ("labels", "probabilities"))
        # The validation set may be empty.
        if len(saved["labels"]):
            validation = checked(saved["labels"], saved["probabilities"])
    return StageRecord(folder.name, lineage, transfer, validation)


def _check_fields(path: Path, found: Any, names: Sequence[str]) -> None:
    lacking = [n for n in names if not isinstance(found, dict) or n not in found]
    if lacking:
        raise UserError.at(path, f"lacks {', '.join(lacking)}.")


def _first(study: Study, pattern: str) -> list[Path]:
    """Returns the files of the pattern in the first run folder that has any."""
    for folder in study.workdirs:
        if paths := sorted(folder.glob(pattern)):
            return paths
    raise UserError(f"{pattern} is missing from every run folder.")


def _examples(study: Study) -> dict[str, Examples]:
    found = {}
    for path in _first(study, "examples/*.npz"):
        if path.stem == "mistakes":
            continue
        saved = read_arrays(path, ("images", "labels", "class_names"))
        _check_images(path, saved["images"], saved["labels"])
        names = tuple(map(str, saved["class_names"]))
        if len(saved["labels"]) and not 0 <= saved["labels"].max() < len(names):
            raise UserError.at(path, "a label lacks a class name.")
        if len(saved["labels"]):
            found[path.stem] = Examples(saved["images"], saved["labels"], names)
    return found


def _mistakes(study: Study, notes: list[str]) -> dict[str, Mistakes]:
    (path,) = _first(study, "examples/mistakes.npz")
    saved = read_arrays(path, MISTAKES)
    _check_images(path, saved["images"], saved["labels"])
    count, classes = len(saved["labels"]), len(study.class_names)
    shapes = [saved[name].shape for name in ("arm", "ids", "groups")]
    if set(shapes) != {(count,)} or saved["probabilities"].shape != (count, classes):
        raise UserError.at(path, "array sizes are inconsistent.")
    if count and not 0 <= saved["labels"].min() <= saved["labels"].max() < classes:
        raise UserError.at(path, "a label lacks a class name.")
    found = {}
    for arm in study.arms:
        chosen = saved["arm"].astype(str) == arm
        if chosen.any():
            found[arm] = Mistakes(
                *(saved[name][chosen].astype(str) for name in ("ids", "groups")),
                *(saved[name][chosen] for name in MISTAKES[3:]),
            )
    if len(study.workdirs) > 1:
        notes.append(f"Worst mistakes are those of {path.parents[1]} only.")
    return found


def _check_images(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    good = images.ndim == 4 and images.dtype == np.uint8 and images.shape[-1] in (1, 3)
    if not good or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError.at(
            path, "images must be uint8 [N, H, W, 1 or 3] with integer labels [N]."
        )


def _explanation(study: Study, notes: list[str]) -> Explanation | None:
    """Returns the first valid output of `explain`; notes those that are not used."""
    paths = [folder / "explain" / "explain.json" for folder in study.workdirs]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        notes.append("Feature analysis is missing: run twostage explain.")
    trained = {name for one in study.records.values() for name in one.stage_runs}
    shown = None
    for path in paths:
        where = path.parents[1]
        try:
            explained = read_json(path)
        except UserError as error:
            notes.append(f"Feature analysis is skipped: {error}")
            continue
        if not isinstance(explained, dict):
            explained = {}
        # Files of earlier versions do not name the runs.
        if not trained.issuperset(explained.get("stage_runs") or ()):
            notes.append(
                f"Feature analysis of {where} is skipped: it shows networks that have "
                "been trained again since. Run twostage explain again."
            )
        elif shown:
            notes.append(
                f"Feature analysis of {where} is not shown: the report shows one only."
            )
        else:
            shown = Explanation(
                [str(text) for text in explained.get("words") or ()],
                _figures(path.parent, explained.get("figures") or {}, notes),
                [str(text) for text in explained.get("left_out") or ()],
            )
    return shown


def _figures(folder: Path, named: Mapping[str, str], notes: list[str]) -> list[Saved]:
    """Returns figures; notes those with files missing or outside the folder."""
    found = []
    for name, place in named.items():
        png = _inside(folder, f"{place}.png", PNG_START)
        pdf = _inside(folder, f"{place}.pdf", PDF_START)
        if png and pdf:
            alt = name.replace("_", " ")
            found.append(Saved(f"explain_{file_name(name)}", png, pdf, alt))
        else:
            notes.append(
                f"Figure {name} of explain.json is skipped: its PNG or PDF file is "
                f"missing from {folder}, or damaged."
            )
    return found


def _inside(folder: Path, place: str, start: bytes) -> bytes:
    """Returns a file inside the folder that begins with `start`, or b''."""
    path = folder / place
    if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
        return b""
    data = path.read_bytes()
    return data if data.startswith(start) else b""
