"""Event files for TensorBoard."""

import os
import time
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar


class Events:
    """An event file, written in the calling thread.

    tensorboardX's writer uses a thread. If the disk is full, the thread dies, and adding
    an event then blocks forever.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{os.getpid()}"
        self._file = RecordWriter(str(folder / name))
        self._write(file_version="brain.Event:2")

    def add(self, tag: str, value: float, step: int) -> None:
        """Adds the value of a scalar at a step."""
        self._write(step=step, summary=scalar(tag, value))

    def flush(self) -> None:
        """Writes what was added."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        event = Event(wall_time=time.time(), **fields)
        self._file.write(event.SerializeToString())
