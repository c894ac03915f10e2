"""Examples of a data set as records on disk, written and read by TFDS without TensorFlow.

`Collector` checks the examples and collects everything but their pixels, `Prepared`
writes them, and `RecordImages` reads the pixels.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from twostage_jax.data.dataset import SPLITS, Example, Made, Recipe, as_made, digest
from twostage_jax.errors import UserError, plain

# Bump when the layout of the files changes: folders of other versions are not read.
VERSION = "1.0.0"
# Supported data types of images.
DTYPES = ("uint8", "int16", "float32")
# Records read at a time.
READ_CHUNK = 4096
# Bytes of a hash of SHA-256.
HASH_BYTES = 32
# Shared by the examples without details: a set may have a million of them.
NO_DETAILS: dict[str, Any] = {}


class Collector:
    """Turns a recipe's results into the parts of a TFDS builder.

    Attributes:
      shape: `(H, W, C)` of every image.
      dtype: Data type of every image.
      class_names: Names of the classes, in label order.
      parts: Functions to be called in order; each yields the records of its part of the
        tasks. A part without examples yields a filler with an empty id, because a TFDS
        split must not be empty.
      metadata: Metadata of the set, filled at the end of the last part: 'key', 'kind',
        'class_names', 'fingerprint'; in the order of the records 'ids', 'labels',
        'groups', 'splits' and, if any, 'details'; 'synthetic', whether any example is;
        'skipped', pairs of a file's hash and a reason; 'facts', tables of the tasks;
        'measures', if any, of the files; 'notes', sentences to the user about the files.
    """

    parts: list[Callable[[], Iterator[dict[str, Any]]]]

    def __init__(
        self, recipe: Recipe, results: Iterator[list[Example]], part_bytes: int
    ):
        """Reads results up to the first example, which determines shape and type of all.

        `results` are the examples of each task, in order.

        Raises:
          UserError: The tasks did not yield any examples.
        """
        self._recipe, self.class_names = recipe, recipe.class_names
        self._about = Made()
        begun: list[list[Example]] = []
        for examples in results:
            begun.append(examples)
            if examples:
                break
        if not begun or not begun[-1]:
            for examples in begun:
                self._about.gather(as_made(examples))
            why = "; ".join([*self._about.notes.lines(), *self._remarks()])
            raise UserError(
                f"data set '{recipe.name}' is empty" + (f": {why}" if why else "."),
                where=recipe.name,
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
        self._hashes = bytearray()
        self._seen: set[str] = set()
        lists = {name: [] for name in ("ids", "labels", "groups", "splits")}
        self.metadata = tfds.core.MetadataDict(lists)
        self._details: list[dict[str, Any]] = []
        self._synthetic = recipe.synthetic

    def _remarks(self) -> list[str]:
        if self._recipe.remarks is None:
            return []
        remarks = self._recipe.remarks(self._about.skipped, self._about.facts)
        return list(map(plain, remarks))

    def _part(self, tasks: int, *, last: bool) -> Iterator[dict[str, Any]]:
        empty = True
        for examples in itertools.islice(self._results, tasks):
            self._about.gather(as_made(examples))
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
        self._hashes += hashlib.sha256(image).digest()
        self.metadata["ids"].append(example.id)
        self.metadata["labels"].append(label)
        self.metadata["groups"].append(example.group)
        self.metadata["splits"].append(example.split)
        self._details.append(dict(example.details) or NO_DETAILS)
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
            self._refuse(
                example, f"label {example.label} exceeds the {len(classes)} classes"
            )
        if example.split not in SPLITS:
            self._refuse(example, f"split '{example.split}' must be one of {SPLITS}")
        if image.dtype == np.float32 and not np.isfinite(image).all():
            self._refuse(example, "its image has values that are not finite")

    def _refuse(self, example: Example, reason: str) -> None:
        raise UserError(
            f"data set '{self._recipe.name}', example '{example.id}': {reason}.",
            where=example.id,
        )

    def _finish(self) -> None:
        """Fills the metadata, with the fingerprint of the examples sorted by id."""
        recipe, data, about = self._recipe, self.metadata, self._about
        real = [i for i, name in enumerate(data["ids"]) if name]
        present = {data["labels"][i] for i in real}
        empty = [c for i, c in enumerate(recipe.class_names) if i not in present]
        remarks = self._remarks()
        if empty:
            names = [repr(name) for name in empty]
            why = [line for line in remarks if any(name in line for name in names)]
            raise UserError(
                f"data set '{recipe.name}': class {', '.join(names)} lacks examples. "
                f"{' '.join(why)}".strip(),
                where=recipe.name,
            )
        if len({bool(data["groups"][i]) for i in real}) > 1:
            without = next(data["ids"][i] for i in real if not data["groups"][i])
            raise UserError(
                f"data set '{recipe.name}': example '{without}' lacks a group, but "
                "others have one.",
                where=without,
            )
        order = sorted(real, key=lambda i: data["ids"][i])
        hashes = np.frombuffer(self._hashes, np.uint8).reshape(-1, HASH_BYTES)
        columns = ("ids", "labels", "groups", "splits")
        data["fingerprint"] = digest(
            self.dtype.str,
            self.shape,
            hashes[order].tobytes(),
            *([data[column][i] for i in order] for column in columns),
            list(recipe.class_names),
        )
        if any(self._details):
            data["details"] = self._details
        if about.skipped:
            data["skipped"] = [list(entry) for entry in about.skipped]
        if recipe.flow:
            about.facts.setdefault("flow", []).extend(recipe.flow())
        if about.facts:
            data["facts"] = about.facts
        data["notes"] = [*about.notes.lines(), *remarks]
        if recipe.found:
            data["measures"] = dict(recipe.found)
        # Excluded from the fingerprint, which covers the content only.
        data["synthetic"] = self._synthetic
        data["key"] = recipe.key
        data["kind"] = recipe.kind
        data["class_names"] = list(recipe.class_names)


class Prepared(tfds.core.GeneratorBasedBuilder):
    """Writes examples as ArrayRecord, without TensorFlow.

    Images are stored as raw bytes (`Tensor` features) instead of PNG: reading them takes
    a third of the time, and int16 and float32 images need no special treatment.
    ArrayRecord compresses them.

    TFDS holds a split in memory until it is complete, and calls TensorFlow beyond 1 GB.
    A large set is therefore written in several parts, each a TFDS split, which
    `split='all'` reads together. The feature 'split' is the split of an example.

    Args:
      collector: Examples and metadata of the set.
      **kwargs: `config` and `data_dir` of a TFDS builder.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, collector: Collector, **kwargs: Any):
        self._collector = collector
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        made = self._collector
        features = {
            "image": tfds.features.Tensor(
                shape=made.shape, dtype=made.dtype, encoding="bytes"
            ),
            "label": tfds.features.ClassLabel(names=made.class_names),
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
            "split": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=made.metadata,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            f"part_{i}": self._generate_examples(part)
            for i, part in enumerate(self._collector.parts)
        }

    def _generate_examples(self, part):
        yield from enumerate(part())


class RecordImages:
    """Images on disk, with random access.

    Attributes:
      shape: `(N, H, W, C)`.
      dtype: Data type of the images.
      nbytes: Size of all images in memory.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, order: np.ndarray):
        """Makes record `order[i]` of all parts image i."""
        image = builder.info.features["image"]
        self.shape = (len(order), *image.shape)
        self.dtype = np.dtype(image.np_dtype)
        self.nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        self._order = order
        self._records = builder.as_data_source(
            split="all", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        # The rest of a record is in the metadata, too: skipping it halves the time.
        self._features = tfds.features.FeaturesDict({"image": image})

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, indices: Any) -> np.ndarray:
        """Returns images `[..., H, W, C]` for indices `[...]`."""
        records = self._order[indices]
        images = np.empty((records.size, *self.shape[1:]), self.dtype)
        self._fill(images, np.arange(records.size), records.ravel())
        return images.reshape(*records.shape, *self.shape[1:])

    def read(self) -> np.ndarray:
        """Returns all images, read in their order on disk."""
        images = np.empty(self.shape, self.dtype)
        rows = np.argsort(self._order)
        for start in range(0, len(rows), READ_CHUNK):
            chunk = rows[start : start + READ_CHUNK]
            self._fill(images, chunk, self._order[chunk])
        return images

    def _fill(self, images: np.ndarray, rows: np.ndarray, records: np.ndarray) -> None:
        examples = self._records.__getitems__(records.tolist())
        for row, example in zip(rows, examples, strict=True):
            images[row] = self._features.deserialize_example_np(example)["image"]
