"""Measures CPU time and memory of preparing patches, by slices per patient.

    python experiments/prepare_cost.py --out=experiments/prepare_cost.md

Writes phantom patients whose few drawn sections repeat as thick series, 448 x 448, with a
mask for every slice, and runs `python -m twostage_jax.prepare` on them, with and without
finding the lungs. CPU time, since wall time depends on what else a machine does.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pages
from PIL import Image

from twostage_jax.ct.phantom import CLASS_NAMES, Phantom, phantom_slices

TEXT = """# The cost of preparing patches

    python experiments/prepare_cost.py --out=experiments/prepare_cost.md

Phantom patients, 448 x 448, one mask per slice, patches of 32 pixels with stride 16, at
most 100 per class and patient. Memory is that of the largest process. "Searching" is
reading the headers of all files, once, in one process.

| patients x slices | lungs | CPU s | CPU ms per slice | largest process, MiB | patches |
|---|---|--:|--:|--:|--:|
{rows}

{search:.2f} ms per file for searching. All numbers:
[prepare_cost.json](prepare_cost.json).
"""

ROW = (
    "| {patients} x {slices} | {lungs} | {cpu_seconds} | {cpu_ms_a_slice} | {mebibytes} "
    "| {patches:,} |"
)


def write_series(folder: Path, phantom: Phantom, name: str, slices: int) -> None:
    """Writes a series of repeated sections, 1 mm apart."""
    (folder / "rois").mkdir(parents=True)
    for index in range(slices):
        section = index % len(phantom.hu)
        image = phantom.scanner.dicom(
            phantom.hu[section], name, 0, index, phantom.spacing
        )
        image.ImagePositionPatient[2] = -index
        image.save_as(folder / f"{index:04d}", enforce_file_format=True)
        mask = Image.fromarray(phantom.labels[section])
        mask.save(folder / "rois" / f"{image.SOPInstanceUID}.png")


def measured(source: Path, out: Path, lungs: str) -> tuple[float, float, int]:
    """Returns (CPU seconds, MiB of the largest process, patches) of a run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "twostage_jax.prepare", f"--source={source}"]
    command += [f"--out={out}", f"--classes={','.join(CLASS_NAMES)}"]
    command += [f"--lungs={lungs}", "--salt=s", "--workers=2"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(
        getattr(after, field) - getattr(before, field)
        for field in ("ru_utime", "ru_stime")
    )
    line = next(x for x in result.stdout.splitlines() if " patches of " in x)
    return cpu, after.ru_maxrss / 1024, int(line.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the page, .md")
    parser.add_argument("--patients", type=int, default=12)
    options = parser.parse_args()
    phantoms = [phantom_slices(k, slices=2) for k in range(options.patients)]
    rows, numbers = [], []
    with tempfile.TemporaryDirectory() as name:
        # The peak over all processes only grows, so the smallest archive comes first.
        for slices in (4, 40):
            source = Path(name, f"slices{slices}")
            for number, phantom in enumerate(phantoms):
                patient = f"P{number}"
                write_series(source / patient, phantom, patient, slices)
            for lungs in ("off", "found"):
                if lungs == "found" and slices > 4:
                    continue
                out = Path(name, f"out{slices}{lungs}")
                cpu, peak, patches = measured(source, out, lungs)
                count = options.patients * slices
                numbers.append(
                    {
                        "patients": options.patients,
                        "slices": slices,
                        "lungs": lungs,
                        "cpu_seconds": round(cpu, 1),
                        "cpu_ms_a_slice": round(1000 * cpu / count),
                        "mebibytes": round(peak),
                        "patches": patches,
                    }
                )
                rows.append(ROW.format(**numbers[-1]))
                print(rows[-1], flush=True)
        search = searched(source)
    found = {"rows": numbers, "search_ms_a_file": round(search, 2)}
    pages.leave(options.out, found, TEXT.format(rows="\n".join(rows), search=search))


def searched(source: Path) -> float:
    """Returns the CPU milliseconds per file of reading headers."""
    from twostage_jax.ct.series import scan

    began = time.process_time()
    found = scan(source)
    return (
        1000 * (time.process_time() - began) / (len(found.headers) + len(found.others))
    )


if __name__ == "__main__":
    main()
