"""Collects finished stage runs into `results.json`, and images for the report."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import io
from twostage_jax.config import TARGET, as_json, shared_settings
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.study import artifacts, baselines, plan
from twostage_jax.study.plan import Row, StageRun
from twostage_jax.study.stage import Materials, is_done, read_lineage

PER_CLASS = 8
MISTAKES = 12
SCHEMA = 1
REPORT = Path("report") / "report.html"


def collect(materials: Materials, rows: list[Row]) -> dict[str, Any]:
    """Writes and returns the results of all finished rows in the workdir.

    Results include rows of other seeds in the same workdir, written with otherwise equal
    settings by earlier runs or on other machines. These take part in the tuning as well,
    and are rewritten if it chooses another setting for them.
    """
    workdir, config = materials.workdir, materials.config
    settings = as_json(config)
    protocol = digest(shared_settings(settings))
    every, kept = _every_row(materials, rows, protocol)
    chosen = chosen_runs(materials, every)
    found = [_write_row(materials, row, chosen[row.name], protocol) for row in every]
    arms = list(config.arms)
    found = sorted(
        [*found, *kept],
        key=lambda r: (r["seed"], -r["fraction"], r["fold"], arms.index(r["arm"])),
    )
    places = [plan.row(config, materials.datasets, *_place(row)) for row in found]
    results = {
        "schema": SCHEMA,
        "protocol": protocol,
        "data": {
            stage: digest(plan.RESULT_VERSION, made.fingerprint)[:16]
            for stage, made in materials.datasets.items()
        },
        "config": settings,
        "rows": found,
        "baselines": baselines.results(materials, places),
    }
    path = workdir / "results.json"
    if not path.is_file() or json.loads(path.read_text()) != results:
        # Removed before the results change, so that the report is never outdated.
        (workdir / REPORT).unlink(missing_ok=True)
    io.write_json(path, results)
    return results


def save_examples(materials: Materials, rows: list[Row]) -> None:
    """Writes images for the report into `examples/`, so that it works without the data.

    They are some examples of each data set, and the worst mistakes of each arm in the
    rows at the largest fraction, whose results are collected.
    """
    largest = max(row.fraction for row in rows)
    folder, stages = materials.workdir / "examples", materials.config.stages
    for stage, dataset in materials.datasets.items():
        if stages[stage].weights:
            continue
        kept = of_each_class(dataset, stages[stage].data.window)
        io.write_arrays(folder / f"{stage}.npz", **kept)
    mistakes = worst_mistakes(
        materials.datasets[TARGET],
        stages[TARGET].data.window,
        [
            (row.arm, materials.workdir / _predictions(row))
            for row in rows
            if row.fraction == largest
        ],
    )
    io.write_arrays(folder / "mistakes.npz", **mistakes)


def of_each_class(dataset: Dataset, window: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Returns at most `PER_CLASS` examples per class, spread evenly over the data set.

    Returns:
      'images' `[N, H, W, C]` uint8 (see `shown`), 'labels' `[N]`, 'class_names' `[K]`.
    """
    chosen = []
    for label in range(dataset.num_classes):
        own = np.flatnonzero(dataset.labels == label)
        places = np.linspace(0, len(own) - 1, min(len(own), PER_CLASS)).astype(int)
        chosen.append(own[places])
    indices = np.concatenate(chosen)
    return {
        "images": shown(dataset.images[indices], window),
        "labels": dataset.labels[indices],
        "class_names": np.array(dataset.class_names),
    }


def worst_mistakes(
    dataset: Dataset,
    window: tuple[float, ...],
    predictions: Iterable[tuple[str, Path]],
) -> dict[str, np.ndarray]:
    """Returns the test examples that each arm misclassifies with most confidence.

    At most `MISTAKES` per arm. An arm's probabilities are the mean over all predictions of
    the example, over all seeds.

    Args:
      dataset: Data set with the images.
      window: (centre, width) in HU, for images in HU.
      predictions: Pairs of an arm and a file written by `artifacts.save_predictions`.

    Returns:
      'arm', 'ids', 'groups', 'labels' `[M]`, 'probabilities' `[M, K]`, 'images'
      `[M, H, W, C]` uint8, 'class_names' `[K]`; worst first within each arm.
    """
    place_of = {name: i for i, name in enumerate(dataset.ids)}
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, np.ndarray] = {}
    for arm, path in predictions:
        saved = io.read_arrays(path, ("ids", "probabilities"))
        places = np.array([place_of[name] for name in saved["ids"]])
        shape = len(dataset), dataset.num_classes
        np.add.at(sums.setdefault(arm, np.zeros(shape)), places, saved["probabilities"])
        np.add.at(counts.setdefault(arm, np.zeros(len(dataset))), places, 1)
    arms, indices, probabilities = [], [], []
    for arm, total in sums.items():
        tested = np.flatnonzero(counts[arm])
        mean = total[tested] / counts[arm][tested, None]
        right = mean[np.arange(len(tested)), dataset.labels[tested]]
        wrong = np.flatnonzero(mean.argmax(1) != dataset.labels[tested])
        worst = wrong[np.argsort(right[wrong], kind="stable")][:MISTAKES]
        arms += [arm] * len(worst)
        indices.append(tested[worst])
        probabilities.append(mean[worst])
    chosen = np.concatenate(indices)
    return {
        "arm": np.array(arms, str),
        "ids": dataset.ids[chosen].astype(str),
        "groups": artifacts.group_names(dataset, chosen),
        "labels": dataset.labels[chosen],
        "probabilities": np.concatenate(probabilities),
        "images": shown(dataset.images[chosen], window),
        "class_names": np.array(dataset.class_names),
    }


def shown(images: np.ndarray, window: tuple[float, ...]) -> np.ndarray:
    """Returns images as uint8 `[N, H, W, C]`, those in HU through the first window."""
    if images.dtype == np.uint8:
        return images
    unit = images.astype(np.float32)
    if images.dtype == np.int16:
        unit = (unit - (window[0] - window[1] / 2)) / window[1]
    return np.round(255 * np.clip(unit, 0, 1)).astype(np.uint8)


def chosen_runs(materials: Materials, rows: Sequence[Row]) -> dict[str, StageRun]:
    """Returns row name -> its chosen candidate.

    Each arm has one point of the tuning grid for all its rows: the one with the highest
    mean balanced accuracy on validation examples, over seeds, fractions and folds; ties
    go to the lowest mean loss, then to the first point. The validation groups of a single
    row are too few for a choice.
    """
    scores: dict[str, list[list[tuple[float, float]]]] = {}
    for row in rows:
        of_row = []
        for run in row.candidates:
            found = read_lineage(materials, run)["validation"]
            of_row.append(
                (found["validation_balanced_accuracy"], -found["validation_loss"])
            )
        scores.setdefault(row.arm, []).append(of_row)
    places = {}
    for arm, of_rows in scores.items():
        # Rounded: the order of the rows must not decide a tie.
        means = np.mean(of_rows, axis=0).round(12).tolist()
        places[arm] = max(range(len(means)), key=means.__getitem__)
    return {row.name: row.candidates[places[row.arm]] for row in rows}


def _every_row(
    materials: Materials, rows: Sequence[Row], protocol: str
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Returns the rows of these settings and data, those given first.

    Saved rows whose stage runs no longer exist are included unchanged.
    """
    config = materials.config
    every, kept = {row.name: row for row in rows}, []
    for path in sorted((materials.workdir / "rows").glob("*.json")):
        if path.name.startswith("."):  # Left by a killed process.
            continue
        saved = json.loads(path.read_text())
        if saved.pop("protocol") != protocol or saved["arm"] not in config.arms:
            continue
        row = plan.row(config, materials.datasets, *_place(saved))
        chains = [[run.folder_name for run in one.chain] for one in row.candidates]
        if row.name in every or saved["stage_runs"] not in chains:
            continue
        if all(is_done(materials, run) for run in row.candidates):
            every[row.name] = row
        else:
            kept.append(saved)
    return list(every.values()), kept


def _write_row(
    materials: Materials, row: Row, chosen: StageRun, protocol: str
) -> dict[str, Any]:
    """Writes and returns a row, without its protocol."""
    lineage = read_lineage(materials, chosen)
    saved = (materials.folder(chosen) / "predictions.npz").read_bytes()
    with io.replacing(materials.workdir / _predictions(row)) as temporary:
        temporary.write_bytes(saved)
    counts = lineage["data"]["examples"]
    found = {
        "arm": row.arm,
        "seed": row.seed,
        "fraction": row.fraction,
        "fold": row.fold,
        "n_train": counts["train"],
        "n_test": counts["test"],
        "groups": lineage["data"]["groups"],
        "metrics": lineage["scores"],
        "predictions": str(_predictions(row)),
        "stage_runs": lineage["chain"],
        "tried": [_tried(materials, run, chosen) for run in row.candidates],
    }
    path = materials.workdir / "rows" / f"{row.name}.json"
    io.write_json(path, {"protocol": protocol, **found})
    # As JSON will read it: tuples of the tried settings become lists.
    return json.loads(json.dumps(found))


def _predictions(row: Row) -> Path:
    """Returns the file of a row's predictions, in the workdir."""
    return Path("predictions") / f"{row.name}.npz"


def _tried(materials: Materials, run: StageRun, chosen: StageRun) -> dict[str, Any]:
    scores = read_lineage(materials, run)["validation"]
    names = ("balanced_accuracy", "loss")
    return {
        "settings": dict(run.tuned),
        "validation": {name: scores[f"validation_{name}"] for name in names},
        "stage_run": run.folder_name,
        "chosen": run is chosen,
    }


def _place(row: dict[str, Any]) -> tuple[str, int, float, int]:
    return row["arm"], row["seed"], row["fraction"], row["fold"]
