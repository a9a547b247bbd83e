import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import Attention
from ._linear import Init
from ._norm import LayerNorm
from ._text import Text


class CrossAttention(eqx.Module):
    """Normalised tokens attend to a text, and the residual is added; its last map starts at zero."""

    norm: LayerNorm
    attention: Attention

    def __init__(self, width: int, heads: int, *, text_width: int, init: Init, key: PRNGKeyArray):
        self.norm = LayerNorm(width, affine=False)
        self.attention = Attention(width, heads, context_width=text_width, key=key, init=init, zero=True)

    def __call__(self, h: Float[Array, "*n c"], text: Text) -> Float[Array, "*n c"]:
        tokens = self.norm(h).reshape(-1, h.shape[-1])
        return h + self.attention(tokens, text.embeddings, text.mask).reshape(h.shape)
