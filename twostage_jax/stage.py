"""One stage run: data -> model -> transfer -> fit -> checkpoint -> evaluate."""

import dataclasses
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import checkpoint, fit, metrics, models, optim, runtime, training
from twostage_jax import transfer as transfers
from twostage_jax.config import Config, as_json
from twostage_jax.data import augment
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.data.feed import Feed, eval_batches
from twostage_jax.data.splits import Splits, split, subset
from twostage_jax.progress import Progress
from twostage_jax.versions import versions

PyTree = Any
# Raised when the code changes what the same settings give.
RESULT_VERSION = 1
# Images looked at for the mean and deviation of a data set.
STATISTICS_IMAGES = 4096
EVAL_BATCH = 256


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One node of the tree of stage runs.

    Attributes:
      stage: Name of its settings in `config.stages`.
      seed, fraction, fold: Its place in the study; source stages have fraction 1 and
        fold 0.
      parent: The stage run before it, or None if it starts from random parameters.
      hash: Digest of everything that determines its result.
    """

    stage: str
    seed: int
    fraction: float
    fold: int
    parent: "StageRun | None"
    hash: str

    @property
    def folder_name(self) -> str:
        return f"{self.stage}-{self.hash[:12]}"

    @property
    def chain(self) -> list["StageRun"]:
        """This stage run and those before it, first one first."""
        return [*(self.parent.chain if self.parent else []), self]

    def __str__(self) -> str:
        name = " > ".join(run.stage for run in self.chain)
        place = f"seed {self.seed}"
        if self.fraction != 1:
            place += f", fraction {self.fraction:g}"
        return (
            f"{name} ({place}, fold {self.fold})" if self.fold else f"{name} ({place})"
        )


@dataclasses.dataclass(frozen=True)
class Materials:
    """What stage runs share: settings, data sets by stage name, and where files go."""

    config: Config
    datasets: Mapping[str, Dataset]
    feeds: dict[str, Feed]
    workdir: Path

    def folder(self, run: StageRun) -> Path:
        return self.workdir / "stages" / run.folder_name


def identify(
    config: Config,
    dataset: Dataset,
    stage: str,
    seed: int,
    fraction: float,
    fold: int,
    parent: StageRun | None,
) -> StageRun:
    """Returns the stage run of these settings, named by what determines its result."""
    settings = as_json(config.stages[stage])
    # How often a state is saved, and where files lie, change no result.
    del settings["train"]["save_every"]
    settings["data"].pop("options")
    study = config.study
    identity = digest(
        RESULT_VERSION,
        settings,
        as_json(config.model),
        dataset.fingerprint,
        (seed, fraction, fold, study.folds, study.split_seed, study.draw),
        parent.hash if parent else "",
    )
    return StageRun(stage, seed, fraction, fold, parent, identity)


def is_done(materials: Materials, run: StageRun) -> bool:
    """Whether the stage run is finished: its lineage is written last."""
    return (materials.folder(run) / "lineage.json").is_file()


def split_of(config: Config, dataset: Dataset, run: StageRun) -> Splits:
    """Returns the examples that a stage run trains, validates and tests on."""
    stage, study = config.stages[run.stage], config.study
    is_target = run.stage == "target"
    splits = split(
        dataset,
        seed=study.split_seed,
        validation=stage.data.validation,
        test=stage.data.test,
        folds=study.folds if is_target else 0,
        fold=run.fold if is_target else 0,
    )
    if run.fraction == 1:
        return splits
    train = subset(dataset, splits.train, run.fraction, seed=run.seed, by=study.draw)
    return dataclasses.replace(splits, train=train)


def run_stage(materials: Materials, run: StageRun, progress: Progress) -> None:
    """Trains, exports and evaluates one stage run; resumes it if it was cut off.

    Writes into its folder: `variables/`, `transfer.json` (if it has a parent),
    `predictions.npz` and, last, `lineage.json`. States saved on the way are removed.
    """
    config, dataset = materials.config, materials.datasets[run.stage]
    stage, folder = config.stages[run.stage], materials.folder(run)
    splits = split_of(config, dataset, run)
    key = jax.random.fold_in(jax.random.key(run.seed), zlib.crc32(run.stage.encode()))
    init_key, train_key = jax.random.split(key)
    module = training.build_model(config.model, dataset.num_classes, None)
    variables = models.init(
        module, init_key, config.model.image_size, config.model.channels
    )
    report = None
    if run.parent:
        variables, report = _carry_over(materials, run, variables)
        progress.say(f"  {report.summary()}")
    optim.check_patterns(stage.optim, variables, f"config.stages.{run.stage}.optim")
    settings = training.StepSettings(
        model=config.model,
        optim=stage.optim,
        augment=stage.augment,
        steps=stage.train.steps,
        num_classes=dataset.num_classes,
        normalise=stage.data.normalise,
        window=stage.data.window,
        label_smoothing=stage.train.label_smoothing,
        transferred=_pulled(stage, report),
    )
    programs, feed = training.compiled(settings), materials.feeds[run.stage]
    constants = _constants(stage, config.model.channels, dataset, splits.train)

    def score(replicated: PyTree) -> dict[str, float]:
        probabilities = predict(
            programs, feed, constants, replicated, splits.validation
        )
        return _quick_scores(dataset.labels[splits.validation], probabilities)

    task = fit.Task(
        name=str(run),
        settings=stage.train,
        programs=programs,
        feed=feed,
        constants=constants,
        indices=splits.train,
        order_seed=(run.seed, zlib.crc32(run.stage.encode())),
        key=train_key,
        score=score,
    )
    store = checkpoint.StateStore(folder / "states")
    try:
        with progress.stage(run, stage.train.steps, folder) as watch:
            state = training.create_state(settings, variables)
            best, history = fit.fit(task, state, store, watch)
    finally:
        store.close()
    probabilities = predict(
        programs, feed, constants, training.replicate(best), splits.test
    )
    if runtime.is_main():
        checkpoint.export_variables(folder / "variables", best)
        if report:
            runtime.write_json(folder / "transfer.json", report.to_json())
        save_predictions(
            folder / "predictions.npz", dataset, splits.test, probabilities
        )
        scores = metrics.scores(dataset.labels[splits.test], probabilities)
        lineage = _lineage(config, dataset, run, splits, constants, history, scores)
        runtime.write_json(folder / "lineage.json", lineage)
        shutil.rmtree(folder / "states", ignore_errors=True)
    runtime.barrier(f"{run.hash}-done")


def predict(
    programs: training.Programs,
    feed: Feed,
    constants: training.Constants,
    replicated: PyTree,
    indices: np.ndarray,
) -> np.ndarray:
    """Returns the class probabilities `[len(indices), K]` float32, none dropped."""
    devices = jax.device_count()
    batches = eval_batches(indices, -(-EVAL_BATCH // devices) * devices)
    parts = [
        programs.evaluate(replicated, feed.data, items, constants)
        for items in feed.items(len(batches), lambda i: batches[i])
    ]
    host = [training.unreplicate(part) for part in parts]
    return np.concatenate(host)[: len(indices)]


def save_predictions(
    path: Path, dataset: Dataset, indices: np.ndarray, probabilities: np.ndarray
) -> None:
    """Writes ids, groups (empty strings if none), labels and probabilities."""
    groups = dataset.groups
    with runtime.replacing(path) as temporary:
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


def _carry_over(
    materials: Materials, run: StageRun, fresh: PyTree
) -> tuple[PyTree, transfers.TransferReport]:
    stages = materials.config.stages
    rules = stages[run.stage].transfer
    source = checkpoint.load_variables(materials.folder(run.parent) / "variables")
    notes = []
    before, after = (
        stages[name].data.normalise for name in (run.parent.stage, run.stage)
    )
    if before != after or before == "dataset":
        notes.append(
            f"normalisation: '{run.parent.stage}' used '{before}', "
            f"'{run.stage}' uses '{after}'"
            + (" with its own mean and deviation" if after == "dataset" else "")
        )
    return transfers.transfer(
        source,
        jax.tree.map(np.asarray, fresh),
        transfers.rules_for(rules.reinitialise, rules.rules),
        notes=notes,
    )


def _pulled(stage: Any, report: transfers.TransferReport | None) -> frozenset[str]:
    """Returns the paths below 'params' that L2-SP pulls back; it needs no others."""
    if report is None or not stage.optim.l2_sp:
        return frozenset()
    return frozenset(path.removeprefix("params/") for path in report.transferred)


def _constants(
    stage: Any, channels: int, dataset: Dataset, train: np.ndarray
) -> training.Constants:
    weights = np.ones(dataset.num_classes, np.float32)
    if stage.train.class_weights == "balanced":
        counts = np.bincount(dataset.labels[train], minlength=dataset.num_classes)
        weights = (len(train) / (dataset.num_classes * counts)).astype(np.float32)
    mean = np.full(channels, augment.FIXED_MEAN, np.float32)
    deviation = np.full(channels, augment.FIXED_DEVIATION, np.float32)
    if stage.data.normalise == "dataset":
        step = -(-len(train) // STATISTICS_IMAGES)
        images = jnp.asarray(dataset.images[train[::step]])
        unit = np.asarray(augment.to_unit(images, stage.data.window, channels))
        mean = unit.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
        deviation = unit.std((0, 1, 2), dtype=np.float64).astype(np.float32)
        deviation = np.maximum(deviation, augment.MIN_DEVIATION)
    return training.Constants(weights, mean, deviation)


def _quick_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Returns what model selection needs: mean loss and balanced accuracy."""
    chosen = probabilities[np.arange(len(labels)), labels]
    right = probabilities.argmax(1) == labels
    recalls = [right[labels == label].mean() for label in np.unique(labels)]
    return {
        "loss": float(-np.log(np.maximum(chosen, 1e-12)).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
    }


def _lineage(
    config: Config,
    dataset: Dataset,
    run: StageRun,
    splits: Splits,
    constants: training.Constants,
    history: list[dict[str, float]],
    scores: dict[str, float],
) -> dict[str, Any]:
    """Returns what the stage run came from and what it reached."""
    count = {
        name: int(len(getattr(splits, name)))
        for name in ("train", "validation", "test")
    }
    return {
        "stage": run.stage,
        "chain": [ancestor.folder_name for ancestor in run.chain],
        "hash": run.hash,
        "parent": run.parent.hash if run.parent else None,
        "seed": run.seed,
        "fraction": run.fraction,
        "fold": run.fold,
        "settings": as_json(config.stages[run.stage]),
        "model": as_json(config.model),
        "data": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "class_names": list(dataset.class_names),
            "examples": count,
            "groups": {
                name: len(np.unique(dataset.groups[getattr(splits, name)]))
                for name in count
            }
            if dataset.groups is not None
            else None,
            "mean": constants.mean.tolist(),
            "deviation": constants.deviation.tolist(),
        },
        "history": history,
        "scores": scores,
        "versions": versions(),
    }
