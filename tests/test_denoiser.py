"""Denoisers: one exact prediction, told in every network's language, is the same."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_denoiser, linear
from hypothesis import given
from strategies import logsnrs, vectors

import momentax
from momentax._denoiser import denoise

EXACT = gaussian_denoiser()


def _x_and_noise(z, logsnr):
    """What the exact denoiser takes z to be made of."""
    x = EXACT(z, logsnr)
    return x, (z - jnp.sqrt(jax.nn.sigmoid(logsnr)) * x) / jnp.sqrt(jax.nn.sigmoid(-logsnr))


def x_network(z, logsnr, cond):
    return _x_and_noise(z, logsnr)[0]


def eps_network(z, logsnr, cond):
    return _x_and_noise(z, logsnr)[1]


def v_network(z, logsnr, cond):
    x, noise = _x_and_noise(z, logsnr)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)) * noise - jnp.sqrt(jax.nn.sigmoid(-logsnr)) * x


def score_network(z, logsnr, cond):
    r"""$\nabla\ln q(z)$ of $q(z) = N(\alpha m, \alpha^2 s^2 + \sigma^2)$: no denoiser in it."""
    alpha2 = jax.nn.sigmoid(logsnr)
    return (jnp.sqrt(alpha2) * EXACT.mean - z) / (alpha2 * EXACT.std**2 + jax.nn.sigmoid(-logsnr))


def flow_network(y, tau, cond):
    r"""$E[\epsilon - x | y]$ at $y = (1 - \tau)x + \tau\epsilon$, by regression: covariance over variance."""
    mean, s2 = EXACT.mean, EXACT.std**2
    slope = (tau - (1 - tau) * s2) / ((1 - tau) ** 2 * s2 + tau**2)
    return -mean + slope * (y - (1 - tau) * mean)


def edm_network(scaled, time, cond, sigma_data=0.5):
    r"""$F = (D(y) - c_{skip}\,y) / c_{out}$ where $D(y) = E[x | y]$ at $y = x + \sigma_e\epsilon$."""
    noise2 = jnp.exp(8 * time)
    total = noise2 + sigma_data**2
    y = scaled * jnp.sqrt(total)
    best = EXACT.mean + EXACT.std**2 / (EXACT.std**2 + noise2) * (y - EXACT.mean)
    return (best - sigma_data**2 / total * y) / jnp.sqrt(noise2 * sigma_data**2 / total)


NETWORKS = {
    "x": (x_network, momentax.predict_x),
    "eps": (eps_network, momentax.predict_eps),
    "v": (v_network, momentax.predict_v),
    "score": (score_network, momentax.predict_score),
    "flow": (flow_network, momentax.predict_flow),
    "edm": (edm_network, momentax.predict_edm),
    "edm with data of one": (
        partial(edm_network, sigma_data=1.0),
        partial(momentax.predict_edm, sigma_data=1.0),
    ),
}
every_language = pytest.mark.parametrize(("net", "predict"), NETWORKS.values(), ids=NETWORKS)


@eqx.filter_jit
def predicted(denoiser, z, logsnr):
    return denoiser(z, logsnr)


@every_language
@given(z=vectors, logsnr=logsnrs)
def test_every_prediction_of_the_exact_denoiser_is_its_x_hat(net, predict, z, logsnr):
    r"""Dividing by $\alpha$ or $\sigma$, at least $e^{-7.5}$, loses four digits of sixteen."""
    found = predicted(momentax.Denoiser(net, predict), z, logsnr)
    np.testing.assert_allclose(found, EXACT(z, logsnr), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@every_language
def test_a_denoiser_in_half_precision_is_that_in_double_rounded_once(net, predict, dtype):
    r"""To a rounding of the dtype, and float32's own, which $1 / \alpha < 3000$ multiplies."""
    half = momentax.Denoiser(lambda z, t, cond: 0.5 * z + t.astype(z.dtype) / 64, predict)
    z = jax.random.normal(jax.random.key(0), (33, 3)).astype(dtype)
    logsnr = jnp.linspace(-16, 16, 33).astype(dtype)
    found = jax.vmap(half)(z, logsnr)
    exact = jax.vmap(half)(z.astype(jnp.float64), logsnr.astype(jnp.float64))
    assert found.dtype == dtype
    np.testing.assert_allclose(
        found.astype(float), exact, rtol=0.51 * float(jnp.finfo(dtype).eps), atol=1e-3 * float(jnp.finfo(dtype).eps)
    )


def _handed(denoiser, z, logsnr, cond=None):
    """What a network is called with: its input, its time, its conditioning."""
    calls = []

    def net(*args):
        calls.append(args)
        return args[0]

    eqx.tree_at(lambda d: d.net, denoiser, net)(z, logsnr, cond)
    (call,) = calls
    return call


TIMES = {
    "x": lambda logsnr: logsnr,
    "eps": lambda logsnr: logsnr,
    "v": lambda logsnr: logsnr,
    "score": lambda logsnr: logsnr,
    "flow": lambda logsnr: 1 / (1 + np.exp(logsnr / 2)),
    "edm": lambda logsnr: np.log(np.exp(-logsnr / 2)) / 4,
}


@pytest.mark.parametrize("name", TIMES)
@given(z=vectors, logsnr=logsnrs)
def test_a_network_is_given_its_languages_own_time(name, z, logsnr):
    net, predict = NETWORKS[name]
    _, time, _ = _handed(momentax.Denoiser(net, predict), z, logsnr)
    np.testing.assert_allclose(time, TIMES[name](float(logsnr)), rtol=1e-13, atol=1e-15)


@every_language
def test_a_network_with_a_time_of_its_own_is_given_that(net, predict):
    schedule = momentax.CosineSchedule()
    denoiser = momentax.Denoiser(net, predict, lambda logsnr: 999 * schedule.time(logsnr))
    _, time, _ = _handed(denoiser, jnp.ones(3), schedule.logsnr(jnp.asarray(0.25)))
    np.testing.assert_allclose(time, 999 / 4, rtol=1e-12)


@given(vectors, logsnrs)
def test_flow_and_edm_networks_see_their_own_scaling(z, logsnr):
    r"""$(1 - \tau)x + \tau\epsilon$ and $c_{in}(x + \sigma_e\epsilon)$, of the x and noise in z."""
    tau, noise = 1 / (1 + np.exp(float(logsnr) / 2)), np.exp(-float(logsnr) / 2)
    x, eps = _x_and_noise(z, logsnr)
    seen, *_ = _handed(momentax.Denoiser(flow_network, momentax.predict_flow), z, logsnr)
    np.testing.assert_allclose(seen, (1 - tau) * x + tau * eps, rtol=1e-11, atol=1e-11)
    seen, *_ = _handed(momentax.Denoiser(edm_network, momentax.predict_edm), z, logsnr)
    np.testing.assert_allclose(seen, (x + noise * eps) / np.sqrt(noise**2 + 0.25), rtol=1e-11, atol=1e-11)


@every_language
def test_the_conditioning_is_handed_on_as_it_is(net, predict):
    cond = {"label": jnp.asarray(3), "text": jnp.ones((2, 4))}
    _, _, handed = _handed(momentax.Denoiser(net, predict), jnp.ones(3), jnp.asarray(0.5), cond)
    assert handed is cond


@every_language
def test_half_precision_networks_are_carried_on_in_the_datas_dtype(net, predict):
    """All but the network's own output is computed in the dtype of z: a linear map of it, exactly."""
    half, z, logsnr = (
        linear(jax.random.key(0), dtype=jnp.bfloat16),
        jnp.asarray([0.5, -1, 2], jnp.float32),
        0.3,
    )
    logsnr = jnp.asarray(logsnr, jnp.float32)

    def single(z, t, cond):
        return half(z, t, cond).astype(jnp.float32)

    found, expected = (momentax.Denoiser(net, predict)(z, logsnr) for net in (half, single))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


@every_language
@pytest.mark.parametrize("wrong", [lambda z, t, cond: z[:1], lambda z, t, cond: z[None], lambda z, t, cond: t])
def test_a_network_that_returns_another_shape_is_an_error(net, predict, wrong):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; do .+"):
        momentax.Denoiser(wrong, predict)(jnp.ones(3), jnp.asarray(0.5))


def test_a_denoiser_of_ones_own_is_held_to_the_same():
    with pytest.raises(ValueError, match=r"^needs .+\(3,\).+; got \(1, 3\); do .+"):
        denoise(lambda z, logsnr, cond: z[None], jnp.ones(3), jnp.asarray(0.5), None)
    half = denoise(lambda z, logsnr, cond: z.astype(jnp.bfloat16), jnp.ones(3), jnp.asarray(0.5), None)
    assert half.dtype == jnp.float64


def test_a_denoiser_predicts_v_unless_told_and_its_leaves_are_its_networks():
    net = linear(jax.random.key(0))
    denoiser = momentax.Denoiser(net)
    assert denoiser.predict is momentax.predict_v
    assert jax.tree.leaves(eqx.filter(denoiser, eqx.is_array)) == jax.tree.leaves(net)


def with_key(z, logsnr, cond=None, *, key=None):
    """What it is handed, told apart from nothing."""
    return z if key is None else z + jax.random.uniform(key)


def without_key(z, logsnr, cond=None):
    return z


class WithKey(eqx.Module):
    net: Any = with_key

    def __call__(self, z, logsnr, cond=None, *, key=None):
        return self.net(z, logsnr, cond, key=key)


KEYED = {
    "function": with_key,
    "module": WithKey(),
    "jitted": jax.jit(with_key),
    "equinox's jit": eqx.filter_jit(WithKey()),
    "partial": partial(with_key),
    "bound method": WithKey().__call__,
    "denoiser": momentax.Denoiser(with_key, momentax.predict_x),
    "denoiser of a module": momentax.Denoiser(WithKey(), momentax.predict_x),
    "denoiser of a denoiser": momentax.Denoiser(momentax.Denoiser(WithKey(), momentax.predict_x), momentax.predict_x),
}


@pytest.mark.parametrize("make", KEYED.values(), ids=KEYED)
def test_a_network_with_a_parameter_key_is_handed_the_key(make):
    """In whatever it is wrapped; without one it decides itself."""
    key, z, logsnr = jax.random.key(1), jnp.ones(3), jnp.asarray(0.5)
    np.testing.assert_allclose(denoise(make, z, logsnr, None, key), z + jax.random.uniform(key))
    np.testing.assert_array_equal(denoise(make, z, logsnr, None), z)


@pytest.mark.parametrize(
    "make", [without_key, momentax.Denoiser(without_key, momentax.predict_x), jax.jit(without_key)]
)
def test_a_network_without_one_never_sees_it(make):
    np.testing.assert_array_equal(denoise(make, jnp.ones(3), jnp.asarray(0.5), None, jax.random.key(1)), jnp.ones(3))


def test_the_library_dropout_of_equinox_needs_no_more():
    """Training mode with a key, inference mode with or without."""

    class Net(eqx.Module):
        dropout: eqx.nn.Dropout

        def __call__(self, z, t, cond=None, *, key=None):
            return self.dropout(z, key=key)

    training, z, logsnr = (
        momentax.Denoiser(Net(eqx.nn.Dropout(0.5)), momentax.predict_x),
        jnp.ones(100),
        jnp.asarray(0.0),
    )
    inference = eqx.nn.inference_mode(training)
    kept = training(z, logsnr, key=jax.random.key(0))
    assert set(np.unique(kept)) == {0, 2}
    np.testing.assert_array_equal(inference(z, logsnr, key=jax.random.key(0)), z)
    np.testing.assert_array_equal(inference(z, logsnr), z)
    with pytest.raises(RuntimeError, match="requires a key"):
        training(z, logsnr)


@pytest.mark.oracle
def test_flow_predictions_agree_with_a_step_of_diffusers_to_the_data():
    """One Euler step from tau to zero ends at x_hat."""
    diffusers, torch = pytest.importorskip("diffusers"), pytest.importorskip("torch")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[0.4])
    y, velocity, tau = np.asarray([0.5, -1.0]), np.asarray([0.2, 0.3]), scheduler.sigmas[0].item()
    step = scheduler.step(torch.tensor(velocity), scheduler.timesteps[0], torch.tensor(y)).prev_sample.numpy()
    logsnr = jnp.asarray(2 * np.log((1 - tau) / tau))
    z = jnp.asarray(y) * (momentax.alpha(logsnr) + momentax.sigma(logsnr))
    found = momentax.Denoiser(lambda y, t, cond: jnp.asarray(velocity), momentax.predict_flow)(z, logsnr)
    np.testing.assert_allclose(found, step, rtol=1e-5)
