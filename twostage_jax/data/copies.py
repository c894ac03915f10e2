"""Images that a test shares with training, under other names."""

import hashlib
from typing import Any

import numpy as np

from twostage_jax.data.dataset import Dataset
from twostage_jax.data.splits import Splits

NAMED = 3


def copies(dataset: Dataset, splits: Splits) -> str:
    """Returns a line on test images that are in the training set too, or ''.

    Splits keep groups apart, but cannot know that a patient has two names. Images of one
    value are left out of account (air is air), and so are sets that are not in memory.
    """
    if not isinstance(dataset.images, np.ndarray):
        return ""
    trained = np.concatenate([splits.train, splits.validation])
    seen: dict[bytes, int] = {}
    for index in trained.tolist():
        seen.setdefault(_content(dataset.images[index]), index)
    pairs = [
        (index, seen[content])
        for index in splits.test.tolist()
        if (content := _content(dataset.images[index])) in seen
        and np.ptp(dataset.images[index])
    ]
    if not pairs:
        return ""
    named = "; ".join(
        f"{_name(dataset, i)} = {_name(dataset, j)}" for i, j in pairs[:NAMED]
    )
    more = "; ..." if len(pairs) > NAMED else ""
    return (
        f"data set '{dataset.name}': {len(pairs)} of {len(splits.test)} test images are in "
        f"the training or validation set too, pixel for pixel ({named}{more}). Is a "
        "patient there under two names? Scores on copies are too good."
    )


def _content(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()


def _name(dataset: Dataset, index: int) -> str:
    group: Any = dataset.groups[index] if dataset.groups is not None else ""
    return f"{dataset.ids[index]}{f' of {group}' if group else ''}"
