"""TFDS builder that writes examples as ArrayRecord files with metadata."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# Bump when the layout of the files changes: folders of other versions are not read.
VERSION = "1.0.0"


class Builder(tfds.core.GeneratorBasedBuilder):
    """Writes examples as ArrayRecord, without TensorFlow.

    Images are stored as raw bytes (`Tensor` features) instead of PNG: reading them takes
    a third of the time, and int16 and float32 images need no special treatment.
    ArrayRecord compresses them.

    TFDS holds a split in memory until it is complete, and calls TensorFlow beyond 1 GB.
    A large set is therefore written in several parts, each a TFDS split, which
    `split='all'` reads together. The feature 'split' is the split of an example.

    Args:
      parts: Functions that yield the examples of each part: dicts with 'image', 'label',
        'id', 'group' and 'split'.
      image_shape: `(H, W, C)` of every image.
      image_dtype: Data type of every image.
      class_names: Names of the classes, in label order.
      metadata: Dict that is saved after the last part; the parts may fill it.
      **kwargs: `config` and `data_dir` of a TFDS builder.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        *,
        parts: Sequence[Callable[[], Iterator[Mapping[str, Any]]]],
        image_shape: tuple[int, int, int],
        image_dtype: np.dtype,
        class_names: Sequence[str],
        metadata: tfds.core.MetadataDict,
        **kwargs: Any,
    ):
        self._parts = parts
        self._image = (image_shape, image_dtype)
        self._class_names = class_names
        self._metadata = metadata
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        shape, dtype = self._image
        features = {
            "image": tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=self._class_names),
            "id": tfds.features.Text(),
            "group": tfds.features.Text(),
            "split": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            metadata=self._metadata,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            f"part_{i}": self._generate_examples(part)
            for i, part in enumerate(self._parts)
        }

    def _generate_examples(self, part):
        yield from enumerate(part())
