import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, DTypeLike, Float, Int, PRNGKeyArray


class Embedding(eqx.Module):
    r"""What a network is told besides its input: $\mathrm{silu}(W_2\,\mathrm{silu}(W_1 \phi(t)) + c)$.

    $\phi(t)$ are sines and cosines of the log-SNR and $c$ is a row of a table with `num_classes + 1` rows.
    The last is the null class of classifier-free guidance (Ho & Salimans 2022), which `cond=None` selects.
    """

    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    classes: Float[Array, "rows width"] | None

    def __init__(self, width: int, num_classes: int | None = None, *, key: PRNGKeyArray):
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes needs at least 1; got {num_classes}; do num_classes=None for no classes")
        inner_key, outer_key, class_key = jr.split(key, 3)
        self.inner = eqx.nn.Linear(2 * _FREQUENCIES.size, width, key=inner_key)
        self.outer = eqx.nn.Linear(width, width, key=outer_key)
        self.classes = None if num_classes is None else jr.normal(class_key, (num_classes + 1, width))

    def __call__(self, t: Float[Array, ""], cond: Int[Array, ""] | None = None) -> Float[Array, "width"]:
        h = self.outer(jax.nn.silu(self.inner(_fourier(t, self.inner.weight.dtype))))
        return jax.nn.silu(_add_row(h, self.classes, cond))


# Radians per unit of log-SNR. The slowest is monotone over -20..20; the fastest turns once in three units, so
# that no derivative in log-SNR is large.
_FREQUENCIES = np.geomspace(1 / 32, 2, 16)


def _fourier(t: Float[Array, ""], dtype: DTypeLike) -> Float[Array, "features"]:
    angles = t * jnp.asarray(_FREQUENCIES, t.dtype)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)]).astype(dtype)


def _add_row(
    h: Float[Array, "width"], classes: Float[Array, "rows width"] | None, cond: Int[Array, ""] | None
) -> Float[Array, "width"]:
    if classes is not None:
        return h + classes[-1 if cond is None else cond]
    if cond is not None:
        raise ValueError("cond needs a network with classes; got num_classes=None; do num_classes=n or cond=None")
    return h
