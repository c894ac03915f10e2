"""The tasks of a recipe as an Apache Beam pipeline, for archives of thousands of studies.

Beam's workers, on this machine, a Spark or Flink cluster or a cloud service, make the
tasks and keep each result in the data folder, which they must share; `prepare` then finds
all of them there and writes the TFDS set as it always does. So the set is the same,
whatever made its tasks.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twostage_jax.data import store
from twostage_jax.data.dataset import Recipe
from twostage_jax.data.store import folder_of, tasks_of
from twostage_jax.errors import UserError


def run(recipe: Recipe, data_dir: Path, options: Sequence[str]) -> None:
    """Makes the tasks of a recipe that are not made yet.

    Args:
      recipe: Recipe of tasks that are kept (`resumable`).
      data_dir: Folder of prepared data, seen under this name by all workers.
      options: Options of the pipeline in Beam's syntax: '--runner=DirectRunner'.

    Raises:
      UserError: Apache Beam is not installed, or a task failed.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError(
            "a Beam pipeline needs Apache Beam: pip install 'twostage_jax[beam]'.",
            where="apache_beam",
        ) from None
    if folder_of(recipe, data_dir).exists():
        return
    kept = store.kept(recipe, tasks_of(recipe, data_dir))
    try:
        with apache_beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            counts = (
                pipeline
                | "Tasks" >> apache_beam.Create(list(kept.tasks))
                # Without it, a runner may make all tasks on the worker of `Create`.
                | "Spread" >> apache_beam.Reshuffle()
                | "Make" >> apache_beam.Map(_count, make=kept.make)
            )
            del counts
    except Exception as error:
        why = _user_error(error)
        if why is None:
            raise
        raise UserError(why) from error


def _count(task: Any, make: Callable[[Any], list]) -> int:
    """Makes a task, whose result is kept; only its size goes through the pipeline."""
    try:
        return len(make(task))
    except UserError as error:
        # Runners hand on an exception's text only, with much around it.
        raise RuntimeError(f"{_MARK}{error}{_MARK}") from error


_MARK = "\N{SECTION SIGN}"


def _user_error(error: BaseException) -> str | None:
    """Returns the message of the UserError that ended a pipeline, if one did."""
    parts = str(error).split(_MARK)
    return parts[1] if len(parts) > 2 else None
