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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

TIME_LIMIT_S = 20
MEMORY_LIMIT = 4 * 2**30
SYNTAXES = (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
)
# Values that no CT image has, or that contradict what else it says.
ABSURD = {
    "Rows": (0, 1, 511, 513, 65535),
    "Columns": (0, 1, 511, 513, 65535),
    "NumberOfFrames": ("0", "2", "65535", "-1", "2147483647"),
    "SamplesPerPixel": (0, 3, 65535),
    "BitsAllocated": (0, 1, 8, 12, 32, 64, 65535),
    "BitsStored": (0, 1, 8, 17, 65535),
    "HighBit": (0, 7, 40, 65535),
    "PixelRepresentation": (0, 1, 2, 65535),
    "PhotometricInterpretation": ("RGB", "PALETTE COLOR", "MONOCHROME1", ""),
    "RescaleSlope": ("0", "-1", "1e300", "nan", "", "1e-300", "2"),
    "RescaleIntercept": ("nan", "inf", "1e30", "", "-99999"),
    "RescaleType": ("US", "", "HU_MOD"),
    "PixelSpacing": (["0", "0"], ["-1", "1"], ["nan", "1"], "1", ["1", "1", "1"]),
    "ImagePositionPatient": (["nan", "0", "0"], ["1e300", "0", "0"], ["0", "0"]),
    "ImageOrientationPatient": (["0"] * 6, ["1", "0", "0", "1", "0", "0"], ["1"]),
    "PixelPaddingValue": (0, 1, 32767),
    "Modality": ("MR", "", "CT\\MR"),
    "SOPClassUID": ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.7", "x"),
    "SOPInstanceUID": ("", "x" * 64),
    "SeriesInstanceUID": ("",),
    "PatientID": ("../../x", "<script>", "", "x" * 10_000),
    "InstanceNumber": ("", "-1", "99999999999", "x"),
    "SliceThickness": ("0", "nan", "-5"),
    "PixelData": (b"", b"\0", b"\0" * 1000),
}
Damage = Callable[[bytes, np.random.Generator], tuple[str, bytes]]


def flipped(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A few bytes changed, most often in the header."""
    broken = bytearray(data)
    end = len(data) if rng.random() < 0.3 else min(len(data), 6000)
    for at in rng.integers(128, end, rng.integers(1, 9)):
        broken[at] = rng.integers(256)
    return "bytes changed", bytes(broken)


def truncated(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """The end cut off."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 6000)
    return "cut off", data[: rng.integers(0, end)]


def stuffed(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Bytes put in, taken out or repeated."""
    at, length = rng.integers(132, min(len(data), 6000)), rng.integers(1, 40)
    match rng.integers(3):
        case 0:
            middle = rng.integers(0, 256, length, np.uint8).tobytes()
            return "bytes put in", data[:at] + middle + data[at:]
        case 1:
            return "bytes taken out", data[:at] + data[at + length :]
    return "bytes repeated", data[: at + length] + data[at:]


def lengths(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """A length field, or what may be one, set to an absurd value."""
    broken = bytearray(data)
    at = 2 * rng.integers(66, min(len(data), 6000) // 2 - 4)
    values = (b"\xff" * 4, b"\xfe\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 4)
    broken[at : at + 4] = values[rng.integers(len(values))]
    return "length absurd", bytes(broken)


def untagged(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One to three elements removed."""
    dataset = _dataset(data)
    tags = [element.tag for element in dataset if element.keyword != "PixelData"]
    for index in rng.choice(len(tags), rng.integers(1, 4), replace=False):
        del dataset[tags[index]]
    return "elements removed", _bytes(dataset)


def absurd(data: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """One or two elements set to a value that cannot be."""
    dataset = _dataset(data)
    for keyword in rng.choice(list(ABSURD), rng.integers(1, 3), replace=False):
        values = ABSURD[keyword]
        value = values[rng.integers(len(values))]
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag).split(" ")[0]
        if keyword == "PixelData":
            vr = dataset[tag].VR
            if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                value = pydicom.encaps.encapsulate([value + b"\0\0"])
        dataset.add(pydicom.DataElement(tag, vr, value, already_converted=True))
    return "values absurd", _bytes(dataset)


DAMAGES: tuple[Damage, ...] = (flipped, truncated, stuffed, lengths, untagged, absurd)


def _dataset(data: bytes) -> pydicom.Dataset:
    return pydicom.dcmread(pydicom.filebase.DicomBytesIO(data))


def _bytes(dataset: pydicom.Dataset) -> bytes:
    file = pydicom.filebase.DicomBytesIO()
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    dataset.save_as(file, enforce_file_format=False)
    return file.getvalue()


def recoded(data: bytes) -> Iterator[bytes]:
    """Yields a file in other transfer syntaxes."""
    for syntax in SYNTAXES:
        dataset = _dataset(data)
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
            if not syntax.is_little_endian:
                values = np.frombuffer(dataset.PixelData, "<u2")
                dataset.PixelData = values.byteswap().tobytes()
        file = pydicom.filebase.DicomBytesIO()
        pydicom.dcmwrite(
            file,
            dataset,
            implicit_vr=False,
            little_endian=syntax.is_little_endian,
            enforce_file_format=True,
        )
        yield file.getvalue()


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


GOOD = ("refused", "read as before", "read as SimpleITK does")


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


def page(outcomes: list[Outcome], files: int, seconds: float, command: str) -> str:
    """Returns the page of results, Markdown."""
    kinds = sorted({o.kind for o in outcomes})
    damages = sorted({o.damage for o in outcomes})
    table = collections.Counter((o.damage, o.kind) for o in outcomes)
    lines = [
        "# Damaged CT files",
        "",
        f"    {command}",
        "",
        f"{len(outcomes):,} variants of {files} files: CT slices as they are, and the "
        "same in other transfer syntaxes. Each is read in another process with limits "
        f"of {TIME_LIMIT_S} s and {MEMORY_LIMIT / 2**30:.0f} GiB, then by SimpleITK. "
        "'Read as SimpleITK does': HU changed, but they are what the damaged file "
        "holds, and nothing in it can tell. 'Read otherwise': HU changed, and SimpleITK "
        "does not say the same, most often since it refuses the file for damage that "
        "does not touch the pixels; listed below.",
        "",
        f"| damage | {' | '.join(kinds)} |",
        f"|---|{'--:|' * len(kinds)}",
    ]
    for damage in damages:
        cells = [f"{table[damage, kind]:,}" for kind in kinds]
        lines.append(f"| {damage} | {' | '.join(cells)} |")
    totals = [f"{sum(o.kind == kind for o in outcomes):,}" for kind in kinds]
    lines.append(f"| all | {' | '.join(totals)} |")
    slowest = max(o.seconds for o in outcomes)
    peak = max(o.peak_mib for o in outcomes)
    lines += [
        "",
        f"The slowest took {slowest:.2f} s on a machine with other work to do; the "
        f"reading process never held more than {peak:.0f} MiB while it read, of which "
        f"about 100 are the program. {seconds:.0f} s in all.",
        "",
        "The commonest reasons of refusal:",
        "",
    ]
    reasons = collections.Counter(o.detail for o in outcomes if o.kind == "refused")
    lines += [f"- {n}: {why[:150]}" for why, n in reasons.most_common(12)]
    others = [o for o in outcomes if o.kind not in GOOD]
    if others:
        lines += ["", "Read otherwise, or worse:", ""]
        lines += [f"- {o.damage}: {o.kind}, {o.detail[:150]}" for o in others[:40]]
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
    command = (
        f"python experiments/fuzz_dicom.py --data=DATA/ct_dicom --count={options.count} "
        f"--seed={options.seed} --out=experiments/fuzz_dicom.md"
    )
    text = page(outcomes, len(originals), time.monotonic() - began, command)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)
    bad = ("other error", "crash", "too slow")
    return int(any(o.kind in bad for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
