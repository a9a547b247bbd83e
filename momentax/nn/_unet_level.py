from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._dropout import keys_or_none
from ._image_attention import ImageAttention, TextAttention
from ._residual import Resample, Residual
from ._text import Text


class Level(eqx.Module):
    """The blocks of one resolution on one of the two ways, and the map to the next resolution."""

    remat: bool = eqx.field(static=True)
    steps: tuple["Step", ...]
    resample: Residual | Resample | None

    def descend(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None, key: PRNGKeyArray | None
    ) -> list[Float[Array, "..."]]:
        """The outputs of all blocks and of the map, the last of which is the next level's input."""
        *keys, last_key = keys_or_none(key, len(self.steps) + 1)
        outputs = []
        for step, step_key in zip(self.steps, keys, strict=True):
            h = rematted(step, self.remat)(h, None, emb, text, step_key)
            outputs.append(h)
        return (
            outputs if self.resample is None else [*outputs, rematted(self.resample, self.remat)(h, emb, key=last_key)]
        )

    def ascend(
        self,
        h: Float[Array, "h w c"],
        skips: Sequence[Float[Array, "..."]],
        size: tuple[int, int] | None,
        emb: Float[Array, "e"],
        text: Text | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "H W d"]:
        """The next level's input, of that size; each block takes the latest skip that is left."""
        *keys, last_key = keys_or_none(key, len(self.steps) + 1)
        for step, skip, step_key in zip(self.steps, reversed(skips), keys, strict=True):
            h = rematted(step, self.remat)(h, skip, emb, text, step_key)
        if self.resample is None:
            return h
        sized = {"size": size} if isinstance(self.resample, Resample) else {}
        return rematted(self.resample, self.remat)(h, emb, key=last_key, **sized)

    @property
    def by_convolution(self) -> bool:
        """Whether a size is changed by a convolution, if it is: then sides need not halve."""
        return not isinstance(self.resample, Residual)


class Step(eqx.Module):
    """A residual block, after whose input a skip may be concatenated, and attention, to the pixels or to a text."""

    block: Residual
    attention: ImageAttention | TextAttention | None

    def __call__(
        self,
        h: Float[Array, "h w c"],
        skip: Float[Array, "h w d"] | None,
        emb: Float[Array, "e"],
        text: Text | None,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "h w c_out"]:
        h = self.block(h if skip is None else jnp.concatenate([h, skip], -1), emb, key=key)
        return h if self.attention is None else self.attention(h, text)


class Middle(eqx.Module):
    """Between the two ways: a block with attention and a block without."""

    remat: bool = eqx.field(static=True)
    first: Step
    last: Step

    def __call__(
        self, h: Float[Array, "h w c"], emb: Float[Array, "e"], text: Text | None, key: PRNGKeyArray | None
    ) -> Float[Array, "h w c"]:
        first_key, last_key = keys_or_none(key, 2)
        h = rematted(self.first, self.remat)(h, None, emb, text, first_key)
        return rematted(self.last, self.remat)(h, None, emb, text, last_key)


def rematted(function: Callable[..., Any], remat: bool) -> Callable[..., Any]:
    """The function, or one that keeps only its inputs for the backward pass and computes again."""
    return eqx.filter_checkpoint(function) if remat else function
