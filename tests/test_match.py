"""Moment matching: the losses of both algorithms, by their players."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import Tanh, linear

import momentax as mm

KEY = jax.random.key(7)
X = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i))) for i in range(3))
PRECOND = mm.Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), eqx.filter(TEACHER, eqx.is_inexact_array)))


def test_moment_match_gives_the_losses_of_both_algorithms():
    """With an auxiliary those of Algorithm 2, without that of Algorithm 3."""
    alternating, instant = mm.moment_match(TEACHER, STUDENT, AUX), mm.moment_match(TEACHER, STUDENT, precond=PRECOND)
    pairs = [
        (alternating.student, mm.student_loss(TEACHER, AUX), STUDENT),
        (alternating.aux, mm.aux_loss(TEACHER, STUDENT), AUX),
        (instant.student, mm.instant(TEACHER, PRECOND), STUDENT),
    ]
    for one, other, model in pairs:
        assert eqx.tree_equal(one, other)
        assert eqx.filter_jit(one)(model, X, KEY) == eqx.filter_jit(other)(model, X, KEY)
    assert instant.aux is None


def test_an_auxiliary_and_a_preconditioner_exclude_each_other():
    with pytest.raises(ValueError, match="aux or precond; got both"):
        mm.moment_match(TEACHER, STUDENT, AUX, precond=PRECOND)
