"""A checkpoint on its way to the disk: one at a time, behind the caller's back."""

import atexit
import threading
import warnings
from collections.abc import Callable


class Saving:
    """A checkpoint that is being written."""

    def __init__(self, step: int, finish: Callable[[], None]):
        self._step = step
        self._finish = finish
        self._error: Exception | None = None
        self._is_told = False
        self._thread = threading.Thread(target=self._run, name=f"checkpoint {step}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns once the checkpoint is on the disk. A program's end does not wait, and what is unfinished is lost.

        Raises:
            OSError: with what kept it from getting there.
        """
        self.join()
        if self._error is not None:
            self._is_told = True
            raise OSError(
                f"needs a disk that takes checkpoint {self._step}; got {type(self._error).__name__}: {self._error};"
                " do make room and save again: older checkpoints are whole"
            ) from self._error

    def is_done(self) -> bool:
        """Whether nothing is left to wait for."""
        return not self._thread.is_alive()

    def settle(self) -> None:
        """Waits, and raises only what nobody has been told yet."""
        self.join()
        if not self._is_told:
            self.wait()

    def join(self) -> None:
        """Waits, and raises nothing."""
        self._thread.join()

    def is_lost_unheard(self) -> bool:
        """Whether the program would end with it not on the disk, and nobody told."""
        return not self.is_done() or (self._error is not None and not self._is_told)

    def _run(self) -> None:
        try:
            self._finish()
        except Exception as error:
            self._error = error


def begin(step: int, finish: Callable[[], None]) -> Saving:
    """Has `finish` run in the background."""
    _in_flight[:] = [Saving(step, finish)]
    return _in_flight[0]


def in_flight() -> Saving | None:
    """The last one that began."""
    return _in_flight[0] if _in_flight else None


def _warn() -> None:
    if (last := in_flight()) and last.is_lost_unheard():
        warnings.warn(
            "needs `wait()` before the program ends; got a checkpoint that did not get to the disk, and is lost;"
            " do wait for the last one",
            stacklevel=1,
        )


_in_flight: list[Saving] = []
atexit.register(_warn)
