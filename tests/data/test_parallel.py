"""Workers that make tasks, and the signals that end them."""

import contextlib
import io
import signal
import threading

import pytest

from twostage_jax.data import store
from twostage_jax.data.dataset import Recipe

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asked(BaseException):
    """What the handlers of this file raise."""


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
def test_signal_while_a_worker_starts_is_put_off_until_it_has_started(handlers, number):
    done = []
    with pytest.raises(Asked, match=str(int(number))), store._uninterrupted():
        signal.raise_signal(number)
        done.append("started")
    assert done == ["started"]
    assert all(signal.getsignal(one) is handlers for one in SIGNALS)


def test_what_starts_is_spared_ctrl_c_and_nothing_stays_blocked(handlers):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with store._uninterrupted():
        during = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.SIGINT in during and signal.SIGTERM not in during
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_other_threads_than_the_main_one_may_start_workers():
    entered = []

    def start():
        with store._uninterrupted():
            entered.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert entered == [True]


def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch, capsys):
    """They reach the user although the writer of the set silences its libraries."""
    monkeypatch.setattr(store, "LINE_EVERY", -1.0)
    recipe = Recipe("made", "ct", ("a",), "key", (0, 1), lambda task: [])
    results = store.run(recipe, workers=1)
    with contextlib.redirect_stdout(io.StringIO()) as silenced:
        assert list(results) == [[], []]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("'made'" in line for line in lines)
    assert "2 tasks" in lines[0]
    assert "1 of 2" in lines[1] and "2 of 2" in lines[2]
    assert not silenced.getvalue()
    assert list(store.run(recipe, workers=1, progress=False)) == [[], []]
    assert not capsys.readouterr().out
