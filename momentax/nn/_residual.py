from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._image import Conv, grow
from ._linear import Init, Linear
from ._norm import GroupNorm

FAN_IN_UNIFORM: Init = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ResidualStyle(NamedTuple):
    """How a residual block normalises and how it takes the embedding.

    Attributes:
        groups: of its norms; None is the most up to 32 that divide the channels and have at least four.
        epsilon: added to their variances.
        scale_shift: the embedding scales and shifts the second norm (Dhariwal & Nichol 2021); otherwise it is added
            before that norm (Ho et al. 2020).
    """

    groups: int | None = None
    epsilon: float = 1e-5
    scale_shift: bool = True

    def norm(self, channels: int) -> GroupNorm:
        """The norm of so many channels."""
        groups = _groups(channels) if self.groups is None else self.groups
        return GroupNorm(channels, groups, epsilon=self.epsilon)


ADM_STYLE = ResidualStyle()


class Residual(eqx.Module):
    """The residual block of a U-Net: norm, SiLU, convolution, norm with the embedding, SiLU, dropout, convolution.

    `resample` maps both summands to another size, before the first convolution. The last convolution starts at
    zero, the others as PyTorch's do, uniformly within one over the root of the fan-in, with biases of zero. The
    embedding comes activated.
    """

    scale_shift: bool = eqx.field(static=True)
    divisor: float = eqx.field(static=True)
    resample: Callable[[Any], Any] | None = eqx.field(static=True)
    norm: GroupNorm
    inner: Conv
    modulation: Linear
    middle: GroupNorm
    dropout: eqx.nn.Dropout | None
    outer: Conv
    shortcut: Linear | None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_width: int,
        *,
        style: ResidualStyle = ADM_STYLE,
        dropout: float = 0.0,
        divisor: float = 1.0,
        resample: Callable[[Any], Any] | None = None,
        key: PRNGKeyArray,
    ):
        inner_key, modulation_key, shortcut_key = jax.random.split(key, 3)
        self.scale_shift, self.divisor, self.resample = style.scale_shift, divisor, resample
        self.norm = style.norm(c_in)
        self.inner = Conv(c_in, c_out, key=inner_key, init=FAN_IN_UNIFORM)
        self.modulation = Linear(emb_width, c_out * (1 + style.scale_shift), key=modulation_key, init=FAN_IN_UNIFORM)
        self.middle = style.norm(c_out)
        self.dropout = eqx.nn.Dropout(dropout) if dropout else None
        self.outer = Conv(c_out, c_out, key=None)
        self.shortcut = None if c_in == c_out else Linear(c_in, c_out, key=shortcut_key, init=FAN_IN_UNIFORM)

    def __call__(
        self, h: Float[Array, "H W c_in"], emb: Float[Array, "e"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "h w c_out"]:
        r = jax.nn.silu(self.norm(h))
        if self.resample is not None:
            h, r = self.resample(h), self.resample(r)
        r = jax.nn.silu(self._modulated(self.inner(r), self.modulation(emb)))
        r = self.outer(r if self.dropout is None else self.dropout(r, key=key))
        h = h if self.shortcut is None else self.shortcut(h)
        return h + r if self.divisor == 1 else (h + r) / self.divisor

    def _modulated(self, r: Float[Array, "h w c"], modulation: Float[Array, "m"]) -> Float[Array, "h w c"]:
        if not self.scale_shift:
            return self.middle(r + modulation)
        scale, shift = jnp.split(modulation, 2)
        return self.middle(r) * (1 + scale) + shift


class Resample(eqx.Module):
    """A convolution with a change of size: by its stride, or by repetition before it (`grows`); takes no embedding."""

    grows: bool = eqx.field(static=True)
    conv: Conv

    def __init__(
        self,
        channels: int,
        *,
        grows: bool = False,
        stride: int = 1,
        padding: tuple[int, int] = (1, 1),
        key: PRNGKeyArray,
    ):
        self.grows = grows
        self.conv = Conv(channels, channels, key=key, init=FAN_IN_UNIFORM, stride=stride, padding=padding)

    def __call__(
        self,
        h: Float[Array, "H W c"],
        emb: Float[Array, "e"],
        *,
        size: tuple[int, int] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "h w c"]:
        return self.conv(grow(h, size) if self.grows else h)


def _groups(channels: int) -> int:
    return max(g for g in range(1, 33) if channels % g == 0 and (channels >= 4 * g or g == 1))
