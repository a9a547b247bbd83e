"""Ctrl-C, taken between two updates: never inside a compiled program or the compiler, which do not survive it."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_asked = threading.Event()


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, a first interrupt waits for `raise_if_asked`; a second one does not wait."""
    _asked.clear()
    previous = signal.signal(signal.SIGINT, _ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def raise_if_asked() -> None:
    """Raises the interrupt that waits, if one does."""
    if _asked.is_set():
        raise KeyboardInterrupt


def _ask(signum: int, frame: FrameType | None) -> None:
    if _asked.is_set():
        raise KeyboardInterrupt
    print("\nmomentax: stopping after this update; once more to stop at once", file=sys.stderr, flush=True)
    _asked.set()
