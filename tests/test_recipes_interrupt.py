"""Signals: taken between updates where these are short, and within ten seconds where they are not."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from commands import momentax, stopped
from processes import WORKERS

from momentax import checkpoint
from momentax.recipes import _interrupt

SHORT = ["--data", "own.npz", "--teacher-updates", "6", "--updates", "4", "--batch", "8", "--samples", "20"]
FIRST = ("compiles", signal.SIGTERM, 143)
OTHERS = [("compiles", signal.SIGINT, 1), ("computes", signal.SIGTERM, 143), ("computes", signal.SIGINT, 1)]
SLOW = pytest.mark.slow


def test_a_second_interrupt_does_not_wait_and_a_second_termination_does():
    with _interrupt.deferred(str):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert _interrupt.asked()
        with pytest.raises(_interrupt.Terminated):
            _interrupt.raise_if_asked()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.fixture
def statuses(monkeypatch):
    """Those that the process would have ended with, and a grace of no time."""
    found, ended = [], threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: (found.append(status), ended.set()))
    monkeypatch.setattr(_interrupt, "GRACE", 0.01)
    monkeypatch.setattr(_interrupt, "AT_ONCE", 0.01)
    return found, ended


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_who_does_not_ask_in_time_is_ended_with_what_can_be_saved_and_last_words(number, status, statuses, capsys):
    """Once, and with the innermost of those that save."""
    (found, ended), saved = statuses, []
    with _interrupt.deferred(lambda: f"saved {saved}"), _interrupt.saving_late(lambda: saved.append("outer")):
        with _interrupt.saving_late(lambda: saved.append("inner")):
            signal.raise_signal(number)
            assert ended.wait(60)
        assert _interrupt.asked()
    assert (found, saved) == ([status], ["inner"])
    assert "\nmomentax: saved ['inner']\n" in capsys.readouterr().err


def test_who_asks_in_time_is_not_hurried_but_by_a_second_ctrl_c(statuses, monkeypatch):
    found, ended = statuses
    monkeypatch.setattr(_interrupt, "GRACE", 0.5)
    with _interrupt.deferred(str):
        signal.raise_signal(signal.SIGINT)
        assert _interrupt.asked()
        assert not ended.wait(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert ended.wait(60)
    assert found == [1]


def test_a_signal_that_ends_in_time_leaves_nothing_behind(statuses):
    """No thread, no handler, and nothing that is heard later."""
    found, _ = statuses
    with _interrupt.deferred(str):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(_interrupt.Terminated):
            _interrupt.raise_if_asked()
    time.sleep(0.1)
    assert found == []
    assert "signals" not in [thread.name for thread in threading.enumerate()]
    assert signal.set_wakeup_fd(-1) == -1


def ended(stall, number, folder):
    """The exit status and the last words of a run whose fourth update stalls, three seconds before the signal."""
    np.savez(folder / "own.npz", x=np.random.default_rng(0).integers(0, 256, (80, 4, 4, 1), np.uint8))
    since = []

    def stalled():
        since.extend([time.monotonic()] if (folder / "stalled").exists() else [])
        return bool(since) and time.monotonic() - since[0] > 3

    program = (str(WORKERS / "stalled.py"), stall, "3")
    command = ["distill", *SHORT, "--output", "run"]
    returned, _, error = stopped(number, stalled, *command, cwd=folder, within=10, program=program)
    return returned, error


@pytest.mark.parametrize(("stall", "number", "status"), [FIRST, *(pytest.param(*end, marks=SLOW) for end in OTHERS)])
def test_a_run_in_the_compiler_or_in_a_long_program_ends_within_ten_seconds(stall, number, status, tmp_path):
    """With every update before it on disk."""
    returned, error = ended(stall, number, tmp_path)
    assert returned == status
    assert "interrupted in a long computation, which is lost; run keeps checkpoints, losses.jsonl, run.json;" in error
    assert "momentax distill --resume --output run" in error
    assert checkpoint.steps(tmp_path / "run" / "checkpoints" / "teacher") == [3]
    assert [n for n, _ in checkpoint.read_losses(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_that_was_ended_in_the_compiler_comes_to_the_bits_of_one_that_was_not(tmp_path):
    ended("compiles", signal.SIGTERM, tmp_path)
    for name, arguments in {"run": ["--resume"], "whole": SHORT}.items():
        result = momentax("distill", *arguments, "--output", name, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    for name in ("teacher.eqx", "student.eqx", "losses.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
