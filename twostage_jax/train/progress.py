"""Progress of a run: bars on the terminal, event files for TensorBoard."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from twostage_jax import runtime
from twostage_jax.train.loop import Watch


class Progress:
    """Reports on the stage runs of a study.

    Attributes:
      total: Number of stage runs.
      done: Number of finished stage runs.
      stop: Whether the run was asked to stop.
    """

    def __init__(self, total: int, done: int, stop: Callable[[], bool]) -> None:
        self.total, self.done, self.stop = total, done, stop

    def say(self, text: str) -> None:
        """Prints a line in the first process only."""
        if runtime.is_main():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextlib.contextmanager
    def stages(
        self, runs: Sequence[Any], steps: int, folders: Sequence[Path]
    ) -> Iterator[Watch]:
        """Shows a bar and writes event files while stage runs train together."""
        if not runtime.is_main():
            yield Watch(lambda place, step, metrics: None, self.stop)
            return
        # Imported only for training: tensorboardX loads slowly.
        from twostage_jax.train.events import Events

        numbers = f"{self.done + 1}"
        title = str(runs[0])
        if len(runs) > 1:
            numbers += f"-{self.done + len(runs)}"
            title += f" and {len(runs) - 1} more"
        bar = tqdm(
            total=steps, desc=f"[{numbers}/{self.total}] {title}", unit="step",
            disable=None, leave=False,
        )  # fmt: skip
        shown: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            events = [
                stack.enter_context(contextlib.closing(Events(f / "events")))
                for f in folders
            ]

            def step(place: int, number: int, metrics: dict[str, float]) -> None:
                for metric, value in metrics.items():
                    if metric != "step":
                        events[place].add(_tag(metric), value, number)
                scored = "validation_balanced_accuracy" in metrics
                if scored:
                    events[place].flush()
                if place:
                    return
                if scored:
                    score = metrics["validation_balanced_accuracy"]
                    shown["validation"] = f"{score:.3f}"
                shown["loss"] = f"{metrics['loss']:.3f}"
                bar.set_postfix(shown, refresh=False)
                bar.update(number - bar.n)

            with bar:
                yield Watch(step, self.stop)
        self.done += len(runs)


def _tag(metric: str) -> str:
    if metric.startswith("validation_"):
        return f"validation/{metric.removeprefix('validation_')}"
    return f"train/{metric}"
