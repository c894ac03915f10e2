"""Stage runs: data -> model -> transfer -> fit -> checkpoint -> evaluate."""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from twostage_jax import io, models, runtime
from twostage_jax import transfer as transfers
from twostage_jax.config import (
    TARGET,
    AugmentConfig,
    Config,
    ModelConfig,
    StageConfig,
)
from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import Splits
from twostage_jax.study import artifacts, imported, plan
from twostage_jax.study.imported import Weights
from twostage_jax.study.plan import StageRun, code, keys, normalisation_notes, split_of
from twostage_jax.train import (
    augment,
    checkpoint,
    evaluate,
    loop,
    novelty,
    parallel,
    steps,
)
from twostage_jax.train.feed import Feed, feed
from twostage_jax.train.parallel import alone, side_by_side
from twostage_jax.train.progress import Progress

PyTree = Any
# Number of images for the mean and standard deviation of a data set.
STATISTICS_IMAGES = 4096


@dataclasses.dataclass(frozen=True)
class Materials:
    """Settings, data and folder that all stage runs of a study share.

    Attributes:
      config: All settings.
      datasets: Data set of each stage, or the weights of an imported one, by stage name.
      workdir: Folder of the study.
      feeds: Feeds made so far, by stage and number of devices.
    """

    config: Config
    datasets: Mapping[str, Dataset | Weights]
    workdir: Path
    feeds: dict[tuple[str, int], Feed] = dataclasses.field(default_factory=dict)

    def feed(self, stage: str, devices: int) -> Feed:
        """Returns the feed of a stage's data to a number of devices."""
        if (stage, devices) not in self.feeds:
            self.feeds[stage, devices] = feed(self.datasets[stage], devices)
        return self.feeds[stage, devices]

    def folder(self, run: StageRun) -> Path:
        return self.workdir / "stages" / run.folder_name


class Prepared(NamedTuple):
    """A stage run that is ready to train.

    Attributes:
      run: Stage run to train.
      splits: Examples that it trains, validates and tests on.
      variables: Initial variables, random or transferred.
      report: Report of the transfer, if the run has a parent.
      key: PRNG key data for augmentation and dropout.
      constants: Arrays that are constant over steps; see `steps.Constants`.
    """

    run: StageRun
    splits: Splits
    variables: PyTree
    report: transfers.TransferReport | None
    key: jax.Array
    constants: steps.Constants


def is_done(materials: Materials, run: StageRun) -> bool:
    """Whether the stage run is finished: its lineage is written last.

    An imported stage is imported again if its stated licence changed.
    """
    if not (materials.folder(run) / "lineage.json").is_file():
        return False
    weights = materials.datasets[run.stage]
    if not isinstance(weights, Weights):
        return True
    told = read_lineage(materials, run)["imported"]
    return told.get("licence") == weights.stated.licence


def under_way_with(materials: Materials, run: StageRun) -> list[str]:
    """Returns the folder names of the runs that were started with this one, if any."""
    path = materials.folder(run) / "under_way.json"
    return json.loads(path.read_text()) if path.is_file() else []


def clear(materials: Materials, run: StageRun) -> None:
    """Removes files that a stage run needs only during training."""
    shutil.rmtree(materials.folder(run) / "states", ignore_errors=True)
    (materials.folder(run) / "under_way.json").unlink(missing_ok=True)


def read_lineage(materials: Materials, run: StageRun) -> dict[str, Any]:
    """Returns the lineage of a finished stage run (see `artifacts.lineage`)."""
    return io.read_json(materials.folder(run) / "lineage.json")


def run_stages(
    materials: Materials, runs: Sequence[StageRun], progress: Progress
) -> None:
    """Trains, exports and evaluates similar stage runs, resuming interrupted ones.

    Writes into the folder of each: `variables/`, `transfer.json` (if it has a parent),
    `predictions.npz` and `validation.npz` (predictions of test and validation examples),
    `trained.npz` (groups of the training examples) and `novelty.npz` (both for target
    stages only) and, last, `lineage.json`. Until all runs are complete there are also
    `states/`, saved during training, and `under_way.json`, which names the runs, so that
    runs started together are resumed together.

    Args:
      materials: Settings, data and folder of the study.
      runs: Runs of one stage with the same settings, whose parents are finished.
      progress: Progress reporter.
    """
    if isinstance(materials.datasets[runs[0].stage], Weights):
        _import(materials, runs[0], progress)
        return
    began = time.monotonic()
    if runtime.is_main():
        together = [run.folder_name for run in runs]
        for run in runs:
            io.write_json(materials.folder(run) / "under_way.json", together)
    config = materials.config
    placement = side_by_side(len(runs)) if len(runs) > 1 else alone()
    ready = [prepare(materials, run) for run in runs]
    for one in ready:
        if one.report:
            progress.say(f"  {one.run}: {one.report.summary()}")
    stage, dataset = runs[0].settings(config), materials.datasets[runs[0].stage]
    settings = step_settings(
        config.network(runs[0].stage), stage, dataset.num_classes, ready[0].report
    )
    programs = parallel.programs(settings, placement.axis_name)
    source = materials.feed(runs[0].stage, placement.devices)
    constants = placement.put([one.constants for one in ready])

    def predict(
        variables: PyTree,
        indices: Sequence[np.ndarray],
        augmentation: AugmentConfig = augment.NONE,
    ) -> list[np.ndarray]:
        views = augment.views(
            augmentation, *dataset.images.shape[1:3], settings.model.image_size
        )
        return evaluate.predict(
            programs, source, placement, constants, variables, indices, views
        )

    stores = [checkpoint.StateStore(materials.folder(run) / "states") for run in runs]
    try:
        resumed = any(store.steps() for store in stores)
        task = loop.Task(
            settings=stage.train,
            programs=programs,
            feed=source,
            placement=placement,
            runs=[
                loop.Run(
                    name=str(one.run),
                    state=steps.create_state(settings, one.variables),
                    indices=one.splits.train,
                    order_seed=(one.run.seed, code(one.run.stage)),
                    key=np.asarray(jax.random.key_data(one.key)),
                    constants=one.constants,
                    store=store,
                )
                for one, store in zip(ready, stores, strict=True)
            ],
            score=evaluate.scorer(
                predict, dataset, [one.splits.validation for one in ready]
            ),
        )
        folders = [materials.folder(run) for run in runs]
        with progress.stages(runs, stage.train.steps, folders) as watch:
            fitted = loop.fit(task, watch)
    finally:
        for store in stores:
            store.close()
    best = placement.put([one.variables for one in fitted])
    tested = predict(best, [one.splits.test for one in ready], stage.augment)
    # The report chooses thresholds on these predictions.
    validated = predict(best, [one.splits.validation for one in ready], stage.augment)
    # The training time before the interruption is unknown.
    seconds = None if resumed else (time.monotonic() - began) / len(runs)
    if runtime.is_main():
        for one, *results in zip(ready, fitted, tested, validated, strict=True):
            _export(materials, one, *results, seconds)
        for run in runs:
            clear(materials, run)
    runtime.return_memory()
    runtime.barrier(f"{runs[0].hash}-done")


def _import(materials: Materials, run: StageRun, progress: Progress) -> None:
    """Writes the folder of an imported stage."""
    weights, folder = materials.datasets[run.stage], materials.folder(run)
    progress.say("\n".join(f"  {run.stage}: {line}" for line in weights.lines))
    progress.done += 1
    if runtime.is_main():
        variables = imported.complete(weights, materials.config.model)
        checkpoint.export_variables(folder / "variables", variables)
        origin = artifacts.origin(materials.config, run)
        origin["settings"]["data"]["normalise"] = weights.normalise
        told = {**origin, **imported.lineage(weights)}
        io.write_json(folder / "lineage.json", told)
    runtime.barrier(f"{run.hash}-done")


def step_settings(
    model: ModelConfig,
    stage: StageConfig,
    num_classes: int,
    report: transfers.TransferReport | None,
) -> steps.StepSettings:
    """Returns the settings on which the compiled steps of a stage depend."""
    pulled: frozenset[str] = frozenset()
    if report is not None and stage.optim.l2_sp:
        pulled = frozenset(p.removeprefix("params/") for p in report.transferred)
    return steps.StepSettings(
        model=model,
        optim=stage.optim,
        augment=stage.augment,
        steps=stage.train.steps,
        num_classes=num_classes,
        normalise=stage.data.normalise,
        window=stage.data.window,
        label_smoothing=stage.train.label_smoothing,
        transferred=pulled,
    )


def prepare(materials: Materials, run: StageRun) -> Prepared:
    """Splits the data, and draws or transfers the variables.

    `plan.check_data` has checked that this is possible.
    """
    config, dataset = materials.config, materials.datasets[run.stage]
    stage, model = run.settings(config), config.network(run.stage)
    splits = split_of(config, dataset, run)
    init_key, train_key = keys(run.seed, run.stage)
    module = steps.build_model(model, dataset.num_classes, None)
    variables = models.init(module, init_key, model.image_size, model.channels)
    report = None
    if run.parent:
        variables, report = _carry_over(materials, run, variables)
    constants = constants_of(
        stage,
        model.channels,
        dataset,
        splits.train,
        plan.scale(config, materials.datasets, run),
    )
    return Prepared(run, splits, variables, report, train_key, constants)


def _carry_over(
    materials: Materials, run: StageRun, fresh: PyTree
) -> tuple[PyTree, transfers.TransferReport]:
    config = materials.config
    settings = run.settings(config)
    origin = materials.datasets[run.parent.stage]
    if isinstance(origin, Weights):
        source, before = origin.variables, origin.normalise
    else:
        source = checkpoint.load_variables(materials.folder(run.parent) / "variables")
        before = run.parent.settings(config).data.normalise
    notes = normalisation_notes(
        run.parent.stage, before, run.stage, settings.data.normalise
    )
    rules = settings.transfer
    return transfers.transfer(
        source,
        jax.tree.map(np.asarray, fresh),
        transfers.rules_for(rules.reinitialise, rules.rules),
        notes=notes,
    )


def constants_of(
    stage: StageConfig,
    channels: int,
    dataset: Dataset,
    train: np.ndarray,
    scale: tuple[np.ndarray, np.ndarray] | None = None,
) -> steps.Constants:
    """Returns the offsets of the logits and the image statistics of training examples.

    Args:
      stage: Settings of the stage.
      channels: Number C of channels of the network's input.
      dataset: Data set of the stage.
      train: Indices of the training examples.
      scale: Mean and standard deviation `[C]` of `normalise='weights'`.
    """
    offsets = np.zeros(dataset.num_classes, np.float32)
    if stage.train.balance:
        counts = np.bincount(dataset.labels[train], minlength=dataset.num_classes)
        # A class without training examples counts as if it had one.
        offsets = np.log(np.maximum(counts, 1) / len(train)).astype(np.float32)
    mean = np.full(channels, augment.FIXED_MEAN, np.float32)
    deviation = np.full(channels, augment.FIXED_DEVIATION, np.float32)
    if stage.data.normalise == "dataset":
        step = -(-len(train) // STATISTICS_IMAGES)
        images = jnp.asarray(dataset.images[train[::step]])
        unit = np.asarray(augment.to_unit(images, stage.data.window, channels))
        mean = unit.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
        deviation = unit.std((0, 1, 2), dtype=np.float64).astype(np.float32)
        deviation = np.maximum(deviation, augment.MIN_DEVIATION)
    if stage.data.normalise == "weights":
        mean, deviation = scale
    return steps.Constants(offsets, mean, deviation)


def _export(
    materials: Materials,
    one: Prepared,
    fitted: loop.Fitted,
    probabilities: np.ndarray,
    on_validation: np.ndarray,
    seconds: float | None,
) -> None:
    if is_done(materials, one.run):
        return  # The run was interrupted between the exports of neighbours.
    folder, dataset = materials.folder(one.run), materials.datasets[one.run.stage]
    checkpoint.export_variables(folder / "variables", fitted.variables)
    if one.report:
        io.write_json(folder / "transfer.json", one.report.to_json())
    artifacts.save_predictions(
        folder / "predictions.npz", dataset, one.splits.test, probabilities
    )
    artifacts.save_predictions(
        folder / "validation.npz", dataset, one.splits.validation, on_validation
    )
    if one.run.stage == TARGET:
        trained = np.unique(artifacts.group_names(dataset, one.splits.train))
        io.write_arrays(folder / artifacts.TRAINED, groups=trained)
        _export_novelty(materials, one, fitted.variables)
    told = artifacts.lineage(
        materials.config, dataset, one.run, one.splits, one.constants, fitted,
        probabilities, seconds,
    )  # fmt: skip
    io.write_json(folder / "lineage.json", told)


def _export_novelty(materials: Materials, one: Prepared, variables: PyTree) -> None:
    """Writes the reference for images that differ from the training; see `novelty`."""
    config, dataset = materials.config, materials.datasets[one.run.stage]
    indices = novelty.chosen(one.splits.train)
    if len(indices) < 2:
        return
    _, features = evaluate.applied(
        config.network(one.run.stage),
        one.run.settings(config).data,
        one.constants.mean,
        one.constants.deviation,
        variables,
        dataset.images[indices],
        dataset.num_classes,
    )
    groups = None if dataset.groups is None else dataset.groups[indices]
    made = novelty.reference(features, groups)
    novelty.save(materials.folder(one.run), made, one.run.hash)
