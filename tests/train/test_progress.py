"""Progress of a run: event files that TensorBoard reads."""

import contextlib
import errno
import os
import re
import struct
import sys
import termios
import time

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from twostage_jax.train import progress


def read_events(path):
    """Returns the events of a file in the TFRecord format."""
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[12 + length + 4 :]
    return events


def stages(folders):
    reporter = progress.Progress(total=2, done=0, stop=lambda: False)
    return reporter.stages(["one", "two"][: len(folders)], 10, folders)


def test_each_run_has_its_own_scalars(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    with stages(folders) as watch:
        watch.step(0, 5, {"loss": 0.5, "accuracy": 0.25})
        watch.step(1, 5, {"loss": 1.5})
        watch.step(0, 10, {"step": 10, "loss": 0.4, "validation_balanced_accuracy": 1})
    found = []
    for folder in folders:
        [path] = folder.glob("events/*tfevents*")
        first, *events = read_events(path)
        assert first.file_version == "brain.Event:2"
        found.append(
            [
                (event.step, value.tag, round(value.simple_value, 6))
                for event in events
                for value in event.summary.value
            ]
        )
    assert found[0] == [
        (5, "train/loss", 0.5),
        (5, "train/accuracy", 0.25),
        (10, "train/loss", 0.4),
        (10, "validation/balanced_accuracy", 1.0),
    ]
    assert found[1] == [(5, "train/loss", 1.5)]


def test_bar_on_a_terminal_shows_how_far_a_stage_is(tmp_path, monkeypatch):
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    reporter = progress.Progress(total=7, done=2, stop=lambda: False)
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with reporter.stages(["natural > target"], 1000, [tmp_path]) as watch:
            watch.step(0, 10, {"loss": 2.5, "validation_balanced_accuracy": 0.625})
            time.sleep(0.2)  # The bar is drawn ten times a second at most.
            watch.step(0, 20, {"loss": 1.25})
        shown = ""
        os.set_blocking(ours, False)
        with contextlib.suppress(BlockingIOError):  # All that there is.
            while True:
                shown += os.read(ours, 4096).decode()
    os.close(ours)
    last = [line for line in shown.split("\r") if "20/1000" in line][-1]
    assert last.startswith("[3/7] natural > target:") and "2%" in last
    assert "loss=1.250" in last and "validation=0.625" in last
    (minutes, seconds) = re.search(r"<(\d\d):(\d\d), ", last).groups()
    assert 0 < 60 * int(minutes) + int(seconds) < 600


def test_full_disk_is_an_error_and_not_a_wait_for_ever(tmp_path, monkeypatch):
    def full(writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "flush", full)
    with pytest.raises(OSError) as full_disk, stages([tmp_path]) as watch:
        for step in range(100):
            scores = {"loss": 0.5, "validation_balanced_accuracy": 0.5}
            watch.step(0, step, scores)
    assert full_disk.value.errno == errno.ENOSPC
