"""Restoring: the newest whole checkpoint, or an error that says what differs; never other values."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from .._number import optional_whole
from ._arrays import checked_arrays
from ._damage import DamageError
from ._leaf import finished, is_array, kind, named_arrays, placed
from ._manifest import Manifest, opened, plain
from ._mismatch import check_config, check_kinds
from ._saving import in_flight
from ._steps import Folder, folder_of, steps
from ._together import gathered, together


class Restored(NamedTuple):
    """A tree, and what was said of it when it was saved."""

    tree: PyTree[Any]
    step: int
    notes: dict[str, Any] | None
    figure: float | None


def restore(
    folder: Folder, like: PyTree[Any], *, step: int | None = None, config: Mapping[str, Any] | None = None
) -> Restored:
    """The tree that was saved, its values checked bit for bit, onto whatever devices `like` lies on.

    Args:
        like: a tree of the same structure. Its arrays, or `jax.ShapeDtypeStruct`s in their place, say shapes, dtypes
            and shardings; one bound to no device goes to the default one. NumPy stays NumPy; what is no array is
            handed on.
        step: None is the newest whole one: a damaged one is passed over with a warning that says why.
        config: where given, it must equal the one that was saved.

    Raises:
        FileNotFoundError: where there is no whole checkpoint.
        ValueError: for a `step` that is damaged, or was written by a later version of the library; for arrays that
            are missing, too many, of another shape or dtype, and a config that differs, all named. Nothing is cast.
    """
    step = optional_whole("step", step, 0, "use None for the newest")
    if last := in_flight():
        last.join()
    path, wanted = folder_of(folder), plain("config", config)
    damages = []
    for candidate in _candidates(path, step):
        try:
            tree, manifest = _restored(path / str(candidate), like, wanted)
        except DamageError as damage:
            damages.append(f"{candidate}, of which {damage}")
            _tell(path, damages[-1], step)
        else:
            return Restored(tree, candidate, manifest.notes, manifest.figure)
    raise FileNotFoundError(
        f"needs a whole checkpoint in {path}; got {'; '.join(damages) or 'none'}; do save one, or name another folder"
    )


def _candidates(path: Path, step: int | None) -> list[int]:
    complete = gathered(steps(path))[0]
    if step is None:
        return complete[::-1]
    if step not in complete:
        raise FileNotFoundError(f"needs a checkpoint {step} in {path}; got {complete}; do choose one of them")
    return [step]


def _tell(path: Path, damage: str, step: int | None) -> None:
    if step is not None:
        raise ValueError(f"needs a whole checkpoint; got {path} with {damage}; do restore another step, or step=None")
    warnings.warn(
        f"needs whole checkpoints; got {path} with {damage}; do look after the disk: an older one is taken",
        stacklevel=3,
    )


def _restored(path: Path, like: PyTree[Any], wanted: dict[str, Any] | None) -> tuple[PyTree[Any], Manifest]:
    manifest = together(lambda: opened(path))
    together(lambda: _check(manifest, like, wanted))
    arrays, found = named_arrays(like), {}
    for name, value in checked_arrays(path, manifest):
        found[name] = placed(name, value, arrays[name])
    # Only now: these are computations, in which all processes must take part.
    found = {name: finished(array, arrays[name]) for name, array in found.items()}
    leaves = [
        found[jax.tree_util.keystr(place)] if is_array(leaf) else leaf
        for place, leaf in jax.tree.leaves_with_path(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves), manifest


def _check(manifest: Manifest, like: PyTree[Any], wanted: dict[str, Any] | None) -> None:
    check_config(manifest.config, wanted)
    check_kinds(manifest.kinds, {name: kind(leaf) for name, leaf in named_arrays(like).items()})
