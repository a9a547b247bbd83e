from typing import Any

import equinox as eqx
from jaxtyping import Array, Int

from ._text import Text, checked_text


class TextOnly(eqx.Module):
    """Demands a text of embeddings of a width: `None` is not one."""

    width: int = eqx.field(static=True)

    def __call__(self, cond: Any) -> tuple[Int[Array, ""] | None, Text | None]:
        return None, checked_text(cond, self.width, ", for no text that of the empty prompt")
