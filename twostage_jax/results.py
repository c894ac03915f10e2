"""From finished stage runs to `results.json`, the tables and the figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import metrics, runtime
from twostage_jax.config import Config, as_json
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.plan import Row
from twostage_jax.report import figures, tables
from twostage_jax.stage import Materials

SCHEMA = 1
MONTAGE_PER_CLASS = 8


def collect(materials: Materials, rows: list[Row]) -> dict[str, Any]:
    """Writes and returns the results of all finished rows in the workdir.

    Rows of other seeds that earlier runs, or runs on other machines, put into the same
    workdir with otherwise equal settings are part of the results.
    """
    workdir, config = materials.workdir, materials.config
    protocol = digest(_protocol(config))
    for row in rows:
        _write_row(materials, row, protocol)
    found = [json.loads(p.read_text()) for p in (workdir / "rows").glob("*.json")]
    arms = list(config.arms)
    found = [
        row for row in found if row.pop("protocol") == protocol and row["arm"] in arms
    ]
    found.sort(
        key=lambda r: (r["seed"], -r["fraction"], r["fold"], arms.index(r["arm"]))
    )
    results = {"schema": SCHEMA, "config": as_json(config), "rows": found}
    runtime.write_json(workdir / "results.json", results)
    runtime.write_text(workdir / "results.md", _page(config, found))
    return results


def draw(materials: Materials, rows: list[Row]) -> None:
    """Draws the learning curves, confusion matrices and montages into `figures/`."""
    folder = materials.workdir / "figures"
    folder.mkdir(exist_ok=True)
    curves: dict[str, list] = {}
    for row in rows:
        for run in row.run.chain:
            lineage = _lineage(materials, run)
            arm = row.arm if run is row.run else ""
            curves.setdefault(run.stage, {})[run.hash] = (arm, lineage["history"])
    figures.save(figures.learning_curves(curves), folder / "learning_curves")
    matrices = {}
    for row in rows:
        saved = np.load(materials.folder(row.run) / "predictions.npz")
        matrix = metrics.confusion(saved["labels"], saved["probabilities"])
        matrices[row.arm] = matrices.get(row.arm, 0) + matrix
    target = materials.datasets["target"]
    figures.save(
        figures.confusion_matrices(matrices, target.class_names),
        folder / "confusion_matrices",
    )
    for stage, dataset in materials.datasets.items():
        window = materials.config.stages[stage].data.window
        figures.save(_montage(stage, dataset, window), folder / f"examples_{stage}")


def _write_row(materials: Materials, row: Row, protocol: str) -> None:
    folder = materials.folder(row.run)
    lineage = _lineage(materials, row.run)
    predictions = Path("predictions") / f"{row.name}.npz"
    saved = (folder / "predictions.npz").read_bytes()
    with runtime.replacing(materials.workdir / predictions) as temporary:
        temporary.write_bytes(saved)
    examples = lineage["data"]["examples"]
    runtime.write_json(
        materials.workdir / "rows" / f"{row.name}.json",
        {
            "protocol": protocol,
            "arm": row.arm,
            "seed": row.seed,
            "fraction": row.fraction,
            "fold": row.fold,
            "n_train": examples["train"],
            "n_test": examples["test"],
            "groups": lineage["data"]["groups"],
            "metrics": lineage["scores"],
            "predictions": str(predictions),
            "stage_runs": lineage["chain"],
        },
    )


def _protocol(config: Config) -> dict[str, Any]:
    """Returns the settings that rows must share to be compared."""
    settings = as_json(config)
    for field in ("seeds", "arms", "fractions"):
        del settings["study"][field]
    for stage in settings["stages"].values():
        del stage["train"]["save_every"]
    del settings["arms"]
    return settings


def _page(config: Config, rows: list[dict[str, Any]]) -> str:
    seeds = sorted({row["seed"] for row in rows})
    return (
        f"# {config.name}\n\n{tables.results_table(rows)}\n\n"
        f"Scores on test groups that no training or selection has seen; "
        f"{rows[0]['n_test']} test examples a row, "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}.\n"
    )


def _montage(stage: str, dataset: Dataset, window: tuple[float, ...]) -> Any:
    chosen = np.concatenate(
        [
            np.flatnonzero(dataset.labels == label)[_spread(count)]
            for label, count in enumerate(np.bincount(dataset.labels))
            if count
        ]
    )
    images = dataset.images[chosen]
    if images.dtype == np.int16:
        low = window[0] - window[1] / 2
        images = np.clip((images.astype(np.float32) - low) / window[1], 0, 1)
    return figures.montage(
        images, dataset.labels[chosen], dataset.class_names, f"{stage}: {dataset.name}"
    )


def _spread(count: int) -> np.ndarray:
    number = min(count, MONTAGE_PER_CLASS)
    return np.linspace(0, count - 1, number).astype(int)


def _lineage(materials: Materials, run: Any) -> dict[str, Any]:
    return json.loads((materials.folder(run) / "lineage.json").read_text())
