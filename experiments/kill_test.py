"""Kills a study at random moments; its results must equal those without kills.

    python experiments/kill_test.py --out=experiments/kill_test.md

Runs the smallest config with two seeds, side by side where the machine has two cores,
and a save every 5 steps. Every second SIGKILL waits, after its random moment, for a file
or folder that is being written, and hits the process in the middle of that. A finished
study is compared with the undisturbed one, bit for bit, and another one begins, until
there were enough kills. Exit status 1 if any bit differs.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pages
from comparing import differences

REPOSITORY = Path(__file__).parent.parent
SETTINGS = {
    "study.seeds": "(0, 1)",
    **{
        f"stages.{stage}.train.{setting}": "5"
        for stage in ("natural", "texture", "target")
        for setting in ("eval_every", "save_every")
    },
}


def start(workdir: Path, flags: list[str]) -> subprocess.Popen:
    """Starts the study in `workdir`."""
    settings = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    with open(workdir / "log.txt", "a") as log:
        return subprocess.Popen(
            [
                sys.executable, "-m", "twostage_jax.main",
                "--config=configs/two_stage.py:smoke", f"--workdir={workdir / 'run'}",
                *settings, *flags,
            ],
            cwd=REPOSITORY, stdout=log, stderr=log,
        )  # fmt: skip


def finish(workdir: Path, flags: list[str]) -> float:
    """Runs the study to its end and returns the seconds it took."""
    began = time.monotonic()
    if start(workdir, flags).wait():
        sys.exit((workdir / "log.txt").read_text())
    return time.monotonic() - began


def kill(
    workdir: Path, flags: list[str], delay: float, while_writing: bool
) -> str | None:
    """Runs the study until it is killed; returns its activity, or None if it ended."""
    before = unfinished(workdir / "run")
    process = start(workdir, flags)
    began = time.monotonic()
    while process.poll() is None:
        late = time.monotonic() - began >= delay
        if late and (not while_writing or unfinished(workdir / "run") - before):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return place(workdir / "run", before)
        time.sleep(0.001 if late else 0.05)
    if process.returncode:
        sys.exit((workdir / "log.txt").read_text())
    return None


def unfinished(run: Path) -> set[tuple[Path, int]]:
    """Returns the files being written, also by a dead process, with their inodes."""
    patterns = (
        "stages/*/states/*orbax-checkpoint-tmp*",
        "stages/*/*orbax-checkpoint-tmp*",
        "stages/*/.*.*.*",
        "rows/.*",
        "predictions/.*",
        ".results.*",
        ".report.*",
    )
    found = set()
    for pattern in patterns:
        for path in run.glob(pattern):
            if path.suffix == ".lock":
                continue  # The file stays.
            with contextlib.suppress(FileNotFoundError):
                found.add((path, path.stat().st_ino))
    return found


def place(run: Path, before: set[tuple[Path, int]]) -> str:
    """Returns a description of what a killed process was doing."""
    written = [path for path, _ in unfinished(run) - before]
    if any("states" in path.parts for path in written):
        return "saving a state"
    if any("stages" in path.parts for path in written):
        return "exporting a stage run"
    if written:
        return "writing results or the report"
    begun = list(run.glob("stages/*/under_way.json"))
    if any(path for mark in begun for path in mark.parent.glob("states/*")):
        return "in a stage run, after its first save"
    if begun:
        return "in a stage run, before its first save"
    done = len(list(run.glob("stages/*/lineage.json")))
    if (run / "results.json").exists():
        return "after the results, at figures or report"
    return "between stage runs" if done else "before the first stage run"


def page(found: dict[str, Any]) -> str:
    """Returns the Markdown page of what `main` found."""
    kills = Counter(found["kills"])
    rows = "\n".join(f"| {what} | {count} |" for what, count in kills.most_common())
    outcome = (
        "DIFFERENT: " + ", ".join(found["different"])
        if found["different"]
        else "Every one ended with metrics and predictions bit-identical to those of "
        "the undisturbed run."
    )
    return f"""# Kill test

`python experiments/kill_test.py`: {kills.total()} times SIGKILL at random moments, \
over {found["studies"]} studies of seven stage runs per seed and two seeds; \
undisturbed, one takes {found["seconds"]:.0f} s on this machine. {outcome} As JSON: \
[kill_test.json](kill_test.json).

| killed while | times |
|---|--:|
{rows}
"""


def main() -> None:
    """Kills, compares, writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    args, flags = parser.parse_known_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        whole.mkdir()
        finish(whole, flags)  # Compiles, so that the next run measures the time.
        warm = Path(folder) / "warm"
        warm.mkdir()
        seconds = finish(warm, flags)
        kills: Counter = Counter()
        studies, different = 0, []
        while sum(kills.values()) < args.kills:
            workdir = Path(folder) / f"killed{studies}"
            workdir.mkdir()
            studies += 1
            while sum(kills.values()) < args.kills:
                count = sum(kills.values())
                # A resumed run takes less time.
                delay = rng.uniform(0.1, 0.8) * seconds
                where = kill(workdir, flags, delay, while_writing=count % 2 == 1)
                if where is None:
                    break
                kills[where] += 1
                print(f"kill {count + 1}: {where}", flush=True)
            finish(workdir, flags)
            different += differences(whole / "run", workdir / "run")
            print(f"study {studies} ended: {different or 'bit-identical'}", flush=True)
    found = {
        "kills": dict(kills),
        "studies": studies,
        "different": different,
        "seconds": round(seconds, 1),
    }
    pages.leave(args.out, found, page(found))
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
