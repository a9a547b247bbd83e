"""The checksums of an array: one for every distinct piece that a device held."""

import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from ._together import gathered

Bounds = tuple[tuple[int, int], ...]
Pieces = dict[Bounds, int]


def all_pieces(arrays: Mapping[str, Any]) -> dict[str, Pieces]:
    """Every array's pieces with their CRC32, those of other processes among them."""
    with ThreadPoolExecutor() as pool:
        own = dict(zip(arrays, pool.map(_own_pieces, arrays.values()), strict=True))
    together = gathered([[name, as_json(pieces)] for name, pieces in own.items()])
    merged: dict[str, Pieces] = {name: {} for name in own}
    for process, listed in enumerate(together):
        if [name for name, _ in listed] != list(merged):
            raise ValueError(
                f"needs the same tree in every process; got other arrays in process {process}; do save one tree"
            )
        for name, pieces in listed:
            _merge(name, merged[name], from_json(pieces), process)
    return merged


def broken_piece(value: Shaped[np.ndarray, "..."], pieces: Pieces) -> Bounds | None:
    """The first piece that is not what it was, if there is one."""
    for bounds, checksum in pieces.items():
        if _crc(value[(*(slice(*ends) for ends in bounds), ...)]) != checksum:
            return bounds
    return None


def as_json(pieces: Pieces) -> list[Any]:
    """Lists of bounds and checksum."""
    return [[[list(ends) for ends in bounds], checksum] for bounds, checksum in pieces.items()]


def from_json(listed: list[Any]) -> Pieces:
    """What `as_json` made."""
    return {tuple((start, stop) for start, stop in bounds): checksum for bounds, checksum in listed}


def _own_pieces(array: Any) -> Pieces:
    if not isinstance(array, jax.Array):
        return {tuple((0, size) for size in array.shape): _crc(array)}
    shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    return {_bounds(shard.index, array.shape): _crc(np.asarray(shard.data)) for shard in shards}


def _bounds(index: tuple[slice, ...], shape: tuple[int, ...]) -> Bounds:
    return tuple((part.start or 0, size if part.stop is None else part.stop) for part, size in zip(index, shape))  # noqa: B905


def _merge(name: str, into: Pieces, pieces: Pieces, process: int) -> None:
    for bounds, checksum in pieces.items():
        if into.setdefault(bounds, checksum) != checksum:
            raise ValueError(
                f"needs the same values of {name} in every process, as each has its own; got others in process"
                f" {process}; do make one array of them, spread over the processes"
            )


def _crc(value: Shaped[np.ndarray, "..."]) -> int:
    return zlib.crc32(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
