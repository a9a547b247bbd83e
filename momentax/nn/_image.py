import math

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray


class Conv(eqx.Module):
    """A 3 by 3 convolution that keeps the size of a channels-last image; `key=None` starts it at zero.

    `equinox.nn.Conv2d` is channels-first. Channels last a convolution costs the same on a CPU, and what is
    between convolutions needs no transposition. Sums of matrix products (im2col, nine shifts) cost two to ten
    times as much.
    """

    weight: Float[Array, "3 3 c_in c_out"]
    bias: Float[Array, "c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKeyArray | None):
        self.weight = _weight((3, 3, c_in, c_out), key)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h w c_out"]:
        layout = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(x[None], self.weight, (1, 1), "SAME", dimension_numbers=layout)
        return y[0] + self.bias


class Pointwise(eqx.Module):
    """A linear map of the channels of each pixel; `key=None` starts it at zero.

    As a matrix product: on a CPU the gradient of a 1 by 1 convolution's weight costs four times as much.
    """

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, "c_out"]

    def __init__(self, c_in: int, c_out: int, *, key: PRNGKeyArray | None):
        self.weight = _weight((c_in, c_out), key)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "h w c_in"]) -> Float[Array, "h w c_out"]:
        return x @ self.weight + self.bias


class GroupNorm(eqx.Module):
    """Group normalisation (Wu & He 2018) of a channels-last image, in up to 32 groups of at least four."""

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


def shrink(x: Float[Array, "H W c"]) -> Float[Array, "h w c"]:
    """Half the size, by the mean of two by two pixels."""
    h, w, c = x.shape
    return x.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3))


def grow(x: Float[Array, "h w c"]) -> Float[Array, "H W c"]:
    """Twice the size, by repetition."""
    return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)


def _weight(shape: tuple[int, ...], key: PRNGKeyArray | None) -> Float[Array, "..."]:
    return jnp.zeros(shape) if key is None else jr.normal(key, shape) / math.sqrt(math.prod(shape[:-1]))


def _group_mean(x: Float[Array, "h w c"]) -> Float[Array, "c"]:
    # First over the pixels: a mean over (h, w, channels of the group) at once is three times slower on a CPU.
    channels = x.shape[-1]
    groups = math.gcd(channels, max(channels // 4, 1), 32)
    return jnp.repeat(x.mean((0, 1)).reshape(groups, -1).mean(1), channels // groups)
