"""Ancestral sampling: a denoiser and k steps make a sampler."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._contract import check_cond, check_key, checked_shape
from ._defaults import default_schedule
from ._denoiser import denoise
from ._number import whole
from ._process import conditional_posterior
from ._schedule import AbstractSchedule


def ancestral_sampler(
    denoiser: Callable[..., Any],
    k: int = 8,
    *,
    schedule: AbstractSchedule | None = None,
    kernel: Callable[..., Any] = conditional_posterior,
):
    r"""k evaluations from noise to data: Algorithm 1 of Salimans et al. 2024, on the grid t = k/k, ..., 1/k.

    From $z_1 \sim N(0, I)$, each step predicts $\hat x = g(z_t)$ and draws $z_s \sim q(z_s | z_t, \hat x)$ at
    $s = t - 1/k$; the last prediction is the sample. A student is sampled with the k, schedule and kernel it was
    distilled with; a teacher with any.

    Args:
        k: the number of steps, and of evaluations.
        schedule: None is the denoiser's own, `default_schedule(denoiser)`, as it is for the losses.
        kernel: $q(z_s | z_t, \hat x)$, any function of `conditional_posterior`'s type.

    Returns:
        A callable pytree `(key, shape, cond=None) -> [*shape]` for one example. A batch is a `jax.vmap` over keys
        (and cond), so a sample depends on its own key only: `jax.vmap(lambda key: sample(key, shape))(keys)`.
    """
    schedule = default_schedule(denoiser) if schedule is None else schedule
    return _AncestralSampler(denoiser, whole("k", k, 1, "use 8"), schedule, kernel)


class _AncestralSampler(eqx.Module):
    denoiser: Callable[..., Any]
    k: int = eqx.field(static=True)
    schedule: AbstractSchedule
    kernel: Callable[..., Any]

    def __call__(self, key: PRNGKeyArray, shape: tuple[int, ...], cond: PyTree[Any] = None) -> Float[Array, "..."]:
        check_key(key)
        shape = checked_shape(shape)
        check_cond(cond)
        key_noise, key_steps, key_nets = jax.random.split(key, 3)

        def step(state, i):
            z, _ = state
            logsnr_t, logsnr_s = self.schedule.logsnr(i / self.k), self.schedule.logsnr((i - 1) / self.k)
            key_step, key_net = (jax.random.fold_in(key, i.astype(int)) for key in (key_steps, key_nets))
            x = denoise(self.denoiser, z, logsnr_t, cond, key_net)
            posterior = self.kernel(z, x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
            return (posterior.sample(key_step), x), None

        z_1 = jax.random.normal(key_noise, shape)
        (_, x), _ = jax.lax.scan(step, (z_1, jnp.zeros_like(z_1)), jnp.arange(self.k, 0, -1, z_1.dtype))
        return x
