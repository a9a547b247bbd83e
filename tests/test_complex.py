"""A network of complex parameters is the same network of real ones: their real and imaginary parts."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close

import momentax as mm

KEY = jax.random.key(3)
X = jax.random.normal(jax.random.key(1), (8, 4), jnp.float64)
TANGENTS = {"forward": mm.forward_mode, "reverse": mm.reverse_mode, "difference": mm.central_difference}


@pytest.fixture(autouse=True, scope="module")
def _optax_promotes():
    """Optax raises its decay rates to an int32 count."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Operator(eqx.Module):
    """A Fourier operator, of a complex multiplier."""

    weight: Any

    def __call__(self, z, logsnr, cond=None):
        return jnp.tanh(jnp.fft.irfft(self.weight * jnp.fft.rfft(z), 4) + logsnr / 10)


class Parts(eqx.Module):
    """The same, of two real ones."""

    real: Any
    imaginary: Any

    def __call__(self, z, logsnr, cond=None):
        return Operator(joined(self))(z, logsnr, cond)


def joined(parts):
    return jax.lax.complex(parts.real, parts.imaginary)


def parts(operator):
    return Parts(jnp.real(operator.weight), jnp.imag(operator.weight))


def operator(key):
    return Operator(jax.random.normal(key, (3,), jnp.complex128))


TEACHER, STUDENT, AUX = (operator(jax.random.key(i)) for i in range(3))
SCALE = jnp.asarray([0.5, 2.0, 1.0])
LOSSES = {
    "denoising": lambda teacher, aux, scale: mm.denoising_loss(),
    "student": lambda teacher, aux, scale: mm.student_loss(teacher, aux),
    "aux": lambda teacher, aux, scale: mm.aux_loss(teacher, aux),
    **{
        f"instant, {name}": lambda teacher, aux, scale, tangent=tangent: mm.instant(
            teacher, mm.Diagonal(scale), tangent=tangent
        )
        for name, tangent in TANGENTS.items()
    },
}


def both(name):
    return (
        LOSSES[name](TEACHER, AUX, Operator(SCALE)),
        LOSSES[name](parts(TEACHER), parts(AUX), Parts(SCALE, SCALE)),
    )


@pytest.mark.parametrize(("name", "count"), [*((name, 1) for name in LOSSES), ("instant, forward", 2)])
def test_value_and_gradient_are_those_of_the_real_parameters(name, count):
    def found(loss, student):
        return eqx.filter_jit(mm.value_and_grad(loss, micro_batches=count))(student, X, KEY)

    ours, theirs = both(name)
    value, grads = found(ours, STUDENT)
    expected, of_parts = found(theirs, parts(STUDENT))
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    assert_trees_close(parts(grads), of_parts, 1e-10, 1e-12)


def test_the_mean_of_instant_is_positive_where_equation_9_is():
    """With the conjugate in nu's place it was negative."""

    @jax.jit
    def values(keys):
        return jax.vmap(lambda key: mm.instant(TEACHER)(STUDENT, X, key))(keys)

    found = values(jax.random.split(KEY, 500))
    assert jnp.mean(found) > 5 * jnp.std(found) / 500**0.5


def test_an_optimiser_descends_as_it_does_with_real_parameters():
    values, model = descended(STUDENT)
    expected, as_parts = descended(parts(STUDENT))
    np.testing.assert_allclose(values, expected, rtol=1e-11)
    assert_trees_close(parts(model), as_parts, 1e-10, 1e-12)
    assert np.all(np.diff(values) < 0)


def descended(model):
    """The losses of some updates of plain gradient descent, and where it gets to."""
    loss, optimizer = mm.denoising_loss(), optax.sgd(1e-4)
    step = eqx.filter_jit(mm.value_and_grad(loss))
    state, values = optimizer.init(model), []
    for _ in range(5):
        value, grads = step(model, X, KEY)
        model, state, _ = mm.update_if_finite(optimizer, model, state, value, grads)
        values.append(float(value))
    return values, model


def test_an_estimate_is_real_and_of_the_sum_of_both_squares():
    batches, loss = [X, X + 1, X - 2], mm.denoising_loss()
    settings: Any = {"b2": 0.9, "eps": 0.0}
    ours = mm.estimate_preconditioner(loss, TEACHER, batches, KEY, **settings).scale.weight
    theirs = mm.estimate_preconditioner(loss, parts(TEACHER), batches, KEY, **settings).scale
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours**-2, theirs.real**-2 + theirs.imaginary**-2, rtol=1e-10)


def test_adams_last_update_of_complex_parameters_is_minus_rate_times_lambda_of_the_last_gradient():
    optimizer: Any = optax.adam(0.1, b1=0.0)
    gradients = [operator(jax.random.key(seed)) for seed in range(3)]
    state, update = optimizer.init(STUDENT), None
    for gradient in gradients:
        update, state = optimizer.update(gradient, state)
    precond = mm.adam_preconditioner(state)
    assert not jnp.iscomplexobj(precond.scale.weight)
    expected: Any = update
    np.testing.assert_allclose(-0.1 * precond(gradients[-1]).weight, expected.weight, rtol=1e-7)
