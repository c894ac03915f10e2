"""Trains and compares the arms of the study that a config file describes.

    python -m twostage_jax.main --config=configs/two_stage.py
    python -m twostage_jax.main --config=configs/two_stage.py:smoke \\
        --config.study.seeds=0,1,2 --workdir=runs/mine

An interrupted run resumes when the same command is given again; a finished run only
prints its table. Results, figures and the report are written into the workdir. Every
setting of the config file can be overridden: --config.block.setting=value.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax import cli


def train(config: ConfigDict, *, workdir: str = "", data_dir: str = "") -> None:
    """Runs the study of a config file.

    Args:
      config: Config file, with a function `get_config` that returns the settings.
      workdir: Folder of the results; default: runs/NAME, with NAME from the config.
      data_dir: Folder of prepared data sets; default: data/ in the user's cache folder.

    Raises:
      UserError: A setting is invalid, or the data cannot be used.
    """
    settings = cli.parsed_config(config)
    cli.use_cores()
    # Imported after jax is set up, and not for --help.
    from twostage_jax.study import run

    folder = Path(workdir or Path("runs") / settings.name)
    if run.run(settings, folder, cli.data_dir(data_dir)) is not None:
        from twostage_jax.report.run import write_run

        write_run(folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(train, argv)


if __name__ == "__main__":
    main()
