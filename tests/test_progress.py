"""What a run shows while it works: event files that TensorBoard reads."""

import errno
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from twostage_jax import progress


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


def test_full_disk_is_an_error_and_not_a_wait_for_ever(tmp_path, monkeypatch):
    def full(writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(progress.RecordWriter, "flush", full)
    with pytest.raises(OSError, match="No space left"), stages([tmp_path]) as watch:
        for step in range(100):
            scores = {"loss": 0.5, "validation_balanced_accuracy": 0.5}
            watch.step(0, step, scores)
