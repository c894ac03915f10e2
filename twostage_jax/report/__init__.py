"""Writes the report of a finished study: a page, tables, figures.

    python -m twostage_jax.report --run=runs/two_stage --out=report
    python -m twostage_jax.report --run=seed0 seed1 seed2 --out=report

Several folders of one study, such as seeds run on several machines, are joined.
"""

from collections.abc import Sequence
from pathlib import Path

from twostage_jax import cli


def report(*run: str, out: str) -> None:
    """Writes the report and prints the path of its page.

    Args:
      *run: Workdir of a study; several are joined.
      out: Folder of the report.

    Raises:
      UserError: The folders are not those of one study, or `out` holds something else.
    """
    # Brings matplotlib, which --help does not wait for.
    from twostage_jax.report.write import write_report

    print(write_report([Path(folder) for folder in run], Path(out)))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(report, argv, jax=False)
