"""Similarity of two networks: linear CKA of activations, drift of parameters."""

from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from twostage_jax.explain.measures.record import Measure

PyTree = Any
MEASURES = (
    Measure(
        "drift",
        "relative change of parameters since the previous stage",
        compared=False,
    ),
    Measure("cka", "linear CKA on the target's images", compared=False),
)


class Gram(NamedTuple):
    """Inner products of the activations of n examples, `[n, n]`, diagonal zero.

    Attributes:
      values: The matrix.
      self_similarity: Unbiased HSIC of the matrix with itself.
    """

    values: np.ndarray
    self_similarity: float


def gram(features: np.ndarray) -> Gram | None:
    """Returns the Gram matrix of features `[n, ...]` for `cka`, n at least 4.

    Returns None if similarity is undefined: features that are the same for all examples,
    or are not finite.
    """
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    if not np.isfinite(flat).all():
        return None
    # Centring does not change the HSIC, but keeps its precision.
    flat = flat - flat.mean(0)
    scale = np.abs(flat).max()
    if scale == 0:
        return None
    values = (flat / scale) @ (flat / scale).T
    np.fill_diagonal(values, 0)
    own = _hsic(values, values)
    return Gram(values, own) if own > 1e-12 else None


def cka(first: Gram, second: Gram) -> float:
    """Returns the linear CKA of two sets of activations of the same examples.

    Kornblith et al. 2019 (arXiv 1905.00414) with the unbiased estimator of HSIC (Song
    et al. 2012, JMLR 13:1393) as in Nguyen et al. 2021 (arXiv 2010.15327): 1 if equal
    up to rotation and scale, about 0 (or below) if unrelated, whatever the width.
    """
    product = first.self_similarity * second.self_similarity
    return float(_hsic(first.values, second.values) / np.sqrt(product))


def _hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Returns the unbiased HSIC of two Gram matrices with zero diagonals."""
    n = len(k)
    trace = (k * l).sum()
    product = k.sum() * l.sum() / ((n - 1) * (n - 2))
    rows = 2 * (k.sum(0) @ l.sum(0)) / (n - 2)
    return float((trace + product - rows) / (n * (n - 3)))


def drift(before: PyTree, after: PyTree) -> dict[str, float | None]:
    """Returns how far the parameters of each layer moved.

    Args:
      before, after: `{'params': ...}` of two networks.

    Returns:
      Layer -> |after - before| / |before|, all its arrays as one vector; None for a
      layer that `before` lacks or has in another shape, or that is zero in `before`.
      Layers are the top-level names in 'params', in the order of `after`.
    """
    old, new = (
        traverse_util.flatten_dict(tree["params"], sep="/") for tree in (before, after)
    )
    found: dict[str, float | None] = {}
    for layer in dict.fromkeys(path.split("/")[0] for path in new):
        paths = [path for path in new if path.split("/")[0] == layer]
        found[layer] = None
        if any(p not in old or np.shape(old[p]) != np.shape(new[p]) for p in paths):
            continue
        start, end = (
            np.concatenate([np.ravel(tree[path]) for path in paths]).astype(np.float64)
            for tree in (old, new)
        )
        if norm := np.linalg.norm(start):
            found[layer] = float(np.linalg.norm(end - start) / norm)
    return found
