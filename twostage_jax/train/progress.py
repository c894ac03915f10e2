"""Progress of a run: bars on the terminal, event files for TensorBoard."""

import contextlib
import os
import sys
import time
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


class Events:
    """An event file, written in the calling thread.

    tensorboardX's writer uses a thread. If the disk is full, the thread dies, and adding
    an event then blocks forever.
    """

    # tensorboardX loads slowly, and only training needs it.
    def __init__(self, folder: Path) -> None:
        from tensorboardX import record_writer

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._file = record_writer.RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")

    def add(self, tag: str, value: float, step: int) -> None:
        """Adds the value of a scalar at a step."""
        from tensorboardX.summary import scalar

        self._write(step=step, summary=scalar(tag, value))

    def flush(self) -> None:
        """Writes what was added."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())


def _tag(metric: str) -> str:
    if metric.startswith("validation_"):
        return f"validation/{metric.removeprefix('validation_')}"
    return f"train/{metric}"
