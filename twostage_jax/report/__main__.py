"""Writes the report of finished run folders.

    python -m twostage_jax.report --run=WORKDIR [WORKDIR ...] --out=DIR

Several folders of one study, such as seeds run on several machines, are joined.
"""

import argparse
import sys
from pathlib import Path

from twostage_jax.errors import UserError
from twostage_jax.report.write import write_report


def main() -> None:
    """Reads the flags and writes the report; exits with status 2 on a `UserError`."""
    parser = argparse.ArgumentParser(
        prog="python -m twostage_jax.report",
        description="Writes the report of finished run folders of one study.",
    )
    parser.add_argument(
        "--run", metavar="WORKDIR", type=Path, action="append", required=True,
        help="run folder; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "more", metavar="WORKDIR", type=Path, nargs="*", help="further run folders"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="folder of the report"
    )
    given = parser.parse_intermixed_args()
    try:
        print(write_report([*given.run, *given.more], given.out))
    except (UserError, OSError) as error:
        sys.exit(_fail(error))


def _fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
