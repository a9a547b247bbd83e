from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Text(NamedTuple):
    """A sequence of embeddings, as a text encoder gives it, and which of them count (`mask`, or None for all).

    The mask is the network's, not the tokeniser's: pass one only to a network that was trained with it. Stable
    Diffusion attends to the padding of its texts, which therefore come without a mask.
    """

    embeddings: Float[Array, "tokens width"]
    mask: Bool[Array, " tokens"] | None = None


def checked_text(cond: Any, width: int, otherwise: str = "") -> Text:
    """The condition, which must be one text of embeddings of a width, with a mask of as many bools or none."""
    shape = jnp.shape(cond.embeddings) if isinstance(cond, Text) else None
    if not isinstance(cond, Text) or shape is None or len(shape) != 2 or shape[1] != width:
        got = type(cond).__name__ if shape is None else shape
        raise ValueError(
            f"cond needs embeddings of shape (tokens, {width}); got {got}; pass a momentax.nn.Text{otherwise}"
        )
    if cond.mask is not None and (jnp.shape(cond.mask) != shape[:1] or jnp.result_type(cond.mask) != jnp.bool_):
        got = f"{jnp.result_type(cond.mask)} of shape {jnp.shape(cond.mask)}"
        raise ValueError(f"cond needs a mask of {shape[0]} bools; got {got}; pass mask.astype(bool), or None for all")
    return cond
