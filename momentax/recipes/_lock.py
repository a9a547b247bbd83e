"""One run at a time in a folder."""

import fcntl
import os
from pathlib import Path


class Lock:
    """Held from when the folder exists to the end of the `with`, or to the process's death, whatever its cause."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file: int | None = None

    def __enter__(self) -> "Lock":
        if self._folder.is_dir() and os.access(self._folder, os.W_OK):
            self.take()
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def take(self) -> None:
        """Takes the lock of a folder that exists, unless it is held already.

        Raises:
            BlockingIOError: where another process holds it.
        """
        while self._file is None:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(file)
                raise BlockingIOError(
                    f"needs a folder that no other run is at work in; got {self._folder};"
                    " do wait for that run, stop it, or choose another --output"
                ) from error
            self._file = file if self._is_in_place(file) else os.close(file)

    @property
    def _path(self) -> Path:
        return self._folder / ".lock"

    def _is_in_place(self, file: int) -> bool:
        # Whoever held it before may have taken the file away between our opening and our locking it.
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path))
        except FileNotFoundError:
            return False
