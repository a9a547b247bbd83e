from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Init = Callable[..., Any]
LECUN_NORMAL: Init = jax.nn.initializers.lecun_normal()


class Linear(eqx.Module):
    """A linear map of the last axis, in the dtype of what it is given; `key=None` starts it at zero, as its bias does.

    On a CPU the gradient of a 1 by 1 convolution's weight costs four times as much as this matrix product's.
    """

    weight: Float[Array, "c_in c_out"]
    bias: Float[Array, "c_out"] | None

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        key: PRNGKeyArray | None,
        init: Init = LECUN_NORMAL,
        use_bias: bool = True,
    ):
        self.weight = initial((c_in, c_out), key, init)
        self.bias = jnp.zeros(c_out) if use_bias else None

    def __call__(self, x: Float[Array, "*n c_in"]) -> Float[Array, "*n c_out"]:
        y = x @ self.weight.astype(x.dtype)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


def initial(shape: tuple[int, ...], key: PRNGKeyArray | None, init: Init) -> Float[Array, "..."]:
    """A weight of this shape, whose last two axes are input and output; zero without a key."""
    return jnp.zeros(shape) if key is None else init(key, shape)
