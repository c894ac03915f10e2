"""The account of one transfer: a row for every array, as a table, a line and JSON."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from twostage_jax.transfer_actions import Shape


@dataclasses.dataclass(frozen=True)
class Row:
    """What happened to one array.

    Shapes and norms are None where there is no such array. Norms are Euclidean, and
    None too for an array with NaN or infinity (it was not used, or it was refused).

    Attributes:
      path: Such as 'params/conv1/kernel'.
      action: Of the rule that claimed the array.
      rule: The pattern of that rule.
      source_shape: In the stage before.
      target_shape: In the new stage.
      source_norm: Of the array in the stage before.
      fresh_norm: Of the target's array before the transfer.
      norm: Of the target's array after it.
    """

    path: str
    action: str
    rule: str
    source_shape: Shape | None
    target_shape: Shape | None
    source_norm: float | None
    fresh_norm: float | None
    norm: float | None


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """One row for each array of the target, then for each that only the source has.

    Attributes:
      rows: What happened to each array.
      notes: What else the reader must know, such as another normalisation.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def transferred(self) -> tuple[str, ...]:
        """Paths whose values come from the source, as they are or changed in shape."""
        return tuple(r.path for r in self.rows if r.action not in ("init", "drop"))

    @property
    def unused(self) -> tuple[str, ...]:
        """Paths of the source's arrays that the target does not use."""
        taken = set(self.transferred)
        return tuple(
            r.path
            for r in self.rows
            if r.source_shape is not None and r.path not in taken
        )

    def summary(self) -> str:
        """Returns what was done in one line, and a line for each note."""
        present = [r for r in self.rows if r.target_shape is not None]
        copied = [r for r in present if r.action == "copy"]
        fresh = [r.path for r in present if r.action == "init"]
        changed = [r for r in present if r.action not in ("copy", "init")]
        values = sum(math.prod(r.target_shape) for r in copied)
        parts = [f"copied {len(copied)} ({_count(values)} values)"]
        if changed:
            what = ", ".join(f"{_layer(r.path)}: {r.action}" for r in changed)
            parts.append(f"changed {len(changed)} ({what})")
        parts.append(f"re-initialised {len(fresh)}{_layers(fresh)}")
        parts.append(f"unused {len(self.unused)}{_layers(self.unused)}")
        return "\n".join([", ".join(parts), *(f"note: {n}" for n in self.notes)])

    def table(self) -> str:
        """Returns every row, in aligned columns, and the summary."""
        titles = ("path", "action", "rule", "source", "target")
        cells = [(*titles, "|source|", "|fresh|", "|result|")]
        for row in self.rows:
            shapes = (_text(s) for s in (row.source_shape, row.target_shape))
            norms = (row.source_norm, row.fresh_norm, row.norm)
            cells.append(
                (row.path, row.action, row.rule, *shapes, *(_number(n) for n in norms))
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = [
            "  ".join(
                # Words to the left, norms to the right, so that their points line up.
                cell.ljust(width) if i < len(titles) else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        return "\n".join([*aligned, self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values: rows, unused, notes."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        for row in rows:
            for key in ("source_shape", "target_shape"):
                row[key] = None if row[key] is None else list(row[key])
        return {"rows": rows, "unused": list(self.unused), "notes": list(self.notes)}


def row(
    path: str,
    action: str,
    rule: str,
    source: np.ndarray | None,
    fresh: np.ndarray | None,
    result: np.ndarray | None,
) -> Row:
    """Returns the row of one array; None stands for an array that is not there."""
    return Row(
        path=path,
        action=action,
        rule=rule,
        source_shape=None if source is None else source.shape,
        target_shape=None if fresh is None else fresh.shape,
        source_norm=_norm(source),
        fresh_norm=_norm(fresh),
        norm=_norm(result),
    )


def _norm(array: np.ndarray | None) -> float | None:
    if array is None:
        return None
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(array.astype(np.float64).ravel()))
    return norm if math.isfinite(norm) else None


def _layers(paths: Iterable[str]) -> str:
    """Returns " (fc7, head)", each layer once; nothing for no paths."""
    layers = dict.fromkeys(_layer(path) for path in paths)
    return f" ({', '.join(layers)})" if layers else ""


def _layer(path: str) -> str:
    """Returns the path without its collection and the array's own name."""
    return "/".join(path.split("/")[1:-1]) or path


def _count(values: int) -> str:
    for size, unit in ((10**6, " M"), (10**3, " k")):
        if values >= size:
            return f"{values / size:.1f}{unit}"
    return str(values)


def _text(shape: Shape | None) -> str:
    return "-" if shape is None else str(shape)


def _number(norm: float | None) -> str:
    return "-" if norm is None else f"{norm:.4g}"
