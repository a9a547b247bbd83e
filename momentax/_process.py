r"""The Gaussian diffusion process: its marginals, and the kernels that step from z_t to z_s given x.

The kernels are one family, that of Song et al. 2021, equation (7): with $\hat\epsilon = (z_t - \alpha_t x)/\sigma_t$,
$z_s = \alpha_s x + \sigma_s(\rho\,\hat\epsilon + \sqrt{1 - \rho^2}\,\epsilon)$ has the process's marginals for every
$\rho$ in [0, 1]. $\rho^2 = r = \mathrm{SNR}_t/\mathrm{SNR}_s$ is the posterior, 1 is DDIM, 0 is re-noising.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ._number import a_real
from ._schedule import alpha, sigma


class Gaussian(NamedTuple):
    """An isotropic normal distribution: mean of shape [*x], standard deviation a scalar."""

    mean: Float[Array, "*x"]
    std: Float[Array, ""]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*x"]:
        r"""$\mu + \sigma\epsilon$, with $\epsilon$ standard normal in the mean's dtype."""
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)


def marginal(x: Float[Array, "*x"], logsnr: Float[Array, ""]) -> Gaussian:
    r"""$q(z_t | x) = N(\alpha_t x, \sigma_t^2)$, section 2.1 of Salimans et al. 2024."""
    return Gaussian(alpha(logsnr) * x, sigma(logsnr))


def conditional_posterior(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""$q(z_s | z_t, x)$ for $s \le t$: equations (1) and (2) of Salimans et al. 2024.

    With $r = \mathrm{SNR}_t / \mathrm{SNR}_s$: mean $\sqrt r\,\frac{\sigma_s}{\sigma_t} z_t + (1 - r)\,\alpha_s x$,
    variance $(1 - r)\,\sigma_s^2$; exact in float32 for log-SNRs in [-20, 20], at s = t too.
    """
    return _bridge(z_t, x, (logsnr_t - logsnr_s) / 2, logsnr_s, logsnr_t)


def ddim(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""The deterministic step $\alpha_s x + \sigma_s\,\hat\epsilon$: $\rho = 1$ (Song et al. 2021, equation 12)."""
    return _bridge(z_t, x, jnp.zeros_like(logsnr_s), logsnr_s, logsnr_t)


def renoise(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""$q(z_s | x)$, which forgets $z_t$: $\rho = 0$, the ablation of section 5.2 of Salimans et al. 2024."""
    return _bridge(z_t, x, jnp.full_like(logsnr_s, -jnp.inf), logsnr_s, logsnr_t)


def stochastic(eta: float):
    r"""The kernel whose standard deviation is $\eta$ times the posterior's: $\rho^2 = 1 - \eta^2(1 - r)$.

    Song et al. 2021, equation (16): `stochastic(1.0)` is `conditional_posterior`, `stochastic(0.0)` is `ddim`.

    Args:
        eta: in [0, 1].
    """
    return _Stochastic(eta)


def noisier(gamma: float):
    r"""The posterior, noisier: $\ln\sigma^2 = \gamma\ln((1 - r)\sigma_t^2) + (1 - \gamma)\ln((1 - r)\sigma_s^2)$.

    Salimans & Ho 2022; for samplers of many steps. It leaves the family: its marginals are wider.

    Args:
        gamma: in [0, 1]; `noisier(0.0)` is `conditional_posterior`.
    """
    return _Noisier(gamma)


class _Stochastic(eqx.Module):
    eta: float = eqx.field(static=True, converter=a_real("eta", "[0, 1]", "use 1.0 for `conditional_posterior`"))

    def __call__(
        self, z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
    ) -> Gaussian:
        log_r, eta2 = logsnr_t - logsnr_s, self.eta**2
        near = jnp.log1p(eta2 * jnp.expm1(jnp.maximum(log_r, -1)))
        far = jnp.log(1 - eta2 + eta2 * jnp.exp(jnp.minimum(log_r, -1)))
        return _bridge(z_t, x, jnp.where(log_r > -1, near, far) / 2, logsnr_s, logsnr_t)


class _Noisier(eqx.Module):
    gamma: float = eqx.field(static=True, converter=a_real("gamma", "[0, 1]", "use 0.0 for `conditional_posterior`"))

    def __call__(
        self, z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
    ) -> Gaussian:
        posterior = conditional_posterior(z_t, x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        return Gaussian(posterior.mean, posterior.std * (sigma(logsnr_t) / sigma(logsnr_s)) ** self.gamma)


def _bridge(z_t, x, log_rho, logsnr_s, logsnr_t) -> Gaussian:
    kept = jnp.exp(log_rho) * sigma(logsnr_s) / sigma(logsnr_t)
    fresh = -jnp.expm1(log_rho + (logsnr_t - logsnr_s) / 2)
    std = sigma(logsnr_s) * jnp.sqrt(-jnp.expm1(2 * log_rho))
    return Gaussian(kept * z_t + fresh * alpha(logsnr_s) * x, std)
