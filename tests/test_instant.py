"""Instant: the limit of alternating, in value and gradient; the halves; the leaves; the tangent."""

import os
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Dropping, Sine, Tanh, assert_trees_close, gaussian_denoiser, linear, predictions
from strategies import WEIGHTS

import momentax as mm

KEY = jax.random.key(7)
X = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)
KERNELS = [mm.conditional_posterior, mm.ddim, mm.renoise, mm.stochastic(0.5), mm.noisier(0.3)]
CROSS_ENTROPY = mm.Divergence(lambda target, prediction: -jnp.sum(target * jnp.log(prediction)), jnp.log)


class Probabilities(eqx.Module):
    """A network on the simplex, for the cross-entropy."""

    net: Any

    def __call__(self, z, logsnr, cond=None):
        return jax.nn.softmax(self.net(z, logsnr / 10, cond))


TEACHER, STUDENT = (Tanh(linear(jax.random.key(i))) for i in range(2))
PRECOND = mm.Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), eqx.filter(TEACHER, eqx.is_inexact_array)))


def error_by_hand(model, draw, weight, divergence):
    """mean w L(x, g(z)), written out with the weight held fixed."""
    g = predictions(model, draw)
    w = jax.lax.stop_gradient(jax.vmap(weight)(draw.logsnr, draw.x - g))
    return jnp.mean(w * jax.vmap(divergence.loss)(draw.x, g))


def stepped(model, nu, size):
    return eqx.apply_updates(model, jax.tree.map(lambda leaf: -size * leaf, nu))


CASES = (
    [(weight, mm.conditional_posterior, mm.squared_error, Tanh) for weight in WEIGHTS]
    + [(mm.v_weight, kernel, mm.squared_error, Tanh) for kernel in KERNELS[1:]]
    + [(mm.flat_weight, mm.conditional_posterior, CROSS_ENTROPY, Probabilities)]
    + [(mm.v_weight, mm.conditional_posterior, mm.squared_error, Dropping)]
)


@pytest.mark.parametrize(("weight", "kernel", "divergence", "wrap"), CASES)
def test_instant_is_the_limit_of_alternating_with_an_infinitesimal_auxiliary_step(weight, kernel, divergence, wrap):
    r"""The student's loss with $\phi = \theta - \lambda\Lambda\nabla L$, over $\lambda$: in value and gradient."""
    rollout = mm.Rollout(mm.CosineSchedule(), 4, kernel)
    teacher, student = (wrap(model.net) for model in (TEACHER, STUDENT))
    precond = mm.Diagonal(wrap(PRECOND.scale.net))
    settings = {"rollout": rollout, "weight": weight, "divergence": divergence}

    @eqx.filter_jit
    def both(student, x, key):
        key_nu, key_gap = jax.random.split(key)
        draw = rollout(student, x[0::2], key_nu)
        nu = precond(eqx.filter_grad(error_by_hand)(teacher, draw, weight, divergence))

        def side(size):
            loss = mm.student_loss(teacher, stepped(teacher, nu, size), **settings)
            return eqx.filter_value_and_grad(loss)(student, x[1::2], key_gap)

        size = 1e-4 / norm(nu)
        difference = jax.tree.map(lambda a, b: (a - b) / (2 * size), side(size), side(-size))
        return difference, eqx.filter_value_and_grad(mm.instant(teacher, precond, **settings))(student, x, key)

    limit, instant = both(student, jax.nn.softmax(X) if divergence is CROSS_ENTROPY else X, KEY)
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(instant))
    assert scale > 0
    assert_trees_close(limit, instant, rtol=1e-6, atol=1e-6 * scale)


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def test_the_value_of_instant_is_equation_9_on_a_linear_teacher():
    r"""It estimates $\frac12 |E\,\nabla_\theta L_\theta|^2_\Lambda$, which dependent halves would overestimate."""
    teacher, student = linear(jax.random.key(3)), linear(jax.random.key(4))
    rollout = mm.Rollout(mm.CosineSchedule(-5.0, 5.0), 4, times=mm.uniform)
    precond = mm.Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), teacher))
    loss = mm.instant(teacher, precond, rollout=rollout, weight=mm.flat_weight)

    @jax.jit
    def estimates(keys):
        values = jax.vmap(lambda key: loss(student, jax.random.normal(key, (8, 3)), key))(keys)
        draw = rollout(student, jax.random.normal(jax.random.key(5), (200_000, 3)), jax.random.key(6))
        grads = jax.grad(error_by_hand)(teacher, draw, mm.flat_weight, mm.squared_error)
        return values, 0.5 * sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, precond(grads))))

    values, half_norm = estimates(jax.random.split(jax.random.key(8), 20_000))
    stderr = jnp.std(values) / len(values) ** 0.5
    assert stderr < 0.03 * half_norm
    assert abs(jnp.mean(values) - half_norm) < 4 * stderr + 0.01 * half_norm


class DataRollout(eqx.Module):
    """Clean data in the student's place: what an exact student's draws are distributed as."""

    forward: mm.Forward
    axis_name: None = None

    def __call__(self, student, x, key, cond=None):
        return self.forward(x, key, cond)


@pytest.mark.parametrize(("mean", "zero"), [(0.3, True), (0.8, False)])
def test_instant_is_zero_at_the_data_for_an_exact_teacher_only(mean, zero):
    """The gradient of an exact teacher's loss on data is zero in expectation, so that its norm is."""
    loss = mm.instant(
        gaussian_denoiser(mean, 0.7),
        rollout=DataRollout(mm.Forward(mm.CosineSchedule())),
        weight=mm.flat_weight,
    )

    @jax.jit
    def value(key):
        return loss(STUDENT, 0.3 + 0.7 * jax.random.normal(key, (64, 3)), key)

    values = jax.lax.map(value, jax.random.split(KEY, 2000), batch_size=200)
    stderr = jnp.std(values) / len(values) ** 0.5
    assert (abs(jnp.mean(values)) < 4 * stderr) == zero
    assert zero or jnp.mean(values) > 20 * stderr


def test_instant_is_linear_in_the_preconditioner():
    """Two preconditioners' sum gives the losses' sum, in value and gradient."""
    other = mm.Diagonal(jax.tree.map(jnp.cos, PRECOND.scale))
    both = mm.Diagonal(jax.tree.map(jnp.add, PRECOND.scale, other.scale))
    evaluate = eqx.filter_jit(lambda precond: eqx.filter_value_and_grad(mm.instant(TEACHER, precond))(STUDENT, X, KEY))
    total = jax.tree.map(jnp.add, evaluate(PRECOND), evaluate(other))
    assert_trees_close(total, evaluate(both), rtol=1e-9, atol=1e-9)


def test_instant_draws_its_two_halves_independently():
    """Even and odd examples, with other noise and other times."""
    draws = []

    class Recording(eqx.Module):
        rollout: mm.Rollout = mm.Rollout()
        axis_name: None = None

        def __call__(self, student, x, key, cond=None):
            draws.append((x, self.rollout(student, x, key, cond)))
            return draws[-1][1]

    mm.instant(TEACHER, rollout=Recording())(STUDENT, X, KEY)
    (x_even, even), (x_odd, odd) = draws
    assert jnp.array_equal(x_even, X[0::2])
    assert jnp.array_equal(x_odd, X[1::2])
    assert not jnp.any(jnp.isclose(jnp.sort(even.logsnr), jnp.sort(odd.logsnr)))
    same = mm.Rollout()(STUDENT, X[0::2], jax.random.split(KEY)[1])
    assert not jnp.any(jnp.isclose(same.z, even.z))


def test_leaves_that_the_filter_leaves_out_are_leaves_of_no_weight():
    """The moments over some leaves only are those under a Lambda that is zero at the others."""
    spec = jax.tree.map(lambda leaf: leaf.ndim == 2, eqx.filter(TEACHER, eqx.is_array))
    masked = mm.Diagonal(jax.tree.map(lambda scale, here: scale if here else 0 * scale, PRECOND.scale, spec))
    ours = evaluate(mm.instant(TEACHER, PRECOND, filter_spec=spec))
    assert_trees_close(ours, evaluate(mm.instant(TEACHER, masked)), rtol=1e-12, atol=1e-14)
    by_function = mm.instant(TEACHER, PRECOND, filter_spec=lambda leaf: eqx.is_array(leaf) and leaf.ndim == 2)
    assert_trees_close(ours, evaluate(by_function), rtol=0)
    assert evaluate(mm.instant(TEACHER, PRECOND))[0] != ours[0]


@eqx.filter_jit
def evaluate(loss):
    return eqx.filter_value_and_grad(loss)(STUDENT, X, KEY)


STRAIGHT = {
    "bare": lambda net: net,
    "guided": lambda net: mm.guided(net, 1.5, X[0]),
    "clipped": lambda net: mm.clipped(net, 0.3),
    "both": lambda net: mm.clipped(mm.guided(net, 1.5, X[0]), 0.5),
}


@pytest.mark.parametrize("wrap", STRAIGHT.values(), ids=STRAIGHT)
@pytest.mark.parametrize(("tangent", "rtol"), [(mm.reverse_mode, 1e-10), (mm.central_difference, 1e-4)])
def test_every_tangent_gives_the_same_loss(wrap, tangent, rtol):
    """Straight-through too: a difference of what is guided or clipped would be another tangent."""
    teacher, precond = wrap(Sine(TEACHER.net, custom=False)), mm.identity
    expected = evaluate(mm.instant(teacher, precond))
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    # A central difference's relative error is of the order of its step's square, 4e-6.
    assert_trees_close(evaluate(mm.instant(teacher, precond, tangent=tangent)), expected, rtol, rtol * scale)


def test_a_straight_through_teacher_is_evaluated_as_often_as_it_must():
    """The prediction that guidance modifies is the tangent's own primal: the program has it once."""

    def flops(teacher):
        jitted: Any = eqx.filter_jit(mm.instant(teacher))
        return jitted.lower(STUDENT, X, KEY).compile().compiled.cost_analysis()["flops"]

    nets = [linear(jax.random.key(0), 3), linear(jax.random.key(1), 3)]
    wide = [Wide(jax.random.normal(jax.random.key(i), (3, 400)), net) for i, net in enumerate(nets)]
    once = 4 * 2 * 3 * 400 * 2  # four examples through two products of 3 by 400
    bare, guided = (flops(teacher) for teacher in (wide[0], mm.guided(wide[0], 2.0, X[0])))
    # Guidance asks once more in nu's gradient and once more on the judged half.
    np.testing.assert_allclose(guided - bare, 2 * once, rtol=0.1)


class Wide(eqx.Module):
    """A network with most of its work in two products."""

    weight: Any
    net: Any

    def __call__(self, z, logsnr, cond=None):
        shift = 0 if cond is None else cond
        return self.net(jnp.tanh((z + shift) @ self.weight) @ self.weight.T, logsnr / 10)


CUSTOM = Sine(TEACHER.net, custom=True)


@pytest.mark.parametrize("wrap", STRAIGHT.values(), ids=STRAIGHT)
def test_a_network_without_forward_mode_is_told_when_the_loss_is_built(wrap):
    """For a batch like that of the training; and what is to be done works."""
    shape = jax.ShapeDtypeStruct((8, 3), jnp.float64)
    for like in (X, shape, (shape, shape)):
        with pytest.raises(ValueError, match=r"needs a network with a forward-mode .* custom_vjp; do .*reverse_mode"):
            mm.instant(wrap(CUSTOM), like=like)
    loss = mm.instant(wrap(CUSTOM), tangent=mm.reverse_mode, like=(X, X))
    expected = evaluate(mm.instant(wrap(Sine(TEACHER.net, custom=False))))
    scale = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    assert_trees_close(evaluate(loss), expected, rtol=1e-10, atol=1e-10 * scale)


def test_a_network_without_forward_mode_is_told_before_it_is_compiled():
    """Without a batch to go by, at the first trace."""
    with pytest.raises(ValueError, match=r"needs a network with a forward-mode"):
        jax.jit(lambda x: mm.instant(CUSTOM)(STUDENT, x, KEY)).trace(X)


def test_a_lambda_or_a_batch_that_does_not_fit_is_told_when_the_loss_is_built():
    with pytest.raises(ValueError, match="needs gradients of the scale's structure"):
        mm.instant(mm.clipped(TEACHER), PRECOND, like=X)
    with pytest.raises(ValueError, match="even batch"):
        mm.instant(TEACHER, PRECOND, like=X[:7])
    assert eqx.tree_equal(mm.instant(TEACHER, PRECOND, like=X), mm.instant(TEACHER, PRECOND))


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="its compiler for CPUs ignores barriers")
def test_one_half_is_held_after_the_other():
    """Temporary bytes of both halves together, for a network whose activations outweigh its parameters."""
    model = mm.Denoiser(mm.nn.MLP((8,), width=16, depth=6, key=jax.random.key(0, impl="rbg")))
    loss: Any = mm.instant(model)
    x = jnp.zeros((2048, 8), jnp.float32)

    def of_gap(nu, student):
        return eqx.filter_value_and_grad(lambda student: loss.gap(nu, student, x, KEY, None))(student)

    def temporary(function, *arguments):
        jitted: Any = eqx.filter_jit(function)
        return jitted.lower(*arguments).compile().compiled.memory_analysis().temp_size_in_bytes

    alone = temporary(of_gap, eqx.filter(model, eqx.is_inexact_array), model)
    assert temporary(mm.value_and_grad(loss), model, x, KEY) < 1.2 * alone


HELD = """
import equinox as eqx, jax, momentax as mm
model = mm.Denoiser(mm.nn.UNet(3, width=32, multipliers=(1, 2), key=jax.random.key(0)))
loss, nu = mm.instant(model), eqx.filter(model, eqx.is_inexact_array)
x, t, key = jax.numpy.zeros((32, 3, 32, 32)), jax.numpy.zeros(16), jax.random.key(0)

def temporary(function, *arguments):
    return eqx.filter_jit(function).lower(*arguments).compile().compiled.memory_analysis().temp_size_in_bytes

def tangent(net, nu, z, t):
    return mm.forward_mode(lambda net: jax.vmap(net)(z, t), net, nu)

gap = temporary(lambda nu, model: loss.gap(nu, model, x, key, None), nu, model)
print(gap, temporary(tangent, model.net, nu.net, x[:16], t))
"""


@pytest.mark.slow
def test_the_tangent_is_taken_along_not_after():
    """Of what the teacher's layers put out none outlives its layer: the loss holds what its tangent holds.

    Counted with the scheduler and the barriers that backends other than the CPU have.
    """
    flags = "--xla_cpu_enable_concurrency_optimized_scheduler=false --xla_disable_hlo_passes=cse_barrier_expander"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    found = subprocess.run([sys.executable, "-c", HELD], env=environment, capture_output=True, text=True, check=True)
    gap, tangent = map(int, found.stdout.split())
    assert gap < 1.3 * tangent
