import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._image import Conv, GroupNorm


class Attention(eqx.Module):
    """Residual self-attention over the pixels of a channels-last image; the identity before training."""

    heads: int = eqx.field(static=True)
    norm: GroupNorm
    qkv: Conv
    out: Conv

    def __init__(self, channels: int, heads: int, *, key: PRNGKeyArray):
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = Conv(channels, 3 * channels, 1, key=key)
        self.out = Conv(channels, channels, 1, key=None)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        h, w, c = x.shape
        tokens = self.qkv(self.norm(x)).reshape(h * w, 3, self.heads, c // self.heads)
        q, k, v = jnp.moveaxis(tokens, 1, 0)
        return x + self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))
