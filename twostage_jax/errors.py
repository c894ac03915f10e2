"""The one exception that is meant for the user's eyes."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Something the user can fix.

    The message names the file or the setting, says what is wrong and what to do.
    The command-line programs print it without a traceback and exit with status 2.

    Attributes:
      where: The file or the setting at fault, such as a path or 'classes'; '' if the
        error does not say.
    """

    def __init__(self, message: str, *, where: str | Path = "") -> None:
        super().__init__(message)
        self.where = str(where)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" or, without a close match, the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(known)}."
