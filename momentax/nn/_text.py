from typing import NamedTuple

from jaxtyping import Array, Bool, Float


class Text(NamedTuple):
    """A sequence of embeddings, as a text encoder gives it, and which of them count (`mask`, or None for all)."""

    embeddings: Float[Array, "tokens width"]
    mask: Bool[Array, " tokens"] | None = None
