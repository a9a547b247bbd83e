"""The process against Bayes' rule, the tower property and four hundred decimal digits."""

from decimal import Decimal, localcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import logsnr_pairs, logsnrs, vectors

import momentax

ETAS = [0.0, 0.1, 0.5, 0.9, 1.0]
ULPS = 40 * float(jnp.finfo(jnp.float32).eps)
FLUSHED = 1e-18
"""Above the root of float32's least normal number: a deviation whose variance may be flushed to zero."""
singles = st.floats(-20, 20, width=32)
triples = st.tuples(logsnrs, logsnrs, logsnrs).map(lambda triple: tuple(sorted(triple, reverse=True)))


@eqx.filter_jit
def coefficients(kernel, logsnr_s, logsnr_t):
    """Those of z_t and of x in the kernel's mean, and its standard deviation."""
    zero, one = jnp.zeros_like(logsnr_s), jnp.ones_like(logsnr_s)
    of_z = kernel(one, zero, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    of_x = kernel(zero, one, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    return jnp.stack([of_z.mean, of_x.mean, of_x.std])


def _printed(logsnr_s, logsnr_t):
    """Equations (1) and (2) of Salimans et al. 2024 as they are printed, in digits enough for any gap."""
    with localcontext() as context:
        context.prec = 400
        (alpha_s, sigma2_s), (alpha_t, sigma2_t) = (_scales(Decimal(float(end))) for end in (logsnr_s, logsnr_t))
        alpha_ts = alpha_t / alpha_s
        sigma2_ts = sigma2_t - alpha_ts**2 * sigma2_s
        std = (max(sigma2_ts, Decimal(0)) * sigma2_s / sigma2_t).sqrt()
        return np.asarray([alpha_ts * sigma2_s / sigma2_t, alpha_s * sigma2_ts / sigma2_t, std], np.float64)


def _scales(logsnr):
    return (1 / (1 + (-logsnr).exp())).sqrt(), 1 / (1 + logsnr.exp())


def _marginalised(kernel, pair):
    r"""The coefficient of x and the variance of z_s once z_t is integrated over $q(z_t | x)$."""
    kept, fresh, std = coefficients(kernel, *pair)
    return kept * momentax.alpha(pair[1]) + fresh, kept**2 * jax.nn.sigmoid(-pair[1]) + std**2


KERNELS = {
    "posterior": momentax.conditional_posterior,
    "ddim": momentax.ddim,
    "renoise": momentax.renoise,
    "stochastic": momentax.stochastic(0.5),
    "noisier": momentax.noisier(0.3),
    "marginal": lambda z, x, *, logsnr_s, logsnr_t: momentax.marginal(x, logsnr_s),
}


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_kernel_in_half_precision_is_that_in_double_rounded_once(kernel, dtype):
    """To a rounding of the dtype, float32's own, and float16's least number."""
    keys = jax.random.split(jax.random.key(0), 2)
    z, x = (jax.random.normal(key, (25, 3)).astype(dtype) for key in keys)
    s, t = (jnp.linspace(*ends, 25).astype(dtype) for ends in ((16, -16), (15, -20)))
    applied = jax.vmap(lambda z, x, s, t: kernel(z, x, logsnr_s=s, logsnr_t=t))
    found, exact = applied(z, x, s, t), applied(*(part.astype(jnp.float64) for part in (z, x, s, t)))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(float), b, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-6)
    assert jax.vmap(lambda g: g.sample(keys[0]))(found).dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_scales_of_a_log_snr_in_half_precision_are_rounded_once(dtype):
    logsnr = jnp.linspace(-16, 16, 33).astype(dtype)
    for scale in (momentax.alpha, momentax.sigma):
        exact = scale(logsnr.astype(jnp.float64))
        np.testing.assert_allclose(scale(logsnr).astype(float), exact, rtol=0.51 * float(jnp.finfo(dtype).eps))


@given(logsnr_pairs)
def test_the_posterior_is_bayes_rule_as_the_paper_prints_it(pair):
    r"""$|\delta\ell| \le 15\,\epsilon$ moves every coefficient by 15 $\epsilon$ at most, and roundings."""
    found = coefficients(momentax.conditional_posterior, *pair)
    np.testing.assert_allclose(found, _printed(*pair), rtol=1e-14, atol=1e-150)


@given(singles, singles)
@example(12.4, 12.39)
@example(20.0, -20.0)
@example(-19.999, -20.0)
@example(5.0, 5.0)
def test_the_posterior_in_float32_is_exact_to_40_ulps_for_log_snrs_in_20(first, second):
    r"""$\ell_t - \ell_s$ is rounded once, by half an ulp of 40, which exp makes a relative error."""
    pair = [jnp.asarray(end, jnp.float32) for end in sorted((first, second), reverse=True)]
    found = coefficients(momentax.conditional_posterior, *pair)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found.astype(float), _printed(*pair), rtol=ULPS, atol=FLUSHED)


@given(logsnr_pairs, st.floats(-3, 3), st.floats(-3, 3))
@example((jnp.asarray(2.0), jnp.asarray(1.9)), 1.0, -2.0)
def test_the_posterior_is_the_normalised_product_of_forward_step_and_marginal(pair, x, noise):
    r"""$q(z_s | z_t, x) \propto q(z_t | z_s)\,q(z_s | x)$ on a grid, spectrally exact for Gaussians."""
    (alpha_s, alpha_t), (sigma_s, sigma_t) = (np.asarray(f(jnp.stack(pair))) for f in (momentax.alpha, momentax.sigma))
    step = alpha_t / alpha_s
    spread2 = sigma_t**2 - (step * sigma_s) ** 2
    if spread2 < 1e-2 * sigma_t**2:
        return
    z_t, grid = alpha_t * x + sigma_t * noise, np.linspace(-14, 14, 4001)
    z_s = alpha_s * x + sigma_s * grid
    density = np.exp(-((z_t - step * z_s) ** 2) / (2 * spread2) - grid**2 / 2)
    mean = np.average(grid, weights=density)
    std = np.sqrt(np.average((grid - mean) ** 2, weights=density))
    q = momentax.conditional_posterior(jnp.asarray(z_t), jnp.asarray(x), logsnr_s=pair[0], logsnr_t=pair[1])
    np.testing.assert_allclose((q.mean - alpha_s * x) / sigma_s, mean, rtol=0, atol=1e-8)
    np.testing.assert_allclose(q.std / sigma_s, std, rtol=1e-9)


FAMILY = {
    "posterior": lambda: momentax.conditional_posterior,
    "ddim": lambda: momentax.ddim,
    "renoise": lambda: momentax.renoise,
    **{f"stochastic({eta})": lambda eta=eta: momentax.stochastic(eta) for eta in ETAS},
}
every_kernel = pytest.mark.parametrize("make", FAMILY.values(), ids=FAMILY)


@every_kernel
@given(pair=logsnr_pairs)
def test_a_kernel_is_consistent_with_the_marginals(make, pair):
    r"""$\int q(z_s | z_t, x)\,q(z_t | x)\,dz_t = q(z_s | x)$."""
    scale, variance = _marginalised(make(), pair)
    np.testing.assert_allclose(scale, momentax.alpha(pair[0]), rtol=1e-13)
    np.testing.assert_allclose(variance, jax.nn.sigmoid(-pair[0]), rtol=1e-13)


@every_kernel
@given(first=singles, second=singles)
def test_a_kernel_in_float32_is_itself_in_float64(make, first, second):
    """By the same argument; the posterior's float64 was compared with the printed form."""
    pair = sorted((first, second), reverse=True)
    single, double = (coefficients(make(), *jnp.asarray(pair, dtype)) for dtype in (jnp.float32, jnp.float64))
    np.testing.assert_allclose(single.astype(float), double, rtol=ULPS, atol=FLUSHED)


@pytest.mark.parametrize("gamma", [0.1, 1.0])
@given(pair=logsnr_pairs)
def test_more_noise_leaves_the_mean_and_widens_the_marginals(gamma, pair):
    scale, variance = _marginalised(momentax.noisier(gamma), pair)
    np.testing.assert_allclose(scale, momentax.alpha(pair[0]), rtol=1e-13)
    assert variance >= jax.nn.sigmoid(-pair[0]) * (1 - 1e-13)
    if pair[0] - pair[1] > 1e-3:
        assert variance > jax.nn.sigmoid(-pair[0]) * (1 + 1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@given(pair=logsnr_pairs)
def test_more_noise_is_an_interpolation_of_two_log_variances(gamma, pair):
    _, _, std = coefficients(momentax.noisier(gamma), *pair)
    fresh = -np.expm1(float(pair[1] - pair[0]))
    ends = [fresh / (1 + np.exp(float(end))) for end in pair]
    np.testing.assert_allclose(std**2, ends[0] ** (1 - gamma) * ends[1] ** gamma, rtol=1e-12)


@given(triples)
def test_two_posterior_steps_are_one(triple):
    r"""$\int q(z_s | z_u, x)\,q(z_u | z_t, x)\,dz_u = q(z_s | z_t, x)$ for $s \le u \le t$; DDIM's too."""
    s, u, t = triple
    for kernel in (momentax.conditional_posterior, momentax.ddim):
        late, early, whole = (coefficients(kernel, *pair) for pair in ((s, u), (u, t), (s, t)))
        np.testing.assert_allclose(late[0] * early[0], whole[0], rtol=1e-13)
        np.testing.assert_allclose(late[0] * early[1] + late[1], whole[1], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose((late[0] * early[2]) ** 2 + late[2] ** 2, whole[2] ** 2, rtol=1e-12)


@pytest.mark.parametrize("eta", ETAS)
@given(pair=logsnr_pairs)
def test_a_stochastic_kernels_deviation_is_eta_times_the_posteriors(eta, pair):
    found, posterior = coefficients(momentax.stochastic(eta), *pair), _printed(*pair)
    np.testing.assert_allclose(found[2], eta * posterior[2], rtol=1e-12, atol=1e-150)


@given(logsnr_pairs)
def test_the_kernels_ends_are_one_another(pair):
    posterior, ddim = (coefficients(kernel, *pair) for kernel in (momentax.conditional_posterior, momentax.ddim))
    np.testing.assert_allclose(coefficients(momentax.stochastic(1.0), *pair), posterior, rtol=1e-13)
    np.testing.assert_allclose(coefficients(momentax.noisier(0.0), *pair), posterior, rtol=1e-15)
    np.testing.assert_array_equal(coefficients(momentax.stochastic(0.0), *pair), ddim)


@given(logsnr_pairs, vectors, vectors)
def test_ddim_keeps_the_noise_and_draws_none(pair, z_t, x):
    s, t = pair
    step = momentax.ddim(z_t, x, logsnr_s=s, logsnr_t=t)
    noise = (z_t - momentax.alpha(t) * x) / momentax.sigma(t)
    np.testing.assert_allclose(step.mean, momentax.alpha(s) * x + momentax.sigma(s) * noise, rtol=1e-12, atol=1e-12)
    assert step.std == 0


@given(logsnr_pairs, vectors, vectors)
def test_renoising_forgets_the_state_and_is_the_marginal(pair, z_t, x):
    s, t = pair
    again, marginal = momentax.renoise(z_t, x, logsnr_s=s, logsnr_t=t), momentax.marginal(x, s)
    np.testing.assert_array_equal(again.mean, marginal.mean)
    np.testing.assert_array_equal(again.std, marginal.std)
    np.testing.assert_allclose(marginal.mean, np.sqrt(1 / (1 + np.exp(-float(s)))) * x, rtol=1e-14)
    np.testing.assert_allclose(marginal.std, np.sqrt(1 / (1 + np.exp(float(s)))), rtol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["posterior", "ddim", "stochastic(0.5)"])
@pytest.mark.parametrize("logsnr", [-20.0, 0.3, 12.4, 20.0])
def test_a_step_of_no_length_stays_where_it_is(name, logsnr, dtype):
    """Both sigmas are rounded on their own, so that their ratio is one within two ulps."""
    here = jnp.asarray(logsnr, dtype)
    kept, *rest = coefficients(FAMILY[name](), here, here).tolist()
    assert abs(kept - 1) <= 2 * jnp.finfo(dtype).eps
    assert rest == [0, 0]


@given(logsnrs)
def test_a_step_to_the_data_arrives_at_x(logsnr_t):
    r"""$z_t$'s share is $\sqrt r\,\sigma_s / \sigma_t \le e^{-65}$, the deviation $\sigma_s = e^{-40}$."""
    found = coefficients(momentax.conditional_posterior, jnp.asarray(80.0), logsnr_t)
    np.testing.assert_allclose(found, [0, 1, 0], rtol=0, atol=1e-15)


@given(logsnrs)
def test_from_pure_noise_the_posterior_is_the_renoising(logsnr_s):
    r"""At $\ell_t = -80$, $\sqrt r \le e^{-32}$: $z_1$ tells nothing of x."""
    start = jnp.asarray(-80.0)
    posterior, again = (coefficients(k, logsnr_s, start) for k in (momentax.conditional_posterior, momentax.renoise))
    np.testing.assert_allclose(posterior, again, rtol=1e-13, atol=1e-13)


def test_samples_have_the_mean_and_deviation_within_five_standard_errors():
    n = 100_000
    gaussian = momentax.Gaussian(jnp.asarray([2.0, -1.0]), jnp.asarray(0.5))
    noise = (jax.vmap(gaussian.sample)(jax.random.split(jax.random.key(0), n)) - gaussian.mean) / gaussian.std
    assert jnp.all(jnp.abs(jnp.mean(noise, 0)) < 5 / n**0.5)
    assert jnp.all(jnp.abs(jnp.mean(noise**2, 0) - 1) < 5 * (2 / n) ** 0.5)
    assert jnp.abs(jnp.mean(noise[:, 0] * noise[:, 1])) < 5 / n**0.5


@every_kernel
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_the_datas_dtype_is_kept(make, dtype):
    x, (logsnr_s, logsnr_t) = jnp.ones((2, 2), dtype), jnp.asarray([1.0, -1.0], dtype)
    step = make()(x, x, logsnr_s=logsnr_s, logsnr_t=logsnr_t)
    assert step.mean.dtype == step.std.dtype == step.sample(jax.random.key(0)).dtype == dtype
    assert step.sample(jax.random.key(0)).shape == (2, 2)


@pytest.mark.parametrize("make", [lambda number: momentax.stochastic(number), lambda number: momentax.noisier(number)])
@pytest.mark.parametrize("number", [-0.1, 1.1, float("nan")])
def test_settings_outside_the_unit_interval_are_refused(make, number):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; .+"):
        make(number)
