"""Orbax, behind one small module: resumable states and exported variables.

Everything is saved un-replicated, as host arrays, so that what eight devices saved one
device resumes. Orbax writes into a temporary folder and renames it, so a process killed
while saving leaves the save before it intact. Only the first process of a run writes.
"""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from twostage_jax import runtime
from twostage_jax.errors import UserError

PyTree = Any


class StateStore:
    """The saved states of one unfinished stage run; the newest two are kept."""

    def __init__(self, folder: Path) -> None:
        """Opens `folder`, which is made if it is missing."""
        self._manager = None
        if runtime.is_main():
            # Orbax makes none for one of several processes.
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

        It must be later than all that are there: see `discard_after`.
        """
        if self._manager is None:
            return
        leaves = _named(jax.tree.leaves(tree))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(leaves),
                progress=ocp.args.JsonSave(progress),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a saved state; only the first process knows."""
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

        All processes call it, and all get what the first one read.

        Args:
          step: One of `steps()`.
          template: A host tree of the same structure and shapes.
        """
        leaves, structure = jax.tree.flatten(template)
        restored = None if step is None else self._read(step, leaves)
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

    def _read(self, step: int, leaves: list[Any]) -> tuple[list[np.ndarray], dict]:
        names = _named(leaves)
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(names),
                progress=ocp.args.JsonRestore(),
            ),
        )
        return [saved.arrays[name] for name in names], saved.progress


def export_variables(folder: Path, variables: PyTree) -> None:
    """Writes `{'params': ..., 'batch_stats': ...}`, replacing what is there."""
    if not runtime.is_main():
        return
    options = _alone("export")
    with ocp.Checkpointer(
        ocp.StandardCheckpointHandler(multiprocessing_options=options),
        multiprocessing_options=options,
    ) as checkpointer:
        host = jax.tree.map(np.asarray, variables)
        # Orbax does not keep empty branches apart from missing ones.
        host = {name: tree for name, tree in host.items() if tree}
        checkpointer.save(
            folder.absolute(), args=ocp.args.StandardSave(host), force=True
        )


def load_variables(folder: Path) -> PyTree:
    """Returns exported variables as nested dicts of host arrays.

    Needs neither the model nor the settings that made them.

    Raises:
      UserError: The folder holds no exported variables.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no exported variables here.")
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
        raise UserError(
            f"{folder}: cannot be read as exported variables "
            f"({_first_line(error)}). Delete the stage's folder and run again."
        ) from error
    return {"params": loaded["params"], "batch_stats": loaded.get("batch_stats", {})}


def _named(leaves: list[Any]) -> dict[str, np.ndarray]:
    """Returns leaves by their place; as arrays, for older Orbax takes no scalars."""
    return {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(leaves)}


def _alone(name: str, process: int = 0) -> ocp.options.MultiprocessingOptions:
    """Orbax options of a process that does not wait for the others."""
    return ocp.options.MultiprocessingOptions(
        primary_host=process,
        active_processes={process} if jax.process_count() > 1 else None,
        barrier_sync_key_prefix=f"{name}{process}",
    )


def _from_main(restored: Any, leaves: list[Any]) -> Any:
    """Gives every process what the first one restored."""
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
