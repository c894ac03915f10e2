"""Types of data sets: the recipe to make one, and its examples."""

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
    """Labelled image, as made by a recipe.

    Attributes:
      id: Identifier, unique within the data set and equal in every run.
      image: Pixels `[H, W, C]`: uint8 (0 to 255), int16 (HU) or float32 (0 to 1).
      label: Class index.
      group: Unit that must not be split between training and test, such as a patient or
        a material sample; '' if the set is not grouped.
      split: Split defined by the authors of the data set; 'train' if undefined.
      details: Origin of the image, as columns of the table of a prepared set.
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
    """Examples of a task, with facts about its files.

    Attributes:
      skipped: (hash of the file, reason) of skipped files.
      notes: Counts of remarks on the files, summed over all tasks.
      facts: Tables as rows of JSON values, by name, joined over all tasks and stored with
        the set. `data.cohort` reads 'flow' and 'acquisition'.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        super().__init__(examples)
        self.skipped: list[tuple[str, str]] = []
        self.notes = Notes()
        self.facts: dict[str, list[dict[str, Any]]] = {}

    def gather(self, other: "Made") -> None:
        """Adds the skipped files, notes and facts of another task, but no examples."""
        self.skipped += other.skipped
        self.notes.update(other.notes)
        for table, rows in other.facts.items():
            self.facts.setdefault(table, []).extend(rows)


def as_made(examples: list[Example]) -> Made:
    """Returns the result of a task as `Made`, because a plain list is enough for one."""
    return examples if isinstance(examples, Made) else Made(examples)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe of a data set: `make(task)` for each task, in any order or in parallel.

    Attributes:
      name: Short name of letters, digits and underscores.
      kind: Content of the images; unless it is 'ct', the report defines 'patient'.
      class_names: Names of the classes, in label order.
      key: Digest of everything that the examples depend on: settings, version of the
        code, and names, sizes and modification times of the files. A set with a new key
        is prepared again.
      tasks: Picklable units of work.
      make: Picklable function from a task to its examples.
      measure: Picklable function from a task to numbers that must be known for the whole
        set before the first example is made; `make(task, found=...)` gets the largest
        value of each.
      found: Largest value of each measure, once known.
      remarks: Function from the skipped files and the facts of all tasks (see `Made`) to
        sentences about the whole set; called after the last task.
      flow: Function that returns further rows of the table 'flow', on units without a
        task; called after the last task.
      resumable: Whether to keep the results of finished tasks until the set is complete,
        for slow tasks.
      prepared_in: Data folder that already contains the set; None to prepare it in the
        caller's.
      synthetic: Whether all images are generated. If this depends on the files, as for
        DICOM, it is stored per example (`Example.synthetic`).
      side: Height and width of the images, pixels, if they depend on the files; 0
        otherwise.
    """

    name: str
    kind: Kind
    class_names: tuple[str, ...]
    key: str
    tasks: Sequence[Any]
    make: Callable[..., list[Example]]
    measure: Callable[[Any], Mapping[str, float]] | None = None
    found: Mapping[str, float] = dataclasses.field(default_factory=dict)
    remarks: Callable[[Sequence[tuple[str, str]], Facts], Iterable[str]] | None = None
    flow: Callable[[], Iterable[Mapping[str, Any]]] | None = None
    resumable: bool = False
    prepared_in: Path | None = None
    synthetic: bool = False
    side: int = 0


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images, ready for use.

    Attributes:
      name: Name of the recipe.
      kind: Content of the images.
      class_names: Names of the classes, in label order.
      images: Pixels `[N, H, W, C]`, uint8, int16 (HU) or float32: an array or, if the set
        is too large for memory, a random-access source with `shape`, `dtype` and
        `__getitem__(indices)`.
      labels: Class indices, `[N]` int32.
      groups: Group of each example, `[N]` strings; None if the set is not grouped.
      ids: Unique identifiers of the examples, `[N]` strings.
      splits: Split of each example as defined by the authors of the set, one of `SPLITS`,
        `[N]` strings.
      fingerprint: Digest of the content.
      notes: Remarks on the files, as sentences.
      synthetic: Whether any image was generated instead of acquired.
      facts: Tables recorded during the preparation (see `Made`); may be empty.
      measures: Largest value of each measure of its files (see `Recipe.measure`).
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
    measures: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def units(self) -> Literal["hu", "grey"]:
        """Returns 'hu' for Hounsfield units, to which a window applies, or 'grey'."""
        return "hu" if self.images.dtype == np.int16 else "grey"


def remarks(notes: tuple[str, ...], *_: object) -> tuple[str, ...]:
    """Returns notes that are known before the first task; see `Recipe.remarks`."""
    return notes


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
