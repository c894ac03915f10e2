"""Runs the tree of stage runs that a study needs, and collects the results."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from twostage_jax import plan, results, runtime
from twostage_jax.config import Config
from twostage_jax.data import feed, sources
from twostage_jax.errors import UserError
from twostage_jax.progress import Progress
from twostage_jax.report import tables
from twostage_jax.stage import Materials, is_done, run_stage


def run(config: Config, workdir: Path, data_dir: Path) -> Any:
    """Runs what is missing of a study and returns its results (see `results.collect`).

    Args:
      config: What to run.
      workdir: Where everything is written; what is finished there is not run again.
      data_dir: Where prepared data sets lie.

    Raises:
      UserError: Bad settings, bad data, or a workdir that is not this config's.
      runtime.Interrupted: The run was asked to stop; the state is saved.
    """
    plan.check(config)
    with contextlib.ExitStack() as stack:
        if runtime.is_main():
            _claim(stack, config, workdir)
        datasets = _load(config, data_dir)
        rows = plan.rows(config, datasets)
        plan.check_data(config, datasets, rows)
        materials = Materials(config, datasets, {}, workdir)
        with runtime.StopFlag().installed() as stop:
            _run_missing(materials, rows, stop)
        if not runtime.is_main():
            return None
        collected = results.collect(materials, rows)
        results.draw(materials, rows)
        print(f"\n{tables.results_table(collected['rows'])}\n")
        print(f"Results: {workdir / 'results.json'}")
        return collected


def _load(config: Config, data_dir: Path) -> dict[str, Any]:
    """Loads the data of every stage that an arm visits; the first process prepares."""
    names = dict.fromkeys(stage for chain in config.arms.values() for stage in chain)
    datasets = {}
    for turn in ("first", "others"):
        if (turn == "first") == runtime.is_main():
            for name in names:
                data = config.stages[name].data
                try:
                    datasets[name] = sources.load(data, config.model, data_dir)
                except UserError as error:
                    raise UserError(f"config.stages.{name}.data: {error}") from error
        runtime.barrier(f"data-{turn}")
    return datasets


def _run_missing(
    materials: Materials, rows: list[plan.Row], stop: runtime.StopFlag
) -> None:
    runs = plan.stage_runs(rows)
    runtime.barrier("plan")
    missing = [run for run in runs if not is_done(materials, run)]
    progress = Progress(len(runs), len(runs) - len(missing), stop)
    progress.say(f"{len(runs)} stage runs, {len(runs) - len(missing)} done.")
    for stage in {run.stage for run in missing}:
        materials.feeds[stage] = feed.feed(materials.datasets[stage])
    began = time.monotonic()
    for number, run in enumerate(missing, 1):
        run_stage(materials, run, progress)
        left = (time.monotonic() - began) / number * (len(missing) - number)
        progress.say(f"{run}: done. About {_minutes(left)} left.")


def _claim(stack: contextlib.ExitStack, config: Config, workdir: Path) -> None:
    """Takes the workdir for this config's seeds, or says who has it."""
    owner = workdir / "workdir.json"
    if owner.is_file():
        name = json.loads(owner.read_text())["config"]
        if name != config.name:
            raise UserError(
                f"--workdir={workdir} was made by config '{name}', not '{config.name}': "
                "give this run another --workdir."
            )
    for seed in config.study.seeds:
        what = f"--workdir={workdir} (seed {seed})"
        stack.enter_context(runtime.locked(workdir / f".seed{seed}.lock", what))
    if not owner.is_file():
        runtime.write_json(owner, {"config": config.name})


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
