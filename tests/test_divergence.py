"""Divergences: a loss and its dual map belong together."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from strategies import vectors

import momentax


def _cross_entropy(target, prediction):
    return -jnp.sum(target * jnp.log(prediction))


CROSS_ENTROPY = momentax.Divergence(_cross_entropy, jnp.log)


def _slopes(divergence, target, prediction, direction):
    r"""$\partial L(x, g)$ and $(g - x)^T\partial\,dual(g)$ in one direction."""
    _, slope = jax.jvp(lambda g: divergence.loss(target, g), (prediction,), (direction,))
    _, moved = jax.jvp(divergence.dual, (prediction,), (direction,))
    return slope, jnp.vdot(prediction - target, moved)


slopes_of_squares = jax.jit(lambda *args: _slopes(momentax.squared_error, *args))
slopes_of_entropy = jax.jit(
    lambda a, b, c: _slopes(CROSS_ENTROPY, jax.nn.softmax(a), jax.nn.softmax(b), c - jnp.mean(c))
)


@given(vectors, vectors)
def test_the_squared_error_is_the_squared_distance(x, g):
    np.testing.assert_allclose(momentax.squared_error.loss(x, g), np.dot(x - g, x - g), rtol=1e-14)


@given(vectors, vectors, vectors)
def test_the_squared_errors_slope_is_twice_its_duals(x, g, direction):
    slope, dual = slopes_of_squares(x, g, direction)
    np.testing.assert_allclose(slope, 2 * dual, rtol=1e-12, atol=1e-12)


@given(vectors, vectors, vectors)
def test_a_cross_entropys_slope_is_its_duals_where_predictions_stay_normalised(x, g, direction):
    r"""$-\sum_i x_i \dot g_i / g_i = \sum_i (g_i - x_i)\,\dot g_i / g_i$, since $\sum_i \dot g_i = 0$."""
    slope, dual = slopes_of_entropy(x, g, direction)
    np.testing.assert_allclose(slope, dual, rtol=1e-12, atol=1e-10)


@given(vectors, vectors)
def test_both_losses_are_least_where_the_prediction_is_the_target(x, g):
    p, q = jax.nn.softmax(x), jax.nn.softmax(g)
    assert CROSS_ENTROPY.loss(p, q) >= CROSS_ENTROPY.loss(p, p) - 1e-12
    assert momentax.squared_error.loss(x, g) >= momentax.squared_error.loss(x, x) == 0
