"""Measures how cost grows with images, patients, runs, devices and processes.

    python experiments/scale.py --out=experiments/scale.md

Each size runs in a process of its own, so that its peak memory is its own. CPU time, since
wall time depends on what else a machine does. Minutes on a CPU. `--kinds` measures only
these, such as `--kinds=devices,processes`, and keeps the rest of the numbers.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pages
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "tests" / "helpers"))

SIZES = {
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "patients": (17, 50, 150, 500),
    "runs": (4, 40, 160, 400),
    "devices": (1, 2, 4, 8),
    "processes": (1, 2, 4),
}
REPOSITORY = Path(__file__).parent.parent
# Runs of four arms: seeds and sizes of the target set.
STUDIES = {4: (1, 1), 40: (5, 2), 160: (10, 4), 400: (20, 5)}
CHANCES = {"scratch": 0.75, "natural": 0.8, "texture": 0.78, "two_stage": 0.9}
SIDE = 16  # Pixels.

TEXT = """# How cost grows

    python experiments/scale.py --out=experiments/scale.md

CPU seconds, and peak memory of the process in MB. "Growth" is the exponent between a size
and the next smaller one: 1 is linear.

| | size | steps, CPU s | growth | peak MB |
|---|--:|---|--:|--:|
{rows}

- Images: PNG files of {side} x {side} pixels in four class folders; finding them, preparing
  the set in one process, and reading the prepared set into memory.
- Patients: in a study of four arms and five seeds, 30 patches per patient; reading the run
  folder, and the statistics of its report.
- Runs: rows of a study of 17 patients and four arms, with more seeds and sizes of the
  target set; the same steps.
- Devices: `configs/two_stage.py:smoke`, only `scratch`, each stage run spread over fake
  devices of one processor core; a second run with the programs of the first in the cache.
- Processes: four seeds of the same study in one workdir, divided among processes that
  start at the same time, as in [slurm_array.sh](slurm_array.sh). The peak is that of the
  largest process.

![CPU seconds against size](figures/scale.png)

All numbers: [scale.json](scale.json).
"""


def images(count: int, folder: Path) -> dict[str, float]:
    """Returns the CPU seconds of finding, preparing and reading a folder of images."""
    from twostage_jax.data import image_folder, store

    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / "in" / f"class{i % 4}" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIDE, SIDE), np.uint8)
        Image.fromarray(pixels).save(path, compress_level=0)
    clock = Clock()
    recipe = image_folder.recipe(path=str(folder / "in"), size=SIDE)
    clock.took("find")
    for step in ("prepare", "read"):
        store.prepare(recipe, folder / "out", workers=1, progress=False)
        clock.took(step)
    return clock.seconds


def patients(count: int, folder: Path) -> dict[str, float]:
    return _report(folder, seeds=range(5), patients=count)


def runs(count: int, folder: Path) -> dict[str, float]:
    seeds, sizes = STUDIES[count]
    fractions = [1 / 2**i for i in range(sizes)]
    return _report(folder, seeds=range(seeds), fractions=fractions, patients=17)


def _report(folder: Path, **study: object) -> dict[str, float]:
    """Returns the CPU seconds of reading a study and of its statistics."""
    from study_files import write_study

    from twostage_jax.report import study_table
    from twostage_jax.report.analysis import analyse

    primary = ("two_stage", "scratch", "balanced_accuracy")
    run = write_study(folder / "run", CHANCES, primary=primary, **study)
    clock = Clock()
    table = study_table.load([run])
    clock.took("read")
    analyse(table)
    clock.took("statistics")
    return clock.seconds


def devices(count: int, folder: Path) -> dict[str, float]:
    """Returns the CPU seconds of a small study on fake devices, twice."""
    flags = f"--xla_force_host_platform_device_count={count}"
    seconds = {}
    for name in ("first", "second"):
        began = _children()
        _finish([_start(folder, f"run_{name}", (0,), XLA_FLAGS=flags)])
        seconds[name] = round(_children() - began, 3)
    return seconds


def processes(count: int, folder: Path) -> dict[str, float]:
    """Returns the CPU seconds of processes that share the seeds of a study."""
    _finish([_start(folder, "before", (9,))])  # fills the cache
    began = _children()
    _finish([_start(folder, "run", range(k, 4, count)) for k in range(count)])
    trained = _children()
    _finish([_start(folder, "run", range(4))])
    return {
        "train": round(trained - began, 3),
        "results": round(_children() - trained, 3),
    }


def _start(
    folder: Path, run: str, seeds: Iterable[int], **env: str
) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "twostage_jax.main", "--config=configs/two_stage.py:smoke",
        f"--workdir={folder / run}", f"--data_dir={folder / 'data'}",
        "--config.study.arms=scratch,", "--config.study.side_by_side=1",
        f"--config.study.seeds={''.join(f'{seed},' for seed in seeds)}",
    ]  # fmt: skip
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **env}
    return subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL)


def _finish(started: list[subprocess.Popen]) -> None:
    for process in started:
        if process.wait():
            raise RuntimeError(f"{process.args} failed")


def _children() -> float:
    """Returns the CPU seconds of all finished processes that this one started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Clock:
    """Stopwatch of the CPU seconds of successive steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.process_time()

    def took(self, step: str) -> None:
        now = time.process_time()
        self.seconds[step] = round(now - self._last, 3)
        self._last = now


def measured(kind: str, size: int) -> dict[str, object]:
    """Returns the measurement of one size, made in a separate process."""
    command = [sys.executable, __file__, f"--only={kind}", f"--size={size}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def growth(rows: list[dict]) -> list[float | None]:
    """Returns the exponent of the total between each row and the row before."""
    totals = [sum(row["seconds"].values()) for row in rows]
    sizes = [row["size"] for row in rows]
    slopes = np.diff(np.log(totals)) / np.diff(np.log(sizes))
    return [None, *(round(float(slope), 2) for slope in slopes)]


def draw(found: dict[str, list[dict]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.subplots()
    for kind, rows in found.items():
        totals = [sum(row["seconds"].values()) for row in rows]
        axes.loglog([row["size"] for row in rows], totals, "o-", label=kind)
    axes.set(xlabel="size", ylabel="CPU seconds")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="the page, .md; JSON goes next to it")
    parser.add_argument("--only", choices=SIZES, help="measure one size and print it")
    parser.add_argument("--size", type=int, help="size for --only")
    parser.add_argument("--kinds", default=",".join(SIZES), help="what to measure")
    options = parser.parse_args()
    if options.only:
        with tempfile.TemporaryDirectory() as folder:
            seconds = globals()[options.only](options.size, Path(folder))
        who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = max(resource.getrusage(of).ru_maxrss for of in who) * 1024 / 1e6
        row = {"size": options.size, "seconds": seconds, "peak_mb": round(peak)}
        print(json.dumps(row))
        return
    found = {}
    if options.out and (earlier := options.out.with_suffix(".json")).is_file():
        found = json.loads(earlier.read_text())
    for kind in options.kinds.split(","):
        found[kind] = [measured(kind, n) for n in SIZES[kind]]
    lines = []
    for kind, rows in found.items():
        for row, slope in zip(rows, growth(rows), strict=True):
            steps = ", ".join(f"{k} {v:.2f}" for k, v in row["seconds"].items())
            shown = "" if slope is None else f"{slope:.2f}"
            lines.append(
                f"| {kind} | {row['size']:,} | {steps} | {shown} | {row['peak_mb']:,} |"
            )
    page = TEXT.format(rows="\n".join(lines), side=SIDE)
    pages.leave(options.out, found, page)
    if options.out:
        draw(found, options.out.parent / "figures" / "scale.png")


if __name__ == "__main__":
    main()
