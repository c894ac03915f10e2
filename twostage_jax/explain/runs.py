"""The networks of a finished study."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from twostage_jax.config import ModelConfig
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.explain.networks import Network
from twostage_jax.train import checkpoint, steps


def load_arms(workdir: Path, arms: Sequence[str] = ()) -> dict[str, list[Network]]:
    """Returns the networks that the arms end with, one a seed, in order of seed.

    Those of the largest fraction of the training data, and of its first fold; see
    `chosen_runs`.

    Args:
      workdir: Of a study.
      arms: Names; all that were trained if empty.

    Raises:
      UserError: There are no results, an arm was not trained, a file cannot be read, or
        parameters are not finite.
    """
    known, rows = chosen_rows(workdir)
    for arm in arms:
        if arm not in known:
            raise UserError(
                f"--arms={arm}: the study has no such arm.{did_you_mean(arm, known)}"
            )
        if not any(row["arm"] == arm for row in rows):
            raise UserError(
                f"{workdir}: arm '{arm}' has not been trained: run the study with "
                f"--config.study.arms={arm} and this workdir, or leave it out of --arms."
            )
    loaded: dict[str, Network] = {}
    found: dict[str, list[Network]] = {arm: [] for arm in arms or known}
    for row in sorted(rows, key=lambda row: row["seed"]):
        if row["arm"] in found:
            names = [Path(name).name for name in row["stage_runs"]]
            found[row["arm"]].append(_chain(workdir, row["arm"], names, loaded))
    return {arm: networks for arm, networks in found.items() if networks}


def chosen_runs(workdir: Path, arms: Sequence[str] = ()) -> list[str]:
    """Returns lines on the fold and fraction that `load_arms` takes, and who lacks them.

    Folds are never mixed: the networks of one were trained on test patients of another.

    Args:
      workdir: Of a study.
      arms: As for `load_arms`.
    """
    known, rows = chosen_rows(workdir)
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    folds, fractions = (
        sorted({row[name] for row in results["rows"]}) for name in ("fold", "fraction")
    )
    share, fold = rows[0]["fraction"], rows[0]["fold"]
    text = f"The networks are those trained on {share:.0%} of the training data"
    if len(fractions) > 1:
        text += f", the most of {len(fractions)} fractions"
    if len(folds) > 1:
        text += f", in fold {fold} of {len(folds)} folds ({_listed(folds)})"
    lines = [f"{text}."]
    seeds = {row["seed"] for row in rows}
    for arm in arms or known:
        lacks = seeds - {row["seed"] for row in rows if row["arm"] == arm}
        trained = any(row["arm"] == arm for row in results["rows"])
        if trained and lacks:
            lines.append(
                f"Arm '{arm}' has no finished run of that kind for seed "
                f"{_listed(sorted(lacks))}."
            )
    return lines


def chosen_rows(workdir: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the names of all arms, and the rows of the largest fraction, one fold.

    Raises:
      UserError: The workdir holds no results of a study.
    """
    path = workdir / "results.json"
    if not path.is_file():
        raise UserError(
            f"{workdir}: no results.json here. Give --run the workdir of a study that "
            "has been run."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        known, rows = list(results["config"]["arms"]), list(results["rows"])
        place = min((-row["fraction"], row["fold"]) for row in rows)
        chosen = [row for row in rows if (-row["fraction"], row["fold"]) == place]
        for row in chosen:
            _ = row["arm"], row["seed"], row["stage_runs"][-1]
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path}: are no results of a study ({error!r}).") from error
    return known, chosen


def lineage_of(home: Path) -> dict[str, Any]:
    """Returns the lineage of a stage run's folder, or raises a UserError."""
    path = home / "lineage.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}).") from error


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _chain(
    workdir: Path, arm: str, names: Sequence[str], loaded: dict[str, Network]
) -> Network:
    """Returns the network of the last of a chain of stage runs, and so its parents."""
    network = None
    for name in names:
        if name not in loaded:
            loaded[name] = _network(workdir / "stages" / name)
        network = loaded[name]._replace(arm=arm, parent=network)
    return network


def _network(home: Path) -> Network:
    lineage = lineage_of(home)
    try:
        data, settings = lineage["data"], lineage["settings"]["data"]
        options = settings.get("options", {})
        model, names = ModelConfig(**lineage["model"]), tuple(data["class_names"])
        network = Network(
            arm="",
            seed=int(lineage["seed"]),
            stage=str(lineage["stage"]),
            module=steps.build_model(model, len(names), None),
            variables=checkpoint.load_variables(home / "variables"),
            class_names=names,
            size=model.image_size,
            channels=model.channels,
            normalise=settings["normalise"],
            mean=np.asarray(data["mean"], np.float32),
            deviation=np.asarray(data["deviation"], np.float32),
            window=tuple(settings["window"]),
            parent=None,
            source=str(settings["source"]),
            path=str(options.get("path", "")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{home / 'lineage.json'}: is not the lineage of a finished stage run "
            f"({error!r})."
        ) from error
    for keys, leaf in jax.tree_util.tree_leaves_with_path(network.variables):
        if not np.isfinite(leaf).all():
            where = "/".join(str(key.key) for key in keys)
            raise UserError(
                f"{home / 'variables'}: {where} holds numbers that are not finite. "
                "Delete the stage's folder and run the study again."
            )
    return network
