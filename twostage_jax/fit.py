"""The training loop: steps in chunks, scores on validation, saves, a clean stop."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from twostage_jax import runtime, training
from twostage_jax.checkpoint import StateStore
from twostage_jax.config import TrainConfig
from twostage_jax.data.feed import Feed, order
from twostage_jax.errors import UserError

PyTree = Any
# Steps in one call of the device: enough to hide the call, few enough to stop quickly.
MAX_CHUNK = 25


class Task(NamedTuple):
    """One stage's training, ready to run.

    Attributes:
      name: The stage run's name, for messages.
      settings: Length, batch size, how often to score and save, what to select.
      programs: The compiled steps.
      feed: Where batches come from.
      constants: Arrays that no step changes.
      indices: Positions of the training examples in the data set.
      order_seed: Seed of the order of examples.
      key: Key of augmentation and dropout.
      score: `score(replicated variables) -> {'loss': ..., 'balanced_accuracy': ...}` on
        the validation examples.
    """

    name: str
    settings: TrainConfig
    programs: training.Programs
    feed: Feed
    constants: training.Constants
    indices: np.ndarray
    order_seed: tuple[int, ...]
    key: jax.Array
    score: Callable[[PyTree], dict[str, float]]


class Watch(NamedTuple):
    """What the loop tells others, and asks them.

    Attributes:
      step: Called with (step, metrics) after each chunk and each score.
      stop: Whether the run was asked to stop.
    """

    step: Callable[[int, dict[str, float]], None]
    stop: Callable[[], bool]


def fit(
    task: Task, state: training.TrainState, store: StateStore, watch: Watch
) -> tuple[PyTree, list[dict[str, float]]]:
    """Trains to the end, from the newest saved state if there is one.

    Args:
      task: What to train.
      state: The host state before the first step.
      store: Saved states of this stage run.
      watch: Who is told.

    Returns:
      The selected variables, as host arrays, and the history: one entry a score.

    Raises:
      UserError: The loss is no longer finite.
      runtime.Interrupted: The run was asked to stop; the state is saved.
    """
    settings = task.settings
    start = jax.tree.map(np.asarray, state)
    saved = store.restore((start, start.variables))
    progress = {"losses": [], "history": [], "best": None}
    best = start.variables
    if saved is not None:
        (start, best), progress = saved
    chunk = chunk_length(settings)
    first = int(start.step) // chunk
    total = settings.steps // chunk
    state = training.replicate(start)

    def indices(i: int) -> np.ndarray:
        steps = ((first + i) * chunk, chunk)
        positions = order(
            len(task.indices), settings.batch_size, task.order_seed, *steps
        )
        return task.indices[positions].astype(np.int32)

    saved_at = int(start.step)
    pending = None
    for i, items in enumerate(task.feed.items(total - first, indices)):
        step = (first + i + 1) * chunk
        state, metrics = task.programs.train(
            state, task.feed.data, items, task.key, task.constants
        )
        # One chunk late, so that the device works on while the host reads.
        _collect(task.name, pending, progress, watch)
        pending = step, chunk, metrics
        scoring = step % settings.eval_every == 0 or step == settings.steps
        stopping = watch.stop()
        saving = (
            stopping or step // settings.save_every > saved_at // settings.save_every
        )
        if not (scoring or saving):
            continue
        _collect(task.name, pending, progress, watch)
        pending = None
        if scoring:
            entry = _score(task, state, step, progress)
            watch.step(step, entry)
            if progress["best"] is None or _better(entry, progress["best"]):
                progress["best"] = entry
                best = training.unreplicate(state.variables)
        if saving and (stopping or step < settings.steps):
            store.save(step, (training.unreplicate(state), best), progress)
            saved_at = step
        if stopping:
            raise runtime.Interrupted
    if settings.select == "last":
        best = training.unreplicate(state.variables)
    return best, progress["history"]


def chunk_length(settings: TrainConfig) -> int:
    """Returns the steps of one device call: the same for all, so one compilation does.

    Chunks end where scores are due, whatever step a run resumes at, so that a resumed
    run makes the very calls of an undisturbed one.
    """
    common = math.gcd(settings.steps, settings.eval_every)
    return max(n for n in range(1, MAX_CHUNK + 1) if common % n == 0)


def _score(
    task: Task, state: training.TrainState, step: int, progress: dict[str, Any]
) -> dict[str, float]:
    scores = task.score(state.variables)
    entry = {"step": step, "loss": float(np.mean(progress["losses"]))}
    entry |= {f"validation_{name}": value for name, value in scores.items()}
    progress["losses"] = []
    progress["history"].append(entry)
    return entry


def _better(entry: dict[str, float], best: dict[str, float]) -> bool:
    """More balanced accuracy; at a tie, less loss."""

    def rank(scores: dict[str, float]) -> tuple[float, float]:
        return scores["validation_balanced_accuracy"], -scores["validation_loss"]

    return rank(entry) > rank(best)


def _collect(name: str, pending: Any, progress: dict[str, Any], watch: Watch) -> None:
    """Reads the metrics of a chunk, and stops at a loss that is not finite."""
    if pending is None:
        return
    step, chunk, metrics = pending
    metrics = training.read_metrics(metrics)
    losses = metrics["loss"]
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise UserError(
            f"stage '{name}': the loss is {losses[bad[0]]} at step "
            f"{step - chunk + bad[0] + 1}. Usual causes: the learning rate is too high "
            "(lower optim.learning_rate, or set optim.clip_norm or optim.warmup_steps), "
            "or the images hold values that are not finite."
        )
    progress["losses"].extend(losses.tolist())
    watch.step(step, {key: float(v.mean()) for key, v in metrics.items()})
