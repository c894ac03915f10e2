"""Files of a finished stage run, apart from its variables."""

from pathlib import Path
from typing import Any

import numpy as np

from twostage_jax import io
from twostage_jax.config import Config, as_json
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import Splits, copies
from twostage_jax.runtime import versions
from twostage_jax.stats import metrics
from twostage_jax.study.plan import StageRun
from twostage_jax.train import steps
from twostage_jax.train.loop import Fitted


def save_predictions(
    path: Path, dataset: Dataset, indices: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes ids, groups (empty strings if none), labels and probabilities."""
    groups = dataset.groups
    with io.replacing(path) as temporary:
        np.savez_compressed(
            temporary,
            ids=dataset.ids[indices].astype(str),
            groups=np.full(len(indices), "")
            if groups is None
            else groups[indices].astype(str),
            labels=dataset.labels[indices],
            probabilities=probabilities,
            class_names=np.array(dataset.class_names),
        )


def lineage(
    config: Config,
    dataset: Dataset,
    run: StageRun,
    splits: Splits,
    constants: steps.Constants,
    fitted: Fitted,
    probabilities: np.ndarray,
    seconds: float | None,
) -> dict[str, Any]:
    """Returns the origin and the scores of a stage run as JSON values.

    Args:
      config, dataset, run, splits, constants: Inputs of the stage run.
      fitted: Result of training.
      probabilities: Class probabilities `[N, K]` of the test examples.
      seconds: Its share of the time taken; None if it was cut off and resumed.
    """
    parts = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    groups = dataset.groups
    return {
        "stage": run.stage,
        "chain": [ancestor.folder_name for ancestor in run.chain],
        "hash": run.hash,
        "parent": run.parent.hash if run.parent else None,
        "seed": run.seed,
        "fraction": run.fraction,
        "fold": run.fold,
        "settings": as_json(run.settings(config)),
        "model": as_json(config.model),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "units": dataset.units,
            "synthetic": dataset.synthetic,
            "class_names": list(dataset.class_names),
            "examples": {name: len(part) for name, part in parts.items()},
            "groups": None
            if groups is None
            else {name: len(np.unique(groups[part])) for name, part in parts.items()},
            "copies": copies(dataset, splits),
            "notes": list(dataset.notes),
            "mean": constants.mean.tolist(),
            "deviation": constants.deviation.tolist(),
        },
        "history": fitted.history,
        "validation": fitted.selected,
        "scores": metrics.scores(dataset.labels[splits.test], probabilities),
        "seconds": None if seconds is None else round(seconds, 2),
        "versions": versions(),
    }
