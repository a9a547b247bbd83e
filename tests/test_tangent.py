"""Three ways to one tangent, and what each of them needs."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Sine, assert_trees_close, linear, sine
from hypothesis import given
from jax.extend.core import Primitive
from strategies import vectors

import momentax as mm

TANGENTS = {"forward": mm.forward_mode, "reverse": mm.reverse_mode, "difference": mm.central_difference}
PARAMETERS = {"a": jnp.asarray([0.3, -1.2, 0.7]), "b": (jnp.asarray([[0.5, 0.1, -0.4]] * 3),)}


def network(parameters):
    """Not linear, of a tree, to a tree."""
    h = jnp.tanh(parameters["b"][0] @ parameters["a"])
    return {"x": jnp.sin(h) * parameters["a"], "y": jnp.sum(h)}


@eqx.filter_jit
def taken(tangent, nu):
    return tangent(network, PARAMETERS, nu)


@pytest.mark.parametrize(("name", "rtol"), [("forward", 1e-13), ("reverse", 1e-13), ("difference", 2e-5)])
@given(vectors)
def test_a_tangent_is_the_limit_of_a_difference_quotient(name, rtol, nu):
    """Of Richardson's extrapolation, whose error is some fifth derivatives times h^4 = 1e-12, and 1e-16 / h = 1e-13."""
    direction = {"a": nu, "b": (jnp.stack([nu, 2 * nu, -nu]),)}
    value, found = taken(TANGENTS[name], direction)
    assert_trees_close(value, network(PARAMETERS), rtol=1e-14, atol=1e-14)
    scale = 1e-3 / (1 + float(jnp.max(jnp.abs(nu))))
    coarse, fine = quotient(direction, scale), quotient(direction, scale / 2)
    expected = jax.tree.map(lambda a, b: (4 * b - a) / 3, coarse, fine)
    size = 1 + float(jnp.max(jnp.abs(nu)))
    assert_trees_close(found, expected, rtol=rtol, atol=(1e-10 + rtol) * size)


def quotient(nu, h):
    def moved(sign):
        return network(jax.tree.map(lambda p, t: p + sign * h * t, PARAMETERS, nu))

    return jax.tree.map(lambda a, b: (a - b) / (2 * h), moved(1), moved(-1))


@pytest.mark.parametrize("name", TANGENTS)
def test_no_direction_has_no_tangent(name):
    """A student that matches the moments has nu = 0: nothing may divide by its length."""
    _, found = taken(TANGENTS[name], jax.tree.map(jnp.zeros_like, PARAMETERS))
    # Of a difference: two programs' rounding, 1e-16, over twice a step of 3e-3.
    assert all(jnp.max(jnp.abs(leaf)) < 1e-12 for leaf in jax.tree.leaves(found))


def test_a_difference_in_single_precision_has_four_digits():
    net = linear(jax.random.key(0), 8, jnp.float32)
    nu = linear(jax.random.key(1), 8, jnp.float32)
    z, t = jnp.linspace(-1, 1, 8, dtype=jnp.float32), jnp.float32(0.3)

    @eqx.filter_jit
    def both(net, nu):
        def function(net):
            return jnp.tanh(net(z, t))

        return [tangent(function, net, nu)[1] for tangent in (mm.forward_mode, mm.central_difference)]

    exact, difference = both(net, nu)
    assert difference.dtype == jnp.float32
    assert jnp.linalg.norm(difference - exact) < 1e-4 * jnp.linalg.norm(exact)


def test_a_difference_of_half_precision_parameters_is_taken_in_single():
    """The parameters are cast, so that a small step moves them; the tangent is that of the cast network."""
    half, nu = (linear(jax.random.key(i), 8, jnp.bfloat16) for i in range(2))
    single, single_nu = (jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (half, nu))
    z, t = jnp.linspace(-1, 1, 8, dtype=jnp.float32), jnp.float32(0.3)

    def function(net):
        return net(z, t)

    found = mm.central_difference(function, half, nu)[1]
    exact = mm.forward_mode(function, single, single_nu)[1]
    assert jnp.linalg.norm(found - exact) < 1e-3 * jnp.linalg.norm(exact)


HIDDEN = {
    "bare": lambda f: f,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "vmap": lambda f: lambda x: jax.vmap(f)(x[None])[0],
    "scan": lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, length=2)[0],
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda x: x, x),
    "equinox": lambda f: eqx.filter_checkpoint(eqx.filter_jit(f)),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_a_custom_backward_pass_is_found_wherever_it_is(hide):
    x = jnp.asarray([0.3, 0.8])
    function = hide(sine)
    with pytest.raises(ValueError, match=r"needs .* forward-mode derivative; got a custom_vjp; do pass tangent="):
        mm.forward_mode(function, x, x)
    assert mm.forward_mode(hide(jnp.sin), x, x)[1].shape == x.shape
    exact = jax.jit(lambda x: mm.forward_mode(hide(jnp.sin), x, x)[1])(x)
    np.testing.assert_allclose(jax.jit(lambda x: mm.reverse_mode(function, x, x)[1])(x), exact, rtol=1e-13)
    np.testing.assert_allclose(jax.jit(lambda x: mm.central_difference(function, x, x)[1])(x), exact, rtol=1e-5)


def test_a_primitive_without_a_derivative_is_told_alike():
    """A fused kernel of one's own."""
    bare = Primitive("fused")
    bare.def_impl(lambda x: x)
    bare.def_abstract_eval(lambda x: x)
    with pytest.raises(ValueError, match=r"needs .* forward-mode derivative; got .*fused.*; do pass tangent="):
        mm.forward_mode(bare.bind, jnp.ones(2), jnp.ones(2))


def test_a_tangent_is_of_a_network_like_any():
    """Of Equinox modules, with None at the leaves that stay."""
    net = Sine(linear(jax.random.key(0)), custom=True)
    moving, fixed = eqx.partition(net, jax.tree.map(lambda leaf: getattr(leaf, "ndim", 0) == 2, net))
    z, t = jnp.ones(3), jnp.asarray(0.5)
    value, tangent = mm.reverse_mode(lambda moving: eqx.combine(moving, fixed)(z, t), moving, moving)
    assert value.shape == tangent.shape == (3,)
