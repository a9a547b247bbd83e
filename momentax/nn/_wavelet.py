import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._image import depth_to_space, space_to_depth

# Mean and differences over two by two pixels, an orthonormal matrix that is its own inverse.
_MIX = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def haar(x: Float[Array, "H W c"], levels: int) -> Float[Array, "h w d"]:
    r"""The orthonormal 2-D Haar transform (Mallat 1989): the coarsest means first, then the details, coarse to fine.

    Details of a finer level come as tiles of the coarsest, so that all are one image of $4^L c$ channels.
    """
    if not levels:
        return x
    mixed, c = _mix(space_to_depth(x, 2)), x.shape[-1]
    return jnp.concatenate([haar(mixed[..., :c], levels - 1), space_to_depth(mixed[..., c:], 2 ** (levels - 1))], -1)


def inverse_haar(y: Float[Array, "h w d"], levels: int) -> Float[Array, "H W c"]:
    """The inverse of `haar`, which is its transpose."""
    if not levels:
        return y
    coarse = y.shape[-1] // 4
    means, details = inverse_haar(y[..., :coarse], levels - 1), depth_to_space(y[..., coarse:], 2 ** (levels - 1))
    return depth_to_space(_mix(jnp.concatenate([means, details], -1)), 2)


def _mix(tiles: Float[Array, "h w d"]) -> Float[Array, "h w d"]:
    h, w, d = tiles.shape
    return jnp.einsum("ij,hwjc->hwic", jnp.asarray(_MIX, tiles.dtype), tiles.reshape(h, w, 4, d // 4)).reshape(h, w, d)
