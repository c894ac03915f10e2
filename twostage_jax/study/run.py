"""Runs the tree of stage runs that a study needs, and collects the results."""

import contextlib
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twostage_jax import io, runtime
from twostage_jax.config import Config
from twostage_jax.data import sources
from twostage_jax.errors import UserError
from twostage_jax.study import baselines, imported, plan, results
from twostage_jax.study.plan import StageRun
from twostage_jax.study.stage import (
    Materials,
    clear,
    is_done,
    read_lineage,
    run_stages,
    under_way_with,
)
from twostage_jax.train.progress import Progress


def run(config: Config, workdir: Path, data_dir: Path) -> Any:
    """Completes a study and returns its results (see `results.collect`).

    With several processes, all but the first, which collects the results, return None.

    Args:
      config: Settings of the study.
      workdir: Output folder; finished runs in it are not repeated.
      data_dir: Folder of prepared data sets.

    Raises:
      UserError: Settings or data are invalid, or the workdir belongs to another config.
      runtime.Interrupted: The run was asked to stop; the state is saved.
    """
    with trained(config, workdir, data_dir) as (materials, rows):
        if not runtime.is_main():
            return None
        baselines.run_missing(materials, rows)
        collected = results.collect(materials, rows)
        if not (workdir / results.REPORT).is_file():
            results.save_examples(materials, rows)
        return collected


@contextlib.contextmanager
def trained(
    config: Config, workdir: Path, data_dir: Path
) -> Iterator[tuple[Materials, list[plan.Row]]]:
    """Completes the training of a study and yields its materials and rows.

    Within the context, other processes cannot work on these seeds in the workdir.

    Raises:
      UserError, runtime.Interrupted: See `run`.
    """
    plan.check(config)
    config = sources.sized(config)
    with contextlib.ExitStack() as stack:
        if runtime.is_main():
            _claim(stack, config, workdir)
        datasets = _load(config, data_dir)
        config = plan.shortened(config, datasets)
        rows = plan.rows(config, datasets)
        plan.check_data(config, datasets, rows)
        materials = Materials(config, datasets, workdir)
        with runtime.StopFlag().installed() as stop:
            _run_missing(materials, rows, stop)
            if stop():  # The signal came while the last stage run was written.
                raise runtime.Interrupted
        yield materials, rows


def _load(config: Config, data_dir: Path) -> dict[str, Any]:
    """Loads the data of every stage that an arm visits; the first process prepares."""
    names = dict.fromkeys(stage for chain in config.arms.values() for stage in chain)
    datasets = {}
    for turn in ("first", "others"):
        if (turn == "first") == runtime.is_main():
            for name in names:
                if config.stages[name].weights:
                    datasets[name] = imported.load(config, name)
                    continue
                data, network = config.stages[name].data, config.network(name)
                size = config.size_setting(name)
                try:
                    datasets[name] = sources.load(data, network, data_dir, size)
                except UserError as error:
                    raise UserError(
                        f"config.stages.{name}.data: {error}", where=error.where
                    ) from error
        runtime.barrier(f"data-{turn}")
    return datasets


def _run_missing(
    materials: Materials, rows: list[plan.Row], stop: runtime.StopFlag
) -> None:
    """Trains the unfinished stage runs."""
    config = materials.config
    runs = plan.stage_runs(rows)
    width = plan.width(config)
    runtime.barrier("plan")
    groups = _to_run(materials, runs, width)
    if not runtime.agreed(str(groups)):
        raise UserError(
            f"--workdir={materials.workdir}: the processes see different finished stage "
            "runs: give a folder that all processes share.",
            where="--workdir",
        )
    if runtime.is_main():
        again = {run.hash for group in groups for run in group}
        for run in runs:
            if run.hash not in again and is_done(materials, run):
                clear(materials, run)  # Left by a process that was killed at the end.
    done = len(runs) - sum(map(len, groups))
    progress = Progress(len(runs), done, stop)
    left = _seconds_left(materials, runs, groups)
    progress.say(
        f"{len(runs)} stage runs, {done} done."
        + (f" About {_minutes(left)} left." if groups and left is not None else "")
    )
    for number, group in enumerate(groups, 1):
        if number > 1 and group[0].stage != groups[number - 2][0].stage:
            runtime.forget_programs()
        run_stages(materials, group, progress)
        left = _seconds_left(materials, runs, groups[number:])
        for run in group:
            progress.say(f"{run}: done.")
        if number < len(groups):
            progress.say(
                f"{progress.done} of {progress.total} stage runs done."
                + (f" About {_minutes(left)} left." if left is not None else "")
            )


def _to_run(
    materials: Materials, runs: list[StageRun], width: int
) -> list[list[StageRun]]:
    """Returns the missing runs in groups to train together, interrupted ones first."""
    groups = _cut_off(materials, runs, width)
    taken = {run.hash for group in groups for run in group}
    for group in plan.groups(materials.config, runs, width):
        missing = [
            run
            for run in group
            if run.hash not in taken and not is_done(materials, run)
        ]
        groups += plan.chunks(missing, width)
    return groups


def _cut_off(
    materials: Materials, runs: list[StageRun], width: int
) -> list[list[StageRun]]:
    """Returns the groups that were interrupted.

    The same neighbours give bit-identical results. If they no longer fit the devices or
    the study, they are regrouped: a run resumes from its saved state, with results equal
    to float tolerance.
    """
    by_name = {run.folder_name: run for run in runs}
    groups: dict[str, list[StageRun]] = {}
    for run in runs:
        names = under_way_with(materials, run)
        group = [by_name[name] for name in names if name in by_name]
        fits = len(group) == len(names) <= width and all(
            under_way_with(materials, other) in ([], names)
            and (other.parent is None or is_done(materials, other.parent))
            for other in group
        )
        if fits and not all(is_done(materials, other) for other in group):
            groups[names[0]] = group
    return list(groups.values())


def _seconds_left(
    materials: Materials, runs: list[StageRun], groups: list[list[StageRun]]
) -> float | None:
    """Returns an estimate from the durations of finished runs; None without any."""
    took: dict[str, list[float]] = {}
    for run in runs:
        if is_done(materials, run):
            seconds = read_lineage(materials, run)["seconds"]
            if seconds is not None:
                took.setdefault(run.stage, []).append(seconds)
    if any(group[0].stage not in took for group in groups):
        return None
    return sum(len(g) * statistics.median(took[g[0].stage]) for g in groups)


def _claim(stack: contextlib.ExitStack, config: Config, workdir: Path) -> None:
    """Locks the workdir for the seeds of this config, or raises a UserError."""
    owner = workdir / "workdir.json"
    if owner.is_file():
        name = json.loads(owner.read_text())["config"]
        if name != config.name:
            raise UserError(
                f"--workdir={workdir} belongs to config '{name}', not to "
                f"'{config.name}': give another --workdir.",
                where="--workdir",
            )
    for seed in config.study.seeds:
        what = f"--workdir={workdir} (seed {seed})"
        stack.enter_context(io.locked(workdir / f".seed{seed}.lock", what))
    if not owner.is_file():
        io.write_json(owner, {"config": config.name})


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
