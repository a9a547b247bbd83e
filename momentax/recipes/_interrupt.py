"""Ctrl-C and SIGTERM, taken between two updates: never inside a compiled program or the compiler.

Where one of these takes long, a second thread, which hears signals meanwhile, saves what there is and ends the process.
"""

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

GRACE, AT_ONCE, TO_SAVE = 4.0, 1.0, 3.0
_SIGNALS, _SILENCE = (signal.SIGINT, signal.SIGTERM), b"\0"
_asked: list[int] = []
_rescues: list[Callable[[], None]] = []
_in_time, _ending = threading.Event(), threading.Lock()


class Terminated(KeyboardInterrupt):
    """SIGTERM, as whoever runs the machine sends it: the exit status is 143."""


@contextlib.contextmanager
def deferred(last_words: Callable[[], str]) -> Iterator[None]:
    """Inside, a signal waits for `raise_if_asked`; a second Ctrl-C does not wait.

    Where nobody has asked four seconds after a signal, or has left one second after a second Ctrl-C, the process says
    its last words, with what they tell of the files, and ends.
    """
    _in_time.clear()
    previous = {number: signal.signal(number, _ask) for number in _SIGNALS}
    try:
        with _heard(last_words):
            yield
    finally:
        _asked.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)


def asked() -> bool:
    """Whether a signal waits; whoever learns of one here is not hurried any more."""
    if _asked:
        _come_in_time()
    return bool(_asked)


def raise_if_asked() -> None:
    """Raises the interrupt that waits, if one does."""
    if asked():
        raise Terminated if signal.SIGTERM in _asked else KeyboardInterrupt


def status(terminated: bool) -> int:
    """The exit status of a command that was interrupted."""
    return 128 + signal.SIGTERM if terminated else 1


@contextlib.contextmanager
def saving_late(save: Callable[[], None]) -> Iterator[None]:
    """Inside, a process that has to end has three seconds to `save`, which the second thread calls."""
    _rescues.append(save)
    try:
        yield
    finally:
        with _ending:
            _rescues.pop()


def _ask(signum: int, frame: FrameType | None) -> None:
    if signal.SIGINT in _asked and signum == signal.SIGINT:
        raise KeyboardInterrupt
    if not _asked:
        more = "; once more to stop at once" if signum == signal.SIGINT else ""
        print(f"\nmomentax: stopping after this update, or in ten seconds{more}", file=sys.stderr, flush=True)
    _asked.append(signum)


@contextlib.contextmanager
def _heard(last_words: Callable[[], str]) -> Iterator[None]:
    """Python's handlers wait until the main thread is back from the compiler; the bytes that signals write do not."""
    ears, mouth = socket.socketpair()
    mouth.setblocking(False)
    previous = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(ears, last_words), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _come_in_time()
        signal.set_wakeup_fd(previous)
        mouth.close()
        thread.join()
        ears.close()


def _listen(ears: socket.socket, last_words: Callable[[], str]) -> None:
    heard, ends = set(), math.inf
    while numbers := _received(ears, ends - time.monotonic()):
        if numbers == _SILENCE:
            _end(signal.SIGTERM in heard, last_words)
            ends = math.inf
        for number in set(numbers) & set(_SIGNALS):
            if number == signal.SIGINT and number in heard:
                _in_time.clear()
                ends = min(ends, time.monotonic() + AT_ONCE)
            elif not heard:
                ends = time.monotonic() + GRACE
            heard.add(number)


def _received(ears: socket.socket, seconds: float) -> bytes:
    ears.settimeout(None if math.isinf(seconds) else max(seconds, 0.001))
    try:
        return ears.recv(64)
    except TimeoutError:
        return _SILENCE


def _end(terminated: bool, last_words: Callable[[], str]) -> None:
    with _ending:
        if _in_time.is_set():
            return
        try:
            if _rescues:
                saving = threading.Thread(target=_rescues[-1], daemon=True)
                saving.start()
                saving.join(TO_SAVE)
            sys.stdout.flush()
            print(f"\nmomentax: {last_words()}", file=sys.stderr, flush=True)
        finally:
            os._exit(status(terminated))


def _come_in_time() -> None:
    with _ending:
        _in_time.set()
