"""Trains and compares the arms of the study that a config file describes.

    python -m twostage_jax.main --config=configs/two_stage.py
    python -m twostage_jax.main --config=configs/two_stage.py:smoke \\
        --config.study.seeds=0,1,2 --workdir=runs/mine

A run that was interrupted resumes when the same command is given again; a finished one
only prints its table again. Results, figures and the report are written into the workdir.
Every setting of the config file can be overridden: --config.block.setting=value.
"""

from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from twostage_jax import cli


def train(config: ConfigDict, *, workdir: str = "", data_dir: str = "") -> None:
    """Runs the study of a config file.

    Args:
      config: Settings that `get_config` of a config file returns.
      workdir: Folder of the results; default: runs/NAME, NAME from the config.
      data_dir: Folder of prepared data sets; default: data/ in the user's cache folder.

    Raises:
      UserError: A setting or the data cannot work.
    """
    settings = cli.parsed_config(config)
    cli.use_cores()
    # Not before jax is set up, nor for --help.
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
