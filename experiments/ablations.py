"""What decides whether the texture stage helps: one change at a time, on validation only.

    python experiments/ablations.py --config=configs/folders.py ... --workdir=runs/ablations

takes the flags of `twostage_jax.main` and trains, for each change below, the arms that it
can make a difference to. It prints and writes (`WORKDIR/ablations.md`) the mean balanced
accuracy on the validation groups over seeds and folds; the test examples are not looked
at. Stage runs that changes have in common are trained once.
"""

import dataclasses
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from twostage_jax import cli, results, runtime, study
from twostage_jax.config import Config, with_values
from twostage_jax.report.tables import markdown_table
from twostage_jax.stage import read_lineage

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:VARIANT].")
WORKDIR = flags.DEFINE_string("workdir", "runs/ablations", "Folder of the runs.")

# Name -> stage -> its settings; the arms are those in which something changes.
EARLY = ("conv1/.*", "conv2/.*")
CHANGES = {
    "as it is": {},
    "texture: half the steps": {"texture": "half"},
    "texture: twice the steps": {"texture": "double"},
    "texture: learning rate / 4": {"texture": "slow"},
    "texture: conv1, conv2 frozen": {"texture": (("optim.freeze", EARLY),)},
    "target: dense layers afresh": {"target": (("transfer.reinitialise", "dense"),)},
    "target: conv1, conv2 frozen": {"target": (("optim.freeze", EARLY),)},
    "target: head alone first": {"target": (("optim.head_steps", 50),)},
    "target: L2-SP": {"target": (("optim.l2_sp", 0.01),)},
    "target: learning rate / 4": {"target": "slow"},
    "textures before natural images": {"arm": "texture > natural > target"},
}


def changed(config: Config, change: dict) -> Config:
    """Returns the settings with one change, and all transferred arms."""
    stages = dict(config.stages)
    for name, values in change.items():
        if name == "arm":
            continue
        train, optim = stages[name].train, stages[name].optim
        values = {
            "half": [("train.steps", train.steps // 2)],
            "double": [("train.steps", train.steps * 2)],
            "slow": [("optim.learning_rate", optim.learning_rate / 4)],
        }.get(values, values)
        stages[name] = with_values(stages[name], values)
    arms = {name: chain for name, chain in config.arms.items() if name != "scratch"}
    if "texture" in change:
        arms.pop("natural", None)
    if "arm" in change:
        arms = {"two_stage": tuple(change["arm"].split(" > "))}
    return dataclasses.replace(config, stages=stages, arms=arms)


def main() -> None:
    """Trains every change and writes the table."""
    base = cli.parsed_config(CONFIG)
    cli.use_cores()
    workdir, lines = Path(WORKDIR.value), []
    arms = [name for name in base.arms if name != "scratch"]
    for name, change in CHANGES.items():
        config = changed(base, change)
        scores: dict[str, list[float]] = {}
        with study.trained(config, workdir, cli.data_dir()) as (materials, rows):
            for row in rows:
                run = results.chosen_run(materials, row)
                score = read_lineage(materials, run)["validation"]
                scores.setdefault(row.arm, []).append(
                    score["validation_balanced_accuracy"]
                )
        cells = [_cell(scores.get(arm)) for arm in arms]
        lines.append([name, *cells])
        table = markdown_table(["change", *arms], lines)
        runtime.write_text(workdir / "ablations.md", table + "\n")
    print(table)


def _cell(scores: list[float] | None) -> str:
    if not scores:
        return "as above"
    mean = 100 * np.mean(scores)
    spread = f" ± {100 * np.std(scores, ddof=1):.1f}" if len(scores) > 1 else ""
    return f"{mean:.1f}{spread} ({len(scores)})"


if __name__ == "__main__":
    cli.run(main)
