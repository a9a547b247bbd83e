"""The sampler on Gaussian data, where a sample is a linear map of the noise it is made of."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_denoiser, linear
from jaxtyping import Array

import momentax

MEAN, STD = 0.3, 0.7
EXACT = gaussian_denoiser(MEAN, STD)
SCHEDULE = momentax.KarrasSchedule()
KERNELS = {
    "posterior": lambda: (momentax.conditional_posterior, 1.0),
    "ddim": lambda: (momentax.ddim, 0.0),
    "renoise": lambda: (momentax.renoise, None),
    "stochastic": lambda: (momentax.stochastic(0.5), 0.5),
}


def _steps(k, eta):
    r"""Every step's slope of x_hat, $\alpha_t$, and kernel (Song et al. 2021); None renoises."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    noise = np.asarray([(i / k * high + (1 - i / k) * low) ** 7 for i in range(k, -1, -1)])
    scales = zip(1 / np.sqrt(1 + noise**2), noise / np.sqrt(1 + noise**2), strict=True)
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in itertools.pairwise(scales):
        posterior = sigma_s / sigma_t * np.sqrt(sigma_t**2 - (alpha_t * sigma_s / alpha_s) ** 2)
        std = sigma_s if eta is None else eta * posterior
        kept = np.sqrt(max(sigma_s**2 - std**2, 0)) / sigma_t
        slope = alpha_t * STD**2 / ((alpha_t * STD) ** 2 + sigma_t**2)
        yield slope, alpha_t, kept, alpha_s - kept * alpha_t, std


def _moments(k, eta):
    """The sample's mean and variance, by the recursion that they satisfy."""
    mean, variance, x_mean, x_variance = 0.0, 1.0, MEAN, 0.0
    for slope, alpha, kept, fresh, std in _steps(k, eta):
        x_mean, x_variance = MEAN + slope * (mean - alpha * MEAN), slope**2 * variance
        mean, variance = kept * mean + fresh * x_mean, (kept + fresh * slope) ** 2 * variance + std**2
    return x_mean, x_variance


class _Labelled(NamedTuple):
    """A kernel's distribution that draws, for noise, the unit vector of its step."""

    mean: Array
    std: Array
    label: Array

    def sample(self, key):
        return self.mean + self.std * self.label


class _Labelling(eqx.Module):
    kernel: Callable[..., Any]
    k: int = eqx.field(static=True)
    on: Array

    def __call__(self, z_t, x, *, logsnr_s, logsnr_t):
        step = self.kernel(z_t, x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
        label = jax.nn.one_hot(jnp.round(self.k * SCHEDULE.time(logsnr_s)).astype(int), 9)
        return _Labelled(step.mean, step.std * self.on, label)


@eqx.filter_jit
def _sample(kernel, k, key):
    return momentax.ancestral_sampler(EXACT, k, kernel=kernel)(key, (9,))


def _start(key, shape):
    """z_1: what one step with a denoiser that does nothing returns."""
    return momentax.ancestral_sampler(lambda z, logsnr, cond: z, 1)(key, shape)


@pytest.mark.parametrize("name", KERNELS)
def test_a_samples_mean_and_variance_are_those_of_the_recursion(name):
    """It is A z_1 + C + B_i e_i, per coordinate: A, B and C are read off, without statistics."""
    kernel, eta = KERNELS[name]()
    key = jax.random.key(0)
    z = _start(key, (9,))
    for k in (1, 2, 3, 8):
        silent, spoken = (_sample(_Labelling(kernel, k, jnp.asarray(on)), k, key) for on in (0.0, 1.0))
        A = (silent[0] - silent[1]) / (z[0] - z[1])
        mean, variance = jnp.mean(silent - A * z), A**2 + jnp.sum((spoken - silent) ** 2)
        np.testing.assert_allclose((mean, variance), _moments(k, eta), rtol=1e-9)


def test_samples_have_those_moments_so_that_every_step_draws_anew():
    n, key = 20_000, jax.random.key(1)
    sample = momentax.ancestral_sampler(EXACT, 4)
    x = eqx.filter_jit(jax.vmap(lambda key: sample(key, ())))(jax.random.split(key, n))
    mean, variance = _moments(4, 1.0)
    assert abs(jnp.mean(x) - mean) < 5 * (variance / n) ** 0.5
    assert abs(jnp.mean((x - mean) ** 2) / variance - 1) < 5 * (2 / n) ** 0.5


def test_one_step_is_the_denoiser_at_pure_noise():
    key = jax.random.key(2)
    expected = EXACT(_start(key, (2, 3)), SCHEDULE.logsnr(jnp.asarray(1.0)))
    np.testing.assert_array_equal(momentax.ancestral_sampler(EXACT, 1)(key, (2, 3)), expected)


def test_a_sample_depends_on_its_own_key_and_not_on_the_batch():
    sample = momentax.ancestral_sampler(momentax.Denoiser(linear(jax.random.key(3))), 4)
    batch = eqx.filter_jit(jax.vmap(lambda key: sample(key, (3,))))
    keys = jax.random.split(jax.random.key(4), 8)
    whole = batch(keys)
    for part in (keys[:1], keys[:3]):
        np.testing.assert_allclose(batch(part), whole[: len(part)], rtol=1e-12)
    np.testing.assert_allclose(batch(keys[::-1])[::-1], whole, rtol=1e-12)
    assert len(jnp.unique(whole)) == whole.size


def test_every_step_is_told_the_conditioning():
    def denoiser(z, logsnr, cond):
        return 0 * z + cond["value"]

    for k in (1, 3):
        sample = momentax.ancestral_sampler(denoiser, k)
        np.testing.assert_array_equal(sample(jax.random.key(0), (2,), {"value": jnp.asarray(1.5)}), [1.5, 1.5])


@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_sample_costs_k_evaluations_of_a_network_traced_once(k):
    sample = momentax.ancestral_sampler(momentax.Denoiser(linear(jax.random.key(3))), k)
    jaxpr = jax.make_jaxpr(lambda key: sample(key, (3,)))(jax.random.key(0))
    assert (_matmuls(jaxpr.jaxpr, unrolled=True), _matmuls(jaxpr.jaxpr, unrolled=False)) == (k, 1)


def _matmuls(jaxpr, unrolled):
    count = 0
    for eqn in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
        times = eqn.params["length"] if unrolled and eqn.primitive.name == "scan" else 1
        count += eqn.primitive.name == "dot_general"
        count += times * sum(_matmuls(body, unrolled) for body in inner if hasattr(body, "eqns"))
    return count


def test_a_sampler_is_a_pytree_of_its_denoisers_leaves():
    net = linear(jax.random.key(3))
    sample = momentax.ancestral_sampler(momentax.Denoiser(net), 2)
    assert jax.tree.leaves(eqx.filter(sample, eqx.is_array)) == jax.tree.leaves(net)


def test_a_half_precision_denoiser_is_sampled_in_the_default_dtype():
    sample = momentax.ancestral_sampler(momentax.Denoiser(linear(jax.random.key(3), dtype=jnp.bfloat16)), 2)
    assert sample(jax.random.key(0), (3,)).dtype == jnp.result_type(float)


@pytest.mark.parametrize("k", [0, -2, 2.0, True])
def test_a_sampler_of_no_steps_is_refused(k):
    with pytest.raises((ValueError, TypeError)):
        momentax.ancestral_sampler(EXACT, k)


def test_a_key_that_is_not_one_typed_key_is_refused():
    sample = momentax.ancestral_sampler(EXACT, 2)
    with pytest.raises(TypeError):
        sample(jax.random.PRNGKey(0), (3,))
    with pytest.raises((ValueError, TypeError)):
        sample(jax.random.split(jax.random.key(0), 2), (3,))


class Adding(eqx.Module):
    """A denoiser that adds a number in [0, 1), made of the key it is handed."""

    def __call__(self, z, logsnr, cond=None, *, key=None):
        return z if key is None else z + jax.random.uniform(key)


def test_a_denoiser_that_takes_a_key_gets_another_at_every_step():
    """The sum of what k steps add grows by another number for every k."""

    def forward(z_t, x, *, logsnr_s, logsnr_t):
        return momentax.Gaussian(x, jnp.zeros_like(logsnr_s))

    def samples(denoiser):
        samplers = [momentax.ancestral_sampler(denoiser, k, kernel=forward) for k in (1, 2, 3)]
        return jnp.stack([jax.jit(lambda key, s=s: s(key, (3,)))(jax.random.key(0)) for s in samplers])

    added = samples(Adding()) - samples(lambda z, logsnr, cond: z)
    steps = jnp.diff(added[:, 0], prepend=0)
    assert jnp.all((steps > 0) & (steps < 1))
    assert len(set(steps.tolist())) == 3
    wrapped = momentax.guided(momentax.clipped(Adding(), 100.0), 1.0)
    np.testing.assert_allclose(samples(wrapped), samples(Adding()), rtol=1e-12)
