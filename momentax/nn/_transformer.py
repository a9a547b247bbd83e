from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import Attention
from ._cross_attention import CrossAttention
from ._dropout import keys_or_none
from ._linear import Init, Linear
from ._norm import LayerNorm
from ._text import Text

GLOROT_UNIFORM: Init = jax.nn.initializers.glorot_uniform()


def transform(
    blocks: Sequence["TransformerBlock"],
    h: Float[Array, "n c"],
    embs: Sequence[Float[Array, "e"]],
    text: Text | None,
    *,
    remat: bool,
    key: PRNGKeyArray | None,
) -> Float[Array, "n c"]:
    """The blocks one after another, each with its own embedding."""
    for block, emb, block_key in zip(blocks, embs, keys_or_none(key, len(blocks)), strict=True):
        apply = eqx.filter_checkpoint(block) if remat else block
        h = apply(h, emb, text, key=block_key)
    return h


class TransformerBlock(eqx.Module):
    """The block "adaLN-Zero" of Peebles & Xie (2022), with attention to a text between its halves where there is one.

    Self-attention and an MLP of four times the width, each of layer-normalised tokens that the embedding shifts and
    scales, with dropout, and gated by the embedding. The gates start at zero, so an untrained block is the identity.
    """

    norm: LayerNorm
    attention: Attention
    to_text: CrossAttention | None
    mlp_norm: LayerNorm
    inner: Linear
    outer: Linear
    modulation: Linear
    dropout: eqx.nn.Dropout | None

    def __init__(
        self,
        width: int,
        heads: int,
        emb_width: int,
        *,
        text_width: int | None = None,
        mlp_epsilon: float = 1e-6,
        attention_bias: bool = True,
        dropout: float = 0.0,
        key: PRNGKeyArray,
    ):
        keys = jr.split(key, 4)
        init = GLOROT_UNIFORM
        self.norm = LayerNorm(width, affine=False)
        self.attention = Attention(width, heads, key=keys[0], init=init, use_bias=attention_bias)
        self.to_text = None
        if text_width is not None:
            self.to_text = CrossAttention(width, heads, text_width=text_width, init=init, key=keys[1])
        self.mlp_norm = LayerNorm(width, epsilon=mlp_epsilon, affine=False)
        self.inner = Linear(width, 4 * width, key=keys[2], init=init)
        self.outer = Linear(4 * width, width, key=keys[3], init=init)
        self.modulation = Linear(emb_width, 6 * width, key=None)
        self.dropout = eqx.nn.Dropout(dropout) if dropout else None

    def __call__(
        self,
        h: Float[Array, "n c"],
        emb: Float[Array, "e"],
        text: Text | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "n c"]:
        attention_key, mlp_key = keys_or_none(key, 2)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(self.modulation(emb), 6)
        r = self.attention(self.norm(h) * (1 + scale) + shift)
        h = h + gate * self._dropped(r, attention_key)
        if self.to_text is not None and text is not None:
            h = self.to_text(h, text)
        r = jax.nn.gelu(self.inner(self.mlp_norm(h) * (1 + mlp_scale) + mlp_shift))
        return h + mlp_gate * self.outer(self._dropped(r, mlp_key))

    def _dropped(self, r: Float[Array, "n c"], key: PRNGKeyArray | None) -> Float[Array, "n c"]:
        return r if self.dropout is None else self.dropout(r, key=key)
