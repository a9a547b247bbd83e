import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._contract import checked_shape
from .._number import whole
from ._embedding import Embedding


class MLP(eqx.Module):
    """A residual MLP `net(z, t, cond=None)` for one example of any rank, where `t` is the log-SNR.

    The blocks are those of He et al. (2016, pre-activation) after a layer norm with the scale and shift of
    Dhariwal & Nichol (2021). No layer starts at zero: an untrained MLP depends on all its arguments.
    `MLP((2,), key=key)` has 153,474 parameters, `MLP((1, 8, 8), num_classes=10, key=key)` 170,816.

    Arguments:
        shape: the shape of one example.
        depth: the number of residual blocks.
        num_classes: with n, `cond` is one of 0..n-1, or n or `None` for no class; without, it must be `None`.

    Raises:
        ValueError: if `z` is not of this shape, or `cond` is given to a network without classes; for a
            setting out of its range.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    embedding: Embedding
    first: eqx.nn.Linear
    blocks: tuple["_Block", ...]
    last: eqx.nn.Linear

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 128,
        depth: int = 2,
        num_classes: int | None = None,
        key: PRNGKeyArray,
    ):
        shape = checked_shape(shape)
        width, depth = whole("width", width, 1, "use 128"), whole("depth", depth, 0, "use 2")
        embedding_key, first_key, last_key, *block_keys = jr.split(key, 3 + depth)
        size = math.prod(shape)
        self.shape = shape
        self.embedding = Embedding(width, num_classes, key=embedding_key)
        self.first = eqx.nn.Linear(size, width, key=first_key)
        self.blocks = tuple(_Block(width, key=block_key) for block_key in block_keys)
        self.last = eqx.nn.Linear(width, size, key=last_key)

    @property
    def num_labels(self) -> int | None:
        """How many labels `cond` may be, that of no class among them; None for a network without classes."""
        return self.embedding.num_labels

    def __call__(
        self, z: Float[Array, "*x"], t: Float[Array, ""], cond: Int[Array, ""] | None = None
    ) -> Float[Array, "*x"]:
        if z.shape != self.shape:
            raise ValueError(
                f"MLP needs one example of shape {self.shape}; got {z.shape};"
                " use jax.vmap for a batch, or a network of the data's shape"
            )
        emb = self.embedding(t, cond)
        h = self.first(z.ravel().astype(self.first.weight.dtype))
        for block in self.blocks:
            h = block(h, emb)
        return self.last(jax.nn.silu(h)).reshape(self.shape)


class _Block(eqx.Module):
    """Normalise, scale and shift by the embedding, a hidden layer, and the residual."""

    modulation: eqx.nn.Linear
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear

    def __init__(self, width: int, *, key: PRNGKeyArray):
        modulation_key, inner_key, outer_key = jr.split(key, 3)
        self.modulation = eqx.nn.Linear(width, 2 * width, key=modulation_key)
        self.inner = eqx.nn.Linear(width, width, key=inner_key)
        self.outer = eqx.nn.Linear(width, width, key=outer_key)

    def __call__(self, h: Float[Array, "width"], emb: Float[Array, "width"]) -> Float[Array, "width"]:
        scale, shift = jnp.split(self.modulation(emb), 2)
        modulated = jax.nn.standardize(h, epsilon=1e-5) * (1 + scale) + shift
        return h + self.outer(jax.nn.silu(self.inner(modulated)))
