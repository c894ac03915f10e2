"""One study: its rows, and whether rows of several run folders belong together."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from twostage_jax.errors import UserError
from twostage_jax.stats.arms import Predictions, joined

# What rows of one study may differ in: `results._protocol` says the same.
FREE_STUDY = ("seeds", "arms", "fractions", "baselines", "side_by_side")
FREE_TRAIN = ("save_every",)
NAMED = 5


class Place(NamedTuple):
    """Where a row stands in the study."""

    arm: str
    seed: int
    fraction: float
    fold: int

    def __str__(self) -> str:
        where = f"seed {self.seed}, fraction {self.fraction:g}, fold {self.fold}"
        return f"{self.arm} ({where})"


@dataclasses.dataclass(frozen=True)
class Record:
    """One row of the results with what it predicted.

    Attributes:
      place: Arm, seed, fraction and fold.
      n_train: Target training patches.
      groups: Patients by split, or None if the set has none.
      predictions: Of the test examples, sorted by id.
      scores: Of these (see `metrics.scores`).
      stage_runs: Names of the stage runs behind it, first one first.
      tried: What the tuning tried (see `results.json`); empty if nothing was tuned.
      source: The run folder.
    """

    place: Place
    n_train: int
    groups: Mapping[str, int] | None
    predictions: Predictions
    scores: Mapping[str, float | None]
    stage_runs: tuple[str, ...]
    tried: tuple[Mapping[str, Any], ...]
    source: Path


@dataclasses.dataclass(frozen=True)
class Study:
    """The rows of one study, joined from one or several run folders.

    Attributes:
      name: Of the config.
      config: The settings, of the first folder.
      arms: Arm -> its chain of stages.
      seeds, fractions, folds: Ascending; fractions descending.
      records: What is there.
      missing: What the study asks for and is not there.
      class_names: Of the target.
      workdirs: The folders.
      baselines: What was fitted without a network on the same examples; the `arm` of
        its place is the baseline's name.
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
        """Returns the baselines of which every fold of these seeds is there."""
        names = dict.fromkeys(place.arm for place in self.baselines)
        return tuple(
            name
            for name in names
            if all(
                Place(name, seed, fraction, fold) in self.baselines
                for seed in seeds
                for fold in self.folds
            )
        )

    def complete(self, fraction: float) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Returns arms and seeds at a fraction of which every fold of each is there.

        Arms without a single whole seed are left out; then seeds that are not whole in
        every arm that is left.
        """
        whole = {
            arm: {
                seed
                for seed in self.seeds
                if all(
                    Place(arm, seed, fraction, fold) in self.records
                    for fold in self.folds
                )
            }
            for arm in self.arms
        }
        arms = tuple(arm for arm in self.arms if whole[arm])
        if not arms:
            return (), ()
        return arms, tuple(sorted(set.intersection(*(whole[arm] for arm in arms))))

    @property
    def folds_anew(self) -> bool:
        """Whether seeds share the examples out to the folds in different ways."""
        tests = {
            tuple(record.predictions.ids)
            for place, record in self.records.items()
            if place.fold == self.folds[0]
        }
        return len(self.folds) > 1 and len(tests) > 1

    def joined(self, arm: str, seed: int, fraction: float) -> Predictions:
        """Returns the predictions of all folds of a seed, of an arm or a baseline."""
        records = self.records if arm in self.arms else self.baselines
        return joined(
            [
                records[Place(arm, seed, fraction, fold)].predictions
                for fold in self.folds
            ]
        )


def same_protocol(
    first: Path, one: Mapping[str, Any], second: Path, other: Mapping[str, Any]
) -> None:
    """Raises a UserError if two folders are not of one study."""
    digests = [result.get("protocol") for result in (one, other)]
    if digests[0] and digests[0] == digests[1]:
        return
    settings = [flat(_protocol(result["config"])) for result in (one, other)]
    differing = [
        f"{key} ({settings[0].get(key, 'unset')} and {settings[1].get(key, 'unset')})"
        for key in sorted(settings[0].keys() | settings[1].keys())
        if settings[0].get(key, "unset") != settings[1].get(key, "unset")
    ]
    if not differing and not all(digests):
        return
    what = ", ".join(differing[:NAMED]) or "its protocol, though not its settings"
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    raise UserError(
        f"--run={second}: cannot be joined with {first}. It differs in {what}{more}. "
        "Report each by itself, or run one of them again."
    )


def _protocol(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that rows must share to be compared."""
    settings = json.loads(json.dumps(config))
    settings.pop("arms", None)
    for name in FREE_STUDY:
        settings["study"].pop(name, None)
    for stage in settings.get("stages", {}).values():
        for name in FREE_TRAIN:
            stage.get("train", {}).pop(name, None)
    return settings


def flat(settings: Any, path: str = "") -> dict[str, str]:
    """Returns nested settings as dotted path -> value in words."""
    if isinstance(settings, Mapping) and settings:
        items = (
            flat(value, f"{path}.{key}" if path else str(key)).items()
            for key, value in settings.items()
        )
        return dict(itertools.chain.from_iterable(items))
    if isinstance(settings, str):
        return {path: settings or "''"}
    return {path: json.dumps(settings)}


def add(records: dict[Place, Record], record: Record) -> None:
    """Adds a row; the same row twice is one if it predicts the same.

    Raises:
      UserError: It predicts something else.
    """
    known = records.setdefault(record.place, record)
    one, other = known.predictions, record.predictions
    same = (
        np.array_equal(one.ids, other.ids)
        and np.array_equal(one.labels, other.labels)
        and np.array_equal(one.probabilities, other.probabilities)
    )
    if not same:
        raise UserError(
            f"{record.place}: {known.source} and {record.source} both have this row, "
            "with other predictions. Leave one folder out, or give each its own seeds."
        )


def same_classes(classes: Mapping[tuple[str, ...], Place]) -> None:
    """Raises a UserError if rows were made with other class names."""
    if len(classes) > 1:
        (names, one), (others, other) = list(classes.items())[:2]
        raise UserError(
            f"{one} has the classes {', '.join(names)}, {other} has "
            f"{', '.join(others)}: they are of different data."
        )


def same_tests(records: Iterable[Record], folds: int) -> None:
    """Raises a UserError if rows of a fold were tested on other examples.

    One split is the same for all seeds, folds are drawn anew for each. Those of a seed
    must not share a patient, and there must be two classes to tell apart.
    """
    first: dict[tuple[int, int], Record] = {}
    for record in records:
        seed = record.place.seed if folds > 1 else 0
        known = first.setdefault((seed, record.place.fold), record)
        one, other = known.predictions, record.predictions
        alike = all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("ids", "labels")
        )
        if not alike or not _same_groups(one.groups, other.groups):
            raise UserError(
                f"{record.place} in {record.source} was tested on other examples than "
                f"{known.place} in {known.source}: it is from another split or other "
                "data. Run it again with the same data settings."
            )
    held: dict[tuple[int, str], int] = {}
    for (seed, fold), record in first.items():
        for group in set(_groups(record.predictions)):
            if (known := held.setdefault((seed, group), fold)) != fold:
                raise UserError(
                    f"Patient or group '{group}' is tested in fold {known} and in fold "
                    f"{fold} of seed {seed}: the folds are from different splits."
                )
    labels = np.concatenate([record.predictions.labels for record in first.values()])
    if len(np.unique(labels)) < 2:
        raise UserError(
            "The test examples are all of one class: there is nothing to tell apart, "
            "and no score to report."
        )


def same_sizes(records: Iterable[Record]) -> None:
    """Raises a UserError if arms were trained on other numbers of target examples."""
    first: dict[tuple, Record] = {}
    for record in records:
        known = first.setdefault(record.place[1:], record)
        if known.n_train != record.n_train:
            raise UserError(
                f"{known.place} was trained on {known.n_train} target examples, "
                f"{record.place} on {record.n_train}: arms must be trained on the same "
                "ones. Run one of them again."
            )


def arms(
    folders: Sequence[Path],
    configs: Sequence[Mapping[str, Any]],
    records: Iterable[Place],
) -> dict[str, tuple[str, ...]]:
    """Returns arm -> chain of stages, of all folders, short chains first.

    Raises:
      UserError: Two folders mean different chains by one name, or a row's arm has none.
    """
    chains: dict[str, tuple[str, ...]] = {}
    for folder, config in zip(folders, configs, strict=True):
        for arm, chain in (config.get("arms") or {}).items():
            chain = tuple(map(str, chain))
            if chains.setdefault(str(arm), chain) != chain:
                raise UserError(
                    f"--run={folder}: arm '{arm}' is {' > '.join(chain)}, in another "
                    f"folder {' > '.join(chains[arm])}."
                )
    for place in records:
        if place.arm not in chains:
            raise UserError(f"{place}: the settings have no arm of this name.")
    return dict(sorted(chains.items(), key=lambda item: (len(item[1]), item[0])))


def union(
    configs: Sequence[Mapping[str, Any]], name: str, there: Iterable[Any]
) -> list[Any]:
    """Returns what any config asks for, and what is there, each once."""
    asked = itertools.chain.from_iterable(
        config["study"].get(name, ()) for config in configs
    )
    return list(dict.fromkeys([*asked, *there]))


def _same_groups(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


def _groups(predictions: Predictions) -> np.ndarray:
    groups = predictions.groups
    return predictions.ids if groups is None else groups
