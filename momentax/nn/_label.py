from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float


def check_label(label: Any, rows: int) -> None:
    """Demands one whole number, and where it is not traced, one of 0..rows - 1."""
    if not isinstance(label, int | np.generic | np.ndarray | jax.Array):
        raise ValueError(f"cond needs an integer label; got a {type(label).__name__}; pass the number of a class")
    kind, shape = jnp.result_type(label), jnp.shape(label)
    if shape != () or not jnp.issubdtype(kind, jnp.integer):
        got = f"{kind} of shape {shape}"
        raise ValueError(f"cond needs one integer label for each example, of shape (); got {got}; {_mended(shape)}")
    if not isinstance(label, Tracer) and not 0 <= int(label) < rows:
        raise ValueError(
            f"cond needs a label of 0..{rows - 1}; got {int(label)}; number classes from 0, and pass None for no class"
        )


def row_of(table: Float[Array, "rows width"], label: Any) -> Float[Array, "width"]:
    """The label's row; where a traced label is none of the table's, not a number, so that it does not pass for one."""
    given = jnp.asarray(label)
    wide = given.astype(jnp.int32) if given.dtype.itemsize < 4 else given  # a byte may not hold the number of rows
    inside = (wide >= 0) & (wide < len(table))
    return jnp.where(inside, table[wide], jnp.asarray(np.nan, table.dtype))


def _mended(shape: tuple[int, ...]) -> str:
    if shape == (1,):
        return "pass y[:, 0] for labels y of shape [n, 1]"
    if shape:
        return "pass y.argmax(-1) for one-hot labels, and use jax.vmap over a batch"
    return "pass y.astype(int)"
