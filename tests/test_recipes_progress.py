"""What is seen of a job on its way: a bar on a terminal, whole lines in a log file."""

import io
import re
import sys

from momentax.recipes import _progress
from momentax.recipes._progress import Progress, parts

LINE = re.compile(r"teacher: (\d+) of 6 updates, .*updates.*, \d+:\d+ gone, (\?|[\d:]+) to go(, loss=\d+)?")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def trained(first: int = 0) -> None:
    progress = Progress("teacher", first, 6)
    for n in progress:
        progress.show({"loss": float(n)}, 0)


def test_a_log_file_has_a_whole_line_at_the_beginning_and_at_the_end(capsys):
    """And none between, where less time passes than from one line to the next."""
    trained()
    log = capsys.readouterr().err
    assert log.endswith("\n")
    assert "\r" not in log
    lines = [LINE.fullmatch(line) for line in log.splitlines()]
    assert [line and (line[1], line[3]) for line in lines] == [("0", None), ("6", ", loss=5")]


def test_a_log_file_has_a_line_whenever_the_time_for_one_has_come(capsys, monkeypatch):
    """And at the end in any case."""
    monkeypatch.setattr(_progress, "_SECONDS", 0.0)
    trained(first=2)
    lines = [LINE.fullmatch(line) for line in capsys.readouterr().err.splitlines()]
    told = [("2", None), *((str(n + 1), f", loss={n}") for n in range(2, 6)), ("6", ", loss=5")]
    assert [line and (line[1], line[3]) for line in lines] == told


def test_parts_that_are_soon_done_leave_nothing_in_a_log_file(capsys):
    assert list(parts(range(3), "samples")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_parts_that_take_their_time_are_in_a_log_file(capsys, monkeypatch):
    monkeypatch.setattr(_progress, "_SECONDS", 0.0)
    assert list(parts(range(2), "samples")) == [0, 1]
    assert [line.partition(" parts")[0] for line in capsys.readouterr().err.splitlines()] == [
        f"samples: {n} of 2" for n in range(3)
    ]


def test_a_terminal_has_a_bar_that_moves_in_its_line(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    trained()
    written = terminal.getvalue()
    assert written.count("\n") == 1
    assert "\r" in written
    assert "6/6" in written
