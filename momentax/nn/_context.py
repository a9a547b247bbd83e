import equinox as eqx
import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ._text import Text


class Context(eqx.Module):
    """Tells a condition that is a class from one that is a text; no text is a text of one learned token."""

    no_text: Float[Array, "1 width"] | None

    def __init__(self, text_width: int | None, num_classes: int | None, *, key: PRNGKeyArray):
        if text_width is not None and num_classes is not None:
            raise ValueError(
                f"needs classes or text; got num_classes={num_classes} and text_width={text_width}; do leave one out"
            )
        self.no_text = None if text_width is None else jax.random.normal(key, (1, text_width)) / text_width**0.5

    def __call__(self, cond: Int[Array, ""] | Text | None) -> tuple[Int[Array, ""] | None, Text | None]:
        if self.no_text is None:
            if isinstance(cond, Text):
                raise ValueError(
                    "cond needs a network with text; got text_width=None; do text_width=n, or pass a class"
                )
            return cond, None
        if cond is None:
            return None, Text(self.no_text)
        if not isinstance(cond, Text) or cond.embeddings.shape[-1] != self.no_text.shape[-1]:
            got = cond.embeddings.shape if isinstance(cond, Text) else type(cond).__name__
            width = self.no_text.shape[-1]
            raise ValueError(f"cond needs embeddings of shape (tokens, {width}); got {got}; do pass a momentax.nn.Text")
        return None, cond
