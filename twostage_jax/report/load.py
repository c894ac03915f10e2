"""From run folders to the rows of one study, or the reason why they are not one.

Everything that the report says rests on what is read here, so nothing is guessed: a
row without its predictions, predictions of other examples, the same row twice with
other predictions, or settings that differ end the report, by name. Rows that are not
there are named and averaged over by nothing.
"""

import dataclasses
import itertools
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.report import joining
from twostage_jax.report.joining import Place, Record, Study
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions, checked

SCHEMA = 1
# Scores are stored as computed; JSON keeps every digit.
SCORE_TOLERANCE = 1e-6
ARRAYS = ("ids", "groups", "labels", "probabilities", "class_names")
ROW_FIELDS: dict[str, Any] = {
    "arm": str,
    "seed": int,
    "fraction": int | float,
    "fold": int,
    "n_train": int,
    "n_test": int,
    "metrics": dict,
    "predictions": str,
}


def load(workdirs: Sequence[Path]) -> Study:
    """Reads run folders and joins them into one study.

    Raises:
      UserError: A folder is no finished run, its files are damaged, or the folders do
        not belong together; the message names folder and row.
    """
    folders = list(dict.fromkeys(Path(folder) for folder in workdirs))
    if not folders:
        raise UserError("No run folder is given: give --run=WORKDIR.")
    results = [_results(folder) for folder in folders]
    for folder, other in zip(folders[1:], results[1:], strict=True):
        joining.same_protocol(folders[0], results[0], folder, other)
    records: dict[Place, Record] = {}
    baselines: dict[Place, Record] = {}
    classes: dict[tuple[str, ...], Place] = {}
    for folder, result in zip(folders, results, strict=True):
        for row in result["rows"]:
            record, names = _record(folder, row)
            classes.setdefault(names, record.place)
            joining.add(records, record)
        for row in result.get("baselines", ()):
            record, names = _record(folder, row)
            classes.setdefault(names, record.place)
            joining.add(baselines, record)
    if not records:
        raise UserError(f"{folders[0]}/results.json holds no rows: run the study.")
    joining.same_classes(classes)
    configs = [result["config"] for result in results]
    folds = tuple(range(max(int(configs[0]["study"].get("folds", 0)), 1)))
    joining.same_tests([*records.values(), *baselines.values()], len(folds))
    joining.same_sizes(records.values())
    arms = joining.arms(folders, configs, records)
    seeds = sorted(joining.union(configs, "seeds", (p.seed for p in records)))
    fractions = sorted(
        joining.union(configs, "fractions", (p.fraction for p in records)), reverse=True
    )
    wanted = itertools.starmap(
        lambda s, f, k, a: Place(a, s, f, k),
        itertools.product(seeds, fractions, folds, arms),
    )
    return Study(
        name=str(configs[0].get("name", folders[0].name)),
        config=configs[0],
        arms=arms,
        seeds=tuple(seeds),
        fractions=tuple(fractions),
        folds=folds,
        records=records,
        missing=tuple(place for place in wanted if place not in records),
        class_names=next(iter(classes)),
        workdirs=tuple(folders),
        baselines=baselines,
    )


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
      UserError: It cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Run it again.") from error


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns arrays of an npz file; no pickle is ever read.

    Raises:
      UserError: The file is missing, damaged, or lacks an array.
    """
    try:
        # Opened here: a damaged archive would be left open by NumPy.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return {name: saved[name] for name in names}
    except FileNotFoundError:
        raise UserError(f"{path}: is missing. Run the study again.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({error}). Run it again.") from error


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            f"--run={folder}: there is no results.json. Give the workdir of a study of "
            "which at least one command has ended."
        )
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError(f"{path}: is not of schema {SCHEMA}: run the study again.")
    config, rows = results.get("config"), results.get("rows")
    whole = isinstance(config, dict) and isinstance(rows, list)
    if not whole or not isinstance(config.get("study"), dict):
        raise UserError(f"{path}: lacks 'config' or 'rows': run the study again.")
    for number, row in enumerate([*rows, *results.get("baselines", ())]):
        lacking = [
            name
            for name, kinds in ROW_FIELDS.items()
            if not isinstance(row, dict) or not isinstance(row.get(name), kinds)
        ]
        if lacking:
            raise UserError(
                f"{path}: row {number} lacks {', '.join(lacking)}, or holds something "
                "else there."
            )
    return results


def _record(folder: Path, row: Mapping[str, Any]) -> tuple[Record, tuple[str, ...]]:
    """Returns a row with its predictions, and the class names it was made with."""
    place = Place(row["arm"], row["seed"], float(row["fraction"]), row["fold"])
    path = folder / row["predictions"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: the predictions of {place} lie outside the folder.")
    saved = read_arrays(path, ARRAYS)
    names = tuple(str(name) for name in saved["class_names"])
    try:
        predictions = dataclasses.replace(
            _predictions(saved, place.seed),
            trained=(row.get("groups") or {}).get("train"),
        )
        scores = metrics.scores(predictions.labels, predictions.probabilities)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    count = len(predictions.labels)
    if count != row["n_test"] or not _agree(scores, row["metrics"]):
        raise UserError(
            f"{path}: is not what the row of {place} was scored on ({count} examples, "
            f"the row has {row['n_test']}; or other scores). Run the study again."
        )
    record = Record(
        place=place,
        n_train=row["n_train"],
        groups=row.get("groups"),
        predictions=predictions,
        scores=scores,
        stage_runs=tuple(map(str, row.get("stage_runs") or ())),
        tried=tuple(row.get("tried") or ()),
        source=folder,
    )
    return record, names


def _predictions(saved: Mapping[str, np.ndarray], seed: int) -> Predictions:
    labels, probabilities = checked(saved["labels"], saved["probabilities"])
    ids, groups = saved["ids"].astype(str), saved["groups"].astype(str)
    if ids.shape != labels.shape or groups.shape != labels.shape:
        raise UserError("ids, groups and labels are not of the same examples.")
    if len(np.unique(ids)) < len(ids):
        raise UserError("an example is there twice.")
    if len(saved["class_names"]) != probabilities.shape[1]:
        raise UserError("class names and probabilities are not of the same classes.")
    order = np.argsort(ids)
    with_groups = bool((groups != "").any())
    if with_groups and (groups == "").any():
        raise UserError("some examples have a group (patient) and some have none.")
    return Predictions(
        ids[order],
        groups[order] if with_groups else None,
        labels[order],
        probabilities[order],
        seed,
    )


def _agree(found: Mapping[str, Any], stored: Mapping[str, Any]) -> bool:
    return all(
        name not in found
        or (
            found[name] is value
            if value is None or found[name] is None
            else math.isclose(found[name], value, abs_tol=SCORE_TOLERANCE)
        )
        for name, value in stored.items()
    )
