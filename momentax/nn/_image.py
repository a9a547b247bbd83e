import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray


class Conv(eqx.Module):
    """A convolution of stride one that keeps the size of a channels-last image; `key=None` starts it at zero.

    `equinox.nn.Conv2d` is channels-first. Channels last it costs the same, but changes of resolution and attention
    are plain matrix products.
    """

    weight: Float[Array, "k k c_in c_out"]
    bias: Float[Array, "c_out"]

    def __init__(self, c_in: int, c_out: int, size: int = 3, *, key: PRNGKeyArray | None):
        shape = (size, size, c_in, c_out)
        scale = (size * size * c_in) ** -0.5
        self.weight = jnp.zeros(shape) if key is None else scale * jr.normal(key, shape)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h w c_out"]:
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], self.weight, (1, 1), "SAME", dimension_numbers=layout)
        return y[0] + self.bias


class GroupNorm(eqx.Module):
    """Group normalisation (Wu & He 2018) of a channels-last image, in at most 32 groups of at least four channels."""

    weight: Float[Array, "c"]
    bias: Float[Array, "c"]

    def __init__(self, channels: int):
        self.weight = jnp.ones(channels)
        self.bias = jnp.zeros(channels)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        return group_standardize(x) * self.weight + self.bias


def group_standardize(x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Group normalisation without its affine map."""
    centred = x - _group_mean(x)
    return centred * lax.rsqrt(_group_mean(jnp.square(centred)) + 1e-5)


def space_to_depth(x: Float[Array, "H W c"], factor: int) -> Float[Array, "h w d"]:
    """Tiles of `factor` by `factor` pixels, each as one pixel with its values as channels."""
    h, w, c = x.shape
    tiles = x.reshape(h // factor, factor, w // factor, factor, c)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Float[Array, "h w d"], factor: int) -> Float[Array, "H W c"]:
    """The inverse of `space_to_depth`."""
    h, w, d = x.shape
    tiles = x.reshape(h, w, factor, factor, d // factor**2)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(h * factor, w * factor, d // factor**2)


def _group_mean(x: Float[Array, "h w c"]) -> Float[Array, "c"]:
    # First over the pixels: a mean over (h, w, channels of the group) at once is three times slower on a CPU.
    channels = x.shape[-1]
    groups = math.gcd(channels, max(channels // 4, 1), 32)
    return jnp.repeat(x.mean((0, 1)).reshape(groups, -1).mean(1), channels // groups)
