"""Scores the networks and baselines of a finished study on an unseen labelled set.

The set is prepared like the target and has its classes, or some of them. Every network
and baseline at the largest size of the target set predicts all of it; the set is not used
for training or selection.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import io
from twostage_jax.config import TARGET, DataConfig
from twostage_jax.data import image_files, prepared_folder, sources
from twostage_jax.data.cohort import describe
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import Splits
from twostage_jax.errors import UserError
from twostage_jax.study import artifacts, baselines
from twostage_jax.train import checkpoint, evaluate, steps

FOLDER = "external"
DESCRIPTION = "set.json"


def score(workdir: Path, folder: Path, data_dir: Path) -> Path:
    """Writes the predictions of a study's networks and baselines on an external set.

    They go into `external/NAME-FINGERPRINT/` of the workdir: `set.json`, and an npz file
    like those of `predictions/` for each of them.

    Args:
      workdir: Workdir of a finished study.
      folder: Output of `twostage prepare`; or, if the target is read from a folder, a
        folder of the same format, which is read with the same settings.
      data_dir: Folder of prepared data sets.

    Returns:
      The output folder.

    Raises:
      UserError: The workdir lacks results; or the set cannot be read, has other classes,
        or is the target set.
    """
    results = _results(workdir)
    rows = results["rows"]
    runs = [
        artifacts.read(workdir / "stages" / row["stage_runs"][-1], row["arm"])
        for row in rows
    ]
    dataset = _dataset(runs[0], folder, data_dir)
    labels = _labels(dataset, runs[0].class_names, folder)
    if dataset.fingerprint == runs[0].fingerprint:
        raise UserError.flag(
            "--external",
            folder,
            "this is the target set on which the networks of the study were trained: "
            "give another set.",
        )
    out = workdir / FOLDER / f"{dataset.name}-{dataset.fingerprint[:12]}"
    everything = np.arange(len(dataset))
    none = everything[:0]
    named = dataclasses.replace(dataset, labels=labels, class_names=runs[0].class_names)

    def save(row: Mapping[str, Any], probabilities: np.ndarray) -> str:
        name = Path(row["predictions"]).name
        artifacts.save_predictions(out / name, named, everything, probabilities)
        return name

    for row, run in zip(rows, runs, strict=True):
        save(row, _probabilities(run, dataset))
    fitted = {}
    seen = features(results["config"], runs[0], dataset)
    # Those of one network are consecutive, so its features are computed once.
    for row in sorted(results["baselines"], key=lambda row: (row["arm"], row["seed"])):
        probabilities = baselines.predict(workdir, row, seen)
        if probabilities is not None:
            fitted[save(row, probabilities)] = row["key"]
    described = {
        "name": folder.absolute().name,
        "fingerprint": dataset.fingerprint,
        "synthetic": dataset.synthetic,
        "shared_patients": _shared(workdir, rows, dataset),
        "training_known": all(path.is_file() for path in _trained(workdir, rows)),
        "cohort": describe(dataset, Splits(none, none, everything)),
        "stage_runs": {
            Path(row["predictions"]).name: row["stage_runs"][-1] for row in rows
        },
        "baselines": fitted,
    }
    # Last: it marks the folder as complete.
    io.write_json(out / DESCRIPTION, described)
    return out


def _results(workdir: Path) -> dict[str, Any]:
    """Returns the results of a study, with the rows at the largest fraction only."""
    path = workdir / "results.json"
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        largest = max(row["fraction"] for row in results["rows"])
        for kind in ("rows", "baselines"):
            rows = results.get(kind, ())
            results[kind] = [row for row in rows if row["fraction"] == largest]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError.flag(
            "--run", workdir, f"the results of the study cannot be read ({error!r})."
        ) from error
    return results


def features(
    config: Mapping[str, Any], run: artifacts.Trained, dataset: Dataset
) -> baselines.Features:
    """Returns the features of the set, seen as by the target stage of a study."""
    stage = config["stages"][TARGET]
    view = baselines.View(
        run.model,
        stage["data"]["normalise"],
        tuple(stage["data"]["window"]),
        stage["augment"]["average"],
    )
    return baselines.Features(dataset.images, len(run.class_names), view)


def _dataset(run: artifacts.Trained, folder: Path, data_dir: Path) -> Dataset:
    """Returns the external set, read like the target."""
    source, options = run.source, {**run.options, "path": str(folder)}
    if (folder / prepared_folder.DESCRIPTION).is_file():
        source = "prepared"
        options = {name: options[name] for name in ("path", "size") if name in options}
    elif "path" not in run.options:
        raise UserError.flag(
            "--external",
            folder,
            f"the target is not read from a folder (data source '{run.source}'), so give "
            "an output folder of `twostage prepare`.",
        )
    elif image_files.DEPTH in run.measures:
        # White is what it was in training, not the brightest value of this set.
        options["bits"] = int(run.measures[image_files.DEPTH])
    data = DataConfig(source=source, options=options)
    dataset = sources.load(data, run.model, data_dir)
    if source == "prepared":
        _check_spacing(run, folder, dataset)
    if (dataset.units == "hu") != run.in_hu:
        raise UserError.flag(
            "--external",
            folder,
            f"its images are {'not ' if run.in_hu else ''}in HU, but those of the target "
            f"are{'' if run.in_hu else ' not'}: prepare it like the target.",
        )
    return dataset


def _check_spacing(run: artifacts.Trained, folder: Path, dataset: Dataset) -> None:
    try:
        ours = run.spacing()
        theirs = prepared_folder.spacing(folder, dataset.fingerprint)
    except ValueError:
        return  # The resolution of one of them is unknown.
    if theirs != ours:
        raise UserError.flag(
            "--external",
            folder,
            f"its pixels are {_pixels(theirs)}, those of the target {_pixels(ours)}: "
            "give the same --spacing to `twostage prepare`.",
        )


def _pixels(spacing: float | None) -> str:
    return f"resampled to {spacing:g} mm" if spacing else "as scanned"


def _labels(dataset: Dataset, class_names: tuple[str, ...], folder: Path) -> np.ndarray:
    """Returns labels as indices into the classes of the target."""
    unknown = [name for name in dataset.class_names if name not in class_names]
    if unknown:
        raise UserError.flag(
            "--external",
            folder,
            f"its classes {', '.join(unknown)} are not classes of the target "
            f"({', '.join(class_names)}).",
        )
    numbers = np.array([class_names.index(name) for name in dataset.class_names])
    return numbers[dataset.labels].astype(np.int32)


def _probabilities(run: artifacts.Trained, dataset: Dataset) -> np.ndarray:
    """Returns the class probabilities `[N, K]` of a network."""
    variables = checkpoint.load_network(
        run.folder / "variables",
        steps.build_model(run.model, len(run.class_names), None),
        run.model.image_size,
        run.model.channels,
    )
    probabilities, _ = evaluate.applied(
        run.model,
        DataConfig(source=run.source, normalise=run.normalise, window=run.window),
        np.asarray(run.mean, np.float32),
        np.asarray(run.deviation, np.float32),
        variables,
        dataset.images,
        len(run.class_names),
        run.augment,
    )
    return probabilities


def _shared(
    workdir: Path, rows: list[Mapping[str, Any]], dataset: Dataset
) -> int | None:
    """Returns the number of patients named like one of the target; None if unnamed.

    Runs of earlier versions did not record the patients they were trained on.
    """
    if dataset.groups is None:
        return None
    known: set[str] = set()
    for trained, row in zip(_trained(workdir, rows), rows, strict=True):
        tested = workdir / row["predictions"]
        for path in (tested, trained, trained.with_name("validation.npz")):
            if path.is_file():
                groups = io.read_arrays(path, ("groups",))["groups"]
                known |= set(groups.astype(str).tolist())
    return len(known & set(map(str, dataset.groups)))


def _trained(workdir: Path, rows: list[Mapping[str, Any]]) -> list[Path]:
    """Returns the files with the groups that the networks were trained on."""
    stages = workdir / "stages"
    return [stages / row["stage_runs"][-1] / artifacts.TRAINED for row in rows]
