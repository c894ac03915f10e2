"""Measures the cost of mapping a whole series: time, windows per second, memory.

    python experiments/predict_cost.py --run=runs/two_stage --out=FOLDER

draws a phantom patient of 300 thin slices of 512 x 512 pixels, writes it as DICOM, and
maps it as `python -m twostage_jax.predict` does, with windows of the network's own size.
Then it maps sections of other phantom patients at several strides, and compares the classes
with those of the phantoms. Writes the page, and the numbers next to it as JSON. The phantom
(minutes to draw) stays in FOLDER.
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
import pages

SEED = 5
# Patient with honeycombing, reticular opacity and ground glass; see `DISEASES`.
PATIENT = 7
# (patient, seed) of the phantoms that strides are compared on, and sections of each.
OTHERS, SECTIONS = ((7, 5), (3, 5), (11, 6), (5, 8), (2, 9)), 6
STRIDES = (4, 8, 12, 16, 24)
# Names on the page of the functions that make maps.
STEPS = {
    "read_volume": "reading",
    "find_lungs": "lung masks",
    "classify": "windows",
    "_write_files": "arrays, NIfTI, pictures, DICOM SEG",
}

PAGE = """# The cost of mapping a whole series

    python experiments/predict_cost.py --run=runs/two_stage --out=FOLDER

A phantom of {slices} slices, 1 mm apart, of {matrix} x {matrix} pixels; `caffenet_small`,
windows of {size} pixels at stride {stride}, 7 classes; all files that `predict` writes.
{devices}, {cores} CPU cores, mean load {load} over the last 15 minutes, jax {jax}. CPU
seconds, over all threads, depend little on what else the machine did. Not measured on a
GPU. All numbers: [predict_cost.json](predict_cost.json).

| step | seconds | CPU seconds |
|---|---|---|
{rows}

{windows:,} windows: {windows_a_second:,} per second,
{windows_a_cpu_second:,} per CPU second.
Peak memory {peak_gib} GiB. The folder of the series takes up {megabytes[all]} MB: pictures
{megabytes[.png]} MB, the DICOM SEG {megabytes[.dcm]} MB (one bit per pixel, uncompressed,
so that every viewer reads it).

The stride costs time in proportion to the windows, and smaller ones gain little. On
{sections} sections of each of five phantom patients, not used in training, pixels
with the right class, and the mean error of the share of a class in the lung, in points:

| stride, pixels | windows per section | right, % | error of shares |
|--:|--:|--:|--:|
{strides}
"""


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
    from twostage_jax.maps import classify
    from twostage_jax.maps import run as series_maps
    from twostage_jax.study import artifacts

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
    model = artifacts.find(run)
    how = classify.How(stride=stride, window=(-600.0, 1500.0), spacing=None)
    began = clocks()
    classifier = classify.Classifier(model, how.window)
    series_maps.map_folder(dicom, out, classifier, how)
    found["total"] = clocks() - began
    return found


def compare_strides(run: Path) -> list[dict[str, float]]:
    """Returns, for each stride, windows per section and agreement with the phantoms."""
    from twostage_jax.ct import phantom
    from twostage_jax.maps import classify
    from twostage_jax.study import artifacts

    model = artifacts.find(run)
    classifier = classify.Classifier(model, model.window)
    labels = range(1, 1 + len(model.class_names))
    found = []
    for stride in STRIDES:
        how = classify.How(stride=stride, window=model.window, spacing=None)
        cells = []
        for patient, seed in OTHERS:
            drawn = phantom.phantom_slices(
                patient, seed=seed, slices=SECTIONS, matrix=512
            )
            spacing = (drawn.spacing, drawn.spacing)
            maps = classify.classify(drawn.hu, drawn.lungs, spacing, classifier, how)
            true, said = (
                of[(maps.labels > 0) & (drawn.labels > 0)]
                for of in (drawn.labels, maps.labels)
            )
            shares = [abs((true == k).mean() - (said == k).mean()) for k in labels]
            windows = maps.windows / SECTIONS
            cells.append((windows, (true == said).mean(), np.mean(shares)))
        windows, right, error = np.mean(cells, axis=0)
        found.append(
            {
                "stride": stride,
                "windows": round(windows),
                "right": round(100 * right, 1),
                "share_error": round(100 * error, 1),
            }
        )
    return found


def clocks() -> np.ndarray:
    """Returns wall-clock seconds and CPU seconds of the process."""
    return np.array([time.perf_counter(), time.process_time()])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--page", type=Path, default=Path("experiments/predict_cost.md")
    )
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--matrix", type=int, default=512)
    parser.add_argument("--stride", type=int, default=12)
    options = parser.parse_args()
    dicom = options.out / f"phantom-{options.slices}-{options.matrix}"
    if not dicom.is_dir():
        # In a separate process, so that its memory does not count for the maps.
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

    count, size = found.pop("count")
    total = found.pop("total")
    steps = {name: found[name] for name in STEPS.values()}
    steps["finding files and the rest"] = total - sum(steps.values())
    wall, cpu = found[STEPS["classify"]]
    devices = jax.devices()
    numbers = {
        "slices": options.slices,
        "matrix": options.matrix,
        "stride": options.stride,
        "size": round(size),
        "windows": round(count),
        "windows_a_second": round(count / wall),
        "windows_a_cpu_second": round(count / cpu),
        "peak_gib": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
        ),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[2], 1),
        "jax": jax.__version__,
        "steps": {
            name: {"seconds": round(both[0], 1), "cpu_seconds": round(both[1], 1)}
            for name, both in {**steps, "total": total}.items()
        },
        "megabytes": _megabytes(maps),
        "by_stride": compare_strides(options.run),
        "sections": SECTIONS,
    }
    rows = "\n".join(
        f"| {name} | {one['seconds']} | {one['cpu_seconds']} |"
        for name, one in numbers["steps"].items()
    )
    strides = "\n".join(
        "| {stride} | {windows} | {right} | {share_error} |".format(**one)
        for one in numbers["by_stride"]
    )
    page = PAGE.format(rows=rows, strides=strides, **numbers)
    pages.leave(options.page, numbers, page)


def _megabytes(folder: Path) -> dict[str, int]:
    """Returns the size of all files, and the sizes by suffix."""
    sizes: dict[str, int] = defaultdict(int)
    for path in folder.rglob("*"):
        if path.is_file():
            for kind in ("all", path.suffix):
                sizes[kind] += path.stat().st_size
    return {kind: round(size / 1e6) for kind, size in sizes.items()}


if __name__ == "__main__":
    main()
