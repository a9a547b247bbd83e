"""The arrays of a stored checkpoint, read a few at a time and held against their checksums."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from ._damage import DamageError
from ._leaf import Kind
from ._manifest import Manifest
from ._pieces import broken_piece
from ._store import read_arrays
from ._together import together

AT_ONCE = 2**28


def checked_arrays(path: Path, manifest: Manifest) -> Iterator[tuple[str, Shaped[np.ndarray, "..."]]]:
    """Every array by its place, whole and as it was written; about `AT_ONCE` bytes are held at a time.

    Raises:
        DamageError: at the first that cannot be read or is not what was written.
    """
    places = stored_names(manifest.kinds)
    for group in _groups(manifest.kinds):
        # The processes stop at the same array, for orbax counts its operations.
        values = together(lambda group=group: _checked(path, manifest, {name: places.get(name) for name in group}))
        while values:
            name = next(iter(values))
            yield name, values.pop(name)


def stored_names(kinds: dict[str, Kind]) -> dict[str, str]:
    """The name in the store of every array that has numbers to store."""
    return {name: str(i) for i, (name, kind) in enumerate(kinds.items()) if 0 not in kind.shape}


def _groups(kinds: dict[str, Kind]) -> Iterator[list[str]]:
    group, held = [], 0
    for name, kind in kinds.items():
        size = int(np.prod(kind.shape)) * np.dtype(kind.dtype).itemsize
        if group and held + size > AT_ONCE:
            yield group
            group, held = [], 0
        group.append(name)
        held += size
    if group:
        yield group


def _checked(path: Path, manifest: Manifest, places: dict[str, str | None]) -> dict[str, Shaped[np.ndarray, "..."]]:
    stored = [place for place in places.values() if place is not None]
    try:
        found = read_arrays(path, stored) if stored else {}
    except MemoryError:
        raise
    except Exception as error:
        raise DamageError(f"its arrays cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
    kinds = manifest.kinds
    values = {name: np.empty(kinds[name].shape, kinds[name].dtype) for name, place in places.items() if place is None}
    values |= {name: found[place] for name, place in places.items() if place is not None}
    with ThreadPoolExecutor() as pool:
        for damage in pool.map(lambda name: _damage(name, values[name], manifest), places):
            if damage is not None:
                raise DamageError(damage)
    return values


def _damage(name: str, value: Shaped[np.ndarray, "..."], manifest: Manifest) -> str | None:
    kind = manifest.kinds[name]
    if value.shape != kind.shape or value.dtype != np.dtype(kind.dtype):
        return f"{name} is there as {value.dtype}{list(value.shape)}, was {kind}"
    if (bounds := broken_piece(value, manifest.pieces[name])) is not None:
        return f"{name}{[slice(*ends) for ends in bounds]} is not what was written"
    return None
