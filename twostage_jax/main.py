"""Trains, transfers and compares: `python -m twostage_jax.main --config=FILE`."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from twostage_jax import cli, study

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE[:VARIANT].")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the results; default: runs/NAME, NAME from the config."
)


def main() -> None:
    """Runs the study of the config file."""
    config = cli.parsed_config(CONFIG)
    cli.use_cores()
    workdir = Path(WORKDIR.value or Path("runs") / config.name)
    study.run(config, workdir, cli.data_dir())


if __name__ == "__main__":
    cli.run(main)
