"""Mixtures of Gaussians: data without end, and the denoiser that is exact for them."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

import momentax as mm


class Mixture(eqx.Module):
    r"""$E[x | z]$ of data $\sum_i \pi_i N(m_i, s_i^2)$, a denoiser whose parameters are those of the data."""

    logits: Float[Array, " n"]
    means: Float[Array, "n d"]
    log_stds: Float[Array, " n"]

    def __call__(self, z: Float[Array, " d"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, " d"]:
        share, mean, _ = self.posterior(z, logsnr)
        return share @ mean

    def posterior(
        self, z: Float[Array, " d"], logsnr: Float[Array, ""]
    ) -> tuple[Float[Array, " n"], Float[Array, "n d"], Float[Array, " n"]]:
        r"""$q(x | z)$, a mixture itself: its shares, means and variances."""
        total, misses = self._marginal(z, logsnr)
        variance = jnp.exp(2 * self.log_stds)
        mean = self.means + (mm.alpha(logsnr) * variance / total)[:, None] * misses
        return jax.nn.softmax(self._log_joint(total, misses)), mean, variance * jax.nn.sigmoid(-logsnr) / total

    def log_density(self, z: Float[Array, " d"], logsnr: Float[Array, ""]) -> Float[Array, ""]:
        r"""$\ln q(z_t)$."""
        joint = self._log_joint(*self._marginal(z, logsnr))
        return jax.nn.logsumexp(joint) - z.size / 2 * jnp.log(2 * jnp.pi)

    def sample(self, key: PRNGKeyArray) -> Float[Array, " d"]:
        """One example of the data."""
        which, noise = jax.random.split(key)
        i = jax.random.categorical(which, self.logits)
        return self.means[i] + jnp.exp(self.log_stds[i]) * jax.random.normal(
            noise, self.means.shape[1:], self.means.dtype
        )

    def _marginal(self, z, logsnr):
        total = jax.nn.sigmoid(logsnr) * jnp.exp(2 * self.log_stds) + jax.nn.sigmoid(-logsnr)
        return total, z - mm.alpha(logsnr) * self.means

    def _log_joint(self, total, misses):
        return (
            jax.nn.log_softmax(self.logits)
            - (misses.shape[1] * jnp.log(total) + jnp.sum(misses**2, axis=1) / total) / 2
        )


class Corrected(eqx.Module):
    r"""An exact denoiser that stays, and what a network adds to it: $\hat x = E[x | z] + \sigma\,net(z, \ell)$."""

    exact: Mixture
    net: Any

    def __call__(self, z: Float[Array, " d"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, " d"]:
        return jax.lax.stop_gradient(self.exact)(z, logsnr) + mm.sigma(logsnr) * self.net(z, logsnr)


class Centred(eqx.Module):
    r"""Zero, with the derivatives of a network: a `Corrected` that is exact and has as many parameters."""

    net: Any

    def __call__(self, z: Float[Array, " d"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, " d"]:
        output = self.net(z, logsnr)
        return output - jax.lax.stop_gradient(output)


def copy(exact: Mixture, key: PRNGKeyArray) -> Corrected:
    """A student or an auxiliary that starts as the exact denoiser: its network's last layer is zero."""
    net = mm.nn.MLP(exact.means.shape[1:], width=32, key=key)
    return Corrected(exact, eqx.tree_at(lambda net: (net.last.weight, net.last.bias), net, replace_fn=jnp.zeros_like))


def with_tangents(exact: Mixture, key: PRNGKeyArray) -> Corrected:
    """The exact denoiser with the tangents of a network, for `instant`."""
    return Corrected(exact, Centred(mm.nn.MLP(exact.means.shape[1:], width=32, key=key)))


def line() -> Mixture:
    """Three modes on a line, of different shares and widths."""
    return _mixture([0.3, 0.5, 0.2], [[-1.2], [0.2], [1.4]], [0.3, 0.35, 0.25])


def ring() -> Mixture:
    """Eight equal modes on the unit circle."""
    angles = jnp.arange(8) * (jnp.pi / 4)
    return _mixture(jnp.ones(8), jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1), jnp.full(8, 0.15))


def _mixture(shares, means, stds) -> Mixture:
    return Mixture(jnp.log(jnp.asarray(shares)), jnp.asarray(means), jnp.log(jnp.asarray(stds)))
