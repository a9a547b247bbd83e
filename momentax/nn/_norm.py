import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from .._number import real, whole


class GroupNorm(eqx.Module):
    """Group normalisation (Wu & He 2018) of a channels-last image, in float32 or better."""

    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    weight: Float[Array, "c"]
    bias: Float[Array, "c"]

    def __init__(self, channels: int, groups: int, *, epsilon: float = 1e-5):
        self.groups, self.epsilon = whole("groups", groups, 1, "use 1"), _epsilon(epsilon)
        if channels % self.groups:
            raise ValueError(f"needs groups that divide {channels} channels; got {groups}; choose a divisor")
        self.weight = jnp.ones(channels)
        self.bias = jnp.zeros(channels)

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        y = _group_standardize(_at_least_single(x), self.groups, self.epsilon)
        return (y * self.weight.astype(y.dtype) + self.bias.astype(y.dtype)).astype(x.dtype)


class LayerNorm(eqx.Module):
    """Layer normalisation (Ba et al. 2016) of the last axis, in float32 or better; with or without an affine map."""

    epsilon: float = eqx.field(static=True)
    weight: Float[Array, "c"] | None
    bias: Float[Array, "c"] | None

    def __init__(self, channels: int, *, epsilon: float = 1e-6, affine: bool = True):
        self.epsilon = _epsilon(epsilon)
        self.weight = jnp.ones(channels) if affine else None
        self.bias = jnp.zeros(channels) if affine else None

    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        wide = _at_least_single(x)
        centred = wide - wide.mean(-1, keepdims=True)
        y = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        if self.weight is not None and self.bias is not None:
            y = y * self.weight.astype(y.dtype) + self.bias.astype(y.dtype)
        return y.astype(x.dtype)


def _epsilon(epsilon: float) -> float:
    return real("epsilon", epsilon, "(0, inf)", "use 1e-5")


def _group_standardize(x: Float[Array, "*n c"], groups: int, epsilon: float) -> Float[Array, "*n c"]:
    centred = x - _group_mean(x, groups)
    return centred * lax.rsqrt(_group_mean(jnp.square(centred), groups) + epsilon)


def _group_mean(x: Float[Array, "*n c"], groups: int) -> Float[Array, "c"]:
    # First over the pixels: a mean over pixels and channels of the group at once is three times slower on a CPU.
    channels = x.shape[-1]
    return jnp.repeat(x.mean(range(x.ndim - 1)).reshape(groups, -1).mean(1), channels // groups)


def _at_least_single(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x
