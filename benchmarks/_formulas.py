"""The losses by hand, as one would write them from the equations for one teacher: whole batches, noise handed in."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

import momentax as mm

STEPS = 8


class Noise(NamedTuple):
    """What is random in a batch of n: two times in [0, 1) and two normal numbers per pixel."""

    s: Float[Array, " n"]
    delta: Float[Array, " n"]
    eps_t: Float[Array, "n *x"]
    eps_s: Float[Array, "n *x"]


class Given(eqx.Module):
    """momentax's rollout with its noise handed in, in the place of the conditioning: what both sides are checked on."""

    def __call__(self, student, x, key, cond: Noise) -> mm.Draw:
        schedule = mm.KarrasSchedule()
        logsnr_s = schedule.logsnr(cond.s)
        logsnr_t = schedule.logsnr(jnp.minimum(cond.s + cond.delta / STEPS, 1))

        def step(x, logsnr_s, logsnr_t, eps_t, eps_s):
            start, place = mm.marginal(x, logsnr_t), {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t}
            z_t = start.mean + start.std * eps_t
            x_tilde = student(z_t, logsnr_t)
            end = mm.conditional_posterior(z_t, x_tilde, **place)
            return x_tilde, end.mean + end.std * eps_s

        x_tilde, z_s = jax.vmap(step)(x, logsnr_s, logsnr_t, cond.eps_t, cond.eps_s)
        return mm.Draw(x_tilde, lax.stop_gradient(z_s), logsnr_s, None)


def drawn(key: PRNGKeyArray, x: Float[Array, "n *x"]) -> Noise:
    """Independent noise for a batch."""
    keys = jax.random.split(key, 4)
    times = (jax.random.uniform(key, x.shape[:1], x.dtype) for key in keys[:2])
    return Noise(*times, *(jax.random.normal(key, x.shape, x.dtype) for key in keys[2:]))


def student_loss(teacher, aux, student, x, noise: Noise):
    """Algorithm 2, the student's turn."""
    x_tilde, z_s, logsnr = rollout(student, x, noise)
    target, average = (lax.stop_gradient(denoise(net, z_s, logsnr)) for net in (teacher, aux))
    return jnp.mean(weight(logsnr) * inner(x_tilde - target, average - target))


def aux_loss(teacher, student, aux, x, noise: Noise):
    """Algorithm 2, the auxiliary's turn."""
    x_tilde, z_s, logsnr = lax.stop_gradient(rollout(student, x, noise))
    target, average = lax.stop_gradient(denoise(teacher, z_s, logsnr)), denoise(aux, z_s, logsnr)
    errors = (inner(point - average, point - average) for point in (x_tilde, target))
    return jnp.mean(weight(logsnr) * sum(errors))


def instant_loss(teacher, student, x, noise: Noise):
    """Algorithm 3 with its sign restored and Lambda = 1: even examples for nu, odd ones for the rest."""
    even, odd = jax.tree.map(lambda leaf: leaf[::2], (x, noise)), jax.tree.map(lambda leaf: leaf[1::2], (x, noise))
    x_first, z_first, logsnr_first = lax.stop_gradient(rollout(student, *even))

    def error(teacher):
        miss = x_first - denoise(teacher, z_first, logsnr_first)
        return jnp.mean(weight(logsnr_first) * inner(miss, miss))

    x_tilde, z_s, logsnr = rollout(student, *odd)
    target, tangent = jax.jvp(lambda teacher: denoise(teacher, z_s, logsnr), (teacher,), (jax.grad(error)(teacher),))
    return jnp.mean(weight(logsnr) * inner(lax.stop_gradient(target) - x_tilde, lax.stop_gradient(tangent)))


def rollout(student, x, noise: Noise):
    """One step of the sampler."""
    logsnr_s, logsnr_t = karras(noise.s), karras(jnp.minimum(noise.s + noise.delta / STEPS, 1))
    (alpha_s, sigma_s), (alpha_t, sigma_t) = (scales(logsnr, x) for logsnr in (logsnr_s, logsnr_t))
    z_t = alpha_t * x + sigma_t * noise.eps_t
    x_tilde = denoise(student, z_t, logsnr_t)
    log_r = as_pixels(logsnr_t - logsnr_s, x)
    mean = jnp.exp(log_r / 2) * sigma_s / sigma_t * z_t - jnp.expm1(log_r) * alpha_s * x_tilde
    return x_tilde, lax.stop_gradient(mean + jnp.sqrt(-jnp.expm1(log_r)) * sigma_s * noise.eps_s), logsnr_s


def denoise(net, z, logsnr):
    """What the network, which predicts v, says of x."""
    alpha, sigma = scales(logsnr, z)
    return alpha * z - sigma * jax.vmap(net)(z, logsnr)


def karras(t):
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return -14 * jnp.log(t * high + (1 - t) * low)


def scales(logsnr, x):
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
    return as_pixels(alpha, x), as_pixels(sigma, x)


def weight(logsnr):
    return 4 + jnp.exp(logsnr)


def inner(a, b):
    return jnp.sum(a * b, axis=range(1, a.ndim))


def as_pixels(values, x):
    return values.reshape(-1, *[1] * (x.ndim - 1))
