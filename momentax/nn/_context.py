import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._number import optional_whole
from ._text import Text, checked_text


class Context(eqx.Module):
    """Tells a condition that is a class from one that is a text; no text is a text of one learned token."""

    no_text: Float[Array, "1 width"] | None

    def __init__(self, text_width: int | None, num_classes: int | None, *, key: PRNGKeyArray):
        if text_width is not None and num_classes is not None:
            raise ValueError(
                f"needs classes or text; got num_classes={num_classes} and text_width={text_width}; leave one out"
            )
        text_width = optional_whole("text_width", text_width, 1, "use the width of the embeddings")
        self.no_text = None if text_width is None else jax.random.normal(key, (1, text_width)) / text_width**0.5

    def __call__(self, cond: Int[Array, ""] | Text | None) -> tuple[Int[Array, ""] | None, Text | None]:
        if self.no_text is None:
            if isinstance(cond, Text):
                raise ValueError(
                    "cond needs a network with text; got text_width=None; build it with text_width=n, or pass a class"
                )
            return cond, None
        if cond is None:
            return None, Text(self.no_text)
        return None, checked_text(cond, self.no_text.shape[-1])
