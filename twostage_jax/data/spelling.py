"""Names that differ in spelling only, as if one patient, or one class, were two."""

import logging
import re
import unicodedata
from collections.abc import Iterable

# Largest number of pairs that are listed.
MOST_LISTED = 3

log = logging.getLogger(__name__)


def pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns pairs of distinct names that differ in spelling only, sorted.

    Such are upper and lower case, zeros before a number ('P01', 'p1'), '.0' after one
    (of a spreadsheet), invisible characters, and wide or narrow characters and spaces.
    """
    first: dict[str, str] = {}
    return [
        (first[key], name)
        for name in sorted(set(names))
        if first.setdefault(key := _key(name), name) != name
    ]


def group_notes(names: Iterable[str], where: str) -> list[str]:
    """Returns a note if groups differ in spelling only, and prints some of their names.

    Notes are stored and reported, so that they must not contain names of patients.

    Args:
      names: Names of the groups.
      where: Setting or table that gives the names.
    """
    found = pairs(names)
    if not found:
        return []
    # As ASCII, so that invisible characters can be seen.
    listed = [f"{one!a} and {other!a}" for one, other in found[:MOST_LISTED]]
    more = len(found) - len(listed)
    log.warning(
        "%s: groups that differ in spelling only: %s%s",
        where, ", ".join(listed), f", {more} more" if more else "",
    )  # fmt: skip
    return [
        f"{len(found)} pairs of groups in {where} differ only in case, zeros before "
        "numbers, '.0' or invisible characters: if they are one patient, who may be in "
        "both training and test, spell them alike."
    ]


def _key(name: str) -> str:
    """Returns a text that is equal for names that differ in spelling only."""
    visible = (c for c in name if unicodedata.category(c) not in ("Cc", "Cf"))
    text = unicodedata.normalize("NFKC", "".join(visible)).casefold().strip()
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    return re.sub(r"^(\d+)\.0+$", r"\1", text)
