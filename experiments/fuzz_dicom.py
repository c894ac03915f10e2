"""Damages CT files in thousands of ways and sees what reading them does.

    python experiments/fuzz_dicom.py --data=DATA/ct_dicom --count=3000 \
        --out=experiments/fuzz_dicom.md

Each variant is read in a process of its own kind, with limits of time and memory, and
again by SimpleITK, which says whether HU that changed are what the damaged file now
holds. Needs Linux and the extras 'dicom' and 'test'. Exit status 1 if a variant was not
handled.
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
from dicom_damage import DAMAGES, recoded

from twostage_jax import atomic

TIME_LIMIT_S = 20
MEMORY_LIMIT = 4 * 2**30
GOOD = ("refused", "read as before", "read as SimpleITK does")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a variant.

    Attributes:
      damage: What was done to it.
      kind: 'refused', 'read as before', 'read as SimpleITK does', 'read otherwise',
        or what must not happen: 'other error', 'crash', 'too slow'.
      detail: The message.
      seconds: How long reading took.
      peak_mib: Most memory that the process held while it read, MiB.
    """

    damage: str
    kind: str
    detail: str
    seconds: float
    peak_mib: float


class Reader:
    """A process that reads files, started anew when it ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def __call__(self, path: Path, original: Path) -> dict:
        """Returns the answer on a file; see `answers`."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, __file__, "--reader"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # `select` does not see what lies in a buffer.
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
            # SimpleITK comes last: its crashes are not ours.
            compared = self._line(TIME_LIMIT_S)
            if compared is None:
                self.close()
                detail = "SimpleITK crashed, or took too long"
                return {**answer, "kind": "read otherwise", "detail": detail}
            return compared
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
    """The reading process: a line of JSON in, one or two out."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        path, original = map(Path, json.loads(line))
        # SimpleITK's memory, from the file before, is not ours: the peak starts anew.
        Path("/proc/self/clear_refs").write_text("5")
        began = time.monotonic()
        answer, hu = _read(path)
        answer["seconds"] = time.monotonic() - began
        answer["peak_mib"] = _peak_mib()
        if hu is not None:
            print(json.dumps({**answer, "kind": "compare"}), flush=True)
            answer |= _compared(hu, path, original)
        print(json.dumps(answer), flush=True)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def _read(path: Path) -> tuple[dict, list[np.ndarray] | None]:
    from twostage_jax.ct.dicom import read_headers, read_slices
    from twostage_jax.errors import UserError

    try:
        headers = read_headers(path)
        return {}, [hu for _, hu in read_slices(path, range(len(headers)))]
    except UserError as error:
        named = str(path) in str(error)
        kind = "refused" if named else "other error"
        return {"kind": kind, "detail": str(error).replace(str(path), "FILE")}, None
    except BaseException as error:
        return {"kind": "other error", "detail": repr(error)[:300]}, None


def _compared(hu: list[np.ndarray], path: Path, original: Path) -> dict:
    before = np.load(original)
    volume = np.stack(hu)
    if volume.shape == before.shape and np.array_equal(volume, before):
        return {"kind": "read as before", "detail": ""}
    import SimpleITK

    SimpleITK.ProcessObject.GlobalWarningDisplayOff()
    try:
        other = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError:
        other = None
    if other is None:
        if volume.shape != before.shape:
            return {"kind": "read otherwise", "detail": "SimpleITK refuses it"}
        share = np.mean(volume != before)
        detail = f"SimpleITK refuses it; {share:.4%} of the HU are not as before"
        return {"kind": "read otherwise", "detail": detail}
    if other.shape != volume.shape:
        return {"kind": "read otherwise", "detail": f"{other.shape}, {volume.shape}"}
    # Padding is air with us; fractions are rounded.
    differs = (abs(other - volume) > 0.5 + 1e-6) & (volume != -1000)
    if differs.any():
        detail = f"{differs.mean():.1%} of the pixels differ"
        return {"kind": "read otherwise", "detail": detail}
    return {"kind": "read as SimpleITK does", "detail": ""}


def fuzz(
    originals: list[bytes], count: int, seed: int, keep: Path | None = None
) -> list[Outcome]:
    """Returns what became of `count` variants of some files.

    Args:
      originals: Files, as bytes.
      count: Of variants.
      seed: Of the damage.
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
                )
            )
            if keep is not None and answer["kind"] not in GOOD:
                keep.mkdir(exist_ok=True)
                (keep / f"{number:05d}").write_bytes(broken)
                print(number, what, answer["kind"], answer["detail"])
    reader.close()
    return outcomes


def _prepared(data: bytes, folder: Path, index: int) -> tuple[bytes, Path]:
    from twostage_jax.ct.dicom import read_headers, read_slices

    path = folder / f"original{index}"
    path.write_bytes(data)
    hu = [hu for _, hu in read_slices(path, range(len(read_headers(path))))]
    np.save(folder / f"original{index}.npy", np.stack(hu))
    return data, folder / f"original{index}.npy"


def summary(outcomes: list[Outcome]) -> dict[str, Any]:
    """Returns the numbers of the page."""
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
        "read_otherwise_or_worse": [
            f"{o.damage}: {o.kind}, {o.detail[:150]}"
            for o in outcomes
            if o.kind not in GOOD
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
        f"{found['variants']:,} variants of {found['files']} files: CT slices as they "
        "are, and the same in other transfer syntaxes. Each is read in another process "
        f"with limits of {TIME_LIMIT_S} s and {MEMORY_LIMIT / 2**30:.0f} GiB, then by "
        "SimpleITK. 'Read as SimpleITK does': HU changed, but they are what the damaged "
        "file holds, and nothing in it can tell. 'Read otherwise': HU changed, and "
        "SimpleITK does not say the same, most often since it refuses the file for "
        "damage that does not touch the pixels; listed below. As JSON, with all reasons "
        "of refusal: [fuzz_dicom.json](fuzz_dicom.json).",
        "",
        f"| damage | {' | '.join(kinds)} |",
        f"|---|{'--:|' * len(kinds)}",
    ]
    for damage, row in [*found["table"].items(), ("all", found["all"])]:
        cells = (f"{row[kind]:,}" for kind in kinds)
        lines.append(f"| {damage} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The slowest took {found['slowest_s']:.2f} s on a machine with other work to "
        f"do; the reading process never held more than {found['peak_mib']} MiB while it "
        f"read, of which about 100 are the program. {found['seconds']} s in all.",
        "",
        "The commonest reasons of refusal:",
        "",
        *(f"- {n}: {why}" for n, why in found["refused"][:12]),
    ]
    others = found["read_otherwise_or_worse"]
    if others:
        lines += ["", "Read otherwise, or worse:", ""]
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
    if options.out:
        atomic.write_json(options.out.with_suffix(".json"), found)
        atomic.write_text(options.out, page(found))
    print(page(found))
    bad = ("other error", "crash", "too slow")
    return int(any(o.kind in bad for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
