"""Numbers in a network that no training changes."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, UInt


class Fixed(eqx.Module):
    """A floating-point array kept as the bits of its numbers, which are integers.

    Gradients, optimisers (their weight decay, too) and averages take the floating-point arrays of a tree and pass
    these by; files and checkpoints hold them as any other array.
    """

    bits: UInt[Array, "..."]
    dtype: Any = eqx.field(static=True)

    def __init__(self, value: Float[Array, "..."]):
        value = jnp.asarray(value)
        self.dtype = value.dtype
        self.bits = jax.lax.bitcast_convert_type(value, f"uint{jnp.finfo(value.dtype).bits}")

    @property
    def value(self) -> Float[Array, "..."]:
        """The array."""
        return jax.lax.bitcast_convert_type(self.bits, self.dtype)


def fix(tree: PyTree[Any]) -> PyTree[Any]:
    """The tree with its floating-point arrays fixed."""
    return jax.tree.map(lambda leaf: Fixed(leaf) if _is_floating(leaf) else leaf, tree)


def values(tree: PyTree[Any]) -> PyTree[Any]:
    """The tree before it was fixed."""
    return jax.tree.map(lambda leaf: leaf.value if _is_fixed(leaf) else leaf, tree, is_leaf=_is_fixed)


def _is_floating(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def _is_fixed(leaf: Any) -> bool:
    return isinstance(leaf, Fixed)
