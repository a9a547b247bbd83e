import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._image import GroupNorm, Pointwise


class Attention(eqx.Module):
    """Residual self-attention over the pixels of a channels-last image; the identity before training."""

    heads: int = eqx.field(static=True)
    norm: GroupNorm
    qkv: Pointwise
    out: Pointwise

    def __init__(self, channels: int, heads: int, *, key: PRNGKeyArray):
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = Pointwise(channels, 3 * channels, key=key)
        self.out = Pointwise(channels, channels, key=None)

    def __check_init__(self):
        channels = self.out.weight.shape[0]
        if self.heads < 1 or channels % self.heads:
            raise ValueError(f"attention needs heads that divide {channels} channels; got {self.heads}; do heads=1")

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        h, w, c = x.shape
        tokens = self.qkv(self.norm(x)).reshape(h * w, 3, self.heads, c // self.heads)
        mixed = _attend(*jnp.moveaxis(tokens, 1, 0))
        return x + self.out(mixed.reshape(x.shape))


def _attend(q: Float[Array, "t n d"], k: Float[Array, "t n d"], v: Float[Array, "t n d"]) -> Float[Array, "t n d"]:
    # It promotes its inputs with float32, which strict promotion refuses for float64.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v).astype(v.dtype)
