"""Guidance and clipping: the value is modified, every derivative is the bare denoiser's."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Dropping, Linear, linear
from hypothesis import given
from strategies import logsnrs, vectors

import momentax

NET = linear(jax.random.key(0))
COND, NULL = jnp.asarray([3.0, -2.0, 1.0]), jnp.asarray([0.5, 0.5, -0.5])
BARE = momentax.Denoiser(NET)
GUIDED = momentax.guided(BARE, 1.5, NULL)
CLIPPED = momentax.clipped(BARE, 0.5)
BOTH = momentax.clipped(momentax.guided(BARE, 1.5, NULL), 0.5)
every_one = pytest.mark.parametrize("make", [GUIDED, CLIPPED, BOTH], ids=["guided", "clipped", "both"])


@eqx.filter_jit
def predicted(denoiser, z, logsnr):
    return denoiser(z, logsnr, COND)


def _of_everything(denoiser):
    """As a function of the parameters, the state, the log-SNR and the conditioning."""

    def function(net, z, logsnr, cond):
        return _with(denoiser, net)(z, logsnr, cond)

    return function


def _with(denoiser, net):
    return jax.tree.map(lambda leaf: net if isinstance(leaf, Linear) else leaf, denoiser, is_leaf=_is_network)


def _is_network(node):
    return isinstance(node, Linear)


@eqx.filter_jit
def forward_and_reverse(denoiser, primals, tangents, cotangent):
    _, tangent = jax.jvp(_of_everything(denoiser), primals, tangents)
    _, pull = jax.vjp(_of_everything(denoiser), *primals)
    return tangent, pull(cotangent)


@every_one
@given(z=vectors, direction=vectors, logsnr=logsnrs)
def test_every_derivative_is_exactly_the_bare_denoisers(make, z, direction, logsnr):
    """Forward and reverse; with respect to parameters, state, log-SNR and conditioning."""
    primals = NET, z, logsnr, COND
    tangents = linear(jax.random.key(1)), direction, jnp.asarray(0.7), NULL
    found = forward_and_reverse(make, primals, tangents, direction)
    expected = forward_and_reverse(BARE, primals, tangents, direction)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-300), found, expected)


@given(vectors, logsnrs)
def test_guidance_moves_away_from_the_unconditional_prediction(z, logsnr):
    r"""$(1 + w)\,\hat x_c - w\,\hat x_u$."""
    guided = predicted(GUIDED, z, logsnr)
    expected = 2.5 * BARE(z, logsnr, COND) - 1.5 * BARE(z, logsnr, NULL)
    np.testing.assert_allclose(guided, expected, rtol=0, atol=1e-13)


@given(vectors, logsnrs)
def test_clipping_is_numpys_and_loses_no_bit(z, logsnr):
    """A straight-through value written as bare + (value - bare) would miss the limit by a rounding."""
    clipped, bare = predicted(CLIPPED, z, logsnr), predicted(BARE, z, logsnr)
    assert jnp.all(jnp.abs(clipped) <= 0.5)
    np.testing.assert_allclose(clipped, np.clip(bare, -0.5, 0.5), rtol=0, atol=1e-14)
    np.testing.assert_array_equal(jnp.abs(clipped)[jnp.abs(bare) > 0.6], 0.5)


@pytest.mark.parametrize("limit", [0.1, 1.0, 3.0])
def test_the_limit_is_met_exactly_however_far_the_prediction_went(limit):
    far = momentax.clipped(lambda z, logsnr, cond: 1e7 * z, limit)
    z = jnp.asarray([1.1, -2.3, 0.7], jnp.float32)
    np.testing.assert_array_equal(far(z, jnp.asarray(0.0, jnp.float32)), np.float32(limit) * np.sign(z))


@given(vectors, logsnrs)
def test_scale_zero_is_off(z, logsnr):
    off = momentax.guided(BARE, 0.0, NULL)
    np.testing.assert_allclose(predicted(off, z, logsnr), predicted(BARE, z, logsnr), rtol=1e-15, atol=1e-15)


@given(vectors, logsnrs)
def test_a_limit_that_is_not_reached_changes_nothing(z, logsnr):
    loose = momentax.clipped(BARE, 1e3)
    np.testing.assert_allclose(predicted(loose, z, logsnr), predicted(BARE, z, logsnr), rtol=1e-15, atol=1e-15)


@given(vectors, logsnrs)
def test_they_compose_from_the_inside_out(z, logsnr):
    np.testing.assert_allclose(
        predicted(BOTH, z, logsnr), np.clip(predicted(GUIDED, z, logsnr), -0.5, 0.5), rtol=0, atol=1e-14
    )


def test_the_unconditional_prediction_is_given_the_null_conditioning():
    handed = []

    def denoiser(z, logsnr, cond):
        handed.append(cond)
        return z

    for null in (None, {"label": jnp.asarray(10)}):
        handed.clear()
        momentax.guided(denoiser, 2.0, null)(jnp.ones(3), jnp.asarray(0.0), COND)
        assert [given is COND for given in handed].count(True) == 1
        assert [eqx.tree_equal(given, null) for given in handed].count(True) == 1


def test_both_are_denoisers_without_parameters_of_their_own_but_the_null():
    leaves = jax.tree.leaves(eqx.filter(BARE, eqx.is_array))
    assert jax.tree.leaves(eqx.filter(CLIPPED, eqx.is_array)) == leaves
    assert len(jax.tree.leaves(eqx.filter(GUIDED, eqx.is_array))) == len(leaves) + 1


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match=r"^needs limit .+; got .+; use .+"):
        momentax.clipped(BARE, limit)


def test_both_predictions_of_guidance_drop_out_alike():
    """With the null conditioning for both, guidance of any scale changes nothing."""
    bare = Dropping(NET)
    make = momentax.clipped(momentax.guided(bare, 3.0, COND), 100.0)
    args, key = (jnp.ones(3), jnp.asarray(0.5), COND), jax.random.key(4)
    np.testing.assert_allclose(make(*args, key=key), bare(*args, key=key), rtol=1e-12)
    assert jnp.any(make(*args, key=key) != make(*args))
