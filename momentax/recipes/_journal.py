"""What a phase leaves on disk as it goes: every loss by update, and checkpoints that it goes on from."""

import os
import shutil
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from momentax import checkpoint

from ._folder import Folder
from ._state import State

_DISTANCE = "frechet_distance"


class Journal:
    """Of one phase, whose updates are numbered from `first` on in `losses.jsonl`.

    Args:
        told: what a checkpoint must have been made with to go on from it.
    """

    def __init__(self, folder: Folder, phase: str, first: int, told: dict[str, Any]):
        self.folder, self._first, self._told = folder, first, told
        self._path = folder.path / "checkpoints" / phase
        self._pending: dict[int, dict[str, Any]] = {}
        self._recent: dict[str, deque[float]] = {}
        self._saving: Any = None
        self._done = 0
        self._earlier, self._started = 0.0, time.monotonic()

    def restored(self, like: State) -> tuple[State, int, Any] | None:
        """The newest whole checkpoint: state, updates done, position in the data; the losses are cut to it.

        Raises:
            ValueError: where it was made with something else, and where losses before it are missing.
            FileNotFoundError: where there are checkpoints and all are damaged.
        """
        if checkpoint.latest(self._path) is None:
            shutil.rmtree(self._path, ignore_errors=True)
            checkpoint.cut_losses(self.folder.path, self._first)
            return None
        try:
            state, done, notes, _ = checkpoint.restore(self._path, like, config=self._told)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; here: --overwrite, which keeps a finished teacher") from error
        checkpoint.cut_losses(self.folder.path, self._first + done)
        self._check_losses(done)
        self._done = done
        assert notes is not None
        self._earlier = notes["seconds"]
        return state, done, notes["data"]

    def record(self, n: int, **values: Any) -> None:
        """What is known of the nth update, still on its device."""
        self._pending.setdefault(n, {}).update(values)

    def flush(self) -> dict[str, float]:
        """Writes what was recorded; the mean of what is finite of each loss's last twenty."""
        for n, values in self._pending.items():
            plain = {name: float(value) for name, value in values.items()}
            checkpoint.append_losses(self.folder.path, self._first + n, plain)
            for name in plain.keys() - {_DISTANCE}:
                self._recent.setdefault(name, deque(maxlen=20)).append(plain[name])
        self._pending.clear()
        return {name: _mean(values) for name, values in sorted(self._recent.items())}

    def save(self, done: int, state: State, data: Any, figure: float | None = None) -> None:
        """A checkpoint after `done` updates, written while the training goes on; the newest two and the best stay."""
        with (self.folder.path / "losses.jsonl").open("ab") as losses:  # Windows flushes only what may be written to.
            os.fsync(losses.fileno())
        notes = {"data": data, "seconds": self.seconds}
        self._saving = checkpoint.save(self._path, done, state, config=self._told, notes=notes, figure=figure, keep=2)
        self._done = done

    def save_late(self, done: int, state: State, data: Any) -> None:
        """A checkpoint that is on disk before this returns, if it holds more than the one before."""
        if done > self._done:
            self.flush()
            self.save(done, state, data)
        self.close()

    def close(self) -> None:
        """Waits until the last checkpoint is on disk."""
        if self._saving is not None:
            self._saving.wait()

    def _check_losses(self, done: int) -> None:
        known = [n - self._first for n, _ in checkpoint.read_losses(self.folder.path) if n >= self._first]
        if known != list(range(done)):
            raise ValueError(
                f"needs every loss of {done} updates in {self.folder.path / 'losses.jsonl'}; got {len(known)};"
                " do put the file back, or --overwrite, which keeps a finished teacher"
            )

    @property
    def seconds(self) -> float:
        """Of the phase so far, those before it was interrupted included."""
        return self._earlier + time.monotonic() - self._started

    @property
    def distances(self) -> dict[int, float]:
        """The student's Frechet distances so far, by updates done."""
        return distances(self.folder, self._first)


def clear(folder: Folder) -> None:
    """Takes the checkpoints away: of phases that have their result, or of a run that is given up."""
    place = folder.path / "checkpoints"
    for phase in ("teacher", "distillation"):
        shutil.rmtree(place / phase, ignore_errors=True)
    if place.is_dir() and not any(place.iterdir()):
        place.rmdir()


def curves(folder: Folder) -> dict[str, list[float]]:
    """Every finite loss by name, in the order of the updates."""
    found: dict[str, list[float]] = {}
    for _, values in checkpoint.read_losses(folder.path):
        for name, value in values.items():
            if name != _DISTANCE and np.isfinite(value):
                found.setdefault(name, []).append(value)
    return found


def distances(folder: Folder, first: int) -> dict[int, float]:
    """The student's Frechet distances by updates of the distillation, whose first has the number `first`."""
    lines = checkpoint.read_losses(folder.path)
    return {n - first + 1: values[_DISTANCE] for n, values in lines if _DISTANCE in values}


def _mean(values: Iterable[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")
