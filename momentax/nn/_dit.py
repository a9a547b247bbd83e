from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._contract import checked_shape
from .._number import optional_whole, real, whole
from ._context import Context
from ._embedding import Embedding, LogSNRFeatures, StepFeatures
from ._image import depth_to_space, space_to_depth
from ._linear import Linear
from ._norm import LayerNorm
from ._position import position_table
from ._text import Text
from ._transformer import GLOROT_UNIFORM, TransformerBlock, transform

DIT_S: dict[str, Any] = {"width": 384, "depth": 12, "heads": 6}
DIT_B: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12}
DIT_L: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16}
DIT_XL: dict[str, Any] = {"width": 1152, "depth": 28, "heads": 16}


class DiT(eqx.Module):
    """A diffusion transformer `net(z, t, cond=None, *, key=None)` for one channels-first image; `t` is the log-SNR.

    The architecture and the initial values of Peebles & Xie (2022, arXiv 2212.09748), "adaLN-Zero": the output and the
    gates of all blocks start at zero, so an untrained DiT returns zero. With 1000 classes, patches of 2, four channels
    and eight at the output, `DIT_S`, `DIT_B`, `DIT_L` and `DIT_XL` have 33, 130, 458 and 675 million parameters.

    Arguments:
        shape: the shape of one example, (channels, h, w).
        width: the channels of a token.
        depth: the number of blocks.
        heads: attention heads.
        patch: tiles of `patch` by `patch` pixels are one token.
        num_classes: with n, `cond` is one of 0..n-1, or n or `None` for no class.
        text_width: with d, `cond` is a `Text` with embeddings of d numbers, which each block attends to after its
            self-attention (Chen et al. 2023, "PixArt-alpha"), or `None` for a learned token.
        out_channels: of the last map, if more than the input's, as a learned variance needs; the first are returned.
        features: of `t`, before its embedding; with `StepFeatures` `t` is a step, not the log-SNR.
        embedding_per_block: an embedding of `t` and class for each block; the output takes the first.
        attention_bias: of the maps to queries, keys and values.
        mlp_epsilon: of the norm before each MLP.
        dropout: of each attention and hidden layer, which needs a `key` outside of `eqx.nn.inference_mode`.
        dtype: of the layers between input and output; None is that of the parameters, which is the output's.
        remat: recompute each block in the backward pass, which saves memory.

    Raises:
        ValueError: if `z` is not of this shape, if patches do not tile it, if `cond` is not what the network was built
            for, if `heads` does not divide `width`, with both classes and text, or for a setting out of its range.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    remat: bool = eqx.field(static=True)
    context: Context
    embeddings: tuple[Embedding, ...]
    first: Linear
    blocks: tuple[TransformerBlock, ...]
    norm: LayerNorm
    modulation: Linear
    last: Linear

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        patch: int = 2,
        num_classes: int | None = None,
        text_width: int | None = None,
        out_channels: int | None = None,
        features: LogSNRFeatures | StepFeatures = LogSNRFeatures(),
        embedding_per_block: bool = False,
        attention_bias: bool = True,
        mlp_epsilon: float = 1e-6,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        shape, patch = checked_shape(shape), whole("patch", patch, 1, "use 2")
        width, heads = whole("width", width, 1, "use 64"), whole("heads", heads, 1, "use 4")
        depth = whole("depth", depth, 1 if embedding_per_block else 0, "use 2")
        dropout = real("dropout", dropout, "[0, 1)", "use 0.0 for none")
        mlp_epsilon = real("mlp_epsilon", mlp_epsilon, "(0, inf)", "use 1e-6")
        _check_shape(shape, patch)
        channels = optional_whole("out_channels", out_channels, shape[0], "use None for the input's") or shape[0]
        context_key, embedding_key, first_key, block_key = jr.split(key, 4)
        self.shape, self.patch = shape, patch
        self.dtype, self.remat = None if dtype is None else jnp.dtype(dtype), remat
        self.context = Context(text_width, num_classes, key=context_key)
        embedding_keys = jr.split(embedding_key, depth if embedding_per_block else 1)
        self.embeddings = tuple(_embedding(width, num_classes, features, k) for k in embedding_keys)
        self.first = Linear(shape[0] * patch**2, width, key=first_key, init=GLOROT_UNIFORM)
        block = partial(
            TransformerBlock,
            text_width=text_width,
            mlp_epsilon=mlp_epsilon,
            attention_bias=attention_bias,
            dropout=dropout,
        )
        self.blocks = tuple(block(width, heads, width, key=k) for k in jr.split(block_key, depth))
        self.norm = LayerNorm(width, affine=False)
        self.modulation = Linear(width, 2 * width, key=None)
        self.last = Linear(width, channels * patch**2, key=None)

    @property
    def num_labels(self) -> int | None:
        """How many labels `cond` may be, that of no class among them; None for a network without classes."""
        return self.embeddings[0].num_labels

    def __call__(
        self,
        z: Float[Array, "..."],
        t: Float[Array, ""],
        cond: Int[Array, ""] | Text | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "..."]:
        if z.shape != self.shape:
            raise ValueError(
                f"DiT needs one image of shape {self.shape}; got {z.shape};"
                " use jax.vmap for a batch, or a network of the data's shape"
            )
        label, text = self.context(cond)
        embs = [embedding(t, label) for embedding in self.embeddings]
        h = self._transformed(self._tokens(z), embs, text, key).astype(self.first.weight.dtype)
        shift, scale = jnp.split(self.modulation(embs[0]), 2)
        return self._image(self.last(self.norm(h) * (1 + scale) + shift))

    def _tokens(self, z: Float[Array, "c h w"]) -> Float[Array, "n width"]:
        dtype = self.dtype or self.first.weight.dtype
        tokens = self.first(space_to_depth(jnp.moveaxis(z.astype(dtype), 0, -1), self.patch))
        return (tokens + position_table(*tokens.shape).astype(dtype)).reshape(-1, tokens.shape[-1])

    def _transformed(
        self,
        h: Float[Array, "n width"],
        embs: list[Float[Array, "width"]],
        text: Text | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "n width"]:
        low = [emb.astype(h.dtype) for emb in embs]
        each = low if len(low) == len(self.blocks) else low * len(self.blocks)
        return transform(self.blocks, h, each, text, remat=self.remat, key=key)

    def _image(self, h: Float[Array, "n d"]) -> Float[Array, "c h w"]:
        channels, height, width = self.shape
        tiles = h.reshape(height // self.patch, width // self.patch, -1)
        return jnp.moveaxis(depth_to_space(tiles, self.patch)[..., :channels], -1, 0)


def _check_shape(shape: tuple[int, ...], patch: int) -> None:
    if len(shape) != 3 or shape[1] % patch or shape[2] % patch:
        raise ValueError(f"DiT needs (channels, h, w) with h and w divisible by {patch}; got {shape}; use patch=1")


def _embedding(
    width: int, num_classes: int | None, features: LogSNRFeatures | StepFeatures, key: PRNGKeyArray
) -> Embedding:
    """An embedding whose weights and table are normal with standard deviation 0.02, and whose biases are zero."""
    drawn = Embedding(width, num_classes, features=features, key=key)
    leaves, tree = jax.tree.flatten(drawn)
    keys = jr.split(key, len(leaves))
    small = [
        0.02 * jr.normal(k, x.shape) if x.ndim == 2 else jnp.zeros(x.shape) for x, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, small)
