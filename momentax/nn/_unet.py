from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray

from .._number import optional_whole, real, whole, wholes
from ._context import Context
from ._dropout import keys_or_none
from ._embedding import Embedding
from ._image import Conv, check_image, depth_to_space, space_to_depth
from ._norm import GroupNorm
from ._residual import FAN_IN_UNIFORM, Resample
from ._text import Text
from ._text_only import TextOnly
from ._unet_level import Level, Middle
from ._unet_maker import UNetMaker, per_level
from ._unet_style import ADM, UNetStyle, checked_style


class UNet(eqx.Module):
    """The U-Net "ADM" of Dhariwal & Nichol (2021): `net(z, t, cond=None)` for one channels-first image.

    Residual blocks that the embedding of `t` and the class scales and shifts, one more per level on the way up than
    on the way down, with the outputs of those concatenated; residual blocks halve and double the size; attention
    where it is chosen and in the middle. Maps start as there, within one over the root of the fan-in, but biases at
    zero; the last convolution, and those of all blocks, at zero, so an untrained UNet returns zero.
    `UNet(1, num_classes=10, key=key)` has 1,371,361 parameters; for 28 by 28 pixels on a CPU,
    `UNet(1, multipliers=(1, 2), patch=2, num_classes=10, key=key)` has 829,476 and is faster. That for ImageNet at 64
    by 64, `UNet(3, out_channels=6, width=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(False, True, True,
    True), num_classes=1000, key=key)`, has 295,782,342: 122,112 fewer than there, for other features of the time.

    Arguments:
        channels: the channels of `z`.
        out_channels: those of the last convolution, the first `channels` of which are returned: networks that have
            also learned a variance have more.
        width: the channels at the highest resolution.
        multipliers: the channels of each level, from high to low resolution, in units of `width`.
        blocks: residual blocks per level on the way down.
        attention: for each level, whether each of its blocks is followed by attention; None is the lowest only.
        heads: attention heads, for all levels or for each; None is heads of 64 channels.
        patch: tiles of `patch` by `patch` pixels become one before the first convolution.
        num_classes: with n, `cond` is one of 0..n-1, or n or `None` for no class.
        text_width: with d, `cond` is a `Text` with embeddings of d numbers, or `None` for a learned token, and
            attention is the transformer block of Rombach et al. (2022). The networks of Stable Diffusion, imported,
            attend to the padding of their texts: pass no mask.
        dropout: in the residual blocks, which needs a `key` outside of `eqx.nn.inference_mode`.
        dtype: of the layers between input and output; None is that of the parameters, which is the output's.
        remat: recompute each block in the backward pass, which saves memory.
        style: what else networks of others have otherwise.

    Raises:
        ValueError: if `z` has other channels or a size that does not halve at every level (where a convolution halves
            it, any size will do), if `cond` is not what the network was built for, if `heads` does not divide the
            channels, with both classes and text, with fewer output than input channels, and for a setting out of its
            range.
    """

    channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    centred: bool = eqx.field(static=True)
    divided: bool = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    context: Context | TextOnly
    embedding: Embedding
    first: Conv
    down: tuple[Level, ...]
    middle: Middle | None
    up: tuple[Level, ...]
    norm: GroupNorm
    last: Conv

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2, 2),
        blocks: int = 1,
        attention: Sequence[bool] | None = None,
        heads: int | Sequence[int] | None = None,
        patch: int = 1,
        num_classes: int | None = None,
        text_width: int | None = None,
        dropout: float = 0.0,
        remat: bool = False,
        dtype: DTypeLike | None = None,
        style: UNetStyle = ADM,
        key: PRNGKeyArray,
    ):
        channels, width = whole("channels", channels, 1, "use 3"), whole("width", width, 1, "use 32")
        blocks, patch = whole("blocks", blocks, 1, "use 1"), whole("patch", patch, 1, "use 1")
        out_channels = optional_whole("out_channels", out_channels, channels, "use None for the input's") or channels
        multipliers = wholes("multipliers", multipliers, 1, "use (1, 2, 2)")
        dropout = real("dropout", dropout, "[0, 1)", "use 0.0 for none")
        style = checked_style(style)
        context_key, embedding_key, first_key, middle_key, down_key, up_key = jr.split(key, 6)
        self.channels, self.patch, self.dtype = channels, patch, None if dtype is None else jnp.dtype(dtype)
        self.centred, self.divided = style.centred, style.divided
        widths = [width * m for m in multipliers]
        n, emb_width = len(widths), style.emb_width or 4 * width
        heads = [_heads(c) for c in widths] if heads is None else per_level("heads", heads, n)
        heads = wholes("heads", heads, 1, "use 1")
        make = UNetMaker(widths, heads, blocks, style, emb_width, text_width, dropout, remat)
        attention = per_level("attention", [False] * (n - 1) + [True] if attention is None else attention, n)
        attention_up = attention if style.attention_up is None else per_level("attention_up", style.attention_up, n)
        self.context = _context(text_width, num_classes, style.null, context_key)
        self.embedding = Embedding(emb_width, num_classes, features=style.features, null=style.null, key=embedding_key)
        self.first = Conv(channels * patch**2, widths[0], key=first_key, init=FAN_IN_UNIFORM)
        self.down = make.down(attention, key=down_key)
        self.middle = make.middle(key=middle_key) if style.middle else None
        self.up = make.up(attention_up, key=up_key)
        self.norm = style.residual.norm(widths[0])
        self.last = Conv(widths[0], out_channels * patch**2, key=None)

    @property
    def num_labels(self) -> int | None:
        """How many labels `cond` may be, that of no class among them; None for a network without classes."""
        return self.embedding.num_labels

    def __call__(
        self,
        z: Float[Array, "..."],
        t: Float[Array, ""],
        cond: Int[Array, ""] | Text | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "..."]:
        check_image("UNet", z, self.channels, self.patch * self._divisor, least=self.patch * self._least)
        label, text = self.context(cond)
        dtype = self.first.weight.dtype
        pixels = space_to_depth(jnp.moveaxis(z.astype(dtype), 0, -1), self.patch)
        h = self.first((2 * pixels - 1 if self.centred else pixels).astype(self.dtype or dtype))
        h = self._down_and_up(h, self.embedding(t, label).astype(h.dtype), text, key).astype(dtype)
        h = depth_to_space(self.last(jax.nn.silu(self.norm(h))), self.patch)
        y = jnp.moveaxis(h, -1, 0)[: self.channels]
        return y / t.astype(y.dtype) if self.divided else y

    @property
    def _divisor(self) -> int:
        """What h and w in tiles must divide by: nothing, if every change of size is a convolution."""
        return 1 if all(level.by_convolution for level in self.down + self.up) else self._halved

    @property
    def _halved(self) -> int:
        return 2 ** (len(self.down) - 1)

    @property
    def _least(self) -> int:
        """The least sides in tiles of which something is left at the lowest level."""
        paddings = [level.resample.conv.padding for level in self.down if isinstance(level.resample, Resample)]
        return self._halved if (0, 1) in paddings else 1

    def _down_and_up(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None, key: PRNGKeyArray | None
    ) -> Float[Array, "h w c"]:
        middle_key, *keys = keys_or_none(key, 1 + len(self.down) + len(self.up))
        skips = [h]
        for level in self.down:
            skips += level.descend(skips[-1], emb, text, keys.pop())
        h = skips[-1] if self.middle is None else self.middle(skips[-1], emb, text, middle_key)
        for level in self.up:
            skips, own = skips[: -len(level.steps)], skips[-len(level.steps) :]
            size = (skips[-1].shape[0], skips[-1].shape[1]) if skips else None
            h = level.ascend(h, own, size, emb, text, keys.pop())
        return h


def _context(text_width: int | None, num_classes: int | None, null: bool, key: PRNGKeyArray) -> Context | TextOnly:
    if text_width is None or num_classes is not None or null:
        return Context(text_width, num_classes, key=key)
    return TextOnly(text_width)


def _heads(channels: int) -> int:
    """Heads of 64 channels, or a few more."""
    return max(n for n in range(1, max(channels // 64, 1) + 1) if channels % n == 0)
