import jax
from jaxtyping import PRNGKeyArray


def keys_or_none(key: PRNGKeyArray | None, count: int) -> list[PRNGKeyArray | None]:
    """As many keys, or as many times None, which `equinox.nn.Dropout` takes in inference mode or at p = 0."""
    return [None] * count if key is None else list(jax.random.split(key, count))
