from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._number import real, whole, wholes
from ._context import Context
from ._embedding import Embedding, LogSNRFeatures, StepFeatures
from ._image import Conv, check_image, depth_to_space, space_to_depth
from ._norm import GroupNorm
from ._position import position_table
from ._residual import ResidualStyle
from ._text import Text
from ._transformer import TransformerBlock, transform
from ._uvit_level import Level
from ._wavelet import haar, inverse_haar

UVIT_64: dict[str, Any] = {"width": 128, "multipliers": (1, 2, 8), "blocks": 3, "depth": 24, "heads": 16}
UVIT_128: dict[str, Any] = {"width": 128, "multipliers": (1, 2, 4, 8), "blocks": 3, "depth": 22, "heads": 16}


class UViT(eqx.Module):
    """A U-ViT `net(z, t, cond=None, *, key=None)` for one channels-first image, where `t` is the log-SNR.

    The architecture of Hoogeboom et al. (2023, "simple diffusion", arXiv 2301.11093): residual blocks of convolutions
    at the higher resolutions, with skips that are added, and a transformer at the lowest. The embedding of `t` and of a
    class modulates every block at every resolution. The output and the last map of every block start at zero, so an
    untrained UViT returns zero. `UViT(3, num_classes=1000, **UVIT_64, key=key)`, for 64 by 64 pixels, has 390,471,939
    parameters; with `UVIT_128`, for 128 by 128, it has 391,253,251.

    Arguments:
        channels: the channels of `z`.
        width: the channels at the highest resolution; the embedding has four times as many.
        multipliers: the channels of each resolution, from high to low, in units of `width`; the last is the
            transformer's.
        blocks: residual blocks per resolution on the way down, and again on the way up.
        depth: the transformer's blocks.
        heads: attention heads.
        patch: tiles of `patch` by `patch` pixels become one before the first convolution.
        wavelet: levels of the orthonormal Haar transform before that, which is inverted at the output.
        num_classes: with n, `cond` is one of 0..n-1, or n or `None` for no class.
        text_width: with d, `cond` is a `Text` with embeddings of d numbers, which the transformer's blocks attend to
            (Rombach et al. 2022), or `None` for a learned token.
        multiscale: attend to the text at every resolution.
        features: of `t`, before its embedding.
        dropout: in the transformer, which needs a `key` outside of `eqx.nn.inference_mode`.
        dtype: of the layers between input and output; None is that of the parameters, which is the output's.
        remat: recompute each block in the backward pass, which saves memory.

    Raises:
        ValueError: if `z` has other channels or a size that does not halve at every level, if `cond` is not what the
            network was built for, if `heads` does not divide the channels, with both classes and text, or for a setting
            out of its range.
    """

    channels: int = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    wavelet: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)
    context: Context
    embedding: Embedding
    first: Conv
    levels: tuple[Level, ...]
    transformer: tuple[TransformerBlock, ...]
    norm: GroupNorm
    last: Conv

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        depth: int = 2,
        heads: int = 4,
        patch: int = 1,
        wavelet: int = 0,
        num_classes: int | None = None,
        text_width: int | None = None,
        multiscale: bool = False,
        features: LogSNRFeatures | StepFeatures = LogSNRFeatures(),
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        channels, width = whole("channels", channels, 1, "use 3"), whole("width", width, 1, "use 32")
        blocks, depth = whole("blocks", blocks, 0, "use 1"), whole("depth", depth, 0, "use 2")
        heads, patch = whole("heads", heads, 1, "use 4"), whole("patch", patch, 1, "use 1")
        wavelet, dropout = whole("wavelet", wavelet, 0, "use 0"), real("dropout", dropout, "[0, 1)", "use 0.0 for none")
        multipliers = wholes("multipliers", multipliers, 1, "use (1, 2)")
        keys = jr.split(key, 5)
        widths, emb_width = [width * m for m in multipliers], 4 * width
        self.channels, self.patch, self.wavelet = channels, patch, wavelet
        self.dtype, self.remat = None if dtype is None else jnp.dtype(dtype), remat
        self.context = Context(text_width, num_classes, key=keys[0])
        self.embedding = Embedding(emb_width, num_classes, features=features, key=keys[1])
        self.first = Conv(channels * self.stride**2, widths[0], key=keys[2])
        self.levels = tuple(
            Level(c, below, blocks, emb_width, heads, text_width=text_width if multiscale else None, remat=remat, key=k)
            for c, below, k in zip(widths[:-1], widths[1:], jr.split(keys[3], len(widths) - 1), strict=True)
        )
        self.transformer = tuple(
            TransformerBlock(widths[-1], heads, emb_width, text_width=text_width, dropout=dropout, key=k)
            for k in jr.split(keys[4], depth)
        )
        self.norm = ResidualStyle().norm(widths[0])
        self.last = Conv(widths[0], channels * self.stride**2, key=None)

    @property
    def stride(self) -> int:
        """The side of the tiles that are a pixel of the highest resolution."""
        return self.patch * 2**self.wavelet

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
        check_image("UViT", z, self.channels, self.stride * 2 ** len(self.levels))
        label, text = self.context(cond)
        dtype = self.first.weight.dtype
        pixels = haar(jnp.moveaxis(z.astype(dtype), 0, -1), self.wavelet)
        h = self.first(space_to_depth(pixels, self.patch).astype(self.dtype or dtype))
        h = self._down_and_up(h, self.embedding(t, label).astype(h.dtype), text, key).astype(dtype)
        h = depth_to_space(self.last(jax.nn.silu(self.norm(h))), self.patch)
        return jnp.moveaxis(inverse_haar(h, self.wavelet), -1, 0)

    def _down_and_up(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None, key: PRNGKeyArray | None
    ) -> Float[Array, "h w c"]:
        skips = []
        for level in self.levels:
            h, skip = level.descend(h, emb, text)
            skips.append(skip)
        h = self._transformed(h, emb, text, key)
        for level in reversed(self.levels):
            h = level.ascend(h, skips.pop(), emb, text)
        return h

    def _transformed(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None, key: PRNGKeyArray | None
    ) -> Float[Array, "h w c"]:
        tokens = (h + position_table(*h.shape).astype(h.dtype)).reshape(-1, h.shape[-1])
        embs = [emb] * len(self.transformer)
        return transform(self.transformer, tokens, embs, text, remat=self.remat, key=key).reshape(h.shape)
