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

from ._contract import at_least_single, check_key
from ._number import a_real
from ._schedule import alpha, sigma


class Gaussian(NamedTuple):
    """An isotropic normal distribution: mean of shape [*x], standard deviation a scalar."""

    mean: Float[Array, "*x"]
    std: Float[Array, ""]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*x"]:
        r"""$\mu + \sigma\epsilon$, with $\epsilon$ standard normal in the mean's dtype."""
        check_key(key)
        return self.mean + self.std * jax.random.normal(key, self.mean.shape, self.mean.dtype)


def marginal(x: Float[Array, "*x"], logsnr: Float[Array, ""]) -> Gaussian:
    r"""$q(z_t | x) = N(\alpha_t x, \sigma_t^2)$, section 2.1 of Salimans et al. 2024."""
    wide = at_least_single(logsnr)
    return _in_dtype(x, Gaussian(alpha(wide) * at_least_single(x), sigma(wide)))


def conditional_posterior(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""$q(z_s | z_t, x)$ for $s \le t$: equations (1) and (2) of Salimans et al. 2024.

    With $r = \mathrm{SNR}_t / \mathrm{SNR}_s$: mean $\sqrt r\,\frac{\sigma_s}{\sigma_t} z_t + (1 - r)\,\alpha_s x$,
    variance $(1 - r)\,\sigma_s^2$; exact in float32 for log-SNRs in [-20, 20], at s = t too.
    """
    return _bridge(z_t, x, _half_log_r, logsnr_s, logsnr_t)


def ddim(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""The deterministic step $\alpha_s x + \sigma_s\,\hat\epsilon$: $\rho = 1$ (Song et al. 2021, equation 12)."""
    return _bridge(z_t, x, lambda s, _: jnp.zeros_like(s), logsnr_s, logsnr_t)


def renoise(
    z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
) -> Gaussian:
    r"""$q(z_s | x)$, which forgets $z_t$: $\rho = 0$, the ablation of section 5.2 of Salimans et al. 2024."""
    return _bridge(z_t, x, lambda s, _: jnp.full_like(s, -jnp.inf), logsnr_s, logsnr_t)


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
        return _bridge(z_t, x, self._log_rho, logsnr_s, logsnr_t)

    def _log_rho(self, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]) -> Float[Array, ""]:
        log_r, eta2 = logsnr_t - logsnr_s, self.eta**2
        near = jnp.log1p(eta2 * jnp.expm1(jnp.maximum(log_r, -1)))
        far = jnp.log(1 - eta2 + eta2 * jnp.exp(jnp.minimum(log_r, -1)))
        return jnp.where(log_r > -1, near, far) / 2


class _Noisier(eqx.Module):
    gamma: float = eqx.field(static=True, converter=a_real("gamma", "[0, 1]", "use 0.0 for `conditional_posterior`"))

    def __call__(
        self, z_t: Float[Array, "*x"], x: Float[Array, "*x"], *, logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]
    ) -> Gaussian:
        wide, s, t = at_least_single(z_t), at_least_single(logsnr_s), at_least_single(logsnr_t)
        mean, std = conditional_posterior(wide, x, logsnr_s=s, logsnr_t=t)
        return _in_dtype(z_t, Gaussian(mean, std * (sigma(t) / sigma(s)) ** self.gamma))


def _bridge(z_t, x, log_rho_of, logsnr_s, logsnr_t) -> Gaussian:
    s, t = at_least_single(logsnr_s), at_least_single(logsnr_t)
    log_rho = log_rho_of(s, t)
    kept = jnp.exp(log_rho) * sigma(s) / sigma(t)
    fresh = -jnp.expm1(log_rho + (t - s) / 2)
    std = sigma(s) * jnp.sqrt(-jnp.expm1(2 * log_rho))
    return _in_dtype(z_t, Gaussian(kept * at_least_single(z_t) + fresh * alpha(s) * at_least_single(x), std))


def _half_log_r(logsnr_s: Float[Array, ""], logsnr_t: Float[Array, ""]) -> Float[Array, ""]:
    return (logsnr_t - logsnr_s) / 2


def _in_dtype(like: Float[Array, "*x"], wide: Gaussian) -> Gaussian:
    """Rounded once, where the data are in half precision."""
    half = jnp.finfo(jnp.result_type(like)).bits < 32
    return Gaussian(*(part.astype(like.dtype) for part in wide)) if half else wide
