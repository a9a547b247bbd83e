r"""What the losses estimate, without estimating: in one dimension every expectation is a sum over a grid.

The state $z_s$ of a rollout, given s, has a density that is a sum of Gaussians, one for each node of $(\delta, z_t)$,
and $\tilde x$ is constant in each (or affine, for the exact student). All else follows from that.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from mixture import Mixture

import momentax as mm

SCHEDULE = mm.CosineSchedule(-10.0, 6.0)
WIDTH = 5.0


class Atoms(NamedTuple):
    r"""The law of $(\tilde x, z_s)$ at one s: Gaussians in $z_s$, and $\tilde x = value + slope\,(z_s - mean)$."""

    weight: Float[np.ndarray, " atoms"]
    mean: Float[np.ndarray, " atoms"]
    std: Float[np.ndarray, " atoms"]
    value: Float[np.ndarray, " atoms"]
    slope: Float[np.ndarray, " atoms"] | float = 0.0


class Moments(NamedTuple):
    r"""$E_g[\tilde x | z_s]$ at nodes of $(s, z_s)$, whose masses add up to one."""

    z: Float[np.ndarray, " nodes"]
    logsnr: Float[np.ndarray, " nodes"]
    mass: Float[np.ndarray, " nodes"]
    mean: Float[np.ndarray, " nodes"]

    def of(self, model: Callable[..., Any]) -> Float[np.ndarray, " nodes"]:
        """What a denoiser says at the nodes."""
        return predicted(model, self.z, self.logsnr)


def moments(atoms: Callable[[float, int], Atoms], k: int, *, times: int = 16, states: int = 251) -> Moments:
    r"""Of a student's rollout, given `atoms(s, k)`: $s$ by Gauss and Legendre, $z_s$ by the trapezoidal rule."""
    z, rows = np.linspace(-WIDTH, WIDTH, states), []
    for s, share in zip(*_gauss(times), strict=True):
        density, mean = _conditional(atoms(s, k), z)
        rows.append((z, np.full(states, _logsnr(s)), share * density * (z[1] - z[0]), mean))
    return Moments(*map(np.concatenate, zip(*rows, strict=True)))


def student_atoms(mixture: Mixture, student: Callable[..., Any], *, steps: int = 6, states: int = 1001):
    r"""Of a deterministic student: $\tilde x = g(z_t)$ with $z_t \sim q(z_t)$ and $\delta$ uniform."""

    def at(s: float, k: int) -> Atoms:
        rows = []
        for t, share, z, density in _noisy(mixture, s, k, steps, states):
            x = predicted(student, z, np.full(states, _logsnr(t)))
            mean, std = _step(z, x, s, t)
            rows.append((share * density, mean, np.full(states, std), x))
        return Atoms(*map(np.concatenate, zip(*rows, strict=True)))

    return at


def exact_atoms(mixture: Mixture, *, steps: int = 6, states: int = 1001):
    r"""Of the exact student, $\tilde x \sim q(x | z_t)$, which equation (3) says has no moment gap."""

    def at(s: float, k: int) -> Atoms:
        rows = []
        for t, share, z, density in _noisy(mixture, s, k, steps, states):
            parts = _posterior(mixture, z, np.full(states, _logsnr(t)))
            for part, x, variance in zip(*parts, strict=True):
                mean, std = _step(z, x, s, t)
                fresh = _step(np.ones(1), np.ones(1), s, t)[0] - _step(np.ones(1), np.zeros(1), s, t)[0]
                total = std**2 + fresh**2 * variance
                rows.append((share * density * part, mean, np.sqrt(total), x, fresh * variance / total))
        return Atoms(*map(np.concatenate, zip(*rows, strict=True)))

    return at


def moment_gap(found: Moments, teacher: Callable[..., Any]) -> float:
    r"""$\frac12 E\,|E_g[\tilde x | z_s] - g_\theta(z_s)|^2$, equation (4) as the student's loss reads it."""
    return float(found.mass @ (found.mean - found.of(teacher)) ** 2) / 2


def student_value(found: Moments, teacher: Callable[..., Any], aux: Callable[..., Any]) -> float:
    r"""The expectation of `momentax.student_loss`, flat weight, for the auxiliary as it is."""
    target = found.of(teacher)
    return float(found.mass @ ((found.mean - target) * (found.of(aux) - target)))


def auxiliary_error(found: Moments, teacher: Callable[..., Any], aux: Callable[..., Any]) -> float:
    r"""$\frac12 E\,|g_\phi - \frac12(E_g[\tilde x | z_s] + g_\theta)|^2$: how far the auxiliary is from converged."""
    return float(found.mass @ (found.of(aux) - (found.mean + found.of(teacher)) / 2) ** 2) / 2


def instant_value(found: Moments, teacher: Any, precond: Callable[..., Any] = mm.identity) -> float:
    r"""Equation (9), $\frac12|E\,\nabla_\theta L_\theta|^2_\Lambda$, flat weight: one vector-Jacobian product."""
    z, logsnr = jnp.asarray(found.z)[:, None], jnp.asarray(found.logsnr)
    target, pull = jax.vjp(lambda teacher: jax.vmap(teacher)(z, logsnr), teacher)
    cotangent = 2 * found.mass[:, None] * (np.asarray(target) - found.mean[:, None])
    (gradient,) = pull(jnp.asarray(cotangent, target.dtype))
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(precond(gradient)), strict=True)
    return sum(float(jnp.vdot(a, b)) for a, b in pairs) / 2


def distance(mixture: Mixture, model: Callable[..., Any], k: int, *, states: int = 1001) -> float:
    r"""The 2-Wasserstein distance between the data and `momentax.ancestral_sampler(model, k)`, both in full.

    The density of the sampler's state is propagated on a grid; the last prediction is a map of the line.
    """
    z, fine = np.linspace(-WIDTH, WIDTH, states), np.linspace(-WIDTH, WIDTH, 20 * states)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    for i in range(k, 1, -1):
        t, s = i / k, (i - 1) / k
        x = predicted(model, z, np.full(states, _logsnr(t)))
        mean, std = _step(z, x, s, t)
        density = _conditional(Atoms(density * (z[1] - z[0]), mean, np.full(states, std), x), z)[0]
    samples = predicted(model, fine, np.full(len(fine), _logsnr(1 / k)))
    return _wasserstein(mixture, samples, np.interp(fine, z, density))


def predicted(
    model: Callable[..., Any], z: Float[np.ndarray, " nodes"], logsnr: Float[np.ndarray, " nodes"]
) -> Float[np.ndarray, " nodes"]:
    """What a denoiser of one dimension says at many states."""
    return np.asarray(_evaluate(model, jnp.asarray(z)[:, None], jnp.asarray(logsnr)), np.float64)[:, 0]


@eqx.filter_jit
def _evaluate(model: Any, z: Float[Array, "nodes 1"], logsnr: Float[Array, " nodes"]) -> Float[Array, "nodes 1"]:
    return jax.vmap(model)(z, logsnr)


@eqx.filter_jit
def _log_density(mixture: Mixture, z: Float[Array, "nodes 1"], logsnr: Float[Array, " nodes"]):
    return jax.vmap(mixture.log_density)(z, logsnr)


@eqx.filter_jit
def _posteriors(mixture: Mixture, z: Float[Array, "nodes 1"], logsnr: Float[Array, " nodes"]):
    return jax.vmap(mixture.posterior)(z, logsnr)


def _posterior(mixture, z, logsnr):
    """Shares, means and variances, each by component and node."""
    share, mean, variance = _posteriors(mixture, jnp.asarray(z)[:, None], jnp.asarray(logsnr))
    return tuple(np.asarray(part, np.float64).T for part in (share, mean[..., 0], variance))


def _noisy(mixture, s, k, steps, states):
    """Nodes of t given s, with their shares, and for each the density of z_t times its step."""
    z, room = np.linspace(-WIDTH, WIDTH, states), min(1.0, k * (1 - s))
    times = [(s + delta * room / k, share * room) for delta, share in zip(*_gauss(steps), strict=True)]
    for t, share in [*times, (1.0, 1 - room)]:
        log_density = _log_density(mixture, jnp.asarray(z)[:, None], jnp.full(states, _logsnr(t)))
        yield t, share, z, np.exp(np.asarray(log_density, np.float64)) * (z[1] - z[0])


def _step(z, x, s, t):
    """The kernel's mean, by node, and its standard deviation."""
    logsnr_s, logsnr_t = jnp.asarray(_logsnr(s)), jnp.asarray(_logsnr(t))
    step = mm.conditional_posterior(jnp.asarray(z), jnp.asarray(x), logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    return np.asarray(step.mean, np.float64), float(step.std)


def _conditional(atoms: Atoms, z):
    r"""The density of $z_s$, and $E[\tilde x | z_s]$, zero where there is no density."""
    misses = z[:, None] - atoms.mean
    kernel = atoms.weight / atoms.std * np.exp(-((misses / atoms.std) ** 2) / 2) / np.sqrt(2 * np.pi)
    density = kernel.sum(1)
    total = kernel @ atoms.value + (kernel * misses) @ np.broadcast_to(atoms.slope, atoms.value.shape)
    return density, total / np.where(density > 1e-200, density, np.inf)


def _wasserstein(mixture: Mixture, samples, density) -> float:
    """Of order two, between weighted samples and the data, from their quantiles."""
    order = np.argsort(samples)
    weight = density[order] / density.sum()
    middle = np.cumsum(weight) - weight / 2
    x = np.linspace(-WIDTH, WIDTH, 200_001)
    shares = np.asarray(jax.nn.softmax(mixture.logits), np.float64)
    means, stds = np.asarray(mixture.means, np.float64)[:, 0], np.exp(np.asarray(mixture.log_stds, np.float64))
    density = sum(p / s * np.exp(-(((x - m) / s) ** 2) / 2) for p, m, s in zip(shares, means, stds, strict=True))
    cumulative = np.cumsum(density)
    quantiles = np.interp(middle, cumulative / cumulative[-1], x)
    return float(np.sqrt(weight @ (samples[order] - quantiles) ** 2))


def _gauss(count: int):
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def _logsnr(t: float) -> float:
    return float(SCHEDULE.logsnr(jnp.asarray(t)))
