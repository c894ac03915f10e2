"""The training loop: steps in chunks, scores on validation, saves, a clean stop."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from twostage_jax import runtime
from twostage_jax.config import TrainConfig
from twostage_jax.errors import UserError
from twostage_jax.train import parallel, steps
from twostage_jax.train.checkpoint import StateStore
from twostage_jax.train.feed import Feed, order
from twostage_jax.train.parallel import Placement

PyTree = Any
# Steps per device call: enough to hide its overhead, few enough to stop quickly.
MAX_CHUNK = 25


class Run(NamedTuple):
    """One stage run of those that are trained together.

    Attributes:
      name: Name of the run in messages.
      state: Host state before the first step.
      indices: Positions of the training examples in the data set.
      order_seed: Seed of the order of examples.
      key: Key data of augmentation and dropout.
      constants: Arrays that are constant over steps.
      store: Saved states of the run.
    """

    name: str
    state: steps.TrainState
    indices: np.ndarray
    order_seed: tuple[int, ...]
    key: np.ndarray
    constants: steps.Constants
    store: StateStore


class Task(NamedTuple):
    """Stage runs that are trained together: one, or several side by side.

    Attributes:
      settings: Length, batch size, intervals of evaluation and saving, selection.
      programs: Compiled steps.
      feed: Source of batches.
      placement: Placement of the runs on the devices.
      runs: Stage runs, at most `placement.runs`.
      score: Function of the variables on the devices that returns, for each run,
        `{'loss': ..., 'balanced_accuracy': ...}` on its validation examples.
    """

    settings: TrainConfig
    programs: parallel.Programs
    feed: Feed
    placement: Placement
    runs: Sequence[Run]
    score: Callable[[PyTree], list[dict[str, float]]]


class Fitted(NamedTuple):
    """Result of training.

    Attributes:
      variables: Selected variables, as host arrays.
      selected: Entry of the history with their scores.
      history: One entry per evaluation.
    """

    variables: PyTree
    selected: dict[str, float]
    history: list[dict[str, float]]


class Watch(NamedTuple):
    """Callbacks of the loop.

    Attributes:
      step: Function called with (index of the run, step, metrics) after each chunk and
        each evaluation.
      stop: Function that returns whether the run was asked to stop.
    """

    step: Callable[[int, int, dict[str, float]], None]
    stop: Callable[[], bool]


@dataclasses.dataclass
class _Progress:
    """Scores and losses of one run so far, apart from its state."""

    best_variables: PyTree
    losses: list[float] = dataclasses.field(default_factory=list)
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    best: dict[str, float] | None = None


def fit(task: Task, watch: Watch) -> list[Fitted]:
    """Trains to the end, from the newest step at which all runs saved a state, if any.

    Raises:
      UserError: A loss is not finite.
      runtime.Interrupted: The runs were asked to stop; their states are saved.
    """
    settings, placement = task.settings, task.placement
    states, progress = _restored(task)
    chunk = chunk_length(settings)
    saved_at = int(states[0].step)
    first = saved_at // chunk
    state = placement.put(states)
    keys = placement.put([run.key for run in task.runs])
    constants = placement.put([run.constants for run in task.runs])

    def indices(i: int) -> np.ndarray:
        at = (first + i) * chunk, chunk
        chosen = [
            run.indices[
                order(len(run.indices), settings.batch_size, run.order_seed, *at)
            ]
            for run in task.runs
        ]
        return placement.arrange(np.stack(chosen).astype(np.int32))

    pending = None
    for i, items in enumerate(
        task.feed.items(settings.steps // chunk - first, indices)
    ):
        step = (first + i + 1) * chunk
        state, metrics = task.programs.train(
            state, task.feed.data, items, keys, constants
        )
        # One chunk late, so that the device keeps working while the host reads.
        _collect(task, pending, progress, watch)
        pending = step, chunk, metrics
        scoring = step % settings.eval_every == 0 or step == settings.steps
        stopping = watch.stop()
        saving = (
            stopping or step // settings.save_every > saved_at // settings.save_every
        )
        if not (scoring or saving):
            continue
        _collect(task, pending, progress, watch)
        pending = None
        if scoring:
            _score(task, state, step, progress, watch)
        if saving and (stopping or step < settings.steps):
            for place, (run, own) in enumerate(zip(task.runs, progress, strict=True)):
                told = {"losses": own.losses, "history": own.history, "best": own.best}
                tree = placement.take(state, place), own.best_variables
                run.store.save(step, tree, told)
            saved_at = step
        if stopping:
            raise runtime.Interrupted
    if settings.select == "last":
        return [
            Fitted(placement.take(state.variables, place), own.history[-1], own.history)
            for place, own in enumerate(progress)
        ]
    return [Fitted(own.best_variables, own.best, own.history) for own in progress]


def chunk_length(settings: TrainConfig) -> int:
    """Returns the number of steps per device call, constant for a single compilation.

    Chunks end at evaluations, whatever step a run resumes from, so that a resumed run
    makes the same calls as an undisturbed run.
    """
    common = math.gcd(settings.steps, settings.eval_every)
    return max(n for n in range(1, MAX_CHUNK + 1) if common % n == 0)


def _restored(task: Task) -> tuple[list[steps.TrainState], list[_Progress]]:
    """Returns the states to start from: runs trained together are at the same step.

    Later states of some runs are removed, as they will be saved again.
    """
    common = set.intersection(*[set(run.store.steps()) for run in task.runs])
    newest = max(common, default=None)
    states, progress = [], []
    for run in task.runs:
        start = run.state
        run.store.discard_after(newest)
        saved = run.store.restore(newest, (start, start.variables))
        if saved is None:
            states.append(start)
            progress.append(_Progress(start.variables))
        else:
            (state, best), told = saved
            states.append(state)
            progress.append(_Progress(best, **told))
    return states, progress


def _score(
    task: Task,
    state: steps.TrainState,
    step: int,
    progress: list[_Progress],
    watch: Watch,
) -> None:
    """Evaluates each run on its validation examples, and keeps the best so far."""
    for place, scores in enumerate(task.score(state.variables)):
        own = progress[place]
        entry = {"step": step, "loss": float(np.mean(own.losses))}
        entry |= {f"validation_{name}": value for name, value in scores.items()}
        own.losses = []
        own.history.append(entry)
        if not np.isfinite(entry["validation_loss"]):
            _fail(task.runs[place], "loss on validation", scores["loss"], step)
        watch.step(place, step, entry)
        if own.best is None or _better(entry, own.best):
            own.best = entry
            own.best_variables = task.placement.take(state.variables, place)


def _better(entry: dict[str, float], best: dict[str, float]) -> bool:
    """Returns whether balanced accuracy is higher or, at a tie, loss is lower."""

    def rank(scores: dict[str, float]) -> tuple[float, float]:
        return scores["validation_balanced_accuracy"], -scores["validation_loss"]

    return rank(entry) > rank(best)


def _collect(task: Task, pending: Any, progress: list[_Progress], watch: Watch) -> None:
    """Reads the metrics of a chunk, and stops at a loss that is not finite."""
    if pending is None:
        return
    step, chunk, metrics = pending
    metrics = parallel.read_metrics(metrics, task.placement)
    for place, run in enumerate(task.runs):
        losses = metrics["loss"][place]
        bad = np.flatnonzero(~np.isfinite(losses))
        if len(bad):
            _fail(run, "loss", losses[bad[0]], step - chunk + bad[0] + 1)
        progress[place].losses.extend(losses.tolist())
        means = {name: float(values[place].mean()) for name, values in metrics.items()}
        watch.step(place, step, means)


def _fail(run: Run, what: str, value: float, step: int) -> NoReturn:
    raise UserError(
        f"stage '{run.name}': the {what} is {value} at step {step}. Usual causes: the "
        "learning rate is too high (lower optim.learning_rate, or set optim.clip_norm or "
        "optim.warmup_steps), or the images contain values that are not finite.",
        where=run.name,
    )
