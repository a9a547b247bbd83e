"""The command's randomness, from its seed."""

import jax
from jaxtyping import PRNGKeyArray


def key_of(seed: int) -> PRNGKeyArray:
    """The key of a seed: of threefry, which the library demands, whatever `JAX_DEFAULT_PRNG_IMPL` says."""
    return jax.random.key(seed, impl="threefry2x32")
