"""Sources of generated images; this module has their tasks and checks of settings."""

import dataclasses
from collections.abc import Mapping

from twostage_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Task:
    """Range of items of a class: images, or material samples.

    Attributes:
      label: Class index.
      first: Index of the first item.
      last: Index after the last item.
    """

    label: int
    first: int
    last: int


def tasks(classes: int, count: int, block: int) -> list[Task]:
    """Returns the tasks of `count` items of each class, at most `block` per task."""
    return [
        Task(label, first, min(first + block, count))
        for label in range(classes)
        for first in range(0, count, block)
    ]


def check(
    source: str, channels: int, limits: Mapping[str, tuple[int, int, int | None]]
) -> None:
    """Raises a UserError if a setting is out of its range.

    Args:
      source: Name of the data source, for the message.
      channels: Number of channels of its images: 1 or 3.
      limits: (value, lowest, highest or None) by setting.
    """
    for name, (value, lowest, highest) in limits.items():
        top = value if highest is None else highest
        if not isinstance(value, int) or not lowest <= value <= top:
            limit = f"at least {lowest}" + (
                f" and at most {highest}" if highest else ""
            )
            raise UserError(
                f"{source}: {name} is {value!r}: expected a whole number of {limit}.",
                where=name,
            )
    if channels not in (1, 3):
        raise UserError(
            f"{source}: channels is {channels!r}: expected 1 (grey) or 3 (colour).",
            where="channels",
        )
