"""One run at a time in a folder."""

import contextlib
import os
from pathlib import Path

from ._formats import require

filelock = require("filelock")

# Long enough to try anew where the holder took its file away between our opening and our locking it.
_SECONDS = 0.2


class Lock:
    """Held from when the folder exists to the end of the `with`, or to the process's death, whatever its cause."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._lock = filelock.FileLock(folder / ".lock", timeout=_SECONDS)

    def __enter__(self) -> "Lock":
        if self._folder.is_dir() and os.access(self._folder, os.W_OK):
            self.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.is_locked:
            # Windows removes no file that is open; an empty one that stays excludes nobody.
            with contextlib.suppress(OSError):
                os.unlink(self._lock.lock_file)
            self._lock.release()

    def take(self) -> None:
        """Takes the lock of a folder that exists, unless it is held already.

        Raises:
            BlockingIOError: where another process holds it.
        """
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(poll_interval=_SECONDS / 10)
        except filelock.Timeout as error:
            raise BlockingIOError(
                f"needs a folder that no other run is at work in; got {self._folder};"
                " wait for that run, stop it, or choose another folder"
            ) from error
