"""Orbax, behind one small module: resumable states, exported and foreign variables.

Everything is saved un-replicated, as host arrays, so that one device can resume a state
saved by eight. Orbax writes into a temporary folder and renames it, so a process killed
while saving leaves the previous save intact. Only the first process of a run writes.
"""

import contextlib
import logging
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util
from jax.experimental import multihost_utils

from twostage_jax import models, runtime
from twostage_jax.errors import UserError
from twostage_jax.models.network import Network

PyTree = Any
# Names under which programs save the parameters of a module.
WRAPPERS = {"default", "state", "model", "module", "network", "variables"}
EXPECTED = (
    "Expected: the folder of a finished stage run (WORKDIR/stages/NAME-HASH), an Orbax "
    "checkpoint with the parameters, the folder of an Orbax CheckpointManager, or a "
    "msgpack file written by flax.serialization."
)


class StateStore:
    """The saved states of one unfinished stage run; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder`, creating it if it is missing."""
        self._manager = None
        if runtime.is_main():
            # Orbax does not create it for one of several processes.
            folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                folder.absolute(),
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=2,
                    create=False,
                    enable_async_checkpointing=False,
                    cleanup_tmp_directories=True,
                    multiprocessing_options=_alone("state"),
                ),
            )

    def save(self, step: int, tree: PyTree, progress: dict[str, Any]) -> None:
        """Saves a host tree of arrays and a dict of JSON values as the state at `step`.

        The step must be later than all saved steps: see `discard_after`.
        """
        if self._manager is None:
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(_named(tree)),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps with a saved state; valid only in the first process."""
        return [] if self._manager is None else list(self._manager.all_steps())

    def discard_after(self, step: int | None) -> None:
        """Removes the states of later steps; all of them if `step` is None."""
        for saved in self.steps():
            if step is None or saved > step:
                self._manager.delete(saved)

    def restore(
        self, step: int | None, template: PyTree
    ) -> tuple[PyTree, dict[str, Any]] | None:
        """Returns (tree, progress) as saved at `step`, or None if `step` is None.

        All processes must call it, and all get the state read by the first.

        Args:
          step: One of `steps()`.
          template: A host tree whose arrays have the saved names and shapes.

        Raises:
          UserError: The saved state is damaged, or has other names or shapes.
        """
        leaves, structure = jax.tree.flatten(template)
        restored = None if step is None else self._read(step, template)
        if jax.process_count() > 1:
            restored = _from_main(restored, leaves)
        if restored is None:
            return None
        arrays, progress = restored
        return jax.tree.unflatten(structure, arrays), progress

    def close(self) -> None:
        """Releases the folder."""
        if self._manager is not None:
            self._manager.close()

    def _read(self, step: int, template: PyTree) -> tuple[list[np.ndarray], dict]:
        named = _named(template)
        folder = Path(self._manager.directory) / str(step)
        try:
            saved = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardRestore(), progress=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:  # A damaged folder may fail in many libraries.
            raise UserError.at(
                folder,
                f"the saved state cannot be read ({_first_line(error)}). Delete this "
                "folder and run the command again: the run resumes from an earlier "
                "state, or from the beginning.",
            ) from error
        # Compared here, since Orbax does not check shapes in every version.
        shapes = {name: np.shape(array) for name, array in saved.arrays.items()}
        if shapes != {name: array.shape for name, array in named.items()}:
            raise UserError.at(
                folder,
                "the arrays of the saved state do not fit this training; another "
                "version of the program wrote it. Delete the folder of this stage run "
                "and run the command again.",
            )
        return [np.asarray(saved.arrays[name]) for name in named], saved.progress


def export_variables(folder: Path, variables: PyTree) -> None:
    """Writes `{'params': ..., 'batch_stats': ...}`, replacing an existing export."""
    if not runtime.is_main():
        return
    options = _alone("export")
    with ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=options),
        multiprocessing_options=options,
    ) as checkpointer:
        host = jax.tree.map(np.asarray, variables)
        # Orbax does not distinguish empty branches from missing ones.
        host = {name: tree for name, tree in host.items() if tree}
        checkpointer.save(
            folder.absolute(), args=ocp.args.StandardSave(host), force=True
        )


def load_variables(folder: Path) -> PyTree:
    """Returns exported variables as nested dicts of host arrays.

    The model and its settings are not needed.

    Raises:
      UserError: The folder cannot be read as exported variables.
    """
    if not folder.is_dir():
        raise UserError.at(folder, "the folder of exported variables is missing.")
    options = _alone("load", process=jax.process_index())
    try:
        with ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=options),
            multiprocessing_options=options,
        ) as checkpointer:
            item = checkpointer.metadata(folder.absolute()).item_metadata
            template = jax.tree.map(lambda m: np.zeros(m.shape, m.dtype), item.tree)
            loaded = checkpointer.restore(
                folder.absolute(), args=ocp.args.StandardRestore(template)
            )
    except (ValueError, OSError, KeyError, AttributeError) as error:
        raise UserError.at(
            folder,
            f"cannot be read as exported variables ({_first_line(error)}). Delete the "
            "stage's folder and run the study again.",
        ) from error
    return {"params": loaded["params"], "batch_stats": loaded.get("batch_stats", {})}


def load_network(
    folder: Path, module: Network, image_size: int, channels: int
) -> PyTree:
    """Returns exported variables, as `load_variables`, of a network.

    Args:
      folder: Folder of the exported variables.
      module: Network of the variables.
      image_size, channels: Side in pixels and number of channels of its input.

    Raises:
      UserError: The folder cannot be read, or contains arrays of another network.
    """
    variables = load_variables(folder)
    expected = models.shapes(module, image_size, channels)
    shapes, wanted = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree).items()}
        for tree in (variables, expected)
    )
    if shapes != wanted:
        different = min(
            "/".join(path)
            for path in shapes.keys() | wanted.keys()
            if shapes.get(path) != wanted.get(path)
        )
        raise UserError.at(
            folder,
            f"{different} differs from the network of this version of the program; "
            "another version trained it. Train again in a new --workdir.",
        )
    return variables


def load_source(path: Path) -> tuple[PyTree, str]:
    """Returns variables saved by this or another program, and where they were found.

    Reads a finished stage run; an Orbax checkpoint (StandardCheckpoint or PyTree), a step
    of an Orbax CheckpointManager, or its folder, of which the latest step is used; and a
    file of `flax.serialization.to_bytes` (msgpack). The parameters may be the whole tree,
    or lie under 'params', next to 'batch_stats', at any depth, as in a TrainState.
    Pickles are never read.

    Args:
      path: File or folder.

    Returns:
      `{'params': ..., 'batch_stats': ...}`, nested dicts of host arrays; and their
      position as text, '' for a stage run.

    Raises:
      UserError: The path is something else, damaged, or has parameters in several
        branches.
    """
    if not path.exists():
        raise UserError.at(path, "this file or folder does not exist.")
    saved, tree = _saved_tree(path)
    tree = _plain(tree)
    if not isinstance(tree, dict):
        raise UserError.at(
            path, f"expected a tree of named arrays, not a {type(tree).__name__}."
        )
    branch, variables = _variables_in(tree, path)
    if branch in ("", "params", "variables/params") and saved == path:
        return variables, ""
    step = [str(saved.relative_to(path))] * (saved != path)
    return variables, ": ".join([*step, branch or "the whole tree"])


def _saved_tree(path: Path) -> tuple[Path, PyTree]:
    """Returns the file or folder of a checkpoint, the latest of several, and its tree."""
    if path.is_file():
        return path, _from_msgpack(path)
    if _is_item(path):
        return path, _from_orbax(path)
    steps, items = {}, {}
    for entry in path.iterdir():
        number = re.fullmatch(r"(?:.*[_-])?(\d+)", entry.name)
        if ".orbax-checkpoint-tmp" in entry.name:
            continue  # A save that was interrupted.
        if number and (entry.is_dir() or entry.name.startswith("checkpoint")):
            steps[int(number[1])] = entry
        elif entry.is_dir() and _is_item(entry):
            items[entry.name] = entry
    if items:
        return path, {name: _from_orbax(item) for name, item in items.items()}
    if steps:
        return _saved_tree(steps[max(steps)])
    raise UserError.at(path, f"{_described(path)} {EXPECTED}")


def _described(path: Path) -> str:
    """Describes a folder that is not a checkpoint."""
    if (path / "stages").is_dir():
        return (
            "this is the workdir of a study with several stage runs: give one of those in "
            "its folder stages/."
        )
    if (path / "states").is_dir() or (path / "lineage.json").is_file():
        return "this is an unfinished stage run, still without variables."
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return "the folder is empty."
    shown = ", ".join(repr(name) for name in names[:4])
    return f"a checkpoint is missing among {shown}{' ...' * (len(names) > 4)}."


def _is_item(folder: Path) -> bool:
    """Whether Orbax saved a single tree there."""
    return any((folder / n).is_file() for n in ("_METADATA", "manifest.ocdbt"))


def _from_orbax(folder: Path) -> PyTree:
    options = _alone("source", process=jax.process_index())
    as_host = ocp.RestoreArgs(restore_type=np.ndarray)
    # The error below repeats what Orbax logs about a damaged folder.
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(
            ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
            multiprocessing_options=options,
        ) as checkpointer:
            found = checkpointer.metadata(folder.absolute()).item_metadata
            how = jax.tree.map(
                lambda leaf: as_host if hasattr(leaf, "shape") else ocp.RestoreArgs(),
                getattr(found, "tree", found),
            )
            return checkpointer.restore(
                folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=how)
            )
    except Exception as error:  # A damaged folder may fail in many libraries.
        raise UserError.at(
            folder,
            "this looks like an Orbax checkpoint, but it cannot be read "
            f"({type(error).__name__}: {_first_line(error)}). It may be incomplete, "
            "or written by another version: save it again.",
        ) from error
    finally:
        log.setLevel(level)


def _from_msgpack(path: Path) -> PyTree:
    content = path.read_bytes()
    try:
        return serialization.msgpack_restore(content)
    except Exception as error:  # Any other file: each byte may mean something else.
        raise UserError.at(
            path, f"the file cannot be read as msgpack. {EXPECTED}"
        ) from error


def _variables_in(tree: PyTree, path: Path) -> tuple[str, PyTree]:
    """Returns the name of the branch of a tree with the variables, and the variables.

    Branches nearest to the root count: further down, the state of an optimiser repeats
    the tree of parameters.
    """
    level = {"": tree}
    while level:
        found = {
            name: branch
            for name, branch in level.items()
            if isinstance(branch.get("params"), dict) and branch["params"]
        }
        if len(found) > 1:
            names = ", ".join(f"'{name}'" for name in found)
            raise UserError.at(
                path,
                f"{len(found)} branches have parameters: {names}. Save the intended "
                "ones separately.",
            )
        for name, branch in found.items():
            # The params of a TrainState may be all variables of the module.
            inner = branch["params"]
            branch = inner if isinstance(inner.get("params"), dict) else branch
            statistics = branch.get("batch_stats", {})
            name = f"{name}/params".lstrip("/")
            return name, {"params": branch["params"], "batch_stats": statistics}
        level = {
            f"{name}/{key}".lstrip("/"): below
            for name, branch in level.items()
            for key, below in branch.items()
            if isinstance(below, dict) and not key.startswith("opt")
        }
    kernels = [
        keys for keys in traverse_util.flatten_dict(tree) if keys[-1] == "kernel"
    ]
    outer: tuple[str, ...] = ()
    while len(names := {keys[len(outer)] for keys in kernels}) == 1:
        # All lie below one name, which may be a wrapper, or the only layer there is.
        if not names <= WRAPPERS:
            break
        outer += tuple(names)
        tree = tree[outer[-1]]
    if not kernels or any(len(keys) < len(outer) + 2 for keys in kernels):
        keys = ", ".join(f"'{key}'" for key in list(tree)[:4])
        raise UserError.at(
            path,
            f"the tree ({keys or 'empty'}) does not look like the parameters of a "
            "Flax module: expected a branch 'params', or layers with a 'kernel' each.",
        )
    return "/".join(outer), {"params": tree, "batch_stats": {}}


def _plain(tree: PyTree) -> PyTree:
    """Returns nested dicts of arrays without wrappers.

    An `nnx.Variable` or a boxed parameter is saved as {'value': array}; the names of flat
    trees are joined by '/'.
    """
    if not isinstance(tree, dict):
        return tree
    if set(tree) == {"value"} and not isinstance(tree["value"], dict):
        return tree["value"]
    tree = {str(name): _plain(below) for name, below in tree.items()}
    if tree and all("/" in name for name in tree):
        with contextlib.suppress(TypeError, IndexError):
            return traverse_util.unflatten_dict(tree, sep="/")
    return tree


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    """Returns the leaves by their path, in the order of `jax.tree.leaves`.

    Paths rather than positions: a changed tree of equal shapes must not be restored with
    its arrays interchanged. Scalars become arrays, because older versions of Orbax do not
    support scalars.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _alone(name: str, process: int = 0) -> ocp.options.MultiprocessingOptions:
    """Orbax options of a process that does not wait for the others."""
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"{name}{process}",
    )


def _from_main(restored: Any, leaves: list[Any]) -> Any:
    """Gives every process the state restored by the first."""
    import json

    arrays, progress = restored or (leaves, None)
    text = json.dumps(progress).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text))))
    buffer = np.zeros(size, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)[:size]
    buffer = multihost_utils.broadcast_one_to_all(buffer)
    progress = json.loads(bytes(np.asarray(buffer)))
    if progress is None:
        return None
    arrays = multihost_utils.broadcast_one_to_all([np.asarray(a) for a in arrays])
    return [np.asarray(array) for array in arrays], progress


def _first_line(error: Exception) -> str:
    return re.split(r"[\n.]", str(error), maxsplit=1)[0]
