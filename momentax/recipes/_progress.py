"""A progress bar with rate, losses and remaining time, and the curves behind it."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

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
    """Iterates over updates, and keeps every loss that is recorded on the way, by name."""

    def __init__(self, title: str, updates: int):
        self._bar = _bar(total=updates, desc=title, unit=" updates")
        self._recorded: dict[str, list[Any]] = {}

    def __iter__(self) -> Iterator[int]:
        with self._bar as bar:
            for n in range(bar.total):
                yield n
                if n % 20 == 19 or n == bar.total - 1:
                    self._show()
                raise_if_asked()
                bar.update()

    def record(self, **losses: Any) -> None:
        """The losses of this update, still on their device."""
        for name, value in losses.items():
            self._recorded.setdefault(name, []).append(value)

    @property
    def losses(self) -> dict[str, list[float]]:
        """Every loss by name, in the order of the updates."""
        return {name: [float(value) for value in values] for name, values in self._recorded.items()}

    def _show(self) -> None:
        recent = {name: float(np.mean([float(value) for value in v[-20:]])) for name, v in self._recorded.items()}
        for name, value in recent.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"needs finite losses; got {value} from {name} by update {self._bar.n + 1};"
                    " do lower --learning-rate, or look for bad values in the data"
                )
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in recent.items()}, refresh=False)


def _bar(**options: Any) -> Any:
    """On the terminal it moves; in a log file it is a line every half minute."""
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return require("tqdm").tqdm(dynamic_ncols=True, mininterval=interval, **options)
