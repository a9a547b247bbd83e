"""What the tests do to networks before they are asked anything."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def perturbed(module: Any, seed: int) -> Any:
    """The module, or its shapes, with noise on every floating-point array, so that nothing hides behind a zero."""
    rng = np.random.default_rng(seed)

    def noisy(leaf):
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)):
            return leaf
        start = 0 if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        return jnp.asarray(start + 0.2 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, module)


def cast(tree: Any, dtype: Any) -> Any:
    """The tree with its floating-point arrays in another precision."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)
