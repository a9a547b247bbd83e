"""What every public boundary demands of its input: checked on shapes and dtypes, before anything is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def check_key(key: Any) -> None:
    """Demands one typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"needs a typed key; got {_described(key)}; do `jax.random.key(seed)`")
    if key.shape != ():
        raise ValueError(f"needs one key; got keys of shape {key.shape}; do `key = keys[0]` or split inside a vmap")


def check_batch(x: Any, cond: PyTree[Any] = None) -> None:
    """Demands a non-empty floating-point batch, and a conditioning whose every leaf has its length."""
    if not hasattr(x, "dtype") or not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"needs a floating-point batch x; got {_described(x)}; do `x.astype(jnp.float32)`, scaled")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"needs a batch x of shape [n, ...] with n >= 1; got shape {x.shape}; do `x[None]`")
    for path, leaf in jax.tree.leaves_with_path(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != x.shape[0]:
            raise ValueError(
                f"needs cond{jax.tree_util.keystr(path)} batched with x, {x.shape[0]} examples;"
                f" got shape {jnp.shape(leaf)}; do `jnp.broadcast_to` or take as many"
            )


def check_even(x: Float[Array, "n *x"]) -> None:
    """Demands a batch that splits into two halves."""
    if x.shape[0] % 2:
        raise ValueError(
            f"needs an even batch, to split into two independent halves; got {x.shape[0]} examples;"
            " do take one more or one less"
        )


def check_steps(k: Any) -> None:
    """Demands a whole number of sampling steps."""
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"needs a whole number of steps k >= 1; got {k!r}; do `k=8`")


def check_shape(shape: Any) -> None:
    """Demands the shape of one example."""
    whole = isinstance(shape, tuple | list) and all(isinstance(size, int | np.integer) and size > 0 for size in shape)
    if not whole:
        raise ValueError(f"needs the shape of one example, positive whole numbers; got {shape!r}; do `x[0].shape`")


def check_within(name: str, value: float, low: float, high: float) -> None:
    """Demands a number in a closed interval."""
    if not low <= value <= high:
        raise ValueError(f"needs {name} in [{low}, {high}]; got {value!r}; do choose one inside")


def at_least_single(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Half precision becomes float32; log-SNR and the coefficients follow the data's dtype."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def _described(value: Any) -> str:
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__
