"""Shows what a study would do, without training.

    python -m twostage_jax.inspect --config=configs/two_stage.py
    python -m twostage_jax.inspect --config=... --source=RUN/stages/natural-0123456789ab

prints the tree of stage runs and, for every hand-over, the report of the planned
transfer. With `--source`, a finished stage run (or a folder of exported variables), it
plans the transfer of those real parameters into `--stage`.
"""

from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from twostage_jax import checkpoint, cli, models, plan, training
from twostage_jax.data import sources
from twostage_jax.errors import UserError, did_you_mean
from twostage_jax.settings import TARGET, Config

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:VARIANT].")
SOURCE = flags.DEFINE_string("source", None, "Folder of a finished stage run.")
STAGE = flags.DEFINE_string("stage", TARGET, "Stage that --source would go into.")


def main() -> None:
    """Prints the plan, or the transfer from `--source`."""
    config = cli.parsed_config(CONFIG)
    plan.check(config)
    if SOURCE.value:
        print(transfer_from(config, Path(SOURCE.value), STAGE.value))
    else:
        print(tree(config))


def tree(config: Config) -> str:
    """Returns the arms, and the table of each planned transfer."""
    lines = [f"{arm}: {' > '.join(chain)}" for arm, chain in config.arms.items()]
    hand_overs = {
        pair: None
        for chain in config.arms.values()
        for pair in zip(chain, chain[1:], strict=False)
    }
    classes = {
        name: num_classes(config, name)
        for chain in config.arms.values()
        for name in chain
    }
    for before, after in hand_overs:
        report = plan.planned_transfer(
            config.stages[after].transfer,
            f"config.stages.{after}",
            _initialised(config, classes[before]),
            _initialised(config, classes[after]),
        )
        lines += ["", f"{before} > {after}", report.table()]
    return "\n".join(lines)


def transfer_from(config: Config, folder: Path, stage: str) -> str:
    """Returns the table of the transfer of exported variables into `stage`."""
    if stage not in config.stages:
        raise UserError(
            f"--stage: unknown stage '{stage}'.{did_you_mean(stage, config.stages)}"
        )
    exported = folder / "variables" if (folder / "variables").is_dir() else folder
    source = checkpoint.load_variables(exported)
    target = _initialised(config, num_classes(config, stage))
    settings, path = config.stages[stage].transfer, f"config.stages.{stage}"
    return plan.planned_transfer(settings, path, source, target).table()


def num_classes(config: Config, stage: str) -> int:
    """Returns the number of classes of a stage's data; prepares nothing."""
    data = config.stages[stage].data
    return len(sources.recipe(data, config.model).class_names)


def _initialised(config: Config, classes: int) -> dict:
    module = training.build_model(config.model, classes, None)
    variables = models.init(
        module, jax.random.key(0), config.model.image_size, config.model.channels
    )
    return jax.tree.map(np.asarray, variables)


if __name__ == "__main__":
    cli.run(main)
