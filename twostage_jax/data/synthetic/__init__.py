"""Sources of generated images; this module has their tasks and checks of settings."""

import dataclasses
from collections.abc import Mapping

from twostage_jax.errors import require


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


def check(channels: int, limits: Mapping[str, tuple[int, int, int | None]]) -> None:
    """Raises a UserError if a setting is out of its range.

    Args:
      channels: Number of channels of the images: 1 or 3.
      limits: (value, lowest, highest or None) by setting.
    """
    for name, (value, lowest, highest) in limits.items():
        top, limit = value, f"at least {lowest}"
        if highest is not None:
            top, limit = highest, f"{limit} and at most {highest}"
        possible = isinstance(value, int) and lowest <= value <= top
        require(possible, name, value, f"a whole number of {limit}")
    require(channels in (1, 3), "channels", channels, "1 (grey) or 3 (colour)")
