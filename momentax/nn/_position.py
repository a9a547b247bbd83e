import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def position_table(h: int, w: int, width: int) -> Float[Array, "h w width"]:
    r"""Sines and cosines of where a pixel is: a quarter of the channels each, first of its column, then of its row.

    The frequencies $10000^{-4i/\mathrm{width}}$ are those of Vaswani et al. (2017), for each axis apart.
    """
    if width % 4:
        raise ValueError(f"needs a width divisible by 4 for its positions; got {width}; do choose another width")
    # One axis at a time, so that no program holds the table as a constant.
    columns, rows = jnp.asarray(_waves(w, width // 2)), jnp.asarray(_waves(h, width // 2))
    shape = h, w, width // 2
    return jnp.concatenate([jnp.broadcast_to(columns, shape), jnp.broadcast_to(rows[:, None], shape)], -1)


def _waves(count: int, width: int) -> Float[np.ndarray, "count width"]:
    angles = np.arange(count)[:, None] * 10000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1)
