"""Damages CT files in thousands of ways and checks how they are read.

    python experiments/fuzz_dicom.py --data=DATA/ct_dicom --count=3000 \
        --out=experiments/fuzz_dicom.md

Each variant is read in a separate process, with limits of time and memory. If it can be
read, it goes through the next steps: sorting, the lung mask, a segmentation over it. It
is read again by SimpleITK, which says whether HU, or a geometry, that changed are what
the damaged file now holds. Needs Linux and the extras 'dicom' and 'test'. Exit status 1
if a variant was not handled, or was read otherwise.
"""

import argparse
import collections
import dataclasses
import json
import resource
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages
from dicom_compare import ALONE, MOST_CHANGED, alone, changed, compared, geometry
from dicom_damage import DAMAGES, recoded

from twostage_jax.ct.dicom import Header, read_headers, read_slices
from twostage_jax.ct.lungs import lung_mask
from twostage_jax.ct.series import sort_series
from twostage_jax.errors import UserError
from twostage_jax.maps.seg import write_segmentation

TIME_LIMIT_S = 20
MEMORY_LIMIT = 4 * 2**30
# The lung masks of thousands of larger slices would take too long.
LARGEST_SIDE = 512
GOOD = ("refused", "read as before", "read as SimpleITK does", ALONE)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of a variant.

    Attributes:
      damage: Kind of the damage.
      kind: 'refused', 'read as before', 'read as SimpleITK does', 'read by us alone'
        (SimpleITK refuses it, and at most `MOST_CHANGED` of the HU changed), or what
        must not happen: 'read otherwise', 'other error', 'crash', 'too slow'.
      detail: The message.
      seconds: Duration of reading and the next steps.
      peak_mib: Most memory that the process held meanwhile, MiB.
      later: Reason of refusal by a step after reading; '' if none.
    """

    damage: str
    kind: str
    detail: str
    seconds: float
    peak_mib: float
    later: str = ""


class Reader:
    """Process that reads files, and is restarted when it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __call__(self, path: Path, original: Path) -> dict:
        """Returns the answer for a file; see `answers`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--reader"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # `select` does not detect data in a buffer.
                bufsize=0,
            )
            self._line(60)
        self._process.stdin.write(
            f"{json.dumps([str(path), str(original)])}\n".encode()
        )
        self._process.stdin.flush()
        answer = self._line(TIME_LIMIT_S)
        if answer is None:
            crashed = self._process.poll() is not None
            self.close()
            return {"kind": "crash" if crashed else "too slow", "detail": ""}
        if answer.get("kind") == "compare":
            # SimpleITK comes last, so that its crashes can be distinguished.
            rest = self._line(TIME_LIMIT_S)
            if rest is None:
                self.close()
                return answer | alone(answer["changed"], "SimpleITK crashes")
            return rest
        return answer

    def close(self) -> None:
        if self._process is not None:
            with self._process:
                self._process.kill()
            self._process = None

    def _line(self, seconds: float) -> dict | None:
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        return json.loads(line) if line else None


def answers() -> None:
    """Runs the reading process: a line of JSON in, one or two out."""
    import highdicom  # noqa: F401 - slow the first time

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        path, original = map(Path, json.loads(line))
        # Resets the peak, which includes SimpleITK's memory for the previous file.
        Path("/proc/self/clear_refs").write_text("5")
        began = time.monotonic()
        answer, headers, hu = _read(path)
        if headers:
            answer |= use(headers, hu, path.with_suffix(".seg"))
        answer["seconds"] = time.monotonic() - began
        answer["peak_mib"] = _peak_mib()
        if headers and "kind" not in answer:
            before = np.load(original)
            answer["changed"] = changed(hu, before["hu"])
            print(json.dumps({**answer, "kind": "compare"}), flush=True)
            answer |= compared(headers, hu, path, before)
        print(json.dumps(answer), flush=True)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _read(path: Path) -> tuple[dict, list[Header], np.ndarray | None]:
    try:
        headers = read_headers(path)
        slices = [hu for _, hu in read_slices(path, range(len(headers)))]
        return {}, headers, np.stack(slices)
    except UserError as error:
        named = str(path) in str(error)
        kind = "refused" if named else "other error"
        detail = str(error).replace(str(path), "FILE")
        return {"kind": kind, "detail": detail}, [], None
    except BaseException as error:
        return {"kind": "other error", "detail": repr(error)[:300]}, [], None


def use(headers: list[Header], hu: np.ndarray, path: Path) -> dict:
    """Runs the steps of a map on a series, and returns the outcome."""
    try:
        series = sort_series(headers)
        spacing = headers[0].spacing
        if spacing is not None and max(hu.shape[1:]) <= LARGEST_SIDE:
            lung_mask(hu, (series.step, *spacing))
        about = {"model": "fuzz", "model_hash": "0" * 64, "settings": {}}
        labels = np.ones(hu.shape, np.uint8)
        write_segmentation(path, headers, labels, ("any",), **about)
    except UserError as error:
        return {"later": str(error).replace(str(headers[0].path), "FILE")}
    except BaseException as error:
        return {"kind": "other error", "detail": f"after reading: {error!r}"[:300]}
    return {}


def fuzz(
    originals: list[bytes], count: int, seed: int, keep: Path | None = None
) -> list[Outcome]:
    """Returns the outcomes of `count` variants of some files.

    Args:
      originals: Files, as bytes.
      count: Number of variants.
      seed: Seed of the damage.
      keep: Folder for variants that were not handled.
    """
    rng = np.random.default_rng(seed)
    reader, outcomes = Reader(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [_prepared(data, folder, i) for i, data in enumerate(originals)]
        for number in range(count):
            data, expected = files[rng.integers(len(files))]
            damage = DAMAGES[number % len(DAMAGES)]
            what, broken = damage(data, rng)
            path = folder / "variant"
            path.write_bytes(broken)
            answer = reader(path, expected)
            outcomes.append(
                Outcome(
                    what,
                    answer["kind"],
                    answer["detail"],
                    answer.get("seconds", TIME_LIMIT_S),
                    answer.get("peak_mib", 0),
                    answer.get("later", ""),
                )
            )
            if keep is not None and answer["kind"] not in GOOD:
                keep.mkdir(exist_ok=True)
                (keep / f"{number:05d}").write_bytes(broken)
                print(number, what, answer["kind"], answer["detail"])
    reader.close()
    return outcomes


def _prepared(data: bytes, folder: Path, index: int) -> tuple[bytes, Path]:
    path = folder / f"original{index}"
    path.write_bytes(data)
    headers = read_headers(path)
    hu = np.stack([hu for _, hu in read_slices(path, range(len(headers)))])
    np.savez(folder / f"original{index}.npz", hu=hu, geometry=geometry(headers))
    return data, folder / f"original{index}.npz"


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Returns the numbers on the page."""
    counted = collections.Counter((o.damage, o.kind) for o in outcomes)
    reasons = collections.Counter(o.detail for o in outcomes if o.kind == "refused")
    kinds = sorted({o.kind for o in outcomes})
    return {
        "variants": len(outcomes),
        "table": {
            damage: {kind: counted[damage, kind] for kind in kinds}
            for damage in sorted({o.damage for o in outcomes})
        },
        "all": {kind: sum(o.kind == kind for o in outcomes) for kind in kinds},
        "slowest_s": round(max(o.seconds for o in outcomes), 2),
        "peak_mib": round(max(o.peak_mib for o in outcomes)),
        "refused": [[n, why[:150]] for why, n in reasons.most_common()],
        "refused_later": sum(bool(o.later) for o in outcomes),
        "read_alone_or_worse": [
            f"{o.damage}: {o.kind}, {o.detail[:150]}"
            for o in outcomes
            if o.kind not in GOOD or o.kind == ALONE
        ],
    }


def page(found: dict[str, Any]) -> str:
    """Returns the page of results, Markdown."""
    kinds = list(found["all"])
    lines = [
        "# Damaged CT files",
        "",
        f"    {found['command']}",
        "",
        f"{found['variants']:,} variants of {found['files']} files: CT slices, "
        "unchanged and in other transfer syntaxes. Each is read in another process "
        f"with limits of {TIME_LIMIT_S} s and {MEMORY_LIMIT / 2**30:.0f} GiB, which also "
        "sorts it, masks its lungs and writes a segmentation over it; then by SimpleITK. "
        "'Read as SimpleITK does': HU or geometry changed, but they are the contents of "
        "the damaged file, which do not reveal the change. 'Read by us alone': "
        f"SimpleITK refuses the file, and at most {MOST_CHANGED:.2%} of the HU "
        "changed. 'Read otherwise', which must not happen: SimpleITK does not agree. "
        "As JSON, with all reasons of refusal: [fuzz_dicom.json](fuzz_dicom.json).",
        "",
        f"| damage | {' | '.join(kinds)} |",
        f"|---|{'--:|' * len(kinds)}",
    ]
    for damage, row in [*found["table"].items(), ("all", found["all"])]:
        cells = (f"{row[kind]:,}" for kind in kinds)
        lines.append(f"| {damage} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The slowest took {found['slowest_s']:.2f} s on a machine shared with "
        f"other work; the reading process used at most {found['peak_mib']} "
        f"MiB. Of the variants that were read, {found['refused_later']} were refused "
        f"by a later step. {found['seconds']} s in all.",
        "",
        "The most common reasons of refusal:",
        "",
        *(f"- {n}: {why}" for n, why in found["refused"][:12]),
    ]
    others = found["read_alone_or_worse"]
    if others:
        lines += ["", "Read by us alone, or worse:", ""]
        lines += [f"- {what}" for what in others[:40]]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of CT slices")
    parser.add_argument("--count", type=int, default=3000, help="variants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the page, .md")
    parser.add_argument("--keep", type=Path, help="folder of what was not handled")
    parser.add_argument("--reader", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        answers()
        return 0
    began = time.monotonic()
    paths = sorted(p for p in options.data.rglob("*.dcm"))
    originals = [path.read_bytes() for path in paths]
    for data in originals[:4]:
        originals += recoded(data)
    outcomes = fuzz(originals, options.count, options.seed, options.keep)
    found = {
        "command": "python experiments/fuzz_dicom.py --data=DATA/ct_dicom "
        f"--count={options.count} --seed={options.seed} "
        "--out=experiments/fuzz_dicom.md",
        "files": len(originals),
        "seconds": round(time.monotonic() - began),
        **summary(outcomes),
    }
    pages.leave(options.out, found, page(found))
    return int(any(o.kind not in GOOD for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
