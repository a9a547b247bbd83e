"""The checkpoints of a folder, one below it for every step."""

import os
import re
import shutil
from pathlib import Path

from ._damage import DamageError
from ._manifest import opened
from ._store import UNFINISHED

Folder = str | os.PathLike[str]
_DELETED = ".deleted"
_STEP = re.compile("0|[1-9][0-9]*")


def steps(folder: Folder) -> list[int]:
    """The steps of the complete checkpoints, in their order; none where there is no folder yet.

    Raises:
        NotADirectoryError: for a file.
    """
    folder = folder_of(folder)
    if not folder.exists():
        return []
    with os.scandir(folder) as entries:
        return sorted(int(entry.name) for entry in entries if _STEP.fullmatch(entry.name) and entry.is_dir())


def latest(folder: Folder) -> int | None:
    """The step of the newest complete checkpoint."""
    return max(steps(folder), default=None)


def best(folder: Folder) -> int | None:
    """The step of the checkpoint with the lowest figure, of equals the first; NaN is none."""
    figures = [
        (figure, step) for step in steps(folder) if (figure := _figure(folder_of(folder) / str(step))) is not None
    ]
    return min(((figure, step) for figure, step in figures if figure == figure), default=(None, None))[1]


def folder_of(folder: Folder) -> Path:
    """The folder's absolute path, which may not exist yet."""
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(
            f"needs a folder of checkpoints that `save` wrote; got the file {path}, which was not read;"
            " do name the folder, and load other formats with what wrote them"
        )
    return path


def discard(folder: Path, step: int) -> None:
    """Takes a checkpoint out of the folder at once; `tidy` deletes it."""
    (folder / str(step)).rename(folder / f"{step}{_DELETED}")


def tidy(folder: Path) -> None:
    """Deletes what was discarded, and what a process that was killed left unfinished."""
    for path in folder.iterdir():
        step, dot, rest = path.name.partition(".")
        if _STEP.fullmatch(step) and dot + rest in (_DELETED, UNFINISHED):
            shutil.rmtree(path)


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the newest and the best."""
    complete = steps(folder)
    for step in set(complete) - {*complete[-keep:], best(folder)}:
        discard(folder, step)
    tidy(folder)


def _figure(path: Path) -> float | None:
    try:
        return opened(path).figure
    except (DamageError, ValueError):
        return None
