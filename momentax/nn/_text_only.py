from typing import Any

import equinox as eqx
from jaxtyping import Array, Int

from ._text import Text


class TextOnly(eqx.Module):
    """Demands a text of embeddings of a width: `None` is not one."""

    width: int = eqx.field(static=True)

    def __call__(self, cond: Any) -> tuple[Int[Array, ""] | None, Text | None]:
        if not isinstance(cond, Text) or cond.embeddings.shape[-1] != self.width:
            got = cond.embeddings.shape if isinstance(cond, Text) else type(cond).__name__
            raise ValueError(
                f"cond needs embeddings of shape (tokens, {self.width}); got {got};"
                " do pass a momentax.nn.Text, for no text that of the empty prompt"
            )
        return None, cond
