"""Runs a study in one process with four devices, and in two with two devices each.

    python experiments/two_processes.py --out=experiments/two_processes.md

The metrics and every predicted probability of the two must be the same, bit for bit. The
devices are fakes on one processor, the processes real ones that meet over
`jax.distributed`, as on the hosts of a pod. `--config` is the study; other flags are
passed on. Exit status 1 if any bit differs.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pages
from comparing import differences

REPOSITORY = Path(__file__).parent.parent
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")


def run(workdir: Path, processes: int, devices: int, flags: list[str]) -> float:
    """Runs the study in `workdir` and returns the seconds it took.

    Args:
      workdir: Folder of the study.
      processes: Number of processes.
      devices: Number of devices of each.
      flags: Flags of the command.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    # Every stage run uses all devices; otherwise, each device has its own stage runs.
    command = [
        sys.executable, "-m", "twostage_jax.main", f"--workdir={workdir}",
        *flags, "--config.study.side_by_side=1",
    ]  # fmt: skip
    began = time.monotonic()
    started = []
    for number in range(processes):
        if processes > 1:
            environment |= {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(number),
            }
        started.append(
            subprocess.Popen(
                command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL
            )
        )
    if any([process.wait() for process in started]):
        sys.exit(f"{processes} processes: the study did not end.")
    return time.monotonic() - began


def page(found: dict[str, Any]) -> str:
    """Returns the page of the results of `main`, Markdown."""
    outcome = (
        "DIFFERENT: " + ", ".join(found["different"])
        if found["different"]
        else f"All metrics and all probabilities of the {len(found['rows'])} rows are the "
        "same, bit for bit."
    )
    lines = [
        "# Two processes",
        "",
        f"    {found['command']}",
        "",
        f"The study `{found['config']}` in one process of four devices "
        f"({found['seconds']['one']} s) and in two processes of two devices each "
        f"({found['seconds']['two']} s), on two processor cores; each stage run is spread "
        f"over all four. {outcome} As JSON: [two_processes.json](two_processes.json).",
        "",
        f"| arm | seed | {' | '.join(METRICS)} |",
        f"|---|--:|{'--:|' * len(METRICS)}",
    ]
    for row in found["rows"]:
        cells = " | ".join(f"{row[metric]:.4f}" for metric in METRICS)
        lines.append(f"| {row['arm']} | {row['seed']} | {cells} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs both, compares them, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/two_stage.py")
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    args, flags = parser.parse_known_args()
    flags = [f"--config={args.config}", *flags]
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder) / "one", Path(folder) / "two"
        seconds = {"one": run(one, 1, 4, flags), "two": run(two, 2, 2, flags)}
        different = differences(one, two)
        rows = json.loads((two / "results.json").read_text())["rows"]
    found = {
        "command": "python experiments/two_processes.py "
        f"--out=experiments/two_processes.md {' '.join(flags[1:])}".strip(),
        "config": args.config,
        "seconds": {name: round(value) for name, value in seconds.items()},
        "different": different,
        "rows": [
            {"arm": row["arm"], "seed": row["seed"]}
            | {metric: row["metrics"][metric] for metric in METRICS}
            for row in rows
        ],
    }
    pages.leave(args.out, found, page(found))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
