from typing import Any

import equinox as eqx
from jaxtyping import Array, Int

from .._number import whole
from ._text import Text, checked_text


def _width(width: int) -> int:
    return whole("text_width", width, 1, "use the width of the embeddings")


class TextOnly(eqx.Module):
    """Demands a text of embeddings of a width: `None` is not one."""

    width: int = eqx.field(static=True, converter=_width)

    def __call__(self, cond: Any) -> tuple[Int[Array, ""] | None, Text | None]:
        return None, checked_text(cond, self.width, ", for no text that of the empty prompt")
