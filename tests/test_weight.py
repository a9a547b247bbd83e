"""Weights against their formulas, evaluated by NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import logsnrs, vectors

import momentax

FORMULAS = {
    momentax.edm_weight: lambda logsnr: 4 + np.exp(logsnr),
    momentax.flat_weight: lambda logsnr: 1.0,
    momentax.min_snr_weight: lambda logsnr: min(np.exp(logsnr), 1.0),
    momentax.snr_weight: lambda logsnr: np.exp(logsnr),
    momentax.truncated_snr_weight: lambda logsnr: max(np.exp(logsnr), 1.0),
    momentax.v_weight: lambda logsnr: np.exp(logsnr) + 1,
}
SHIFTED = [
    momentax.edm_weight,
    momentax.min_snr_weight,
    momentax.snr_weight,
    momentax.truncated_snr_weight,
    momentax.v_weight,
]
ROUNDING = 1e-14
"""A handful of float64 operations, each within half of 2.2e-16, exp at an exact argument."""


@pytest.mark.parametrize("weight", FORMULAS, ids=lambda weight: weight.__name__)
@given(logsnrs, vectors)
def test_a_weight_is_its_formula(weight, logsnr, residual):
    np.testing.assert_allclose(weight(logsnr, residual), FORMULAS[weight](float(logsnr)), rtol=ROUNDING)


@pytest.mark.parametrize("weight", SHIFTED, ids=lambda weight: weight.__name__)
@given(logsnrs, vectors, st.integers(-4, 4))
def test_a_shifted_weight_is_the_weight_of_the_unshifted_log_snr(weight, logsnr, residual, shift):
    moved = weight(logsnr + float(shift), residual, shift=float(shift))
    np.testing.assert_allclose(moved, weight(logsnr, residual), rtol=ROUNDING)


@given(logsnrs, vectors, st.floats(0.1, 10))
def test_the_edm_weight_is_karras_lambda(logsnr, residual, sigma_data):
    r"""$\lambda(\sigma_e) = (\sigma_e^2 + \sigma_d^2) / (\sigma_e\sigma_d)^2$ of Karras et al. 2022."""
    noise2 = np.exp(-float(logsnr))
    weight = momentax.edm_weight(logsnr, residual, sigma_data=sigma_data)
    np.testing.assert_allclose(weight, (noise2 + sigma_data**2) / (noise2 * sigma_data**2), rtol=ROUNDING)


def test_the_edm_weight_spans_4_to_250004_over_the_karras_schedule():
    ends = momentax.KarrasSchedule().logsnr(jnp.asarray([1.0, 0.0]))
    weights = jax.vmap(momentax.edm_weight)(ends, jnp.zeros((2, 3)))
    np.testing.assert_allclose(weights, [4 + 1 / 80**2, 250_004], rtol=1e-12)


def test_the_edm_weight_gives_the_edm_network_unit_scale_at_every_noise():
    r"""$w\,c_{out}^2 = 1$: what Karras et al. 2022 chose it for."""
    noise = np.asarray([0.002, 0.1, 0.5, 3.0, 80.0])
    c_out = noise * 0.5 / np.sqrt(noise**2 + 0.25)
    weights = jax.vmap(momentax.edm_weight)(jnp.asarray(-2 * np.log(noise)), jnp.zeros((5, 3)))
    np.testing.assert_allclose(weights * c_out**2, np.ones(5), rtol=1e-13)


@given(logsnrs, vectors)
def test_the_v_weight_is_the_error_of_v_in_units_of_x(logsnr, residual):
    r"""$\hat x = \alpha z - \sigma v$, so $|v - \hat v|^2 = |x - \hat x|^2 / \sigma^2$."""
    variance = 1 / (1 + np.exp(float(logsnr)))
    np.testing.assert_allclose(momentax.v_weight(logsnr, residual), 1 / variance, rtol=ROUNDING)


@given(logsnrs, vectors)
def test_the_adaptive_weight_brings_the_mean_absolute_residual_to_one(logsnr, residual):
    weight = momentax.adaptive_weight(logsnr, residual)
    np.testing.assert_allclose(weight * (np.mean(np.abs(residual)) + 1e-6), 1, rtol=ROUNDING)


def test_the_adaptive_weight_of_nothing_left_is_one_over_eps():
    weight = partial(momentax.adaptive_weight, eps=0.25)
    np.testing.assert_array_equal(weight(jnp.asarray(0.0), jnp.zeros(3)), 4.0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("weight", [*FORMULAS, momentax.adaptive_weight], ids=lambda weight: weight.__name__)
def test_a_weight_is_a_scalar_of_the_datas_dtype(weight, dtype):
    value = weight(jnp.asarray(1.5, dtype), jnp.ones((2, 2), dtype))
    assert (value.shape, value.dtype) == ((), dtype)
