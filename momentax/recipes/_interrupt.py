"""Ctrl-C and SIGTERM, taken between two updates: never inside a compiled program or the compiler."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType

_asked: list[int] = []


class Terminated(KeyboardInterrupt):
    """SIGTERM, as whoever runs the machine sends it: the exit status is 143."""


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Inside, a signal waits for `raise_if_asked`; a second Ctrl-C does not wait."""
    previous = {number: signal.signal(number, _ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        _asked.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal waits."""
    return bool(_asked)


def raise_if_asked() -> None:
    """Raises the interrupt that waits, if one does."""
    if _asked:
        raise Terminated if signal.SIGTERM in _asked else KeyboardInterrupt


def _ask(signum: int, frame: FrameType | None) -> None:
    if signal.SIGINT in _asked and signum == signal.SIGINT:
        raise KeyboardInterrupt
    if not _asked:
        more = "; once more to stop at once" if signum == signal.SIGINT else ""
        print(f"\nmomentax: stopping after this update{more}", file=sys.stderr, flush=True)
    _asked.append(signum)
