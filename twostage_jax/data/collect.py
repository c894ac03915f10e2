"""Checking examples as they are made, and gathering all but their pixels."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from twostage_jax.data.dataset import SPLITS, Example, Recipe, digest
from twostage_jax.errors import UserError
from twostage_jax.notes import Notes, plain

DTYPES = ("uint8", "int16", "float32")


class Collector:
    """Turns a recipe's results into the parts of a TFDS builder.

    Attributes:
      shape: `(H, W, C)` of every image.
      dtype: Of every image.
      parts: Call them in order: each yields the records of its share of the tasks. A
        part whose tasks have no examples yields a filler with an empty id, since a
        TFDS split must not be empty.
      metadata: Filled when the last part is through: 'key', 'kind', 'class_names',
        'fingerprint', and in the order of the records 'ids', 'labels', 'groups',
        'splits'; 'synthetic', whether any example is; where examples have
        them, 'details'; 'skipped', pairs of a
        file's hash and why it was left out; 'facts', tables that the tasks filled; and
        'notes', sentences on what the user should know about the files.
    """

    parts: list[Callable[[], Iterator[dict[str, Any]]]]

    def __init__(
        self, recipe: Recipe, results: Iterator[list[Example]], part_bytes: int
    ):
        """Takes results until the first example, whose image all others must be like.

        Args:
          recipe: What is made.
          results: The examples of each of its tasks, in order.
          part_bytes: The size that a part should have.

        Raises:
          UserError: There is no example.
        """
        self._recipe = recipe
        self._skipped: list[tuple[str, str]] = []
        self._notes = Notes()
        self._facts: dict[str, list[dict[str, Any]]] = {}
        begun: list[list[Example]] = []
        for examples in results:
            begun.append(examples)
            if examples:
                break
        if not begun or not begun[-1]:
            for examples in begun:
                self._gather(examples)
            why = "; ".join([*self._notes.lines(), *self._remarks()])
            raise UserError(
                f"data set '{recipe.name}' has no examples"
                + (f": {why}" if why else ".")
            )
        self._first = begun[-1][0]
        self._results = itertools.chain(begun, results)
        self.shape, self.dtype = self._first.image.shape, self._first.image.dtype
        if len(self.shape) != 3 or self.dtype.name not in DTYPES:
            self._refuse(
                self._first,
                f"its image is {self.dtype.name} {list(self.shape)}, not [H, W, C] of "
                f"{', '.join(DTYPES)}",
            )
        tasks = len(recipe.tasks)
        size = sum(example.image.nbytes for example in begun[-1]) * tasks
        count = min(tasks, -(-size // part_bytes))
        shares = np.bincount(np.arange(tasks) * count // tasks)
        self.parts = [
            lambda i=i: self._part(int(shares[i]), last=i == count - 1)
            for i in range(count)
        ]
        self._hashes: list[bytes] = []
        self._seen: set[str] = set()
        lists = {name: [] for name in ("ids", "labels", "groups", "splits")}
        self.metadata = tfds.core.MetadataDict(lists)
        self._details: list[dict[str, Any]] = []
        self._synthetic = recipe.synthetic

    def _gather(self, examples: list[Example]) -> None:
        self._skipped += getattr(examples, "skipped", ())
        self._notes.update(getattr(examples, "notes", ()))
        for table, rows in getattr(examples, "facts", {}).items():
            self._facts.setdefault(table, []).extend(rows)

    def _remarks(self) -> list[str]:
        remarks = self._recipe.remarks
        return list(map(plain, remarks(self._skipped, self._facts) if remarks else ()))

    def _part(self, tasks: int, *, last: bool) -> Iterator[dict[str, Any]]:
        empty = True
        for examples in itertools.islice(self._results, tasks):
            self._gather(examples)
            for example in examples:
                empty = False
                self._check(example)
                yield self._record(example)
        if empty:
            filler = np.zeros(self.shape, self.dtype)
            yield self._record(Example("", filler, 0))
        if last:
            self._finish()

    def _record(self, example: Example) -> dict[str, Any]:
        image = np.ascontiguousarray(example.image)
        label = int(example.label)
        self._hashes.append(hashlib.sha256(image).digest())
        self.metadata["ids"].append(example.id)
        self.metadata["labels"].append(label)
        self.metadata["groups"].append(example.group)
        self.metadata["splits"].append(example.split)
        self._details.append(dict(example.details))
        self._synthetic |= example.synthetic
        return {
            "image": image,
            "label": label,
            "id": example.id,
            "group": example.group,
            "split": example.split,
        }

    def _check(self, example: Example) -> None:
        image, classes = example.image, self._recipe.class_names
        if not example.id:
            self._refuse(example, "the id is empty")
        if example.id in self._seen:
            self._refuse(example, "another example has the same id")
        self._seen.add(example.id)
        if (image.shape, image.dtype) != (self.shape, self.dtype):
            self._refuse(
                example,
                f"its image is {image.dtype.name} {list(image.shape)}, but that of "
                f"'{self._first.id}' is {self.dtype.name} {list(self.shape)}",
            )
        if not 0 <= example.label < len(classes):
            self._refuse(example, f"label {example.label} with {len(classes)} classes")
        if example.split not in SPLITS:
            self._refuse(example, f"split '{example.split}' is none of {SPLITS}")
        if image.dtype == np.float32 and not np.isfinite(image).all():
            self._refuse(example, "its image has values that are not finite")

    def _refuse(self, example: Example, reason: str) -> None:
        raise UserError(
            f"data set '{self._recipe.name}', example '{example.id}': {reason}."
        )

    def _finish(self) -> None:
        """Fills the metadata; the fingerprint is that of the examples sorted by id."""
        recipe, data = self._recipe, self.metadata
        real = [i for i, name in enumerate(data["ids"]) if name]
        present = {data["labels"][i] for i in real}
        empty = [c for i, c in enumerate(recipe.class_names) if i not in present]
        remarks = self._remarks()
        if empty:
            names = [repr(name) for name in empty]
            why = [line for line in remarks if any(name in line for name in names)]
            raise UserError(
                f"data set '{recipe.name}': no examples of class {', '.join(names)}. "
                f"{' '.join(why)}".strip()
            )
        if len({bool(data["groups"][i]) for i in real}) > 1:
            without = next(data["ids"][i] for i in real if not data["groups"][i])
            raise UserError(
                f"data set '{recipe.name}': example '{without}' has no group, but "
                "others have one."
            )
        order = sorted(real, key=lambda i: data["ids"][i])
        columns = ("ids", "labels", "groups", "splits")
        data["fingerprint"] = digest(
            self.dtype.str,
            self.shape,
            b"".join(self._hashes[i] for i in order),
            *([data[column][i] for i in order] for column in columns),
            list(recipe.class_names),
        )
        if any(self._details):
            data["details"] = self._details
        if self._skipped:
            data["skipped"] = [list(entry) for entry in self._skipped]
        if self._facts:
            data["facts"] = self._facts
        data["notes"] = [*self._notes.lines(), *remarks]
        # Not part of the fingerprint, which is that of the content.
        data["synthetic"] = self._synthetic
        data["key"] = recipe.key
        data["kind"] = recipe.kind
        data["class_names"] = list(recipe.class_names)
