"""What a network says to a draw, and how that is weighed: what all losses are made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ._denoiser import denoise
from ._divergence import Divergence
from ._rollout import Draw, within
from ._shard import Axes, whole

Model = Callable[..., Any]
Loss = Callable[..., Float[Array, ""]]
Draws = Callable[..., Draw]

_IN_PIECES = ("teacher", "student", "aux", "precond")


class AbstractLoss(eqx.Module):
    """What the losses share: the axis that their draws are spread over."""

    draws: eqx.AbstractVar[Draws]

    @property
    def axis_name(self) -> Axes | None:
        return getattr(self.draws, "axis_name", None)

    def part(self, first: Int[Array, ""], total: int) -> Any:
        """The loss of some examples of a batch: of those from the `first` on, of `total`."""
        return dataclasses.replace(self, draws=within(self.draws, first, total))

    def in_pieces(self) -> Any:
        """The loss whose arrays are in pieces: what is gathered only where it is used stays so."""
        fields = [field.name for field in dataclasses.fields(self) if field.name not in _IN_PIECES]
        return dataclasses.replace(self, **{name: whole(getattr(self, name)) for name in fields})


def predictions(model: Model, draw: Draw) -> Float[Array, "n *x"]:
    """What the model takes every example's `x` to be, from its `z`."""

    def one(z, logsnr, cond, key):
        return denoise(model, z, logsnr, cond, key)

    return jax.vmap(one)(draw.z, draw.logsnr, draw.cond, draw.key)


def weighted_error(weight: Callable[..., Any], divergence: Divergence, model: Model, draw: Draw) -> Float[Array, ""]:
    """The mean of $w L(x, g(z))$ over the draw."""
    x_hat = predictions(model, draw)
    return jnp.mean(weights(weight, draw, x_hat) * jax.vmap(divergence.loss)(draw.x, x_hat))


def weights(weight: Callable[..., Any], draw: Draw, target: Float[Array, "n *x"]) -> Float[Array, " n"]:
    """Every example's weight, of its log-SNR and its distance from a target; no gradient."""
    return lax.stop_gradient(jax.vmap(weight)(draw.logsnr, draw.x - target))


def dot(a: Float[Array, "n *x"], b: Float[Array, "n *x"]) -> Float[Array, " n"]:
    """Every example's inner product."""
    return jax.vmap(jnp.vdot)(a, b)
