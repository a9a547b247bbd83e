"""Denoisers: callables `(z, logsnr, cond=None) -> x_hat`, per example, in variance-preserving scaling.

One with a parameter named `key` is also handed a key, for its dropout.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import at_least_single, check_key
from ._number import real_or_traced
from ._schedule import AbstractSchedule, alpha, sigma
from ._shard import gathering

Time = Callable[[Float[Array, ""]], Float[Array, ""]]


def predict_x(net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any) -> Float[Array, "*x"]:
    r"""$\hat x = net(z, t)$: the network predicts the clean data."""
    return _evaluate(net, z, _own(time, logsnr), cond)


def predict_eps(
    net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any
) -> Float[Array, "*x"]:
    r"""$\hat x = (z - \sigma\,\epsilon_\theta) / \alpha$: the network predicts the noise (Ho et al. 2020)."""
    return (z - sigma(logsnr) * _evaluate(net, z, _own(time, logsnr), cond)) / alpha(logsnr)


def predict_v(net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any) -> Float[Array, "*x"]:
    r"""$\hat x = \alpha z - \sigma v_\theta$, where $v = \alpha\epsilon - \sigma x$ (Salimans & Ho 2022)."""
    return alpha(logsnr) * z - sigma(logsnr) * _evaluate(net, z, _own(time, logsnr), cond)


def predict_score(
    net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any
) -> Float[Array, "*x"]:
    r"""$\hat x = (z + \sigma^2 s_\theta) / \alpha$: the network predicts $\nabla\ln q(z_t)$ (Song et al. 2021)."""
    return (z + jax.nn.sigmoid(-logsnr) * _evaluate(net, z, _own(time, logsnr), cond)) / alpha(logsnr)


def predict_flow(
    net, z: Float[Array, "*x"], logsnr: Float[Array, ""], time: Time | None, cond: Any
) -> Float[Array, "*x"]:
    r"""$\hat x = y - \tau u_\theta(y, \tau)$: the network predicts the velocity $u = \epsilon - x$ (Liu et al. 2022).

    It lives at $y = (1 - \tau)x + \tau\epsilon = z / (\alpha + \sigma)$, $\tau = \mathrm{sigmoid}(-\ell/2)$, which is
    also the time it is given unless the denoiser names another.
    """
    tau, y = jax.nn.sigmoid(-logsnr / 2), z / (alpha(logsnr) + sigma(logsnr))
    return y - tau * _evaluate(net, y, tau if time is None else time(logsnr), cond)


def predict_edm(
    net,
    z: Float[Array, "*x"],
    logsnr: Float[Array, ""],
    time: Time | None,
    cond: Any,
    *,
    sigma_data: float = 0.5,
) -> Float[Array, "*x"]:
    r"""$\hat x = c_{skip} y + c_{out} F_\theta(c_{in} y, \frac14\ln\sigma_e)$, the network with EDM's preconditioning.

    Karras et al. 2022, table 1, at $y = z/\alpha$, $\sigma_e = \sigma/\alpha$:
    $c_{skip} = \sigma_d^2 / (\sigma_e^2 + \sigma_d^2)$, $c_{out} = \sigma_e\sigma_d / \sqrt{\sigma_e^2 + \sigma_d^2}$,
    $c_{in} = 1 / \sqrt{\sigma_e^2 + \sigma_d^2}$.
    """
    sigma_data = real_or_traced("sigma_data", sigma_data, "(0, inf)", "use what the network was trained with")
    y, noise = z / alpha(logsnr), jnp.exp(-logsnr / 2)
    scale = jnp.sqrt(noise**2 + sigma_data**2)
    output = _evaluate(net, y / scale, -logsnr / 8 if time is None else time(logsnr), cond)
    return (sigma_data / scale) ** 2 * y + noise * sigma_data / scale * output


class Denoiser(eqx.Module):
    r"""A network, what it predicts and the time it was trained with, as $\hat x(z, \ell, cond)$.

    Args:
        net: `(z, t, cond) -> [*x]`, per example. Any dtype; it is given z and t in float32 or better, and what it
            returns is carried on so, to be rounded to the dtype of `z` at the end. If it has a parameter `key`, it is
            given the denoiser's by keyword.
        predict: one of the `predict_*` functions, or one of their type.
        time: from log-SNR to the network's own time, such as `DiscreteSchedule(alphas_cumprod).step`. None is the
            prediction's own convention: the log-SNR itself; for `predict_flow` tau; for `predict_edm` ln(sigma_e)/4.
        schedule: the one that the network was trained under; it bounds what the network can be asked, and rollouts and
            samplers that name no schedule take it (`default_schedule`). None is not known. No prediction depends on it.
    """

    net: Callable[..., Any]
    predict: Callable[..., Any] = predict_v
    time: Time | None = None
    schedule: AbstractSchedule | None = None

    def __call__(
        self,
        z: Float[Array, "*x"],
        logsnr: Float[Array, ""],
        cond: PyTree[Any] = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "*x"]:
        if key is not None:
            check_key(key)
        wide = at_least_single(z), at_least_single(logsnr)
        return self.predict(keyed(self.net, key), *wide, self.time, cond).astype(z.dtype)


class AbstractStraightThrough(eqx.Module):
    """A denoiser made of another one, whose derivatives it has."""

    denoiser: eqx.AbstractVar[Callable[..., Any]]


def underlying(denoiser: Any) -> Any:
    """The denoiser whose derivatives a straight-through one has; of a tree of its structure, the same part."""
    return underlying(denoiser.denoiser) if isinstance(denoiser, AbstractStraightThrough) else denoiser


def denoise(
    denoiser: Callable[..., Any],
    z: Float[Array, "*x"],
    logsnr: Float[Array, ""],
    cond: PyTree[Any],
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*x"]:
    """What any denoiser predicts, of the shape (an error otherwise) and in the dtype of `z`.

    The one place where the library calls one: a denoiser in pieces is gathered here.
    """
    x_hat = gathering(_call)(denoiser, z, logsnr, cond, key)
    _check_shape(denoiser, x_hat, z)
    return x_hat.astype(z.dtype)


def _call(denoiser, z: Float[Array, "*x"], logsnr: Float[Array, ""], cond: Any, key: PRNGKeyArray | None):
    return keyed(denoiser, key)(z, logsnr, cond)


def keyed(function: Callable[..., Any], key: PRNGKeyArray | None) -> Callable[..., Any]:
    """The function with its parameter `key` bound; itself, if it has none."""
    return partial(function, key=key) if key is not None and _takes_key(function) else function


def _takes_key(function: Callable[..., Any]) -> bool:
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _own(time: Time | None, logsnr: Float[Array, ""]) -> Float[Array, ""]:
    return logsnr if time is None else time(logsnr)


def _evaluate(net, z: Float[Array, "*x"], time: Float[Array, ""], cond: Any) -> Float[Array, "*x"]:
    output = net(z, time, cond)
    _check_shape(net, output, z)
    return output.astype(z.dtype)


def _check_shape(function: Callable[..., Any], output: Any, z: Float[Array, "*x"]) -> None:
    if jnp.shape(output) != z.shape:
        name = type(function.func if isinstance(function, partial) else function).__name__
        raise ValueError(
            f"needs an output of one example's shape {z.shape} from {name}; got {jnp.shape(output)};"
            " do write the network per example, without the batch axis"
        )
