"""The arrays of any pytree in a safetensors file, by the names of their places."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, Shaped

from .._extra import required

Tree = TypeVar("Tree")

_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


def save_safetensors(path: str | os.PathLike[str], module: PyTree[Any], metadata: Mapping[str, str] | None = None):
    """Writes every array of a pytree under its place's name, `net.blocks.0.weight`, in its own dtype.

    What is not an array (a number, a function) is not written. The file appears whole or not at all: it is written
    beside its place, flushed to the disk and moved there.

    Args:
        metadata: strings to keep in the file's header.

    Raises:
        ValueError: for a dtype without a name in the format, a typed key among them; for two places of one name.
    """
    path = Path(path)
    arrays = {name: _plain(name, leaf) for name, leaf in _named(module).items()}
    notes = None if metadata is None else dict(metadata)
    package = _package("safetensors.numpy")
    with _appearing(path) as temporary:
        package.save_file(arrays, temporary, notes)


def load_safetensors(path: str | os.PathLike[str], like: Tree) -> Tree:
    """The pytree `like` with its arrays from a file of `save_safetensors`; what is not an array is kept.

    Args:
        like: its arrays say which names, shapes and dtypes are expected; they may be `jax.ShapeDtypeStruct`s, as of
            `eqx.filter_eval_shape`. Where it has a NumPy array, so has the result; where it has one that is placed
            or sharded, the result is placed alike.

    Raises:
        ValueError: before anything is read into an array: for a file that is not whole or not safetensors, and for
            names that are missing or too many, other shapes and other dtypes. Nothing is cast or executed.
    """
    path, wanted = Path(path), _named(like)
    with _opened(path) as file:
        _check_names(path, set(file.keys()), set(wanted))
        for name, leaf in wanted.items():
            _check_leaf(path, name, file.get_slice(name), leaf)
        arrays = [_like(file.get_tensor(name), leaf) for name, leaf in wanted.items()]
    leaves, structure = jax.tree.flatten(like)
    remaining = iter(arrays)
    return jax.tree.unflatten(structure, [next(remaining) if _is_array(leaf) else leaf for leaf in leaves])


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Every array of a safetensors file by its name, as NumPy has it."""
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            _known(path, name, file.get_slice(name).get_dtype())
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _named(tree: PyTree[Any]) -> dict[str, Any]:
    leaves = [(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if _is_array(leaf)]
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) < len(leaves) or "__metadata__" in named:
        names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1 or name == "__metadata__"})
        raise ValueError(f"needs a name of its own for every array; got {twice}; do rename keys that contain dots")
    return named


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _plain(name: str, leaf: Any) -> Shaped[np.ndarray, "..."]:
    if leaf.dtype.name not in _DTYPES.values():
        raise ValueError(
            f"needs {name!r} of one of the dtypes {list(_DTYPES.values())}; got {leaf.dtype};"
            " do cast it, or `jax.random.key_data` for a typed key"
        )
    return np.asarray(leaf, order="C")


def _check_names(path: Path, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        raise ValueError(
            f"needs an array for every name and no more; got none in {path} for {_shown(wanted - found)}, and a file"
            f" with {_shown(found - wanted)} besides; do build `like` as the module that was saved"
        )


def _shown(names: set[str]) -> str:
    first = ", ".join(map(repr, sorted(names)[:5])) or "none"
    return first if len(names) <= 5 else f"{first} and {len(names) - 5} more"


def _check_leaf(path: Path, name: str, found: Any, leaf: Any) -> None:
    shape, dtype = tuple(found.get_shape()), _known(path, name, found.get_dtype())
    if shape != tuple(leaf.shape) or dtype != leaf.dtype.name:
        raise ValueError(
            f"needs {name!r} as `like` has it, {leaf.dtype}{list(leaf.shape)}; got {dtype}{list(shape)} in {path};"
            " do build `like` as the module that was saved"
        )
    if not isinstance(leaf, np.ndarray | np.generic) and jax.dtypes.canonicalize_dtype(dtype) != np.dtype(dtype):
        raise ValueError(
            f"needs 64-bit numbers for {name!r}; got {dtype} in {path} while JAX has them off;"
            " do `jax.config.update('jax_enable_x64', True)`"
        )


def _known(path: Path, name: str, dtype: str) -> str:
    if dtype not in _DTYPES:
        raise ValueError(f"needs {name!r} of one of {list(_DTYPES)}; got {dtype} in {path}; do convert it")
    return _DTYPES[dtype]


def _like(array: Shaped[np.ndarray, "..."], leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return array
    placed = getattr(leaf, "committed", True) and getattr(leaf, "sharding", None)
    return jax.device_put(array, placed) if placed else jnp.asarray(array)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    package = _package("safetensors")
    if not path.is_file():
        raise FileNotFoundError(f"needs a safetensors file; got nothing at {path}; do check the path")
    try:
        file = package.safe_open(path, framework="numpy")
    except package.SafetensorError as error:
        raise ValueError(_refusal(path, error)) from error
    with file as opened:
        yield opened


def _refusal(path: Path, error: Exception) -> str:
    """Pickles (of torch: zipped or bare) are told apart; they can run code and are never read."""
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04" or start[:1] == b"\x80":
        return (
            f"needs a safetensors file; got {path}, a pickle, which could run code and was not read;"
            " do save it with safetensors (`safe_serialization=True`) where you trust it"
        )
    return f"needs a whole safetensors file; got {path}, which fails with '{error}'; do write or fetch it again"


@contextmanager
def _appearing(path: Path) -> Iterator[Path]:
    """A path beside `path` that takes its place, flushed, where the body succeeds, and is gone where it fails."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)
        _flush(temporary, os.O_RDWR)
        temporary.replace(path)
        # Windows opens no folder: there a file's name is as lasting as the system makes it.
        if os.name != "nt":
            _flush(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    """To the disk; Windows flushes only what is open for writing."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _package(name: str) -> Any:
    return required(name, "interop")
