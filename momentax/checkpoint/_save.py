"""Saving a tree: checked, copied to the host, summed up, and handed to the disk."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxtyping import PyTree

from .._number import any_real, whole
from ._arrays import checked_arrays, stored_names
from ._damage import DamageError
from ._leaf import kind, named_arrays, stored
from ._manifest import Manifest, opened, plain, sealed
from ._pieces import all_pieces
from ._saving import Saving, begin, in_flight
from ._steps import Folder, discard, folder_of, prune, steps, tidy
from ._store import write
from ._together import gathered, is_first, together


def save(
    folder: Folder,
    step: int,
    tree: PyTree[Any],
    *,
    config: Mapping[str, Any] | None = None,
    notes: Mapping[str, Any] | None = None,
    figure: float | int | None = None,
    keep: int = 3,
) -> Saving:
    """Saves a tree's arrays under a step, whole or not at all, whatever ends the process.

    Returns once everything is copied to the host: arrays may be donated and overwritten while the writing goes on. A
    save waits for the one before it. Several processes save together, into one folder that all of them see: each
    writes its own pieces of what is spread over them.

    Args:
        step: above every whole checkpoint's.
        tree: jax arrays however sharded, typed keys, NumPy's arrays and scalars. Other leaves are not saved.
        config: a mapping of JSON's types that whoever restores may have compared with theirs.
        notes: a mapping of JSON's types that is handed back: the position in the data, the best figure so far.
        figure: how good the checkpoint is, where lower is better.
        keep: how many of the newest stay; the one with the best figure stays besides. Others are deleted once the
            new one is complete.

    Raises:
        OSError: for a folder that cannot be written to; and for a save before this one that failed since, in which
            case nothing is saved now.
        ValueError: for a step that is not above all others, or `keep` below 1, or a figure that is no number.
        TypeError: for what is not of JSON's types, and for arrays of other dtypes than numbers.
    """
    path = folder_of(folder)
    together(_settle)
    config, notes = together(lambda: (plain("config", config), plain("notes", notes)))
    step, keep = together(lambda: (whole("step", step, 0, "count from 0"), whole("keep", keep, 1, "use 1")))
    figure = together(lambda: None if figure is None else any_real("figure", figure, "use None for no figure"))
    together(lambda: _check_writable(path))
    _check_new(path, step)
    arrays = together(lambda: {name: stored(name, leaf) for name, leaf in named_arrays(tree).items()})
    kinds = {name: kind(leaf) for name, leaf in named_arrays(tree).items()}
    names = stored_names(kinds)
    pieces = {name: {} for name in kinds} | all_pieces({name: arrays[name] for name in names})
    manifest = sealed(Manifest(config, notes, figure, kinds, pieces))
    together(lambda: _make_way(path, step))
    finish = write(path / str(step), {place: arrays[name] for name, place in names.items()}, manifest)
    return begin(step, lambda: _complete(finish, path, keep))


def _settle() -> None:
    if last := in_flight():
        last.settle()


def _check_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise type(error)(f"needs a folder it may write to; got {path}: {error}; name another") from error


def _check_new(path: Path, step: int) -> None:
    for other in gathered(steps(path))[0]:
        if other >= step and _is_whole(path / str(other)):
            raise ValueError(
                f"needs a step above {other}, which is saved in {path}; got {step};"
                " do count on from there, or name another folder"
            )


def _is_whole(path: Path) -> bool:
    try:
        for _ in checked_arrays(path, together(lambda: opened(path))):
            pass
    except DamageError:
        return False
    return True


def _make_way(path: Path, step: int) -> None:
    """Those from the step on are damaged: a run that went on from an older one saves them anew."""
    if is_first():
        tidy(path)
        for other in steps(path):
            if other >= step:
                discard(path, other)


def _complete(finish: Callable[[], None], path: Path, keep: int) -> None:
    finish()
    if is_first():
        prune(path, keep)
