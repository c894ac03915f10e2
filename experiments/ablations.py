"""Finds which settings decide whether the texture stage helps, on validation only.

    python experiments/ablations.py --config=configs/folders.py ... --workdir=runs/ablations

takes the flags of `twostage_jax.main` and trains, for each change below, the arms that it
can affect. It prints and writes (`WORKDIR/ablations.md`, and `.json` with
each value) the mean balanced accuracy on the validation groups over seeds and folds, and
its difference from no change with the standard error; the test examples are not
used. Every stage keeps its last parameters: the best of its checkpoints on the validation
groups would be the largest of more numbers for a longer training than for a shorter one.
Stage runs that changes have in common are trained once.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from twostage_jax import cli, io
from twostage_jax.config import Config, StageConfig, with_values
from twostage_jax.report.tables import markdown_table
from twostage_jax.study import results, run
from twostage_jax.study.stage import read_lineage

EARLY = ("(conv|norm)[12]/.*",)
# Name -> changes of settings, {stage: {setting: value}}, or of the chain, {'chain': ...}.
# A number after '*' multiplies the value of the setting.
CHANGES = {
    "as it is": {},
    "natural: half the steps": {"natural": {"train.steps": "* 0.5"}},
    "natural: learning rate / 4": {"natural": {"optim.learning_rate": "* 0.25"}},
    "texture: learning rate / 4": {"texture": {"optim.learning_rate": "* 0.25"}},
    "texture: a quarter of the steps": {"texture": {"train.steps": "* 0.25"}},
    "texture: twice the steps": {"texture": {"train.steps": "* 2"}},
    "texture: crops of half the size": {"texture": {"data.crop": "* 0.5"}},
    "texture: a quarter of the crops": {"texture": {"data.stride": "* 2"}},
    "texture: dense layers afresh": {"texture": {"transfer.reinitialise": "dense"}},
    "texture: conv1, conv2 frozen": {"texture": {"optim.freeze": EARLY}},
    "target: dense layers afresh": {"target": {"transfer.reinitialise": "dense"}},
    "target: conv1, conv2 frozen": {"target": {"optim.freeze": EARLY}},
    "target: head alone for 50 steps": {"target": {"optim.head_steps": 50}},
    "target: L2-SP 0.01": {"target": {"optim.l2_sp": 0.01}},
    "target: twice the steps": {"target": {"train.steps": "* 2"}},
    "target: learning rate / 4": {"target": {"optim.learning_rate": "* 0.25"}},
    "textures before natural images": {"chain": "texture > natural > target"},
}
# Settings of the transfer from the previous stage.
TAKING_OVER = {"transfer.reinitialise", "optim.head_steps", "optim.l2_sp"}


def changed(config: Config, change: dict) -> Config:
    """Returns the settings with one change, and the arms that it changes."""
    stages = {
        name: with_values(stage, [("train.select", "last")])
        for name, stage in config.stages.items()
    }
    for name in change.keys() & stages.keys():
        for setting, value in change[name].items():
            stages[name] = _with(stages[name], setting, value)
    arms = {
        name: chain
        for name, chain in config.arms.items()
        if not change or any(_concerns(change, chain, k) for k in range(len(chain)))
    }
    if "chain" in change:
        arms = {"two_stage": tuple(change["chain"].split(" > "))}
    return dataclasses.replace(config, stages=stages, arms=arms)


def _concerns(change: dict, chain: tuple[str, ...], place: int) -> bool:
    """Returns whether a change alters the stage at a position of a chain."""
    settings = set(change.get(chain[place], ()))
    return bool(settings - TAKING_OVER if place == 0 else settings)


def _with(stage: StageConfig, setting: str, value: Any) -> StageConfig:
    block, field = setting.split(".")
    old = stage.data.options if block == "data" else vars(getattr(stage, block))
    if isinstance(value, str) and value.startswith("* "):
        value = type(old[field])(old[field] * float(value[2:]))
    if block != "data":
        return with_values(stage, [(setting, value)])
    options = {**stage.data.options, field: value}
    data = dataclasses.replace(stage.data, options=options)
    return dataclasses.replace(stage, data=data)


def ablate(
    config: ConfigDict, *, workdir: str = "runs/ablations", data_dir: str = ""
) -> None:
    """Trains every change and writes the table.

    Args:
      config: Settings that `get_config` of a config file returns.
      workdir: Folder of the runs.
      data_dir: Folder of prepared data sets; default: data/ in the user's cache folder.
    """
    base = cli.parsed_config(config)
    cli.use_cores()
    out, lines, found = Path(workdir), [], {}
    for name, change in CHANGES.items():
        variant = changed(base, change)
        scores: dict[str, list[float]] = {}
        with run.trained(variant, out, cli.data_dir(data_dir)) as (materials, rows):
            chosen = results.chosen_runs(materials, rows)
            for row in rows:
                score = read_lineage(materials, chosen[row.name])["validation"]
                scores.setdefault(row.arm, []).append(
                    score["validation_balanced_accuracy"]
                )
        found[name] = scores
        cells = (_cell(scores.get(arm), found["as it is"][arm]) for arm in base.arms)
        lines.append([name, *cells])
        io.write_json(out / "ablations.json", found)
        table = markdown_table(["change", *base.arms], lines)
        io.write_text(out / "ablations.md", table + "\n")
    print(table)


def _cell(scores: list[float] | None, before: list[float]) -> str:
    """Returns the mean and its change with standard error, in per cent."""
    if not scores:
        return ""
    mean = f"{100 * np.mean(scores):.1f}"
    if scores is before:
        return mean
    gains = 100 * np.subtract(scores, before)
    error = np.std(gains, ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else np.nan
    return f"{mean} ({np.mean(gains):+.1f} ± {error:.1f})"


if __name__ == "__main__":
    cli.run(ablate)
