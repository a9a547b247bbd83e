"""Progress with rate, losses and remaining time: a bar on a terminal, lines in a log file."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ._formats import require
from ._interrupt import raise_if_asked

_SECONDS = 30.0
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {elapsed} gone, {remaining} to go{postfix}"


def parts(starts: range, title: str) -> Iterator[int]:
    """Iterates over parts of a job under a bar that goes when it is done, and stops between two of them if asked.

    A log file has lines of a job that takes longer than from one line to the next, and no other.
    """
    with _bar(total=len(starts), desc=title, unit=" parts", leave=False) as bar:
        for start in starts:
            yield start
            raise_if_asked()
            bar.update()


class Progress:
    """Iterates over the updates from a first one on."""

    def __init__(self, title: str, first: int, updates: int):
        self._first = first
        self._bar = _bar(total=updates, initial=first, desc=title, unit=" updates")

    def __iter__(self) -> Iterator[int]:
        with self._bar as bar:
            for n in range(self._first, bar.total):
                yield n
                bar.update()

    def show(self, losses: Mapping[str, float], skipped: int) -> None:
        """Losses beside the bar, and how many updates were skipped if any was."""
        counted = {"skipped": str(skipped)} if skipped else {}
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in losses.items()} | counted, refresh=False)


class _Lines:
    """What a bar draws again and again, as lines of a log file, none of them twice."""

    def __init__(self):
        self._last = ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line not in ("", self._last):
            print(line, file=sys.stderr)
            self._last = line

    def flush(self) -> None:
        sys.stderr.flush()


def _bar(*, leave: bool = True, **options: Any) -> Any:
    tqdm = require("tqdm").tqdm
    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, leave=leave, **options)
    seldom = {"mininterval": _SECONDS, "maxinterval": _SECONDS, "delay": 0.0 if leave else _SECONDS}
    return tqdm(file=_Lines(), bar_format=_LINE, leave=leave, **seldom, **options)
