"""Single files: written whole or not at all, locked, and read as text and tables.

Names and cells of tables are compared as text in Unicode NFC (`composed`), and whatever
is written for people to open in a spreadsheet passes through `inert`.

A table has a line of column names and is separated by commas, semicolons or tabs,
whichever yields the columns that are needed. Column names are compared without case and
surrounding blanks. The text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; other
encodings cannot be recognised with certainty and are refused.
"""

import codecs
import contextlib
import csv
import fcntl
import io
import json
import os
import re
import shutil
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostage_jax.errors import UserError, plain

if TYPE_CHECKING:  # NumPy is loaded where arrays are read, for a fast `--help`.
    import numpy as np

DELIMITERS = ",;\t"
_MARKS = (
    # UTF-32's mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
# Excel reads, and some programs write, the delimiter in a line before the header.
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n|\r|\n)', re.IGNORECASE)
# Spreadsheets take text that begins like this for a formula (OWASP, "CSV injection").
FORMULA_STARTS = ("=", "+", "-", "@")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically: readers see the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Returns the contents of a JSON file that the program wrote.

    Raises:
      UserError: The file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError.at(
            path, f"cannot be read ({error}). Run the command that wrote it again."
        ) from error


def read_arrays(
    path: Path,
    names: Sequence[str] | None = None,
    advice: str = "Run the study again.",
) -> "dict[str, np.ndarray]":
    """Returns arrays of an npz file; pickles are never read.

    Args:
      path: Path of the file.
      names: Names of the arrays; all that it has, if None.
      advice: Last sentence of an error.

    Raises:
      UserError: The file is missing, damaged, or lacks an array.
    """
    import numpy as np

    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            return {name: saved[name] for name in names or saved.files}
    except FileNotFoundError:
        raise UserError.at(path, f"the file is missing. {advice}") from None
    except Exception as error:  # of the archive, of zlib, or of the header's parser
        raise UserError.at(path, f"the file is damaged ({error}). {advice}") from error


def write_arrays(path: Path, **arrays: "np.ndarray") -> None:
    """Writes arrays atomically as a compressed npz file, without pickle.

    At level 1, in 40 % of the time of `numpy.savez_compressed`, for files a sixth larger.

    Raises:
      ValueError: An array holds objects, which would be pickled.
    """
    import numpy as np

    with (
        replacing(path) as temporary,
        zipfile.ZipFile(
            temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                array = np.asanyarray(array)
                np.lib.format.write_array(file, array, allow_pickle=False)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Writes a CSV file atomically; names of files that are not UTF-8 are escaped."""
    with replacing(path) as temporary:
        with temporary.open(
            "w", newline="", encoding="utf-8", errors="backslashreplace"
        ) as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path that replaces `path` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder that replaces `path` when the block succeeds.

    An earlier folder at `path` stays if the block fails. The folder is built next to
    `path`, and what a killed process left there is removed first: hold a lock (see
    `locked`) where several processes may write the same folder.
    """
    new, old = (path.with_name(f".{kind}-{path.name}") for kind in ("new", "old"))
    for stale in (new, old):
        shutil.rmtree(stale, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    finally:
        for stale in (new, old):
            shutil.rmtree(stale, ignore_errors=True)


def check_out(out: Path, what: str, marks: Sequence[str]) -> None:
    """Raises a UserError if `--out` holds something else than a command's earlier output.

    Args:
      out: Output folder of the command, which it replaces as a whole.
      what: Name of the output, for the error.
      marks: Files, any of which marks an earlier output.
    """
    if not out.exists():
        return
    earlier = any((out / mark).is_file() for mark in marks)
    if not out.is_dir() or (any(out.iterdir()) and not earlier):
        raise UserError.flag(
            "--out",
            out,
            f"the folder is not empty, and is not an earlier {what}. Give a new folder, "
            "such as one inside the run folder.",
        )


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, so that a second process cannot work on `what`.

    The operating system releases the lock when the process ends, however it ends.

    Args:
      path: Path of the lock file, which stays after the release.
      what: Name of what is locked, for the error.
      wait: Whether to wait while another process holds the lock.

    Raises:
      UserError: Another process holds the lock, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"{what} is in use by another process (number {holder}): wait for it to "
                "end, or give this run another folder.",
                where=what,
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def read(
    path: Path, columns: Sequence[str], *, may_be_empty: Sequence[str] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Returns the rows of a CSV file, except those with only empty cells.

    A row is the number of the line on which it ends, from 1, and its stripped text in
    Unicode NFC by column, '' for an empty cell.

    Args:
      path: Path of the file.
      columns: Names of the required columns, in lower case; others are ignored.
      may_be_empty: Names of the columns whose cells may be empty.

    Raises:
      UserError: The file cannot be read, is not a table in a known encoding, lacks a
        column or has it twice, or a row has an empty cell or more cells than columns.
    """
    name, text = shown(path), decoded(path)
    delimiters, above = DELIMITERS, 0
    if given := _SEPARATOR_LINE.match(text):
        delimiters, above, text = given[1], 1, text[given.end() :]
    if not text.strip():
        raise UserError.at(name, "the table is empty.")
    headers = {delimiter: _header(text, delimiter) for delimiter in delimiters}
    delimiter = max(headers, key=lambda d: len({*columns} & {*headers[d]}))
    header = headers[delimiter]
    _check_header(header, columns, name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        for cells in reader:
            line = above + reader.line_num
            if rows or any(cell.strip() for cell in cells):
                rows.append((line, [composed(cell).strip() for cell in cells]))
    except csv.Error as error:
        line = above + reader.line_num
        raise UserError.at(
            name, f"cannot be read as CSV ({error}).", line=line
        ) from None
    # The first row is the header.
    return [
        (line, _values(cells, header, columns, may_be_empty, (name, line)))
        for line, cells in rows[1:]
        if any(cells)
    ]


def decoded(path: Path) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 or UTF-32 with its mark.

    Raises:
      UserError: The file cannot be read, or has another encoding.
    """
    name = shown(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError.at(name, f"cannot be read: {error.strerror}.") from None
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if b"\0" in data and encoding.startswith("utf-8"):
        kind = "a workbook" if data.startswith(b"PK") else "UTF-16 without its mark"
        raise UserError.at(
            name,
            f"holds zero bytes, as {kind} does: save it as CSV in UTF-8 ('CSV UTF-8' "
            "in Excel).",
        )
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError.at(
            name,
            f"the byte 0x{data[error.start]:02X} is not valid {encoding.upper()}. The "
            "file seems to have another encoding, such as Windows-1252 (Latin-1) or "
            "Shift-JIS: save it as UTF-8 ('CSV UTF-8' in Excel).",
            line=line,
        ) from None


def _header(text: str, delimiter: str) -> list[str]:
    """Returns the names in the first line that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        cells = next((row for row in reader if any(c.strip() for c in row)), [])
    except csv.Error:
        return []
    return [composed(cell).strip("\ufeff \t\r\n\xa0").lower() for cell in cells]


def _check_header(header: list[str], columns: Sequence[str], name: str) -> None:
    missing = [column for column in columns if column not in header]
    if missing:
        found = ", ".join(f"'{column[:40]}'" for column in header if column) or "none"
        raise UserError.at(
            name,
            f"the column {', '.join(missing)} is missing. The first line must name "
            f"{', '.join(columns)}, separated by commas, semicolons or tabs; it names "
            f"{found}.",
        )
    doubled = [column for column in columns if header.count(column) > 1]
    if doubled:
        raise UserError.at(
            name,
            f"the first line names the column {', '.join(doubled)} twice: rename or "
            "remove one.",
        )


def _values(
    cells: list[str],
    header: list[str],
    columns: Sequence[str],
    may_be_empty: Sequence[str],
    place: tuple[str, int],
) -> dict[str, str]:
    name, line = place
    named = [i < len(header) and header[i] != "" for i in range(len(cells))]
    if any(cell and not has_name for cell, has_name in zip(cells, named, strict=True)):
        raise UserError.at(
            name,
            "the row has more cells than the first line has names. A cell that holds "
            "the separator must stand in double quotes.",
            line=line,
        )
    row = dict(zip(header, cells, strict=False))
    for column in columns:
        if not row.get(column) and column not in may_be_empty:
            raise UserError.at(name, f"the cell of '{column}' is empty.", line=line)
    return {column: row.get(column, "") for column in columns}


def shown(path: Path | str) -> str:
    """Returns a path as text that can be printed and written, whatever its bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def inert(text: str) -> str:
    """Returns a text as one line that no spreadsheet takes for a formula."""
    # The bytes of a file's name that are not UTF-8.
    line = plain(text.encode(errors="backslashreplace").decode())
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line


def composed(text: str) -> str:
    """Returns a text in Unicode NFC, so that equal texts are equal strings.

    macOS decomposes the names of files ('u' and a combining diaeresis); keyboards and
    spreadsheets write composed letters.
    """
    return unicodedata.normalize("NFC", text)


def on_disk(path: Path) -> Path:
    """Returns the file whose name is the text of a path, whatever its normalisation.

    Args:
      path: Path of a file; returned unchanged if the file does not exist.

    Raises:
      UserError: Two files have names that are the same text.
    """
    forms = {unicodedata.normalize(form, str(path)) for form in ("NFC", "NFD")}
    # A file system such as APFS takes both forms for one name.
    found = [Path(form) for form in sorted(forms) if os.path.exists(form)]
    if len(found) == 2 and not found[0].samefile(found[1]):
        raise UserError.at(
            shown(path),
            "two files have this name, in composed and in decomposed Unicode "
            "characters (NFC and NFD): rename or remove one.",
        )
    return found[0] if found else path


def alike(names: Iterable[str]) -> dict[str, str]:
    """Returns the names by their printable NFC form.

    Raises:
      UserError: Two names are the same text in different normalisation.
    """
    found: dict[str, str] = {}
    for name in names:
        key = composed(shown(name))
        if found.setdefault(key, name) != name:
            raise UserError(
                f"'{key}' occurs twice, spelled with different Unicode characters "
                f"({ascii(found[key])} and {ascii(name)}): rename or remove one.",
                where=key,
            )
    return found


def split_names(names: str, setting: str) -> tuple[str, ...]:
    """Returns the parts of 'a, b, c'.

    Raises:
      UserError: A name is empty or doubled.
    """
    parts = tuple(composed(part).strip() for part in names.split(","))
    if not all(parts) or len(set(parts)) != len(parts):
        raise UserError(
            f"{setting} = '{names}': names must be distinct, between commas.",
            where=setting,
        )
    return parts
