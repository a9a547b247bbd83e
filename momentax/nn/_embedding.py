import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._fixed import Fixed
from .._number import a_real, optional_whole, real, whole
from ._label import check_label, row_of


def _even(size: int) -> int:
    size = whole("size", size, 2, "use 256")
    if size % 2:
        raise ValueError(f"needs size as an even number of features; got {size}; use {size + 1}")
    return size


class LogSNRFeatures(eqx.Module):
    """32 sines and cosines of the log-SNR.

    The slowest is monotone over -20..20; the fastest turns once in three units, so that no derivative in log-SNR is
    large.
    """

    size: int = eqx.field(default=32, static=True, converter=_even)

    def __call__(self, t: Float[Array, ""]) -> Float[Array, "features"]:
        angles = t * jnp.asarray(np.geomspace(1 / 32, 2, self.size // 2), t.dtype)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class StepFeatures(eqx.Module):
    r"""Cosines and sines of a step 0..1000 at frequencies $10000^{-i/(size/2 - shift)}$ (Ho et al. 2020).

    `flipped` puts the sines first.
    """

    size: int = eqx.field(static=True, converter=_even)
    shift: float = eqx.field(default=0.0, static=True, converter=a_real("shift", "(-inf, inf)", "use 0.0"))
    flipped: bool = eqx.field(default=False, static=True)

    def __check_init__(self):
        if self.size // 2 <= self.shift:
            raise ValueError(f"needs shift < size / 2; got {self.shift} for {self.size} features; choose a larger size")

    def __call__(self, t: Float[Array, ""]) -> Float[Array, "features"]:
        half = self.size // 2
        angles = t * jnp.asarray(10000.0 ** (-np.arange(half) / (half - self.shift)), t.dtype)
        parts = jnp.cos(angles), jnp.sin(angles)
        return jnp.concatenate(parts[::-1] if self.flipped else parts)


class FourierFeatures(eqx.Module):
    r"""Sines and cosines of $2 \pi w \log t$ for a noise level $t > 0$ (Song et al. 2021).

    $w$ is drawn once and never trained: it is `Fixed`, no floating-point array that an optimiser would take, and is
    stored with the network.
    """

    weight: Fixed

    def __init__(self, size: int, *, scale: float = 16.0, key: PRNGKeyArray):
        self.weight = Fixed(real("scale", scale, "(0, inf)", "use 16.0") * jr.normal(key, (_even(size) // 2,)))

    @property
    def size(self) -> int:
        return 2 * len(self.weight.bits)

    def __call__(self, t: Float[Array, ""]) -> Float[Array, "features"]:
        weight = self.weight.value
        angles = jnp.log(t).astype(weight.dtype) * weight * (2 * np.pi)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class Embedding(eqx.Module):
    r"""What a network is told besides its input: $\mathrm{silu}(W_2\,\mathrm{silu}(W_1 \phi(t)) + c)$.

    $\phi(t)$ are the features of the network's time and $c$ is a row of a table with `num_classes + 1` rows. The last
    is the null class of classifier-free guidance (Ho & Salimans 2022), which `cond=None` selects; a table without a
    null class (`null=False`) has `num_classes` rows. In the dtype of the parameters.

    Raises:
        ValueError: for a label that is not one integer, or, where it is not traced, not one of the rows. A traced label
            that is none of the rows gives NaN.
    """

    null: bool = eqx.field(static=True)
    features: LogSNRFeatures | StepFeatures | FourierFeatures
    inner: eqx.nn.Linear
    outer: eqx.nn.Linear
    classes: Float[Array, "rows width"] | None

    def __init__(
        self,
        width: int,
        num_classes: int | None = None,
        *,
        features: LogSNRFeatures | StepFeatures | FourierFeatures = LogSNRFeatures(),
        null: bool = True,
        key: PRNGKeyArray,
    ):
        num_classes = optional_whole("num_classes", num_classes, 1, "use None for no classes")
        inner_key, outer_key, class_key = jr.split(key, 3)
        self.null, self.features = null, features
        self.inner = eqx.nn.Linear(features.size, width, key=inner_key)
        self.outer = eqx.nn.Linear(width, width, key=outer_key)
        self.classes = None if num_classes is None else jr.normal(class_key, (num_classes + null, width))

    @property
    def num_labels(self) -> int | None:
        """How many labels there are, that of no class among them; None without classes."""
        return None if self.classes is None else len(self.classes)

    def __call__(self, t: Float[Array, ""], cond: Int[Array, ""] | None = None) -> Float[Array, "width"]:
        features = self.features(t).astype(self.inner.weight.dtype)
        return jax.nn.silu(self._add_row(self.outer(jax.nn.silu(self.inner(features))), cond))

    def _add_row(self, h: Float[Array, "width"], cond: Int[Array, ""] | None) -> Float[Array, "width"]:
        if self.classes is None:
            if cond is not None:
                raise ValueError(
                    "cond needs a network with classes; got num_classes=None; build it with num_classes=n, or pass None"
                )
            return h
        if cond is None:
            if not self.null:
                raise ValueError("needs cond, a class: this network has none for `None`; got None; pass its label")
            return h + self.classes[-1]
        check_label(cond, len(self.classes))
        return h + row_of(self.classes, cond)
