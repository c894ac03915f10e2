"""Data sets are prepared once, completely or not at all, in workers, and read back."""

import contextlib
import dataclasses
import functools
import io
import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from basics import refused_at
from toy_sets import (
    given,
    make_counted,
    make_error,
    make_noted,
    make_plain,
    pixels,
    plain,
    recipe,
    remarks,
)

from twostage_jax.data import store
from twostage_jax.data.dataset import Example, Recipe
from twostage_jax.data.store import prepare
from twostage_jax.errors import UserError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_examples_are_read_back(tmp_path, dtype):
    made = prepare(recipe(functools.partial(make_plain, dtype)), tmp_path, workers=1)
    again = prepare(recipe(make_error), tmp_path, workers=1)
    for data in (made, again):
        expected = sorted(
            (e for task in range(4) for e in make_plain(dtype, task)),
            key=lambda e: e.id,
        )
        assert data.ids.tolist() == [e.id for e in expected]
        assert data.groups.tolist() == [e.group for e in expected]
        assert data.splits.tolist() == ["train"] * 12
        assert data.labels.dtype == np.int32
        np.testing.assert_array_equal(data.labels, [e.label for e in expected])
        assert data.images.dtype == dtype
        np.testing.assert_array_equal(data.images, [e.image for e in expected])
        assert (data.name, data.kind, data.class_names) == (
            "toy",
            "natural",
            ("a", "b"),
        )
    assert made.fingerprint == again.fingerprint


def test_several_parts_one_of_them_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART_BYTES", 60)
    tasks = [make_plain("uint8", 0), [], make_plain("uint8", 2), []]
    data = prepare(given(*tasks), tmp_path, workers=1)
    whole = prepare(given(tasks[0], tasks[2], key="other"), tmp_path, workers=1)
    assert len(list(tmp_path.glob("prepared/toy-kkk*/*/*part_*"))) == 4
    assert data.ids.tolist() == ["t0_0", "t0_1", "t0_2", "t2_0", "t2_1", "t2_2"]
    np.testing.assert_array_equal(data.images[3], pixels(20))
    assert data.fingerprint == whole.fingerprint


def test_images_too_large_for_memory_stay_on_disk(tmp_path, monkeypatch):
    whole = prepare(recipe(plain), tmp_path, workers=1)
    monkeypatch.setattr(store, "MAX_MEMORY_BYTES", 10)
    lazy = prepare(recipe(plain), tmp_path).images
    assert not isinstance(lazy, np.ndarray)
    assert (lazy.shape, lazy.dtype, len(lazy)) == ((12, 4, 5, 1), np.uint8, 12)
    indices = np.array([[7, 0], [3, 7]])
    np.testing.assert_array_equal(lazy[indices], whole.images[indices])


def test_fingerprint_follows_every_part_of_the_content(tmp_path):
    image = pixels(0)
    base = [Example("x", image, 0), Example("y", image, 1)]
    changed = {
        "base": base,
        "pixels": [Example("x", image + 1, 0), base[1]],
        "labels": [Example("x", image, 1), Example("y", image, 0)],
        "ids": [Example("w", image, 0), base[1]],
        "groups": [Example(e.id, image, e.label, "g") for e in base],
        "splits": [Example("x", image, 0, split="test"), base[1]],
    }
    prints = {
        prepare(given(examples, key=key), tmp_path, workers=1).fingerprint
        for key, examples in changed.items()
    }
    assert len(prints) == len(changed)
    other_names = given(base, key="names", classes=("a", "c"))
    assert prepare(other_names, tmp_path, workers=1).fingerprint not in prints
    turned = prepare(given(base[::-1], key="turned"), tmp_path, workers=1)
    assert turned.fingerprint in prints


def test_workers_give_the_same_examples_and_notes_as_this_process(tmp_path):
    noted = dataclasses.replace(recipe(make_noted), remarks=remarks)
    alone = prepare(noted, tmp_path / "alone", workers=1)
    together = prepare(noted, tmp_path / "together", workers=2)
    assert alone.fingerprint == together.fingerprint
    np.testing.assert_array_equal(alone.images, together.images)
    for made in (alone, together, prepare(noted, tmp_path / "together")):
        assert made.notes == ("6 of 12 images are upside down.", "4 files are broken.")


def test_sets_may_be_ungrouped(tmp_path):
    data = prepare(
        given([Example("x", pixels(0), 0), Example("y", pixels(1), 1)]), tmp_path
    )
    assert data.groups is None


@pytest.mark.parametrize(
    ("examples", "where"),
    [
        ([Example("x", pixels(0), 0)] * 2, "x"),
        ([Example("x", pixels(0), 2)], "x"),
        ([Example("x", pixels(0), -1)], "x"),
        ([Example("x", pixels(0), 0)], "toy"),
        ([Example("", pixels(0), 0)], ""),
        ([Example("x", pixels(0), 0, split="dev")], "x"),
        ([Example("x", pixels(0).astype(float), 0)], "x"),
        ([Example("x", pixels(0)[0], 0)], "x"),
        (
            [Example("x", pixels(0), 0), Example("y", pixels(0, (5, 5, 1)), 1)],
            "y",
        ),
        (
            [Example("x", pixels(0), 0), Example("y", pixels(0, dtype="int16"), 1)],
            "y",
        ),
        (
            [Example("x", np.full((2, 2, 1), np.nan, np.float32), 0)],
            "x",
        ),
        (
            [Example("x", pixels(0), 0, "g"), Example("y", pixels(0), 1)],
            "y",
        ),
        ([], "toy"),
    ],
)
def test_contradicting_examples_are_refused(tmp_path, examples, where):
    with refused_at(where):
        prepare(given(examples), tmp_path, workers=1)
    assert not list(tmp_path.glob("prepared/*/[0-9]*"))
    assert not list(tmp_path.glob("prepared/*/incomplete*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_a_task(tmp_path, workers):
    unreadable = functools.partial(make_error, UserError("is broken", where="x.png"))
    with refused_at("x.png"):
        prepare(recipe(unreadable), tmp_path, workers=workers)
    bug = functools.partial(make_error, KeyError("colour"))
    with pytest.raises(RuntimeError):
        prepare(recipe(bug), tmp_path, workers=workers)
    data = prepare(recipe(plain), tmp_path, workers=1)
    assert len(data) == 12


def test_full_disk_is_explained(tmp_path):
    full = functools.partial(make_error, OSError(28, "No space left on device"))
    with refused_at(tmp_path / "prepared" / f"toy-{'k' * 16}"):
        prepare(recipe(full), tmp_path, workers=1)


def test_data_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").touch()
    with refused_at(tmp_path / "data" / "prepared" / f"toy-{'k' * 16}"):
        prepare(recipe(plain), tmp_path / "data", workers=1)


def test_bad_name_is_refused(tmp_path):
    with refused_at("name"):
        prepare(recipe(plain, name="../x"), tmp_path)


def test_damaged_folder_is_named(tmp_path):
    prepare(recipe(plain), tmp_path, workers=1)
    (records,) = tmp_path.glob("prepared/*/*/*array_record*")
    records.write_bytes(records.read_bytes()[:100])
    with refused_at(store.folder_of(recipe(plain), tmp_path)):
        prepare(recipe(plain), tmp_path)


def test_keys_with_a_common_prefix_are_distinguished(tmp_path):
    prepare(recipe(plain, key="k" * 20), tmp_path, workers=1)
    with refused_at(store.folder_of(recipe(plain), tmp_path)):
        prepare(recipe(plain, key="k" * 16), tmp_path, workers=1)


def _prepare_counted(folder, marks):
    counted = functools.partial(make_counted, marks)
    prepare(recipe(counted, tasks=6), folder, workers=1, progress=False)


def test_two_processes_at_once_prepare_once(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_prepare_counted, args=(tmp_path, marks))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(marks.iterdir())) == 6
    assert len(prepare(recipe(plain, tasks=6), tmp_path)) == 18


def test_killed_process_does_not_leave_a_finished_set(tmp_path):
    script = (
        "import sys; sys.path[:0] = ['tests/helpers']\n"
        "import toy_sets\n"
        "from twostage_jax.data.store import prepare\n"
        "recipe = toy_sets.recipe(toy_sets.make_slowly, tasks=1000)\n"
        "prepare(recipe, sys.argv[1], workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("prepared/*/incomplete*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("prepared/*/1*"))
    assert len(prepare(recipe(plain), tmp_path, workers=1)) == 12
    assert not list(tmp_path.glob("prepared/*/incomplete*"))


def test_importing_and_preparing_needs_neither_jax_nor_tensorflow(tmp_path):
    script = (
        "import sys; sys.path[:0] = ['tests/helpers']\n"
        "import toy_sets\n"
        "import twostage_jax.data.image_folder, twostage_jax.data.tfds\n"
        "from twostage_jax.data.store import prepare\n"
        "prepare(toy_sets.recipe(toy_sets.plain), sys.argv[1], workers=1)\n"
        "assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


class Asked(BaseException):
    """Raised by the handlers of this file."""


@pytest.fixture
def handlers():
    """Handlers that raise `Asked` with the signal's number."""

    def asked(number, frame):
        raise Asked(number)

    before = {number: signal.signal(number, asked) for number in SIGNALS}
    yield asked
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signals_are_deferred_while_a_worker_starts(handlers, number):
    done = []
    with pytest.raises(Asked, match=str(int(number))), store.uninterrupted():
        signal.raise_signal(number)
        done.append("started")
    assert done == ["started"]
    assert all(signal.getsignal(one) is handlers for one in SIGNALS)


def test_workers_start_with_ctrl_c_blocked(handlers):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with store.uninterrupted():
        during = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.SIGINT in during and signal.SIGTERM not in during
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_other_threads_may_start_workers():
    entered = []

    def start():
        with store.uninterrupted():
            entered.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert entered == [True]


def test_progress_is_printed_as_lines_without_a_terminal(monkeypatch, capsys):
    """They are printed even though the writer of the set silences its libraries."""
    monkeypatch.setattr(store, "LINE_EVERY", -1.0)
    made = Recipe("made", "ct", ("a",), "key", (0, 1), lambda task: [])
    results = store.run(made, workers=1)
    with contextlib.redirect_stdout(io.StringIO()) as silenced:
        assert list(results) == [[], []]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("'made'" in line for line in lines)
    assert "2 tasks" in lines[0]
    assert "1 of 2" in lines[1] and "2 of 2" in lines[2]
    assert not silenced.getvalue()
    assert list(store.run(made, workers=1, progress=False)) == [[], []]
    assert not capsys.readouterr().out
