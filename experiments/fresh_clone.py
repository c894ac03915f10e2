"""Times the first command of the README in a fresh clone, and its repetition.

    python experiments/fresh_clone.py --out=experiments/fresh_clone.md

Clones the repository that this file lies in, makes a virtual environment, installs, runs
the default job with an empty cache, and runs it again. Writes times, the peak memory of
the largest process, and the final table of the job, to the page and as JSON next to
it. Needs the package index for the installation.
"""

import argparse
import itertools
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pages

REPOSITORY = Path(__file__).parent.parent
TEXT = """# A fresh clone

    python experiments/fresh_clone.py --out=experiments/fresh_clone.md

A fresh virtual environment (Python {python}), an empty cache, {cores} processor cores; load
before the start {load}.

| step | seconds | CPU-seconds |
|---|--:|--:|
| `pip install -e .` | {install_s} | |
| `twostage train --config=configs/two_stage.py`, and report | {first_s} | {first_cpu_s} |
| the same command again | {again_s} | {again_cpu_s} |

Peak memory of the largest process: {peak_gb} GB ({peak_gib} GiB). The second run ends with
{same} table:

{table}

As JSON: [fresh_clone.json](fresh_clone.json).
"""


def timed(command: list[str], **options: object) -> tuple[float, str]:
    """Returns the seconds that a command took, and its output."""
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, **options
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return round(time.monotonic() - began, 1), done.stdout


def cpu_seconds() -> float:
    """Returns the CPU time of all commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tables_of(text: str) -> str:
    """Returns the Markdown tables in a text, with a blank line between them."""
    lines = itertools.groupby(text.splitlines(), lambda line: line.startswith("|"))
    return "\n\n".join("\n".join(table) for is_table, table in lines if is_table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clone, python = folder / "clone", folder / "venv" / "bin" / "python"
        timed(["git", "clone", "--quiet", str(REPOSITORY), str(clone)])
        timed([sys.executable, "-m", "venv", str(folder / "venv")])
        load = round(os.getloadavg()[0], 1)
        pip = [str(python), "-m", "pip", "install", "--quiet", "-e", "."]
        install_s, _ = timed(pip, cwd=clone)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        job = [str(python), "-m", "twostage_jax.main", "--config=configs/two_stage.py"]
        hidden = ("PYTHONPATH", "JAX_COMPILATION_CACHE_DIR")
        user = {k: v for k, v in os.environ.items() if k not in hidden}
        user["XDG_CACHE_HOME"] = str(folder / "cache")
        used = [cpu_seconds()]
        first_s, printed = timed(job, cwd=clone, env=user)
        used.append(cpu_seconds())
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        again_s, again = timed(job, cwd=clone, env=user)
        used.append(cpu_seconds())
    tables = [tables_of(text) for text in (printed, again)]
    first_cpu_s, again_cpu_s = (round(b - a, 1) for a, b in itertools.pairwise(used))
    found = {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": load,
        "install_s": install_s,
        "first_s": first_s,
        "first_cpu_s": first_cpu_s,
        "again_s": again_s,
        "again_cpu_s": again_cpu_s,
        "peak_gb": round(peak / 1e9, 2) if peak > before * 1024 else None,
        "peak_gib": round(peak / 2**30, 2) if peak > before * 1024 else None,
        "same_table": tables[0] == tables[1],
        "table": tables[0].splitlines(),
    }
    same = "the same" if found["same_table"] else "ANOTHER"
    page = TEXT.format(**{**found, "table": tables[0], "same": same})
    pages.leave(args.out, found, page)


if __name__ == "__main__":
    main()
