"""Data sets: the recipe that makes one, and its arrays in memory."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from twostage_jax.errors import Notes

Kind = Literal["natural", "texture", "ct"]
SPLITS = ("train", "validation", "test")
Facts = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled image, as a recipe makes it.

    Attributes:
      id: Unique within the data set, stable from run to run.
      image: `[H, W, C]`, uint8 (0 to 255), int16 (Hounsfield units) or float32 ([0, 1]).
      label: Index into the recipe's class names.
      group: What must not be split between train and test (a patient, a material
        sample); empty if the set has no groups.
      split: The split that the data set's authors gave it; 'train' if they gave none.
      details: Where it comes from, for the table of a prepared set; numbers and strings.
      synthetic: Whether the image was generated instead of acquired.
    """

    id: str
    image: np.ndarray
    label: int
    group: str = ""
    split: str = "train"
    details: Mapping[str, str | int | float] = dataclasses.field(default_factory=dict)
    synthetic: bool = False


class Made(list[Example]):
    """The examples of a task.

    Attributes:
      skipped: (hash of a file, reason) of the skipped ones.
      notes: Counts of what the user should know about the files; those of all tasks
        are added up.
      facts: Name of a table -> its rows, of values that JSON knows; those of all tasks
        are joined, and kept with the set. `data.cohort` reads 'flow' and 'acquisition'.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        super().__init__(examples)
        self.skipped: list[tuple[str, str]] = []
        self.notes = Notes()
        self.facts: dict[str, list[dict[str, Any]]] = {}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of a data set: `make(task)` for each task, in any order, in parallel.

    Attributes:
      name: A short name, of letters, digits and underscores.
      kind: What the images show; kept with the prepared set, and changes nothing else.
      class_names: One a class, in label order.
      key: Digest of everything the examples depend on: settings, code version, and
        the names, sizes and modification times of the files read. A changed key
        means that the set is prepared again.
      tasks: Picklable units of work.
      make: A picklable function from a task to its examples.
      measure: A picklable function from a task to numbers that must be known of the
        whole set before the first example is made: `make(task, found=...)` is then
        given the largest of each.
      remarks: A function from what the tasks skipped and the facts that they found, as
        in `Made`, to sentences about the set as a whole; called when all are through.
      flow: A function that returns further rows of the facts' table 'flow', on what
        became no task; called when all are through.
      resumable: Keep the results of finished tasks until all are there: for tasks that
        take long.
      prepared_in: The data folder that holds the set already, if the set is not to be
        made in the caller's.
      synthetic: Whether all images are generated. Where files decide, as for DICOM, the
        examples say so themselves (`Example.synthetic`).
      side: Height and width of the images, pixels, where files decide; 0 elsewhere.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    key: str
    tasks: Sequence[Any]
    make: Callable[..., list[Example]]
    measure: Callable[[Any], Mapping[str, float]] | None = None
    remarks: Callable[[Sequence[tuple[str, str]], Facts], Iterable[str]] | None = None
    flow: Callable[[], Iterable[Mapping[str, Any]]] | None = None
    resumable: bool = False
    prepared_in: Path | None = None
    synthetic: bool = False
    side: int = 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images in hand.

    Attributes:
      name: The recipe's name.
      kind: What the images show.
      class_names: One a class, in label order.
      images: `[N, H, W, C]`, uint8, int16 (HU) or float32: an array, or a
        random-access source with `shape`, `dtype` and `__getitem__(indices)` where
        the set is too large for memory.
      labels: `[N]` int32.
      groups: `[N]` strings, or None if the set has no groups.
      ids: `[N]` strings, unique.
      splits: `[N]` strings out of `SPLITS`, as the set's authors split it.
      fingerprint: Digest of the content (see `fingerprint`).
      notes: Sentences on what the user should know about the files.
      synthetic: Whether any image was generated instead of acquired.
      facts: Tables that the preparation recorded (see `Made`); empty if none.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    images: Any
    labels: np.ndarray
    groups: np.ndarray | None
    ids: np.ndarray
    splits: np.ndarray
    fingerprint: str
    notes: tuple[str, ...] = ()
    synthetic: bool = False
    facts: Facts = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def units(self) -> Literal["hu", "grey"]:
        """Returns 'hu' for Hounsfield units, to which a window applies, or 'grey'."""
        return "hu" if self.images.dtype == np.int16 else "grey"


def largest(results: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Returns the largest value of each measure (see `Recipe.measure`)."""
    found: dict[str, float] = {}
    for result in results:
        for name, value in result.items():
            found[name] = max(value, found.get(name, value))
    return found


def digest(*parts: Any) -> str:
    """Returns a hex SHA-256 of arrays, strings and other values' `repr`s, in order."""
    hasher = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind not in "OU":
            header, body = f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part)
        else:
            value = part.tolist() if isinstance(part, np.ndarray) else part
            header, body = (
                type(part).__name__,
                repr(value).encode(errors="surrogateescape"),
            )
        hasher.update(f"{header}:{len(memoryview(body).cast('B'))};".encode())
        hasher.update(body)
    return hasher.hexdigest()
