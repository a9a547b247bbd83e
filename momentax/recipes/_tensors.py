"""Tensors as PyTorch saved them before 1.6: read without PyTorch, and without running what a pickle could ask for."""

import io
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped


def read_tensors(raw: bytes) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a state dict by name.

    Five pickles (a magic number, the protocol, the writer's machine, the tensors, the storages' names), then every
    storage in the order of the names: how many numbers, and the numbers.

    Raises:
        ValueError: for anything else than tensors of 32-bit floats and 64-bit integers.
    """
    stream = io.BytesIO(raw)
    try:
        _, _, _, tensors, names = (_Unpickler(stream).load() for _ in range(5))
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"needs five pickles; got '{error}'; do fetch the file again") from error
    dtypes = {tensor.storage.name: tensor.storage.dtype for tensor in tensors.values()}
    stored = {name: _stored(stream, dtypes[name]) for name in names}
    return {name: _viewed(stored[tensor.storage.name], tensor) for name, tensor in tensors.items()}


class _Storage(NamedTuple):
    dtype: np.dtype
    name: str


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], _grad: bool, _hooks: Any
) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ValueError(f"needs a pickle of tensors alone; got {module}.{name}; do not trust it")
        return _KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, name, *_ = pid
        return _Storage(dtype, name)


def _stored(stream: io.BytesIO, dtype: np.dtype) -> Shaped[np.ndarray, "n"]:
    size = int.from_bytes(stream.read(8), "little")
    return np.frombuffer(stream.read(size * dtype.itemsize), dtype)


def _viewed(stored: Shaped[np.ndarray, "n"], tensor: _Tensor) -> Shaped[np.ndarray, "..."]:
    """A copy, taken number by number, so that no shape and no strides lead out of the storage."""
    steps = (np.arange(size) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    places = sum(np.ix_(*steps), start=np.array(tensor.offset))
    if places.min() < 0 or places.max() >= len(stored):
        raise ValueError(f"needs a storage of {tensor}; got {len(stored)} numbers; do fetch the file again")
    return np.asarray(stored[places])


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): np.dtype("<f4"),
    ("torch", "LongStorage"): np.dtype("<i8"),
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
}
