"""Closed-form denoisers `(z, logsnr, cond=None) -> x_hat` and tiny networks: the oracles of the tests."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class FiniteDenoiser(eqx.Module):
    r"""$E[x | z]$ for data uniform on finitely many `points` of shape [n, *x]: a softmax over them."""

    points: Float[Array, "n *x"]

    def __call__(self, z: Float[Array, "*x"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, "*x"]:
        return jnp.tensordot(self.responsibilities(z, logsnr), self.points.astype(z.dtype), 1)

    def responsibilities(self, z: Float[Array, "*x"], logsnr: Float[Array, ""]) -> Float[Array, " n"]:
        r"""$q(x = x_i | z)$, which `jax.random.choice` makes the exact student."""
        alpha2, sigma2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
        misses = z - jnp.sqrt(alpha2) * self.points.astype(z.dtype)
        return jax.nn.softmax(-jnp.sum(misses**2, axis=range(1, misses.ndim)) / (2 * sigma2))


class GaussianDenoiser(eqx.Module):
    r"""$E[x | z] = m + \frac{\alpha s^2}{\alpha^2 s^2 + \sigma^2}(z - \alpha m)$ for data $N(m, s^2)$."""

    mean: Float[Array, "*x"]
    std: Float[Array, "*y"]

    def __call__(self, z: Float[Array, "*x"], logsnr: Float[Array, ""], cond: Any = None) -> Float[Array, "*x"]:
        mean, variance = self.mean.astype(z.dtype), self.std.astype(z.dtype) ** 2
        alpha2, sigma2 = jax.nn.sigmoid(logsnr), jax.nn.sigmoid(-logsnr)
        alpha = jnp.sqrt(alpha2)
        return mean + alpha * variance / (alpha2 * variance + sigma2) * (z - alpha * mean)


def gaussian_denoiser(mean: float = 0.3, std: float = 0.7) -> GaussianDenoiser:
    """The exact denoiser of data N(mean, std^2) of any shape."""
    return GaussianDenoiser(jnp.asarray(mean, jnp.float64), jnp.asarray(std, jnp.float64))


class Linear(eqx.Module):
    """`net(z, t, cond) = weight @ z + t * drift + cond`, in its weight's dtype; None adds nothing."""

    weight: Float[Array, "d d"]
    drift: Float[Array, " d"]

    def __call__(self, z: Float[Array, " d"], t: Float[Array, ""], cond: Any = None) -> Float[Array, " d"]:
        dtype = self.weight.dtype
        output = self.weight @ z.astype(dtype) + t.astype(dtype) * self.drift
        return output if cond is None else output + cond.astype(dtype)


def linear(key: PRNGKeyArray, d: int = 3, dtype: Any = jnp.float64) -> Linear:
    """A `Linear` with random parameters, of shape [d, d] and [d]."""
    weight, drift = jax.random.split(key)
    return Linear(jax.random.normal(weight, (d, d), dtype) / d**0.5, jax.random.normal(drift, (d,), dtype) / d)


class Tanh(eqx.Module):
    """A network that is not linear in its parameters."""

    net: Any

    def __call__(self, z, logsnr, cond=None):
        return jnp.tanh(self.net(z, logsnr / 10, cond))


class Dropping(eqx.Module):
    """A network that drops half of its outputs, by its key; none without one."""

    net: Any

    def __call__(self, z, logsnr, cond=None, *, key=None):
        output = self.net(z, logsnr, cond)
        return output if key is None else 2 * output * jax.random.bernoulli(key, 0.5, output.shape).astype(output.dtype)


@jax.custom_vjp
def sine(x):
    """A sine without a forward-mode derivative."""
    return jnp.sin(x)


sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.cos(x) * g,))


class Sine(eqx.Module):
    """A network with a layer of one's own, `custom` (a `jax.custom_vjp`) or plain."""

    net: Any
    custom: bool

    def __call__(self, z, logsnr, cond=None):
        h = self.net(z, logsnr / 10, cond)
        return sine(h) if self.custom else jnp.sin(h)


def predictions(model, draw):
    """What a model says to a draw, written out; a `Dropping` one is handed its keys."""
    if isinstance(model, Dropping):
        return jax.vmap(lambda z, logsnr, key: model(z, logsnr, key=key))(draw.z, draw.logsnr, draw.key)
    return jax.vmap(model)(draw.z, draw.logsnr)


def assert_trees_close(a, b, rtol, atol=0.0):
    """Leaf by leaf, which must be as many."""
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=rtol, atol=atol), a, b)


def program_of(function: Any, *args: Any) -> str:
    """The lowered program of a function under `eqx.filter_jit`, as text."""
    jitted: Any = eqx.filter_jit(function)
    return jitted.lower(*args).as_text()


def moving(name: str, student: Any, aux: Any) -> Any:
    """What moves under the loss of that name: the student, or both players at once."""
    return (student, aux) if name == "joint" else student
