import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._number import whole
from ._linear import LECUN_NORMAL, Init, Linear


class Attention(eqx.Module):
    """Multi-head attention (Vaswani et al. 2017) of tokens to a context, or to themselves; its softmax is in float32.

    Without masked-in context tokens the mean over all of them is attended to, not NaN. `zero` starts the last map
    at zero.
    """

    heads: int = eqx.field(static=True)
    query: Linear
    key_value: Linear
    out: Linear

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        context_width: int | None = None,
        key: PRNGKeyArray,
        init: Init = LECUN_NORMAL,
        zero: bool = False,
        use_bias: bool = True,
    ):
        heads = whole("heads", heads, 1, "use 1")
        if width % heads:
            raise ValueError(f"attention needs heads that divide {width} channels; got {heads}; use heads=1")
        query_key, key_value_key, out_key = jax.random.split(key, 3)
        context = width if context_width is None else context_width
        self.heads = heads
        self.query = Linear(width, width, key=query_key, init=init, use_bias=use_bias)
        self.key_value = Linear(context, 2 * width, key=key_value_key, init=init, use_bias=use_bias)
        self.out = Linear(width, width, key=None if zero else out_key, init=init)

    def __call__(
        self,
        x: Float[Array, "n c"],
        context: Float[Array, "m d"] | None = None,
        mask: Bool[Array, " m"] | None = None,
    ) -> Float[Array, "n c"]:
        context = x if context is None else context.astype(x.dtype)
        q = self.query(x).reshape(len(x), self.heads, -1)
        k, v = jnp.moveaxis(self.key_value(context).reshape(len(context), 2, self.heads, -1), 1, 0)
        return self.out(_attend(q, k, v, mask).reshape(x.shape))


def _attend(
    q: Float[Array, "n heads d"],
    k: Float[Array, "m heads d"],
    v: Float[Array, "m heads d"],
    mask: Bool[Array, " m"] | None,
) -> Float[Array, "n heads d"]:
    # It promotes its inputs with float32, which strict promotion refuses for float64.
    with jax.numpy_dtype_promotion("standard"):
        seen = None if mask is None else mask[None, None, :]
        return jax.nn.dot_product_attention(q, k, v, mask=seen).astype(v.dtype)
