"""Writes the report of a finished study: a page, tables, figures.

    python -m twostage_jax.report --run=runs/two_stage --out=report
    python -m twostage_jax.report --run=seed0 seed1 seed2 --out=report

    python -m twostage_jax.report --run=runs/two_stage --out=report --external=PATCHES

Several folders of one study, such as seeds run on several machines, are joined.

With --external, networks and baselines are first applied to labelled sets of other
patients: folders written by `twostage prepare`, or folders in the format of the target's.
Their classes must be among those of the target. The scores are stored in the workdir, and
appear in all later reports.
"""

from collections.abc import Sequence
from pathlib import Path

from twostage_jax import cli


def report(
    *run: str, out: str, external: Sequence[str] = (), data_dir: str = ""
) -> None:
    """Writes the report and prints the path of its page.

    Args:
      *run: Workdir of a study; several are joined.
      out: Folder of the report.
      external: Folders of labelled sets of other patients to score networks and
        baselines on.
      data_dir: Folder of prepared data sets; default: data/ in the user's cache folder.

    Raises:
      UserError: The folders do not belong to one study, `out` holds something else, or
        an external set cannot be scored.
    """
    if external:
        # A report alone needs no jax.
        cli.set_up_jax()
        from twostage_jax.study.external import score

        for folder in external:
            for workdir in run:
                path = score(Path(workdir), Path(folder), cli.data_dir(data_dir))
                print(f"Scored on {folder}: {path}", flush=True)
    # Imports matplotlib, which --help should not wait for.
    from twostage_jax.report.write import write_report

    print(write_report([Path(folder) for folder in run], Path(out)))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    cli.run(report, argv, jax=False)
