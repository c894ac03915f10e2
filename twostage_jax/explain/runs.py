"""The networks of a finished study, and the images to show them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import checkpoint, training
from twostage_jax.config import DataConfig, ModelConfig
from twostage_jax.data import augment, folder, image_files, sources
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.explain.networks import Examples, Network

# Test images looked at, at most; of more, as many spread evenly over them.
MOST_EXAMPLES = 1024


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
    known, rows = _rows(workdir)
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
    known, rows = _rows(workdir)
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


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def test_examples(
    workdir: Path, data_dir: Path, arms: Iterable[str] = ()
) -> tuple[Examples, list[str]]:
    """Returns the test images of the study's target, and a line on all left out.

    Args:
      workdir: Of the study.
      data_dir: Folder of prepared data; what it lacks is prepared.
      arms: The arms whose test images they are; they share them.

    Raises:
      UserError: The data cannot be loaded, or are not those that the study was run on.
    """
    wanted = list(arms)
    row = next(row for row in _rows(workdir)[1] if not wanted or row["arm"] in wanted)
    home = workdir / "stages" / Path(row["stage_runs"][-1]).name
    lineage = _lineage(home)
    try:
        settings = {**lineage["settings"]["data"]}
        settings["window"] = tuple(settings["window"])
        data, model = DataConfig(**settings), ModelConfig(**lineage["model"])
        fingerprint = lineage["data"]["fingerprint"]
        with np.load(home / "predictions.npz", allow_pickle=False) as saved:
            tested = saved["ids"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{home}: is no finished stage run ({error!r}).") from error
    dataset = sources.load(data, model, data_dir)
    if dataset.fingerprint != fingerprint:
        raise UserError(
            f"the data of '{data.source}' are not those that {home.name} was trained "
            "on: bring back the files of that time, or give --images a folder."
        )
    chosen = np.flatnonzero(np.isin(dataset.ids, tested))
    chosen = chosen[_spread(len(chosen))]
    images = to_unit(dataset.images[chosen], data.window, model)
    groups = None if dataset.groups is None else dataset.groups[chosen]
    examples = Examples(
        images, dataset.labels[chosen], groups, dataset.ids[chosen], dataset.class_names
    )
    return usable(examples)


def folder_examples(path: Path, network: Network) -> tuple[Examples, list[str]]:
    """Returns the images of a folder and the folders in it, and a line on all left out.

    The largest centred square of each, resized. They have labels if every image lies in
    a folder called after a class of the network.

    Raises:
      UserError: There is no image, or one cannot be decoded.
    """
    if not path.is_dir():
        raise UserError(f"--images={path}: there is no such folder.")
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and file.suffix.lower() in folder.SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise UserError(
            f"--images={path}: no image in it ({', '.join(sorted(folder.SUFFIXES))})."
        )
    files = [files[i] for i in _spread(len(files))]
    stored = np.stack(
        [
            image_files.whole(image_files.read(file, network.channels), network.size)
            for file in files
        ]
    )
    labels = None
    if all(file.parent.name in network.class_names for file in files):
        names = [network.class_names.index(file.parent.name) for file in files]
        labels = np.array(names, np.int32)
    ids = np.array([str(file.relative_to(path)) for file in files])
    images = stored.astype(np.float32) / 255
    return usable(Examples(images, labels, None, ids, network.class_names))


def to_unit(
    stored: np.ndarray, window: tuple[float, ...], model: ModelConfig
) -> np.ndarray:
    """Returns stored images as float32 in [0, 1], of the network's size and channels."""
    unit = augment.to_unit(jnp.asarray(stored), window, model.channels)
    return np.asarray(augment.centre_crop(unit, model.image_size))


def usable(examples: Examples) -> tuple[Examples, list[str]]:
    """Leaves out constant images: nothing in them can be explained.

    Returns:
      The examples, and a line that names the images left out, if there are any.

    Raises:
      UserError: A pixel is not a finite number, or no image is left.
    """
    finite = np.isfinite(examples.images).all((1, 2, 3))
    if not finite.all():
        raise UserError(
            f"image {examples.ids[~finite][0]} has pixels that are not finite numbers: "
            "mend or remove it."
        )
    kept = np.ptp(examples.images, axis=(1, 2, 3)) > augment.MIN_DEVIATION
    if not kept.any():
        raise UserError("every image is constant: there is nothing to explain.")
    if kept.all():
        return examples, []
    names = ", ".join(map(str, examples.ids[~kept][:5]))
    more = ", ..." if (~kept).sum() > 5 else ""
    lines = [f"Left out {(~kept).sum()} constant images: {names}{more}."]
    parts = {
        name: value if value is None else value[kept]
        for name, value in examples._asdict().items()
        if name != "class_names"
    }
    return Examples(**parts, class_names=examples.class_names), lines


def _spread(count: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, MOST_EXAMPLES)).round().astype(int)


def _rows(workdir: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the names of all arms, and the rows of the largest fraction, one fold."""
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
    lineage = _lineage(home)
    try:
        data, settings = lineage["data"], lineage["settings"]["data"]
        options = settings.get("options", {})
        model, names = ModelConfig(**lineage["model"]), tuple(data["class_names"])
        network = Network(
            arm="",
            seed=int(lineage["seed"]),
            stage=str(lineage["stage"]),
            module=training.build_model(model, len(names), None),
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


def _lineage(home: Path) -> dict[str, Any]:
    path = home / "lineage.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}).") from error
