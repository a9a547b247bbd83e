"""A progress bar with rate, losses and remaining time."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ._formats import require
from ._interrupt import raise_if_asked


def parts(starts: range, title: str) -> Iterator[int]:
    """Iterates over parts of a job under a bar that goes when it is done, and stops between two of them if asked."""
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


def _bar(**options: Any) -> Any:
    """On the terminal it moves; in a log file it is a line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return require("tqdm").tqdm(dynamic_ncols=True, mininterval=interval, **options)
