"""What every public boundary demands of its input: checked on shapes and dtypes, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PyTree

from ._number import wholes

# Their draws under `jax.vmap` follow the first key alone, so that an example's noise depends on its neighbours.
_UNMAPPABLE = ("rbg", "unsafe_rbg")


def check_key(key: Any) -> None:
    """Demands one typed key whose draws `jax.vmap` leaves as they are."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"needs a typed key; got {_described(key)}; use `jax.random.key(seed)`")
    if key.shape != ():
        raise ValueError(f"needs one key; got keys of shape {key.shape}; pass `keys[0]`, or split inside a vmap")
    if (name := str(jax.random.key_impl(key))) in _UNMAPPABLE:
        raise ValueError(
            f"needs a key with independent draws under jax.vmap; got one of {name!r}, which has not;"
            ' use `jax.random.key(seed, impl="threefry2x32")`'
        )


def check_batch(x: Any, cond: PyTree[Any] = None) -> None:
    """Demands a non-empty floating-point batch, and a conditioning whose every leaf has its length."""
    if not _is_array(x):
        raise TypeError(f"needs a floating-point batch x as a JAX or NumPy array; got {_described(x)}; {_CONVERT}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"needs a floating-point batch x; got {_described(x)}; use `x.astype(jnp.float32)`, scaled")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"needs a batch x of shape [n, ...] with n >= 1; got shape {x.shape}; use `x[None]`")
    check_cond(cond)
    for path, leaf in jax.tree.leaves_with_path(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != x.shape[0]:
            raise ValueError(
                f"needs cond{jax.tree_util.keystr(path)} batched with x, {x.shape[0]} examples;"
                f" got shape {jnp.shape(leaf)}; use `jnp.broadcast_to`, or `jnp.asarray` of a list of labels"
            )


def check_cond(cond: PyTree[Any]) -> None:
    """Demands a conditioning of arrays and numbers."""
    for path, leaf in jax.tree.leaves_with_path(cond):
        if not (_is_array(leaf) or isinstance(leaf, bool | int | float | np.generic)):
            raise TypeError(
                f"needs cond{jax.tree_util.keystr(path)} as a JAX or NumPy array; got {_described(leaf)}; {_CONVERT}"
            )


def check_even(x: Float[Array, "n *x"]) -> None:
    """Demands a batch that splits into two halves."""
    if x.shape[0] % 2:
        raise ValueError(
            f"needs an even batch, to split into two independent halves; got {x.shape[0]} examples;"
            f" take {'two' if x.shape[0] == 1 else 'one more or one less'}"
        )


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of one example, which is demanded to be one."""
    return wholes("the shape of one example", shape, 1, "use `x[0].shape`")


def check_numbers(name: str, x: Any) -> None:
    """Demands an array of JAX or NumPy, of real numbers."""
    if not _is_array(x) or jnp.iscomplexobj(x):
        raise TypeError(f"needs {name} as a JAX or NumPy array of real numbers; got {_described(x)}; {_CONVERT}")


def at_least_single(x: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """Half precision becomes float32; log-SNR and the coefficients follow the data's dtype."""
    return x.astype(jnp.float32) if jnp.finfo(jnp.result_type(x)).bits < 32 else x


_CONVERT = "use `jnp.asarray(x.numpy())` for a PyTorch tensor, `np.asarray(x)` of numbers for anything else"


def _is_array(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "OSUMm"
    return isinstance(value, jax.Array)


def _described(value: Any) -> str:
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    module = type(value).__module__.partition(".")[0]
    return type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"
