"""One array of a tree: where it is, what it is, how it is stored and brought back."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree, Shaped


class Kind(NamedTuple):
    """What an array is as it is stored; typed keys are stored as their numbers."""

    shape: tuple[int, ...]
    dtype: str
    key: str | None

    def __str__(self):
        plain = f"{self.dtype}{list(self.shape)}"
        return plain if self.key is None else f"{plain} of {self.key} keys"


def is_array(leaf: Any) -> bool:
    """Whether a leaf is stored: arrays, NumPy's scalars, and what stands for arrays in a `like`."""
    return eqx.is_array(leaf) or isinstance(leaf, np.ndarray | np.generic | jax.ShapeDtypeStruct)


def named_arrays(tree: PyTree[Any]) -> dict[str, Any]:
    """The arrays by their places."""
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree) if is_array(leaf)]
    named = dict(leaves)
    if len(named) < len(leaves):
        names = [name for name, _ in leaves]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"needs a place of its own for every array; got {twice} twice; do rename them")
    return named


def kind(leaf: Any) -> Kind:
    """What an array, or what stands for one, is."""
    if not _is_key(leaf):
        return Kind(tuple(leaf.shape), np.dtype(leaf.dtype).name, None)
    implementation = []

    def numbers(key):
        implementation.append(str(jax.random.key_impl(key)))
        return jax.random.key_data(key)

    stored: Any = jax.eval_shape(numbers, leaf)
    return Kind(tuple(stored.shape), np.dtype(stored.dtype).name, implementation[0])


def stored(name: str, leaf: Any) -> Any:
    """The array that is written: of numbers, and either every process's own or spread over all of them."""
    if isinstance(leaf, jax.ShapeDtypeStruct | Tracer):
        raise TypeError(f"needs arrays; got {type(leaf).__name__} at {name}; do save outside of any transformation")
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    dtype = np.dtype(leaf.dtype)
    if dtype.name not in _DTYPES or not dtype.isnative:
        raise TypeError(f"needs {name} of one of the dtypes {sorted(_DTYPES)}; got {dtype!r}; do cast it")
    own = not isinstance(leaf, jax.Array) or (jax.process_count() > 1 and leaf.is_fully_addressable)
    return np.asarray(leaf) if own else leaf


def placed(name: str, value: Shaped[np.ndarray, "..."], like: Any) -> Any:
    """The numbers where `like` is: on the host, on its devices, or, where it is bound to none, on the default one."""
    if isinstance(like, np.ndarray):
        return value
    if isinstance(like, np.generic):
        return value[()]
    sharding = like.sharding if getattr(like, "committed", True) else None
    if sharding is None:
        array = jnp.asarray(value)
    else:
        array = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    if array.dtype != value.dtype:
        raise ValueError(
            f"needs 64-bit numbers for {name}, saved as {value.dtype}; got JAX with them off;"
            " do `jax.config.update('jax_enable_x64', True)`"
        )
    return array


def finished(array: Any, like: Any) -> Any:
    """Keys from their numbers, and the weak types of `like`, which say how it promotes."""
    if _is_key(like):
        return jax.random.wrap_key_data(array, impl=kind(like).key)
    if not getattr(like, "weak_type", False):
        return array
    weak = jnp.full(array.shape, np.zeros((), array.dtype).item())
    if weak.dtype != array.dtype:
        return array
    weak = weak.at[...].set(array)
    return jax.device_put(weak, array.sharding) if array.committed else weak


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


_DTYPES = {
    *("bool", "int4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
    *("float8_e3m4", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2", "float8_e5m2fnuz"),
}
