"""What a run shows while it works: bars for people, event files for TensorBoard."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from twostage_jax import runtime
from twostage_jax.fit import Watch


class Progress:
    """Reports on the stage runs of a study.

    Attributes:
      total: Number of stage runs.
      done: How many of them are finished.
      stop: Whether the run was asked to stop.
    """

    def __init__(self, total: int, done: int, stop: Callable[[], bool]) -> None:
        self.total, self.done, self.stop = total, done, stop

    def say(self, text: str) -> None:
        """Prints a line; only the first process speaks."""
        if runtime.is_main():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    @contextlib.contextmanager
    def stage(self, name: Any, steps: int, folder: Path) -> Iterator[Watch]:
        """Shows a bar and writes event files while one stage run trains."""
        if not runtime.is_main():
            yield Watch(lambda step, metrics: None, self.stop)
            return
        title = f"[{self.done + 1}/{self.total}] {name}"
        bar = tqdm(total=steps, desc=title, unit="step", disable=None, leave=False)
        shown: dict[str, str] = {}
        with contextlib.closing(SummaryWriter(str(folder / "events"))) as events:

            def step(number: int, metrics: dict[str, float]) -> None:
                for metric, value in metrics.items():
                    if metric != "step":
                        events.add_scalar(_tag(metric), value, number)
                if "validation_balanced_accuracy" in metrics:
                    score = metrics["validation_balanced_accuracy"]
                    shown["validation"] = f"{score:.3f}"
                shown["loss"] = f"{metrics['loss']:.3f}"
                bar.set_postfix(shown, refresh=False)
                bar.update(number - bar.n)

            with bar:
                yield Watch(step, self.stop)
        self.done += 1


def _tag(metric: str) -> str:
    split, _, name = metric.rpartition("validation_")
    return (
        f"validation/{name}"
        if split or metric.startswith("validation_")
        else (f"train/{metric}")
    )
