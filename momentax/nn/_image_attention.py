import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._attention import Attention
from ._linear import Linear
from ._norm import GroupNorm, LayerNorm
from ._residual import FAN_IN_UNIFORM
from ._text import Text


class ImageAttention(eqx.Module):
    """Normalised pixels attend to each other, and the residual is added; its last map starts at zero."""

    divisor: float = eqx.field(static=True)
    norm: GroupNorm | None
    attention: Attention

    def __init__(self, channels: int, heads: int, *, norm: GroupNorm | None, divisor: float = 1.0, key: PRNGKeyArray):
        self.divisor = divisor
        self.norm = norm
        self.attention = Attention(channels, heads, key=key, init=FAN_IN_UNIFORM, zero=True)

    def __call__(self, h: Float[Array, "h w c"], text: Text | None = None) -> Float[Array, "h w c"]:
        r = h if self.norm is None else self.norm(h)
        r = self.attention(r.reshape(-1, h.shape[-1])).reshape(h.shape)
        return h + r if self.divisor == 1 else (h + r) / self.divisor


class TextAttention(eqx.Module):
    """Pixels attend to each other and to a text: the transformer block of Rombach et al. (2022).

    Attention to the pixels, attention to the text and a gated hidden layer (Shazeer 2020), each after a layer norm and
    with its residual, between two linear maps; the last of them starts at zero.
    """

    norm: GroupNorm
    first: Linear
    pixel_norm: LayerNorm
    pixels: Attention
    text_norm: LayerNorm
    text: Attention
    hidden_norm: LayerNorm
    gated: Linear
    hidden: Linear
    last: Linear

    def __init__(self, channels: int, heads: int, *, text_width: int, groups: int, key: PRNGKeyArray):
        first_key, pixel_key, text_key, gated_key, hidden_key = jax.random.split(key, 5)
        self.norm = GroupNorm(channels, groups, epsilon=1e-6)
        self.first = Linear(channels, channels, key=first_key, init=FAN_IN_UNIFORM)
        self.pixel_norm, self.text_norm, self.hidden_norm = (LayerNorm(channels, epsilon=1e-5) for _ in range(3))
        self.pixels = Attention(channels, heads, key=pixel_key, init=FAN_IN_UNIFORM, use_bias=False)
        self.text = Attention(
            channels, heads, context_width=text_width, key=text_key, init=FAN_IN_UNIFORM, use_bias=False
        )
        self.gated = Linear(channels, 8 * channels, key=gated_key, init=FAN_IN_UNIFORM)
        self.hidden = Linear(4 * channels, channels, key=hidden_key, init=FAN_IN_UNIFORM)
        self.last = Linear(channels, channels, key=None)

    def __call__(self, h: Float[Array, "h w c"], text: Text | None) -> Float[Array, "h w c"]:
        assert text is not None
        x = self.first(self.norm(h)).reshape(-1, h.shape[-1])
        x = x + self.pixels(self.pixel_norm(x))
        x = x + self.text(self.text_norm(x), text.embeddings, text.mask)
        value, gate = jnp.split(self.gated(self.hidden_norm(x)), 2, axis=-1)
        x = x + self.hidden(value * jax.nn.gelu(gate, approximate=False))
        return h + self.last(x).reshape(h.shape)
