"""Weights w(s) of the losses: of the log-SNR and, where they adapt, of what is left to explain.

Each has the type `(logsnr, residual) -> weight`, per example, and no gradient flows through it. Settings are
bound by `jax.tree_util.Partial(momentax.edm_weight, shift=c)`; equal ones compare equal, so that nothing is retraced.
A setting out of its range is a ValueError at the first call, when it is traced, unless the setting is traced itself.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._number import real_or_traced


def edm_weight(
    logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, sigma_data: float = 0.5, shift: float = 0.0
) -> Float[Array, ""]:
    r"""$w = 1/\sigma_{data}^2 + e^{\ell - c}$, which gives every noise level one scale (Karras et al. 2022, table 1).

    Args:
        sigma_data: standard deviation of the data, above 0.
        shift: c, the schedule's resolution shift: the weight belongs to the unshifted log-SNR.
    """
    sigma_data = real_or_traced("sigma_data", sigma_data, "(0, inf)", "use the standard deviation of the data")
    shift = _shift(shift)
    return 1 / sigma_data**2 + jnp.exp(logsnr - shift)


def flat_weight(logsnr: Float[Array, ""], residual: Float[Array, "*x"]) -> Float[Array, ""]:
    """$w = 1$: the paper's choice for one and two steps."""
    return jnp.ones_like(logsnr)


def adaptive_weight(logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, eps: float = 1e-6) -> Float[Array, ""]:
    r"""$w = 1 / (\mathrm{mean}|\tilde x - g_\theta(z_s)| + \epsilon)$ per example (Yin et al. 2024, DMD); eps > 0."""
    eps = real_or_traced("eps", eps, "(0, inf)", "use 1e-6")
    return 1 / (jnp.mean(jnp.abs(residual)) + eps)


def snr_weight(logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, shift: float = 0.0) -> Float[Array, ""]:
    r"""$w = e^{\ell - c}$, the weight of an unweighted loss on the noise (Salimans & Ho 2022, section 4)."""
    shift = _shift(shift)
    return jnp.exp(logsnr - shift)


def min_snr_weight(
    logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, gamma: float = 1.0, shift: float = 0.0
) -> Float[Array, ""]:
    r"""$w = \min(e^{\ell - c}, \gamma)$, "Min-SNR" (Hang et al. 2023, arXiv 2303.09556, which takes $\gamma = 5$).

    Flat where there is little noise, and where there is much, small enough for a teacher that predicts the noise: its
    error in $\hat x$ is $\sigma/\alpha$ times that of its output.

    Args:
        gamma: the largest weight, above 0.
        shift: c, the schedule's resolution shift: the weight belongs to the unshifted log-SNR.
    """
    gamma = real_or_traced("gamma", gamma, "(0, inf]", "use 1.0")
    shift = _shift(shift)
    return jnp.minimum(jnp.exp(logsnr - shift), gamma)


def truncated_snr_weight(
    logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, shift: float = 0.0
) -> Float[Array, ""]:
    r"""$w = \max(e^{\ell - c}, 1)$ (Salimans & Ho 2022, section 4)."""
    shift = _shift(shift)
    return jnp.maximum(jnp.exp(logsnr - shift), 1)


def v_weight(logsnr: Float[Array, ""], residual: Float[Array, "*x"], *, shift: float = 0.0) -> Float[Array, ""]:
    r"""$w = e^{\ell - c} + 1$, the weight of an unweighted loss on v: "SNR + 1" in Salimans & Ho 2022."""
    shift = _shift(shift)
    return jnp.exp(logsnr - shift) + 1


def _shift(shift: float) -> float:
    return real_or_traced("shift", shift, "(-inf, inf)", "use 0.0, or the schedule's `resolution_shift`")
