import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

from ._linear import LECUN_NORMAL, Init, initial


class Conv(eqx.Module):
    """A 3 by 3 convolution of a channels-last image, in its dtype; `key=None` starts it at zero, as its bias does.

    `padding` is what is added (before, after) each axis: (1, 1) keeps the size where the stride is one.

    `equinox.nn.Conv2d` is channels-first. Channels last a convolution costs the same on a CPU, and what is
    between convolutions needs no transposition. Sums of matrix products (im2col, nine shifts) cost two to ten
    times as much.
    """

    stride: int = eqx.field(static=True)
    padding: tuple[int, int] = eqx.field(static=True)
    weight: Float[Array, "3 3 c_in c_out"]
    bias: Float[Array, "c_out"]

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        key: PRNGKeyArray | None,
        init: Init = LECUN_NORMAL,
        stride: int = 1,
        padding: tuple[int, int] = (1, 1),
    ):
        self.stride, self.padding = stride, padding
        self.weight = initial((3, 3, c_in, c_out), key, init)
        self.bias = jnp.zeros(c_out)

    def __call__(self, x: Float[Array, "H W c_in"]) -> Float[Array, "h w c_out"]:
        strides, padding = (self.stride, self.stride), (self.padding, self.padding)
        layout = ("NHWC", "HWIO", "NHWC")
        weight = self.weight.astype(x.dtype)
        y = lax.conv_general_dilated(x[None], weight, strides, padding, dimension_numbers=layout)
        return y[0] + self.bias.astype(x.dtype)


def check_image(name: str, z: Float[Array, "..."], channels: int, multiple: int, *, least: int = 1) -> None:
    """Demands one image of so many channels whose sides are multiples of a number, and not less than another."""
    if z.ndim != 3 or z.shape[0] != channels:
        raise ValueError(
            f"{name} needs one image of shape ({channels}, h, w); got {z.shape};"
            " use jax.vmap for a batch, or a network of the data's shape"
        )
    if z.shape[1] % multiple or z.shape[2] % multiple:
        raise ValueError(
            f"{name} needs h and w divisible by {multiple}; got {z.shape[1:]}; choose fewer levels, or pad z"
        )
    if min(z.shape[1:]) < least:
        raise ValueError(f"{name} needs h and w of at least {least}; got {z.shape[1:]}; choose fewer levels, or pad z")


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


def grow(x: Float[Array, "h w c"], size: tuple[int, int] | None = None) -> Float[Array, "H W c"]:
    """Twice the size, or another, by repetition: pixel i of H is pixel floor(i h / H)."""
    h, w, _ = x.shape
    if size is None or size == (2 * h, 2 * w):
        return jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1)
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, (h, w), strict=True))
    return x[rows][:, columns]
