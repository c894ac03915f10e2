"""Public weights: files of named arrays, and their names in the networks of this package.

`read` returns the arrays of a file, `variables` those of a network from them, and `arrays`
turns the variables of a network back. The names are those of torchvision, which timm
shares; a network knows them (`Network.public_name`), and the names that other collections
give them (`Network.PUBLIC_ALIASES`).

PyTorch stores kernels as `[out, in, h, w]` and dense weights as `[out, in]`; Flax stores
`[h, w, in, out]` and `[in, out]`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from twostage_jax.errors import UserError
from twostage_jax.models.layers import HEAD
from twostage_jax.models.network import Network

# MedMNIST saves {'net': ...}; training programs {'state_dict': ...}, wrapped in 'module.'.
PREFIX = re.compile(r"^((net|model|state_dict|module)\.)+")
# A counter of training steps, which batch normalisation has in PyTorch alone, and the
# thresholds of torchxrayvision, some of them NaN.
UNUSED = re.compile(r"(^|\.)(num_batches_tracked|op_threshs)$")
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias",
    "mean": "running_mean", "var": "running_var",
}  # fmt: skip
# Number of axes -> their order in Flax, given PyTorch's, and the other way round.
FROM_TORCH = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,), 0: ()}
TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of weights by their names in it.

    Reads safetensors and `.npz`, and `.pth` or `.pt` where PyTorch is installed, with
    `torch.load(weights_only=True)`: nothing in the file is executed. Dicts in dicts, as in
    `{'net': {...}}` or `{'state_dict': {...}}`, are flattened with dots.

    Raises:
      UserError: The file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise UserError(f"{path}: this file of weights does not exist.", where=path)
    if path.suffix not in READERS:
        raise UserError(
            f"{path}: weights are read from {', '.join(READERS)} files.", where=path
        )
    arrays = READERS[path.suffix](path)
    for name, array in arrays.items():
        if not UNUSED.search(name) and not np.isfinite(array).all():
            raise UserError(
                f"{path}: {name} has values that are not finite.", where=path
            )
    return arrays


def _from_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: the file is damaged ({error}).", where=path) from None
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name].astype(np.float32) for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: the file is damaged ({error}).", where=path) from None


def _from_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError(
            f"{path}: reading this format needs PyTorch. Install it, or convert the file "
            "where PyTorch is installed: safetensors.torch.save_file("
            "torch.load(path, weights_only=True), 'weights.safetensors').",
            where=path,
        ) from None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: the file holds more than arrays, or is damaged ({reason}). Save the "
            "network's state_dict() alone.",
            where=path,
        ) from None
    flat = traverse_util.flatten_dict(saved, sep=".") if isinstance(saved, dict) else {}
    arrays = {k: v for k, v in flat.items() if isinstance(v, torch.Tensor)}
    if not arrays:
        raise UserError(f"{path}: the file holds no state_dict.", where=path)
    return {name: array.float().numpy() for name, array in arrays.items()}


READERS = {
    ".safetensors": _from_safetensors, ".npz": _from_npz,
    ".pth": _from_torch, ".pt": _from_torch,
}  # fmt: skip


def variables(
    arrays: Mapping[str, np.ndarray],
    network: type[Network],
    expected: Mapping[str, Any],
    path: Path,
) -> dict[str, Any]:
    """Returns the variables of a network from the arrays of a file of weights.

    Collections of medical images publish networks without a head: then the result has
    none either. A head of another number of classes is kept as it is.

    Args:
      arrays: Name in the file -> array; from `read`.
      network: Class of the network.
      expected: Variables of the network, or their shapes: 'params' and 'batch_stats'.
      path: The file, for messages.

    Raises:
      UserError: Arrays that have no place, places that have no array, and shapes that
        differ; all of them are named.
    """
    named = {}
    for name, array in arrays.items():
        plain = PREFIX.sub("", name)
        for pattern, replacement in network.PUBLIC_ALIASES:
            plain = re.sub(pattern, replacement, plain)
        if not UNUSED.search(plain):
            named[plain] = array
    found, wrong = {}, []
    for place, leaf in traverse_util.flatten_dict(dict(expected), sep="/").items():
        name, shape = public_name(network, place), _in_torch(leaf.shape)
        optional = place.startswith(f"params/{HEAD}/")
        array = named.pop(name, None)
        if array is None:
            if not optional:
                wrong.append(f"{name} {shape} is missing")
        elif array.ndim != len(shape) or (array.shape != shape and not optional):
            wrong.append(f"{name} is {array.shape}, not {shape}")
        else:
            found[place] = np.ascontiguousarray(array.transpose(FROM_TORCH[array.ndim]))
    wrong += [f"{name} {array.shape} has no place" for name, array in named.items()]
    if wrong:
        listed = "\n  ".join(wrong[:12])
        more = f"\n  and {len(wrong) - 12} more" if len(wrong) > 12 else ""
        raise UserError(
            f"{path}: the weights are not those of this network:\n  {listed}{more}",
            where=path,
        )
    return traverse_util.unflatten_dict(found, sep="/")


def arrays(
    variables: Mapping[str, Any], network: type[Network]
) -> dict[str, np.ndarray]:
    """Returns variables under the names and with the axes of torchvision.

    The inverse of `variables`. Flax does not count the steps of a batch normalisation:
    PyTorch loads the result with `load_state_dict(..., strict=False)`.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep="/")
    return {
        public_name(network, place): np.ascontiguousarray(
            np.asarray(value).transpose(TO_TORCH[np.ndim(value)])
        )
        for place, value in flat.items()
    }


def public_name(network: type[Network], place: str) -> str:
    """Returns torchvision's name of a variable, such as 'layer1.0.bn1.running_var'.

    Args:
      network: Class of the network.
      place: Path of the variable, such as 'batch_stats/stage1_block1/norm1/var'.
    """
    layer, _, leaf = place.partition("/")[2].rpartition("/")
    return f"{network.public_name(layer)}.{LEAVES[leaf]}"


def _in_torch(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in TO_TORCH[len(shape)])
