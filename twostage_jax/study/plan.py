"""The tree of stage runs that a study needs: names, splits, early checks.

A run is identified by a hash of everything that determines its result.
"""

import dataclasses
import itertools
import logging
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax import models
from twostage_jax import transfer as transfers
from twostage_jax.config import (
    TARGET,
    Config,
    StageConfig,
    TrainConfig,
    TransferConfig,
    as_json,
    check_length,
    grid,
    with_values,
)
from twostage_jax.data import sources
from twostage_jax.data.dataset import Dataset, digest
from twostage_jax.data.splits import Splits, copies, split, subset
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.models import pretrained
from twostage_jax.study import imported
from twostage_jax.study.imported import Weights
from twostage_jax.train import checkpoint, loop, optim, steps
from twostage_jax.train.parallel import alone

PyTree = Any

log = logging.getLogger(__name__)

# Bump when the same settings give different results.
RESULT_VERSION = 9
# Bump when folds are drawn differently.
FOLDS_VERSION = 1


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One node of the tree of stage runs.

    Attributes:
      stage: Name of its settings in `config.stages`.
      seed, fraction, fold: Its position in the study; source stages have fraction 1 and
        fold 0.
      tuned: (setting, value) pairs of the tuning grid that it tries.
      parent: Previous stage run, or None if it starts from random parameters.
      hash: Digest of everything that determines its result.
    """

    stage: str
    seed: int
    fraction: float
    fold: int
    tuned: tuple[tuple[str, Any], ...]
    parent: "StageRun | None"
    hash: str

    @property
    def folder_name(self) -> str:
        return f"{self.stage}-{self.hash[:12]}"

    @property
    def chain(self) -> list["StageRun"]:
        """This stage run and its ancestors, first stage first."""
        return [*(self.parent.chain if self.parent else []), self]

    def settings(self, config: Config) -> StageConfig:
        """Returns the settings of its stage, with its point of the grid."""
        return with_values(config.stages[self.stage], self.tuned)

    def __str__(self) -> str:
        place = [f"seed {self.seed}"]
        if self.fraction != 1:
            place.append(f"fraction {self.fraction:g}")
        if self.fold:
            place.append(f"fold {self.fold}")
        place += [f"{path.rsplit('.', 1)[-1]} {value}" for path, value in self.tuned]
        return f"{' > '.join(run.stage for run in self.chain)} ({', '.join(place)})"


def identify(
    config: Config,
    datasets: Mapping[str, Dataset | Weights],
    stage: str,
    *,
    seed: int,
    fraction: float = 1.0,
    fold: int = 0,
    tuned: tuple[tuple[str, Any], ...] = (),
    parent: StageRun | None,
) -> StageRun:
    """Returns the stage run of these settings, with the hash of its inputs.

    An imported stage is the same for every seed: its run has seed 0.
    """
    dataset = datasets[stage]
    if isinstance(dataset, Weights):
        of_file = imported.identity(config.model, dataset)
        return StageRun(stage, 0, 1.0, 0, (), None, of_file)
    run = StageRun(stage, seed, fraction, fold, tuned, parent, "")
    settings = as_json(run.settings(config))
    # Excluded because they do not affect results: the interval of saved states, the
    # location of files, and rules of a transfer that does not take place.
    del settings["train"]["save_every"]
    del settings["data"]["options"]
    del settings["data"]["image_size"]  # That of the network counts.
    if parent is None:
        del settings["transfer"]
    scaled: tuple[np.ndarray, ...] = ()
    if settings["data"]["normalise"] == "weights":
        imports = isinstance(datasets[run.chain[0].stage], Weights)
        found, usual = scale(config, datasets, run), imported.scale(config.model)
        # In a chain with an import, the hash of the parent covers it.
        scaled = () if imports or np.array_equal(found, usual) else found
    identity = digest(
        RESULT_VERSION,
        settings,
        as_json(config.network(stage)),
        dataset.fingerprint,
        place_of(config, run),
        parent.hash if parent else "",
        *scaled,
    )
    return dataclasses.replace(run, hash=identity)


def scale(
    config: Config, datasets: Mapping[str, Dataset | Weights], run: StageRun
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation `[C]` of 'weights' for a stage run.

    They are those of the imported stage of its chain. Chains without one follow that of
    the study, because arms that see other images are not comparable; if it has none, or
    several of different scales, they are those of the network's public weights.
    """
    first = datasets[run.chain[0].stage]
    given = first if isinstance(first, Weights) else _imported(datasets)
    return (given.mean, given.deviation) if given else imported.scale(config.model)


def _imported(datasets: Mapping[str, Dataset | Weights]) -> Weights | None:
    """Returns an imported stage of the study; None if there is none, or scales differ."""
    found = [one for one in datasets.values() if isinstance(one, Weights)]
    scales = {(one.mean.tobytes(), one.deviation.tobytes()) for one in found}
    return found[0] if len(scales) == 1 else None


def place_of(config: Config, run: StageRun) -> tuple[Any, ...]:
    """Returns the values that determine the seed and examples of a stage run."""
    study = config.study
    place: tuple[Any, ...] = (run.seed, study.split_seed)
    if run.stage == TARGET:
        drawn = study.draw if run.fraction < 1 else ""
        place += (run.fraction, run.fold, study.folds, drawn)
        place += (_split_seed(config, run),)
        if study.folds:
            place += (FOLDS_VERSION,)
    return place


def keys(seed: int, stage: str) -> tuple[jax.Array, jax.Array]:
    """Returns the PRNG keys of a stage run, for initial variables and for training."""
    return tuple(
        jax.random.split(jax.random.fold_in(jax.random.key(seed), code(stage)))
    )


def code(stage: str) -> int:
    """Returns a number for the name of a stage, equal in every process."""
    return zlib.crc32(stage.encode())


def split_of(config: Config, dataset: Dataset, run: StageRun) -> Splits:
    """Returns the examples that a stage run trains, validates and tests on.

    Each seed redraws the folds, so that peculiarities of a training set vary over seeds,
    as intervals over seeds assume; see `experiments/coverage.md`.

    Raises:
      UserError: See `data.splits.split` and `data.splits.subset`.
    """
    data, study = config.stages[run.stage].data, config.study
    splits = split(
        dataset,
        seed=_split_seed(config, run),
        validation=data.validation,
        test=data.test,
        folds=study.folds if run.stage == TARGET else 0,
        fold=run.fold,
    )
    if run.fraction == 1:
        return splits
    train = subset(dataset, splits.train, run.fraction, seed=run.seed, by=study.draw)
    return dataclasses.replace(splits, train=train)


def _split_seed(config: Config, run: StageRun) -> int:
    study = config.study
    if run.stage != TARGET or not study.folds:
        return study.split_seed
    mixed = np.random.SeedSequence((study.split_seed, run.seed))
    return int(mixed.generate_state(1)[0])


class Row(NamedTuple):
    """One row of the results: an arm at a seed, a fraction and a fold.

    Attributes:
      arm, seed, fraction, fold: Its position in the study.
      candidates: Target stage runs, with their ancestors: one per point of the tuning
        grid, or one without tuning.
    """

    arm: str
    seed: int
    fraction: float
    fold: int
    candidates: tuple[StageRun, ...]

    @property
    def name(self) -> str:
        return file_name(self.arm, self)


def file_name(name: str, place: "Row | StageRun") -> str:
    """Returns the name of files about an arm or baseline at a position of the study."""
    return f"{name}-seed{place.seed}-fraction{place.fraction:g}-fold{place.fold}"


def check(config: Config) -> None:
    """Raises a UserError for invalid settings, before any data are read."""
    width(config)
    try:
        steps.build_model(config.model, 2, None)
    except UserError as error:
        raise UserError(f"config.{error}", where=f"config.{error.where}") from None
    visited = {name for chain in config.arms.values() for name in chain}
    for name, stage in config.stages.items():
        if stage.weights or name not in visited:
            continue
        path = f"config.stages.{name}"
        sources.check(stage.data, f"{path}.data")
        for settings in _tuned_settings(config, name):
            _check_train(settings.train, f"{path}.train")
        windows = len(stage.data.window) // 2
        if windows not in (1, config.model.channels):
            raise UserError(
                f"{path}.data.window has {windows} windows, but config.model.channels "
                f"is {config.model.channels}: use one window, or one per channel.",
                where=f"{path}.data.window",
            )


def _check_train(train: TrainConfig, path: str) -> None:
    if alone().whole(train.batch_size) != train.batch_size:
        raise UserError(
            f"{path}.batch_size is {train.batch_size}: it must be divisible by the number "
            f"of devices ({jax.device_count()}).",
            where=f"{path}.batch_size",
        )
    if loop.chunk_length(train) == 1 and train.steps > loop.MAX_CHUNK:
        raise UserError(
            f"{path}: steps ({train.steps}) and eval_every ({train.eval_every}) lack a "
            f"common divisor up to {loop.MAX_CHUNK}, so every step would wait for the "
            "host: choose round numbers.",
            where=f"{path}.eval_every",
        )


def shortened(config: Config, datasets: Mapping[str, Dataset | Weights]) -> Config:
    """Returns the settings with the steps of each stage limited by `train.epochs`.

    Passes refer to the whole set, so that all folds and fractions train equally long.
    Steps are whole multiples of `eval_every`, at least one.

    Raises:
      UserError: The warm-up of a stage, or the training of its head alone, takes all of
        its steps.
    """
    stages = dict(config.stages)
    for name, dataset in datasets.items():
        train = stages[name].train
        if isinstance(dataset, Weights) or not train.epochs:
            continue
        steps = train.epochs * len(dataset) / train.batch_size
        steps = max(round(steps / train.eval_every), 1) * train.eval_every
        train = dataclasses.replace(train, steps=min(steps, train.steps))
        stages[name] = dataclasses.replace(stages[name], train=train)
    shorter = dataclasses.replace(config, stages=stages)
    for name in datasets:
        if stages[name].train == config.stages[name].train:
            continue  # Checked when the settings were parsed.
        why = f", with train.epochs = {stages[name].train.epochs}"
        for settings in _tuned_settings(shorter, name):
            check_length(settings, f"config.stages.{name}", why)
    return shorter


def rows(config: Config, datasets: Mapping[str, Dataset | Weights]) -> list[Row]:
    """Returns the rows of the study, in order of seed, fraction, fold and arm."""
    study = config.study
    folds = range(max(study.folds, 1))
    fractions = sorted(study.fractions, reverse=True)
    return [
        row(config, datasets, arm, seed, fraction, fold)
        for seed in study.seeds
        for fraction in fractions
        for fold in folds
        for arm in config.arms
    ]


def row(
    config: Config,
    datasets: Mapping[str, Dataset | Weights],
    arm: str,
    seed: int,
    fraction: float,
    fold: int,
) -> Row:
    """Returns the row of an arm at a position of the study."""
    parent = None
    for stage in config.arms[arm][:-1]:
        parent = identify(config, datasets, stage, seed=seed, parent=parent)
    candidates = tuple(
        identify(
            config,
            datasets,
            TARGET,
            seed=seed,
            fraction=fraction,
            fold=fold,
            tuned=tuned,
            parent=parent,
        )
        for tuned in grid(config.study)
    )
    return Row(arm, seed, fraction, fold, candidates)


def stage_runs(rows: list[Row]) -> list[StageRun]:
    """Returns the distinct stage runs behind the rows, ancestors first."""
    chains = (run.chain for row in rows for run in row.candidates)
    return list({run.hash: run for chain in chains for run in chain}.values())


def groups(config: Config, runs: list[StageRun], width: int) -> list[list[StageRun]]:
    """Returns the stage runs in order of training, grouped by compiled program.

    The order depends only on the plan, not on finished runs, so that a resumed run has
    the same neighbours again.

    Args:
      config: Settings of the study.
      runs: Stage runs, ancestors first.
      width: Number of runs side by side; see `chunks`.
    """
    waiting: dict[Any, list[StageRun]] = {}
    for run in runs:
        # The kernels penalised by L2-SP are part of the program.
        pulled = run.parent and run.settings(config).optim.l2_sp
        key = run.stage, run.tuned, run.parent.stage if pulled else None
        waiting.setdefault(key, []).append(run)
    ordered: list[list[StageRun]] = []
    trained: set[str] = set()
    while waiting:
        ready = {
            key: [r for r in alike if not r.parent or r.parent.hash in trained]
            for key, alike in waiting.items()
        }
        # Prefer groups in which no run waits for a parent: all can run side by side.
        key = next(
            (key for key in ready if ready[key] == waiting[key]),
            next(key for key in ready if ready[key]),
        )
        ordered += chunks(ready[key], width)
        trained |= {run.hash for run in ready[key]}
        waiting[key] = [run for run in waiting[key] if run.hash not in trained]
        if not waiting[key]:
            del waiting[key]
    return ordered


def chunks(runs: list[StageRun], width: int) -> list[list[StageRun]]:
    """Returns runs in groups of `width`; too few runs for a group are trained singly.

    On accelerators, idle devices cost less than shared ones: there a group fills more
    than half of the devices.
    """
    parts = [runs[i : i + width] for i in range(0, len(runs), width)]
    least = 2 if jax.default_backend() == "cpu" else width // 2 + 1
    if parts and len(parts[-1]) < least:
        parts[-1:] = [[run] for run in parts[-1]]
    return parts


def width(config: Config) -> int:
    """Returns the number of stage runs to train side by side.

    Raises:
      UserError: The setting does not allow several processes.
    """
    wanted = config.study.side_by_side
    if jax.process_count() == 1:
        return wanted or jax.local_device_count()
    if wanted > 1:
        raise UserError(
            f"config.study.side_by_side is {wanted}, but several processes train one "
            "stage run after the other: set it to 0 or 1.",
            where="config.study.side_by_side",
        )
    return 1


def check_data(
    config: Config, datasets: Mapping[str, Dataset | Weights], rows: list[Row]
) -> None:
    """Raises a UserError for data that cannot be split, or an impossible transfer.

    Warns about test images that are also in the training set.
    """
    splits = {}
    for run in stage_runs(rows):
        if isinstance(datasets[run.stage], Weights):
            continue
        place = (run.stage, run.fraction, run.fold, run.seed)
        if place not in splits:
            try:
                splits[place] = split_of(config, datasets[run.stage], run)
            except UserError as error:
                path = f"config.stages.{run.stage}.data"
                raise UserError.at(path, str(error)) from None
    warned, seen = set(), set()
    # Seeds share splits, and fractions are nested in the largest, which is first.
    for (stage, *_), one in splits.items():
        place = stage, one.test.tobytes()
        if stage in warned or place in seen:
            continue
        seen.add(place)
        if line := copies(datasets[stage], one):
            warned.add(stage)
            log.warning(line)
    for before, stage in _edges(config):
        if isinstance(datasets[stage], Weights):
            continue
        variables = fresh_variables(config, stage, datasets[stage].num_classes)
        if before and isinstance(datasets[before], Weights):
            source = datasets[before].variables
        else:
            source = before and fresh_variables(
                config, before, datasets[before].num_classes
            )
        path = f"config.stages.{stage}"
        for settings in _tuned_settings(config, stage):
            optim.check_patterns(settings.optim, variables, f"{path}.optim")
            if before:
                planned_transfer(settings.transfer, path, source, variables)


def _tuned_settings(config: Config, stage: str) -> list[StageConfig]:
    """Returns the settings of a stage, at each point of the tuning grid."""
    points = grid(config.study) if stage == TARGET else [()]
    return [with_values(config.stages[stage], tuned) for tuned in points]


def _edges(config: Config) -> dict[tuple[str | None, str], None]:
    """Returns the (stage before, stage) pairs of all arms, None before the first."""
    return {
        pair: None
        for chain in config.arms.values()
        for pair in itertools.pairwise((None, *chain))
    }


def planned_transfer(
    settings: TransferConfig, path: str, source: PyTree, target: PyTree
) -> transfers.TransferReport:
    """Returns the report of a transfer.

    Raises:
      UserError: The rules do not fit; the message names all violations and `path`, that
        of the stage.
    """
    rules = transfers.rules_for(settings.reinitialise, settings.rules)
    try:
        return transfers.transfer(source, target, rules)[1]
    except UserError as error:
        raise UserError(f"{path}.transfer: {error}", where=f"{path}.transfer") from None


def fresh_variables(config: Config, stage: str, num_classes: int) -> PyTree:
    """Returns zeros in the shapes of the variables of a stage's network.

    Raises:
      UserError: The network cannot take images of the stage's size.
    """
    model, setting = config.network(stage), config.size_setting(stage)
    module, size = steps.build_model(model, num_classes, None), model.image_size
    try:
        shapes = models.shapes(module, size, model.channels)
    except (UserError, ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{setting} = {size}: '{model.name}' cannot take such images ({error}).",
            where=setting,
        ) from error
    return jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)


def tree(config: Config) -> str:
    """Returns the arms, and the table of each planned transfer."""
    lines = [f"{arm}: {' > '.join(chain)}" for arm, chain in config.arms.items()]
    hand_overs = [pair for pair in _edges(config) if pair[0]]
    variables, normalised = {}, {}
    for name in dict.fromkeys(name for pair in hand_overs for name in pair):
        if config.stages[name].weights:
            weights = imported.load(config, name)
            variables[name], normalised[name] = weights.variables, weights.normalise
            lines += ["", *(f"{name}: {line}" for line in weights.lines)]
        else:
            variables[name] = _initialised(config, name)
            normalised[name] = config.stages[name].data.normalise
    for before, after in hand_overs:
        report = planned_transfer(
            config.stages[after].transfer,
            f"config.stages.{after}",
            variables[before],
            variables[after],
        )
        notes = normalisation_notes(
            before, normalised[before], after, normalised[after]
        )
        lines += ["", f"{before} > {after}", *notes, report.table()]
    return "\n".join(lines)


def normalisation_notes(
    before: str, scaled: str, after: str, rescaled: str
) -> list[str]:
    """Returns a sentence if two stages scale images differently.

    Args:
      before, after: Names of the stages.
      scaled, rescaled: Their `data.normalise`.
    """
    if scaled == rescaled != "dataset":
        return []
    own = " with its own mean and standard deviation" if rescaled == "dataset" else ""
    return [
        f"normalisation: '{before}' used '{scaled}', '{after}' uses '{rescaled}'{own}"
    ]


def transfer_from(config: Config, path: Path, stage: str) -> str:
    """Returns the table of the transfer of a source's variables into `stage`.

    Args:
      config: Settings of the study.
      path: Source of the variables: public weights of `config.model.name`
        (`models.pretrained`), or variables of this or another Flax program
        (`checkpoint.load_source`).
      stage: Name of the stage.
    """
    if stage not in config.stages:
        raise UserError(
            f"--stage: unknown stage '{stage}'.{did_you_mean(stage, config.stages)}",
            where="--stage",
        )
    target = _initialised(config, stage)
    if path.is_file() and path.suffix.lower() in pretrained.READERS:
        weights = imported.read(path, config.model)
        source, place = weights.variables, ""
        print("\n".join(weights.lines))
    else:
        source, place = checkpoint.load_source(path)
    settings = config.stages[stage].transfer
    report = planned_transfer(settings, f"config.stages.{stage}", source, target)
    return f"Parameters of {place}\n{report.table()}" if place else report.table()


def num_classes(config: Config, stage: str) -> int:
    """Returns the number of classes of a stage's data without preparing them."""
    data = config.stages[stage].data
    return len(sources.recipe(data, config.network(stage)).class_names)


def _initialised(config: Config, stage: str) -> dict:
    """Returns random variables of a stage's network, whose norms a report can show."""
    model, classes = config.network(stage), num_classes(config, stage)
    fresh_variables(config, stage, classes)  # Names the setting of an impossible size.
    module = steps.build_model(model, classes, None)
    variables = models.init(module, jax.random.key(0), model.image_size, model.channels)
    return jax.tree.map(np.asarray, variables)
