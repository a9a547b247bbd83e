import math
from collections.abc import Callable

import equinox as eqx
import jax.random as jr
from jaxtyping import Array, Float, PRNGKeyArray

from ._cross_attention import CrossAttention
from ._image import grow, shrink
from ._linear import LECUN_NORMAL, Linear
from ._residual import Residual
from ._text import Text


class Level(eqx.Module):
    """One resolution above another: residual blocks on both ways, and the maps to and from the one below.

    With `text_width` each block's output attends to the text.
    """

    remat: bool = eqx.field(static=True)
    down: tuple["_Block", ...]
    up: tuple["_Block", ...]
    widen: Linear
    narrow: Linear

    def __init__(
        self,
        c: int,
        c_below: int,
        blocks: int,
        emb_width: int,
        heads: int,
        *,
        text_width: int | None,
        remat: bool,
        key: PRNGKeyArray,
    ):
        widen_key, narrow_key, *keys = jr.split(key, 2 + 2 * blocks)
        both = tuple(_Block(c, emb_width, heads, text_width, key=k) for k in keys)
        self.remat = remat
        self.down, self.up = both[:blocks], both[blocks:]
        self.widen = Linear(c, c_below, key=widen_key)
        self.narrow = Linear(c_below, c, key=narrow_key)

    def descend(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None
    ) -> tuple[Float[Array, "h_below w_below c_below"], list[Float[Array, "h w c"]]]:
        """What the level below is given, and the output of every block, for the way up."""
        skips = []
        for block in self.down:
            h = self._applied(block)(h, emb, text)
            skips.append(h)
        return self.widen(shrink(h)), skips

    def ascend(
        self,
        h: Float[Array, "h_below w_below c_below"],
        skips: list[Float[Array, "h w c"]],
        emb: Float[Array, "e"],
        text: Text | None,
    ) -> Float[Array, "h w c"]:
        """What the level above is given, from what the one below gives and the skips."""
        h = grow(self.narrow(h))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            h = self._applied(block)((h + skip) * math.sqrt(0.5), emb, text)
        return h

    def _applied(self, block: "_Block") -> Callable[..., Float[Array, "h w c"]]:
        return eqx.filter_checkpoint(block) if self.remat else block


class _Block(eqx.Module):
    """A residual block, and attention to a text where there is one."""

    residual: Residual
    to_text: CrossAttention | None

    def __init__(self, c: int, emb_width: int, heads: int, text_width: int | None, *, key: PRNGKeyArray):
        residual_key, text_key = jr.split(key)
        self.residual = Residual(c, c, emb_width, key=residual_key)
        self.to_text = None
        if text_width is not None:
            self.to_text = CrossAttention(c, heads, text_width=text_width, init=LECUN_NORMAL, key=text_key)

    def __call__(self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None) -> Float[Array, "h w c"]:
        h = self.residual(h, emb)
        return h if self.to_text is None or text is None else self.to_text(h, text)
