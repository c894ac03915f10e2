"""Reads run folders as one study, or raises an error if they are not one.

The whole report rests on this, so nothing is guessed: a row without predictions,
predictions of other examples, contradictory copies of a row, or differing settings raise
an error that names them. Missing rows are listed, and never averaged over.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage_jax.config import shared_settings
from twostage_jax.errors import UserError
from twostage_jax.io import read_arrays, read_json
from twostage_jax.stats import arms as paired_arms
from twostage_jax.stats import metrics
from twostage_jax.stats.arms import Predictions

SCHEMA = 1
# Scores are stored unrounded; JSON keeps every digit.
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
NAMED = 5


class Place(NamedTuple):
    """Position of a row in the study."""

    arm: str
    seed: int
    fraction: float
    fold: int

    def __str__(self) -> str:
        where = f"seed {self.seed}, fraction {self.fraction:g}, fold {self.fold}"
        return f"{self.arm} ({where})"


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of the results with its predictions.

    Attributes:
      place: Arm, seed, fraction and fold.
      n_train: Number of target training patches.
      groups: Number of patients by split, or None if unknown.
      file: Name of the file of its predictions.
      predictions: Predictions of the test examples, sorted by id.
      scores: Scores of these predictions (see `metrics.scores`).
      stage_runs: Names of its stage runs, first stage first.
      tried: Settings tried in tuning (see `results.json`); empty without tuning.
      source: Run folder.
      key: Digest of all that determines the predictions of a baseline; '' for an arm, and
        for baselines of earlier versions.
    """

    place: Place
    n_train: int
    groups: Mapping[str, int] | None
    file: str
    predictions: Predictions
    scores: Mapping[str, float | None]
    stage_runs: tuple[str, ...]
    tried: tuple[Mapping[str, Any], ...]
    source: Path
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows of one study, joined from one or several run folders.

    Attributes:
      name: Name of the config.
      config: Settings of the first folder.
      arms: Arm -> its chain of stages.
      seeds, fractions, folds: Values of the study; fractions descend, the others ascend.
      records: Rows that are present.
      missing: Rows of the plan that are missing.
      class_names: Class names of the target.
      workdirs: Run folders.
      baselines: Rows of baselines on the same examples; the `arm` of their place is the
        name of the baseline.
    """

    name: str
    config: Mapping[str, Any]
    arms: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    fractions: tuple[float, ...]
    folds: tuple[int, ...]
    records: Mapping[Place, Record]
    missing: tuple[Place, ...]
    class_names: tuple[str, ...]
    workdirs: tuple[Path, ...]
    baselines: Mapping[Place, Record] = dataclasses.field(default_factory=dict)

    def whole_baselines(self, fraction: float, seeds: Sequence[int]) -> tuple[str, ...]:
        """Returns the baselines with every fold of these seeds."""
        names = dict.fromkeys(place.arm for place in self.baselines)
        return tuple(
            name
            for name in names
            if all(self._is_whole(name, seed, fraction) for seed in seeds)
        )

    def complete(self, fraction: float) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Returns the arms and seeds at a fraction that have all folds.

        Arms without a complete seed are excluded first, then seeds that are incomplete
        in any remaining arm.
        """
        whole = {
            arm: {seed for seed in self.seeds if self._is_whole(arm, seed, fraction)}
            for arm in self.arms
        }
        arms = tuple(arm for arm in self.arms if whole[arm])
        if not arms:
            return (), ()
        return arms, tuple(sorted(set.intersection(*(whole[arm] for arm in arms))))

    @property
    def folds_anew(self) -> bool:
        """Whether seeds assign the examples to folds differently."""
        tests = {
            tuple(record.predictions.ids)
            for place, record in self.records.items()
            if place.fold == self.folds[0]
        }
        return len(self.folds) > 1 and len(tests) > 1

    def record(self, place: Place) -> Record:
        """Returns a row of an arm or a baseline."""
        return (self.records if place.arm in self.arms else self.baselines)[place]

    def joined(self, arm: str, seed: int, fraction: float) -> Predictions:
        """Returns the predictions of all folds of a seed, of an arm or a baseline."""
        places = self._folds_of(arm, seed, fraction)
        return paired_arms.joined([self.record(place).predictions for place in places])

    def _is_whole(self, arm: str, seed: int, fraction: float) -> bool:
        records = self.records if arm in self.arms else self.baselines
        return all(place in records for place in self._folds_of(arm, seed, fraction))

    def _folds_of(self, arm: str, seed: int, fraction: float) -> list[Place]:
        return [Place(arm, seed, fraction, fold) for fold in self.folds]


def load(workdirs: Sequence[Path]) -> Study:
    """Reads run folders and joins them into one study.

    Raises:
      UserError: A folder is not a finished run, its files are damaged, or the folders do
        not belong together; the message names folder and row.
    """
    folders = list(dict.fromkeys(Path(folder) for folder in workdirs))
    results = [_results(folder) for folder in folders]
    for folder, other in zip(folders[1:], results[1:], strict=True):
        _check_protocol(folders[0], results[0], folder, other)
    records: dict[Place, Record] = {}
    baselines: dict[Place, Record] = {}
    for folder, result in zip(folders, results, strict=True):
        for kind, found in (("rows", records), ("baselines", baselines)):
            for row in result.get(kind, ()):
                _add(found, _record(folder, row))
    if not records:
        path = folders[0] / "results.json"
        raise UserError.at(path, "the results are empty: run the study.")
    everything = [*records.values(), *baselines.values()]
    _check_classes(everything)
    configs = [result["config"] for result in results]
    folds = tuple(range(max(int(configs[0]["study"].get("folds", 0)), 1)))
    _check_tests(everything, len(folds))
    _check_sizes(records.values())
    arms = _chains(folders, configs, records)
    seeds = _values(configs, "seeds", (p.seed for p in records))
    fractions = _values(configs, "fractions", (p.fraction for p in records))[::-1]
    wanted = [
        Place(arm, *place)
        for *place, arm in itertools.product(seeds, fractions, folds, arms)
    ]
    return Study(
        name=str(configs[0].get("name", folders[0].name)),
        config=configs[0],
        arms=arms,
        seeds=seeds,
        fractions=fractions,
        folds=folds,
        records=records,
        missing=tuple(place for place in wanted if place not in records),
        class_names=everything[0].predictions.class_names,
        workdirs=tuple(folders),
        baselines=baselines,
    )


def named_predictions(path: Path, seed: int, class_names: Sequence[str]) -> Predictions:
    """Returns the predictions in a file.

    Raises:
      UserError: The file is missing or damaged, or has other classes.
    """
    predictions = _predictions(path, seed)
    if predictions.class_names != tuple(class_names):
        raise UserError.at(path, "its classes differ from the study's.")
    return predictions


def some(items: Sequence[object]) -> str:
    """Returns the first `NAMED` items as text, and the number of the others."""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return ", ".join(map(str, items[:NAMED])) + more


def flat(settings: Any, path: str = "") -> dict[str, str]:
    """Returns nested settings as dotted path -> value as text."""
    if isinstance(settings, Mapping) and settings:
        items = (
            flat(value, f"{path}.{key}" if path else str(key)).items()
            for key, value in settings.items()
        )
        return dict(itertools.chain.from_iterable(items))
    if isinstance(settings, str):
        return {path: settings or "''"}
    return {path: json.dumps(settings)}


def _results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(
            f"--run={folder}: results.json is missing. Give the workdir of a study with "
            "at least one finished run.",
            where=folder,
        )
    results = read_json(path)
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise UserError.at(path, f"this is not schema {SCHEMA}: run the study again.")
    config, rows = results.get("config"), results.get("rows")
    whole = isinstance(config, dict) and isinstance(rows, list)
    if not whole or not isinstance(config.get("study"), dict):
        raise UserError.at(path, "'config' or 'rows' is missing: run the study again.")
    for number, row in enumerate([*rows, *results.get("baselines", ())]):
        lacking = [
            name
            for name, kinds in ROW_FIELDS.items()
            if not isinstance(row, dict) or not isinstance(row.get(name), kinds)
        ]
        if lacking:
            raise UserError.at(
                path,
                f"row {number}: fields are missing or of the wrong type: "
                f"{', '.join(lacking)}.",
            )
    return results


def _record(folder: Path, row: Mapping[str, Any]) -> Record:
    """Returns a row with its predictions."""
    place = Place(row["arm"], row["seed"], float(row["fraction"]), row["fold"])
    path = folder / row["predictions"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{folder}: the predictions of {place} lie outside the folder.",
            where=folder / "results.json",
        )
    trained = (row.get("groups") or {}).get("train")
    predictions = dataclasses.replace(_predictions(path, place.seed), trained=trained)
    scores = metrics.scores(predictions.labels, predictions.probabilities)
    count = len(predictions.labels)
    if count != row["n_test"] or not _agree(scores, row["metrics"]):
        raise UserError.at(
            path,
            f"these are not the predictions of the row {place} ({count} examples, "
            f"{row['n_test']} in the row; or the scores differ). Run the study again.",
        )
    return Record(
        place=place,
        n_train=row["n_train"],
        groups=row.get("groups"),
        file=path.name,
        predictions=predictions,
        scores=scores,
        stage_runs=tuple(map(str, row.get("stage_runs") or ())),
        tried=tuple(row.get("tried") or ()),
        source=folder,
        key=str(row.get("key", "")),
    )


def _predictions(path: Path, seed: int) -> Predictions:
    """Returns the predictions in a file, sorted by id."""
    saved = read_arrays(path, ARRAYS)
    try:
        labels, probabilities = paired_arms.checked(
            saved["labels"], saved["probabilities"]
        )
        ids, groups = saved["ids"].astype(str), saved["groups"].astype(str)
        names = tuple(map(str, saved["class_names"]))
        with_groups = bool((groups != "").any())
        if ids.shape != labels.shape or groups.shape != labels.shape:
            raise UserError("ids, groups and labels differ in length.")
        if len(np.unique(ids)) < len(ids):
            raise UserError("an example occurs twice.")
        if len(names) != probabilities.shape[1]:
            raise UserError(
                "class names and probabilities differ in number of classes."
            )
        if with_groups and (groups == "").any():
            raise UserError("some examples, but not all, have a group (patient).")
    except UserError as error:
        raise UserError.at(path, str(error)) from None
    order = np.argsort(ids)
    return Predictions(
        ids[order],
        groups[order] if with_groups else None,
        labels[order],
        probabilities[order],
        seed,
        class_names=names,
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


def _check_protocol(
    first: Path, one: Mapping[str, Any], second: Path, other: Mapping[str, Any]
) -> None:
    """Raises a UserError if two folders do not belong to one study."""
    # Earlier versions did not record the data.
    data, others = (result.get("data", {}) for result in (one, other))
    unlike = [stage for stage in data if others.get(stage, data[stage]) != data[stage]]
    if unlike:
        raise UserError(
            f"--run={second}: cannot be joined with {first}. The data of "
            f"{', '.join(unlike)} differ, or the version of the program. Report them "
            "separately, or run one of them again.",
            where=second,
        )
    digests = [result.get("protocol") for result in (one, other)]
    if digests[0] and digests[0] == digests[1]:
        return
    settings = [flat(shared_settings(result["config"])) for result in (one, other)]
    differing = [
        f"{key} ({settings[0].get(key, 'unset')} and {settings[1].get(key, 'unset')})"
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key, "unset") != settings[1].get(key, "unset")
    ]
    if not differing and not all(digests):
        return
    what = some(differing) or "its protocol, but not in its settings"
    raise UserError(
        f"--run={second}: cannot be joined with {first}. It differs in {what}. "
        "Report them separately, or run one of them again.",
        where=second,
    )


def _add(records: dict[Place, Record], record: Record) -> None:
    """Adds a row; copies with the same predictions count once.

    Raises:
      UserError: A copy of the row has other predictions.
    """
    known = records.setdefault(record.place, record)
    fields = ("ids", "labels", "probabilities")
    if not _alike(known.predictions, record.predictions, fields):
        raise UserError(
            f"{record.place}: {known.source} and {record.source} both have this row, "
            "with different predictions. Omit one folder, or use different seeds.",
            where=record.source,
        )


def _check_classes(records: Sequence[Record]) -> None:
    """Raises a UserError if rows have different class names."""
    one, *others = records
    for other in others:
        names, unlike = (r.predictions.class_names for r in (one, other))
        if names != unlike:
            raise UserError(
                f"{one.place} has the classes {', '.join(names)}, but {other.place} has "
                f"{', '.join(unlike)}: the data differ.",
                where=other.source,
            )


def _check_tests(records: Iterable[Record], folds: int) -> None:
    """Raises a UserError if rows of a fold were tested on different examples.

    A single split is the same for all seeds, whereas each seed draws its own folds. The
    folds of a seed must not share a patient, and the examples need two classes.
    """
    first: dict[tuple[int, int], Record] = {}
    for record in records:
        seed = record.place.seed if folds > 1 else 0
        known = first.setdefault((seed, record.place.fold), record)
        one, other = known.predictions, record.predictions
        if not _alike(one, other, ("ids", "labels", "groups")):
            raise UserError(
                f"{record.place} in {record.source} and {known.place} in "
                f"{known.source} were tested on different examples: the split or the "
                "data differ. Run one again with the same data settings.",
                where=record.source,
            )
    held: dict[tuple[int, str], int] = {}
    for (seed, fold), record in first.items():
        tested = record.predictions
        for group in set(tested.ids if tested.groups is None else tested.groups):
            if (known := held.setdefault((seed, group), fold)) != fold:
                raise UserError(
                    f"Patient or group '{group}' is tested in fold {known} and in fold "
                    f"{fold} of seed {seed}: the folds are from different splits.",
                    where=record.source,
                )
    labels = np.concatenate([record.predictions.labels for record in first.values()])
    if len(np.unique(labels)) < 2:
        raise UserError(
            "All test examples belong to one class, so scores are undefined: use a test "
            "set with two or more classes.",
            where=record.source,
        )


def _check_sizes(records: Iterable[Record]) -> None:
    """Raises a UserError if arms were trained on different numbers of target examples."""
    first: dict[tuple, Record] = {}
    for record in records:
        known = first.setdefault(record.place[1:], record)
        if known.n_train != record.n_train:
            raise UserError(
                f"{known.place} was trained on {known.n_train} target examples, but "
                f"{record.place} on {record.n_train}: arms must share their training "
                "examples. Run one of them again.",
                where=record.source,
            )


def _chains(
    folders: Sequence[Path],
    configs: Sequence[Mapping[str, Any]],
    records: Mapping[Place, Record],
) -> dict[str, tuple[str, ...]]:
    """Returns arm -> chain of stages, of all folders, short chains first.

    Raises:
      UserError: Two folders have different chains for one arm, or a row's arm is unknown.
    """
    chains: dict[str, tuple[str, ...]] = {}
    for folder, config in zip(folders, configs, strict=True):
        for arm, chain in (config.get("arms") or {}).items():
            chain = tuple(map(str, chain))
            if chains.setdefault(str(arm), chain) != chain:
                raise UserError(
                    f"--run={folder}: arm '{arm}' is {' > '.join(chain)}, but "
                    f"{' > '.join(chains[arm])} in another folder.",
                    where=folder,
                )
    for place, record in records.items():
        if place.arm not in chains:
            raise UserError(
                f"{place}: the settings do not define this arm.", where=record.source
            )
    return dict(sorted(chains.items(), key=lambda item: (len(item[1]), item[0])))


def _values(
    configs: Sequence[Mapping[str, Any]], name: str, there: Iterable[Any]
) -> tuple[Any, ...]:
    """Returns values that any config plans or that are present, ascending."""
    planned = (config["study"].get(name, ()) for config in configs)
    return tuple(sorted({*itertools.chain.from_iterable(planned), *there}))


def _alike(one: Predictions, other: Predictions, fields: Sequence[str]) -> bool:
    """Returns whether fields are equal; groups are None in both or in neither."""
    return all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in fields
    )
