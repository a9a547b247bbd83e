"""Denoisers made of denoisers: guidance and clipping, straight-through.

The value is the modified one; every derivative, forward and reverse, is the bare denoiser's (section 3.3 of
Salimans et al. 2024), so that matching moments is not disturbed by where a prediction is clipped.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import at_least_single
from ._denoiser import AbstractStraightThrough, keyed
from ._fixed import fix, values
from ._number import a_real


def guided(denoiser: Callable[..., Any], scale: float, null: PyTree[Any] = None):
    r"""Classifier-free guidance, $\hat x_c + w(\hat x_c - \hat x_u)$ (Ho & Salimans 2022).

    Args:
        scale: w, finite; 0 is off, and the scale of diffusers is w + 1.
        null: the conditioning of the unconditional prediction, for one example. Its arrays are fixed: they are none of
            the guided denoiser's parameters, whatever trains it.

    Raises:
        ValueError: for a scale that is not finite.
    """
    return _Guided(denoiser, scale, fix(null))


def clipped(denoiser: Callable[..., Any], limit: float = 1.0):
    r"""$\mathrm{clip}(\hat x, -c, c)$, for data in [-c, c].

    Args:
        limit: c > 0; inf for no clipping.

    Raises:
        ValueError: for any other.
    """
    return _Clipped(denoiser, limit)


class _Guided(AbstractStraightThrough):
    denoiser: Callable[..., Any]
    scale: float = eqx.field(static=True, converter=a_real("scale", "(-inf, inf)", "use 0.0 for no guidance"))
    null: PyTree[Any]

    def __call__(
        self,
        z: Float[Array, "*x"],
        logsnr: Float[Array, ""],
        cond: PyTree[Any] = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*x"]:
        denoiser = keyed(self.denoiser, key)
        wide = at_least_single(z)
        bare, free = denoiser(wide, logsnr, cond), denoiser(wide, logsnr, values(self.null))
        return _straight_through(bare, bare + self.scale * (bare - free)).astype(z.dtype)


class _Clipped(AbstractStraightThrough):
    denoiser: Callable[..., Any]
    limit: float = eqx.field(static=True, converter=a_real("limit", "(0, inf]", "use the largest |x| of the data"))

    def __call__(
        self,
        z: Float[Array, "*x"],
        logsnr: Float[Array, ""],
        cond: PyTree[Any] = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*x"]:
        bare = keyed(self.denoiser, key)(z, logsnr, cond)
        return _straight_through(bare, jnp.clip(bare, -self.limit, self.limit))


def _straight_through(bare: Float[Array, "*x"], value: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return jax.lax.stop_gradient(value) + (bare - jax.lax.stop_gradient(bare))
