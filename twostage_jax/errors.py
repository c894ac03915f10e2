"""Messages to the user: errors, suggestions for misspelled names, counted notes."""

import difflib
import errno
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Largest number of notes per data set; a set that needs more is badly damaged.
MOST_LINES = 20


class UserError(Exception):
    """Raised if the user can fix the cause.

    The message names the file or the setting, says what is wrong and what to do. Commands
    print it without a traceback and exit with status 2.

    Attributes:
      where: File or setting at fault, such as a path or 'classes'; '' if unknown.
    """

    def __init__(self, message: str, *, where: str | Path = "") -> None:
        super().__init__(message)
        self.where = str(where)

    @classmethod
    def at(
        cls, where: str | Path, reason: str, *, line: int | None = None
    ) -> "UserError":
        """Returns an error that begins with its file: '<file>, line <line>: <reason>'.

        Args:
          where: File or folder at fault.
          reason: What is wrong there and what to do.
          line: Number of the line at fault, from 1; None if the whole file is.
        """
        place = where if line is None else f"{where}, line {line}"
        return cls(f"{place}: {reason}", where=where)

    @classmethod
    def flag(cls, name: str, value: Any, reason: str) -> "UserError":
        """Returns an error on a flag of a command: '<name>=<value>: <reason>'."""
        return cls(f"{name}={value}: {reason}", where=name)


def require(possible: bool, name: str, value: Any, needed: str) -> None:
    """Raises a UserError '<name> is <value>: it must be <needed>.' if not `possible`."""
    if not possible:
        raise UserError(f"{name} is {value!r}: it must be {needed}.", where=name)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" or, without a close match, the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}."


def disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one of its causes, means that the disk is full."""
    # Some writers (Orbax, ArrayRecord) report the system's error as text only.
    text = os.strerror(errno.ENOSPC).lower()
    while error is not None:
        full = getattr(error, "errno", None) == errno.ENOSPC
        if full or text in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False


class Notes(Counter[tuple[str, str]]):
    """Counts of images, masks and the like, by note on the files of a data set.

    Keys are (subject, note); (subject, '') counts all subjects that were examined. Notes of
    several files or tasks are added: `notes += more`.
    """

    def add(self, subject: str, note: str = "", count: int = 1) -> None:
        """Counts `count` more subjects.

        Args:
          subject: Plural noun: 'images', 'masks', 'pixels'.
          note: Rest of a sentence whose subject is 'N of M images': 'are rotated as
            their EXIF tag says.' It must not contain paths or names of patients. Empty
            to count examined subjects, M.
          count: Number of subjects.
        """
        self[subject, note] += count

    def lines(self) -> list[str]:
        """Returns one sentence per note, such as '12 of 40 images are rotated.'"""
        found = sorted((key for key in self if key[1]), key=lambda k: (k[0], -self[k]))
        lines = []
        for subject, note in found[:MOST_LINES]:
            of = f" of {self[subject, '']:,}" if self[subject, ""] else ""
            lines.append(plain(f"{self[subject, note]:,}{of} {subject} {note}"))
        if len(found) > MOST_LINES:
            lines.append(f"{len(found) - MOST_LINES} further notes are not shown.")
        return lines

    def to_json(self) -> list[list[str | int]]:
        """Returns [subject, note, count] of each entry."""
        return [[*key, count] for key, count in self.items()]

    @classmethod
    def from_json(cls, entries: Iterable[tuple[str, str, int]]) -> "Notes":
        """Returns notes from the entries of `to_json`."""
        return cls({(subject, note): count for subject, note, count in entries})


def plain(text: str, longest: int | None = None) -> str:
    """Returns a text as one line of at most `longest` printable characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if longest is None or len(line) <= longest:
        return line
    return line[: longest - 1].rstrip() + "…"
