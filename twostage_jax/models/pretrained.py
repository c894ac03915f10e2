"""Public weights: files of named arrays, and their names in the networks of this package.

`read` returns the arrays of a file, `variables` those of a network from them (`place`
also says which became what), and `arrays` turns the variables of a network back. The
names are those of torchvision, which timm shares; a network knows them
(`Network.public_name`), and the names that other collections give them
(`Network.PUBLIC_ALIASES`). Files that `write` made of a network without public
names hold paths, such as 'params/conv1/kernel', with arrays in the axes of Flax.

PyTorch stores kernels as `[out, in, h, w]` and dense weights as `[out, in]`; Flax stores
`[h, w, in, out]` and `[in, out]`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from twostage_jax import folders, io, models
from twostage_jax.errors import UserError
from twostage_jax.models import caffemodel, onnx_file
from twostage_jax.models.layers import HEAD, HEAD_NORM
from twostage_jax.models.network import Network

# MedMNIST saves {'net': ...}; training programs {'state_dict': ...}, wrapped in 'module.'
# or, by torch.compile, in '_orig_mod.'. RadImageNet's 'backbone.0' is a name of its own.
PREFIX = re.compile(
    r"^((net|model|(model_)?state_dict|module|_orig_mod|backbone(?=\.[a-z]))\.)+"
)
# Counters of training steps and of averaged networks, which PyTorch alone has, and the
# thresholds of torchxrayvision, some of them NaN.
UNUSED = re.compile(r"(^|\.)(num_batches_tracked|n_averaged|op_threshs)$")
# Entries of training checkpoints that hold no network.
TRAINING = {
    "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optim",
    "scheduler", "scheduler_state_dict", "lr_scheduler", "lr_schedulers", "scaler",
    "scaler_state_dict", "amp_scaler", "loops", "callbacks",
}  # fmt: skip
LEAVES = {
    "kernel": "weight", "scale": "weight", "bias": "bias",
    "mean": "running_mean", "var": "running_var", "layer_scale": "layer_scale",
}  # fmt: skip
# The two kinds of variables, with which paths begin.
COLLECTIONS = ("params", "batch_stats")
# Number of axes -> their order in PyTorch, given Flax's.
TO_TORCH = {4: (3, 2, 0, 1), 3: (2, 0, 1), 2: (1, 0), 1: (0,), 0: ()}


def read(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file of weights by their names in it.

    Reads safetensors, `.npz`, `.caffemodel`, the initialisers of `.onnx`, and `.pth` or
    `.pt` where PyTorch is installed, with `torch.load(weights_only=True)`: nothing in the
    file is executed. Dicts in dicts, as in `{'net': {...}}` or `{'state_dict': {...}}`,
    are flattened with dots, and the state of optimisers is left out.

    Raises:
      UserError: The file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise UserError.at(path, "this file of weights does not exist.")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise UserError.at(path, f"weights are read from {', '.join(READERS)} files.")
    if reason := folders.unreadable(path):
        raise UserError.at(path, f"{reason}.")
    arrays = READERS[suffix](path)
    if not arrays:
        raise UserError.at(path, "the file holds no arrays.")
    for name, array in arrays.items():
        if not UNUSED.search(name) and not np.isfinite(array).all():
            raise UserError.at(path, f"{name} has values that are not finite.")
    return arrays


def header(path: Path) -> dict[str, Any]:
    """Returns the facts that a file states about its weights: JSON values by name.

    They are those that `write` was given, and texts in safetensors files of other
    programs. The result is empty for files that state nothing.
    """
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            found = _json(str(file["metadata"])) if "metadata" in file.files else {}
        return found if isinstance(found, dict) else {}
    if suffix != ".safetensors":
        return {}
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        texts = file.metadata() or {}
    return {name: _json(text) for name, text in texts.items()}


def _json(text: str) -> Any:
    """Returns the value of JSON, or the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _from_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError.at(path, f"the file is damaged ({error}).") from None
    except (AttributeError, KeyError) as error:  # NumPy lacks the type.
        raise UserError.at(
            path, f"the file has numbers of a type that cannot be read ({error})."
        ) from None
    return _as_float32(arrays, path)


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    arrays = io.read_arrays(path, advice="Copy it again.")
    # Without text, such as the metadata of an export.
    numbers = {k: array for k, array in arrays.items() if array.dtype.kind != "U"}
    return _as_float32(numbers, path)


def _as_float32(arrays: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    for name, array in arrays.items():
        # bfloat16, which NumPy knows from ml_dtypes, is of kind 'V'. The whole numbers of
        # quantised weights mean nothing without their scale.
        real = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
        if not real and not UNUSED.search(name):
            raise UserError.at(
                path, f"{name} holds {array.dtype}, not floating-point numbers."
            )
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _from_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError.at(
            path,
            "reading this format needs PyTorch. Install it, or convert the file where "
            "PyTorch is installed: safetensors.torch.save_file(torch.load(path, "
            "weights_only=True), 'weights.safetensors').",
        ) from None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        # PyTorch's own text advises to execute what the file contains.
        raise UserError.at(
            path,
            "the file is damaged, or holds more than arrays. Save the network's "
            "state_dict() alone.",
        ) from None
    entries = traverse_util.flatten_dict(saved) if isinstance(saved, dict) else {}
    arrays = {
        ".".join(map(str, entry)): tensor
        for entry, tensor in entries.items()
        if isinstance(tensor, torch.Tensor) and entry[0] not in TRAINING
    }
    if not arrays:
        raise UserError.at(path, "the file holds no state_dict.")
    for name, tensor in arrays.items():
        dense = tensor.layout == torch.strided and not tensor.is_meta
        if not dense or not (tensor.is_floating_point() or UNUSED.search(name)):
            raise UserError.at(
                path, f"{name} is not an ordinary tensor of floating-point numbers."
            )
    return {name: tensor.detach().float().numpy() for name, tensor in arrays.items()}


READERS = {
    ".safetensors": _from_safetensors, ".npz": _from_npz,
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin", ".tar"), _from_torch),
    ".caffemodel": caffemodel.read, ".onnx": onnx_file.read,
}  # fmt: skip


class Placed(NamedTuple):
    """Arrays of a file in the structure of a network.

    Attributes:
      variables: Nested dicts, without the places that the file has no array for.
      names: Place, such as 'params/conv1/kernel', -> name of its array in the file.
      unused: Names of arrays in the file that the network does not need.
      missing: Places that the file has no array for.
    """

    variables: dict[str, Any]
    names: dict[str, str]
    unused: tuple[str, ...]
    missing: tuple[str, ...]


def place(
    arrays: Mapping[str, np.ndarray],
    network: type[Network],
    expected: Mapping[str, Any],
    path: Path,
    *,
    partial: bool = False,
) -> Placed:
    """Returns the arrays of a file at their places in a network.

    Collections of medical images publish networks without a head: then the result has
    none either. A head of another number of classes is kept as it is. Hidden layers of a
    dense head are dropped for an orderless one.

    Args:
      arrays: Name in the file -> array; from `read`.
      network: Class of the network.
      expected: Variables of the network, or their shapes: 'params' and 'batch_stats'.
      path: The file, for messages.
      partial: Whether whole layers may be missing, dense layers have other shapes (which
        follow from classes and the size of images), and the first layer read 1 or 3
        channels.

    Raises:
      UserError: Arrays that have no place, places that have no array, and shapes that
        differ; all of them are named.
    """
    ours = all(name.partition("/")[0] in COLLECTIONS for name in arrays)
    if not ours and network.public_name.__func__ is Network.public_name.__func__:
        raise UserError.at(
            path,
            f"no public weights have the layout of {network.__name__}. It takes files "
            "that 'twostage export' wrote.",
        )
    leaves = traverse_util.flatten_dict(dict(expected), sep="/")
    stated = {p: p if ours else public_name(network, p) for p in leaves}
    # Public weights have a dense head where the network may have an orderless one.
    lacking = () if ours else set(network.HIDDEN) - set(expected["params"])
    dense = tuple(f"{network.public_name(layer)}." for layer in lacking)
    named, unused = _named(arrays, network, dense, path)
    names = {p: named.pop(name) for p, name in stated.items() if name in named}
    found = {p: arrays[name] for p, name in names.items()}
    if not ours:
        found = {p: _from_torch_axes(a, leaves[p].ndim) for p, a in found.items()}

    problems = []
    for p, array in found.items():
        shape = leaves[p].shape
        if not _fits(p, array.shape, shape, network, partial):
            axes = range(len(shape)) if ours else TO_TORCH[len(shape)]
            needed = tuple(shape[axis] for axis in axes)
            problems.append(f"{stated[p]} is {arrays[names[p]].shape}, not {needed}")
    kernel, bias = (found.get(f"params/{HEAD}/{leaf}") for leaf in ("kernel", "bias"))
    if (kernel is None) != (bias is None) or (
        kernel is not None and kernel.shape[-1:] != bias.shape
    ):
        problems.append(
            "the weight and the bias of the classifier do not belong together"
        )
    missing = tuple(p for p in leaves if p not in names)
    begun = set(map(_layer, names))  # layers of which the file has some arrays
    problems += [
        f"{stated[p]} is missing"
        for p in missing
        if _layer(p) not in (HEAD, HEAD_NORM) and (not partial or _layer(p) in begun)
    ]
    problems += [
        f"{plain} {arrays[name].shape} has no place" for plain, name in named.items()
    ]
    if problems:
        listed = "\n  ".join(problems[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        start = {name.partition(".")[0] for name in arrays}
        if not names and len(start) == 1:
            more += (
                f"\nAll names begin with '{start.pop()}.': save the state_dict() of that "
                "part alone."
            )
        raise UserError.at(
            path, f"the weights are not those of this network:\n  {listed}{more}"
        )
    if not ours:
        found = network.from_public(found)
    variables = traverse_util.unflatten_dict(found, sep="/")
    return Placed(variables, names, tuple(unused), missing)


def _named(
    arrays: Mapping[str, np.ndarray],
    network: type[Network],
    dense: tuple[str, ...],
    path: Path,
) -> tuple[dict[str, str], list[str]]:
    """Returns plain name -> name in the file, and the names of unused arrays.

    Args:
      arrays: Name in the file -> array.
      network: Class of the network.
      dense: Starts of the plain names of layers that the network lacks.
      path: The file, for messages.

    Raises:
      UserError: Two arrays have the same plain name.
    """
    named, unused = {}, []
    for name in arrays:
        plain = PREFIX.sub("", name)
        for pattern, replacement in network.PUBLIC_ALIASES:
            plain = re.sub(pattern, replacement, plain)
        if UNUSED.search(plain) or plain.startswith(dense):
            unused.append(name)
        elif named.setdefault(plain, name) != name:
            raise UserError.at(
                path,
                f"{named[plain]} and {name} are both {plain}: the file holds several "
                "networks. Save the state_dict() of one alone.",
            )
    return named, unused


def _from_torch_axes(array: np.ndarray, ndim: int) -> np.ndarray:
    """Returns an array with Flax's order of axes; unchanged if its number is wrong."""
    if array.ndim == 1 and ndim == 3:
        array = array[:, None, None]  # a layer scale in timm
    if array.ndim != ndim:
        return array
    return np.ascontiguousarray(array.transpose(np.argsort(TO_TORCH[ndim])))


def _fits(
    place: str,
    found: tuple[int, ...],
    needed: tuple[int, ...],
    network: type[Network],
    partial: bool,
) -> bool:
    """Returns whether an array of shape `found` may stand at a place, see `place`."""
    layer = place.split("/")[1]
    if layer in (HEAD, HEAD_NORM) or (partial and re.fullmatch(r"fc\d+", layer)):
        return len(found) == len(needed)
    if partial and place == f"params/{network.FIRST_LAYER}/kernel":
        other = needed[:2] + found[2:3] + needed[3:]
        return found == other and found[2] in (1, 3)
    return found == needed


def _layer(place: str) -> str:
    """Returns the layer of a place, such as 'stage1_block1/norm1'."""
    return place.partition("/")[2].rpartition("/")[0]


def arrays(
    variables: Mapping[str, Any], network: type[Network]
) -> dict[str, np.ndarray]:
    """Returns variables under the names and with the axes of torchvision.

    The inverse of `place`. Flax does not count the steps of a batch normalisation;
    PyTorch starts the counter at 0 where a file lacks it.
    """
    return {
        public_name(network, place): np.ascontiguousarray(
            value.transpose(TO_TORCH[value.ndim])
        )
        for place, value in flat(variables).items()
    }


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns variables by path, such as 'params/conv1/kernel'."""
    flattened = traverse_util.flatten_dict(dict(variables), sep="/")
    return {place: np.asarray(value) for place, value in flattened.items()}


def public_name(network: type[Network], place: str) -> str:
    """Returns torchvision's name of a variable, such as 'layer1.0.bn1.running_var'.

    Args:
      network: Class of the network.
      place: Path of the variable, such as 'batch_stats/stage1_block1/norm1/var'.
    """
    layer, _, leaf = place.partition("/")[2].rpartition("/")
    if layer == HEAD_NORM:  # Ours alone.
        return f"{layer}.{LEAVES[leaf]}"
    return f"{network.public_name(layer)}.{LEAVES[leaf]}"


def write(
    path: Path,
    variables: Mapping[str, Any],
    module: Network,
    channels: int,
    metadata: Mapping[str, Any],
) -> None:
    """Writes variables as a file that `load` reads again, bit by bit.

    The names in a `.safetensors` file are public ones if the network has a PyTorch twin
    (`Network.pytorch`), and PyTorch's `load_state_dict` takes them. All other files hold
    paths.

    Args:
      path: The file, with a suffix of `WRITERS`.
      variables: 'params' and, with batch normalisation, 'batch_stats'.
      module: Network that the variables are of.
      channels: Input channels of the network.
      metadata: Facts about the weights: JSON values by name.
    """
    public = path.suffix == ".safetensors" and module.pytorch(channels)
    named = arrays(variables, type(module)) if public else flat(variables)
    with io.replacing(path) as temporary:
        WRITERS[path.suffix](temporary, named, metadata)


def _to_safetensors(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    from safetensors.numpy import save

    # The header holds text alone, and readers ask it for a format.
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in metadata.items()
    }
    # Written here, because safetensors writes files that only their owner can read.
    path.write_bytes(save(dict(arrays), {"format": "pt", **texts}))


def _to_npz(
    path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> None:
    np.savez(path, metadata=np.array(json.dumps(metadata)), **arrays)


WRITERS = {".safetensors": _to_safetensors, ".npz": _to_npz}


def load(path: Path | str, module: Network, *, image_size: int, channels: int) -> Any:
    """Returns the variables of a network from a file of weights.

    Args:
      path: The file, see `read`.
      module: Network from `models.build`.
      image_size: Side of its images, pixels.
      channels: Channels of its images.

    Raises:
      UserError: As `read` and `place`.
    """
    expected = models.shapes(module, image_size, channels)
    return place(read(Path(path)), type(module), expected, Path(path)).variables
