"""What it costs to map disease in a whole series: time, windows a second, peak memory.

    python experiments/predict_cost.py --run=runs/two_stage --out=FOLDER

draws a phantom patient of 300 thin slices of 512 x 512 pixels, writes it as DICOM, and
maps it as `python -m twostage_jax.predict` does, with windows of the network's own size.
Prints a table in Markdown. The phantom (minutes to draw) stays in FOLDER.
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import shutil
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

SEED = 5
# Of DISEASES in ct/phantom.py: honeycombing, reticular opacity and ground glass.
PATIENT = 7
# What each function of a series' maps is shown as.
STEPS = {
    "read_volume": "reading",
    "lung_mask": "lung masks",
    "classify": "windows",
    "_write_arrays": "arrays, NIfTI, report",
    "_draw": "overlays and contact sheet",
    "_write_dicom": "DICOM SEG",
}


def write_series(folder: Path, slices: int, matrix: int) -> None:
    """Writes one phantom patient whose slices are 1 mm apart."""
    from twostage_jax.ct import phantom

    drawn = phantom.phantom_slices(PATIENT, seed=SEED, slices=slices, matrix=matrix)
    scanner = dataclasses.replace(drawn.scanner, thickness=1.0, gap=1.0)
    drawn = dataclasses.replace(drawn, scanner=scanner)
    phantom.write_patient(folder, drawn, seed=SEED)


def measure(run: Path, dicom: Path, out: Path, stride: int) -> dict[str, np.ndarray]:
    """Returns (seconds, CPU seconds) by step of one run of `predict`.

    Also 'total', and 'count': (windows, side of a window in pixels).
    """
    from twostage_jax import cli
    from twostage_jax.mapping import classify, trained
    from twostage_jax.mapping import folder as folder_maps
    from twostage_jax.mapping import series as series_maps

    cli.use_cores()
    found = defaultdict(lambda: np.zeros(2))

    def timed(name, function):
        def call(*args):
            began = clocks()
            result = function(*args)
            found[STEPS[name]] += clocks() - began
            if name == "classify":
                found["count"] += result.windows, classifier.size
            return result

        return call

    for name in STEPS:
        setattr(series_maps, name, timed(name, getattr(series_maps, name)))
    model = trained.find(run)
    how = classify.How(stride=stride, window=(-600.0, 1500.0), spacing=None)
    began = clocks()
    classifier = classify.Classifier(model, how.window)
    folder_maps.map_folder(dicom, out, classifier, how)
    found["total"] = clocks() - began
    return found


def clocks() -> np.ndarray:
    """Returns the seconds that have passed, and those that the process computed."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--stride", type=int, default=8)
    options = parser.parse_args()
    dicom = options.out / f"phantom-{options.slices}-{options.matrix}"
    if not dicom.is_dir():
        # In a process of its own: its memory is not that of the maps.
        new = dicom.with_name(f".new-{dicom.name}")
        shutil.rmtree(new, ignore_errors=True)
        arguments = new, options.slices, options.matrix
        process = multiprocessing.get_context("spawn").Process(
            target=write_series, args=arguments
        )
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("the phantom could not be written.")
        new.rename(dicom)
    maps = options.out / "maps"
    shutil.rmtree(maps, ignore_errors=True)
    found = measure(options.run, dicom, maps, options.stride)
    import jax

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    count, size = found.pop("count")
    total = found.pop("total")
    devices = jax.devices()
    print(
        f"\n{options.slices} slices of {options.matrix} x {options.matrix}, windows of "
        f"{size:.0f} pixels at stride {options.stride}; {len(devices)} x "
        f"{devices[0].device_kind}, {os.cpu_count()} CPU cores, load average "
        f"{os.getloadavg()[2]:.1f}\n\n| step | seconds | CPU seconds |\n|---|---|---|"
    )
    rows = {name: found[name] for name in STEPS.values()}
    rows["finding files and the rest"] = total - sum(rows.values())
    for name, (wall, cpu) in {**rows, "total": total}.items():
        print(f"| {name} | {wall:.1f} | {cpu:.1f} |")
    wall, cpu = found[STEPS["classify"]]
    print(
        f"\n{count:.0f} windows: {count / wall:.0f} a second, {count / cpu:.0f} a CPU "
        f"second; peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
