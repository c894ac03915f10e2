"""Runs the tasks of a recipe in Apache Beam, for archives of thousands of studies.

Beam's workers (on this machine, a Spark or Flink cluster, or a cloud service) store the
result of each task in a data folder that they share; `prepare` then finds all results
there and writes the TFDS set as usual. The set is therefore the same with and without
Beam.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twostage_jax.data import store
from twostage_jax.data.dataset import Recipe
from twostage_jax.errors import UserError

# Separates the parts of a UserError in the text of another exception.
_MARK = "\N{SECTION SIGN}"


def run(recipe: Recipe, data_dir: Path, options: Sequence[str]) -> None:
    """Runs the unfinished tasks of a recipe.

    Args:
      recipe: Recipe that is `resumable`.
      data_dir: Folder of prepared data, accessible to all workers under this path.
      options: Options of the pipeline, such as '--runner=DirectRunner'.

    Raises:
      UserError: Apache Beam is not installed, or a task failed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "Apache Beam is not installed: pip install 'twostage_jax[beam]'.",
            where="apache_beam",
        ) from None
    if store.folder_of(recipe, data_dir).exists():
        return
    kept = store.kept(recipe, store.tasks_of(recipe, data_dir))
    try:
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            counts = (
                pipeline
                | "Tasks" >> apache_beam.Create(list(kept.tasks))
                # Otherwise, a runner may run all tasks on the worker of `Create`.
                | "Spread" >> apache_beam.Reshuffle()
                | "Make" >> apache_beam.Map(_count, make=kept.make)
            )
            del counts
    except Exception as error:
        _, *refusal = str(error).split(_MARK)
        if len(refusal) < 3:
            raise
        raise UserError(refusal[1], where=refusal[0]) from error


def _count(task: Any, make: Callable[[Any], list]) -> int:
    """Runs a task and stores its result; only its size passes through the pipeline."""
    try:
        return len(make(task))
    except UserError as error:
        # Runners report only the text of an exception, within a longer message.
        raise RuntimeError(_MARK.join(("", error.where, str(error), ""))) from error
