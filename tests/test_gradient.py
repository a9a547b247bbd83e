"""A gradient in micro-batches is the gradient: the same draws, the same nu, less memory."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Dropping, Linear, Tanh, assert_trees_close, linear, moving, program_of

import momentax as mm

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (24, 3), jnp.float64)
COND = jax.random.normal(jax.random.key(2), (24, 3), jnp.float64)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i))) for i in range(3))
ROLLOUT = mm.Rollout(times=mm.uniform)
LOSSES = {
    "denoising": lambda axis: mm.denoising_loss(axis_name=axis),
    "student": lambda axis: mm.moment_match(TEACHER, STUDENT, AUX, axis_name=axis).student,
    "aux": lambda axis: mm.moment_match(TEACHER, AUX, STUDENT, rollout=ROLLOUT, axis_name=axis).aux,
    "instant": lambda axis: mm.instant(TEACHER, axis_name=axis),
    "instant, dropping out": lambda axis: mm.instant(Dropping(TEACHER), rollout=ROLLOUT, axis_name=axis),
    "joint": lambda axis: mm.joint_loss(TEACHER, axis_name=axis),
    "instant, by a difference": lambda axis: mm.instant(TEACHER, tangent=mm.central_difference, axis_name=axis),
}


def gradient(loss, axis=None, count=1):
    return mm.value_and_grad(loss, axis, micro_batches=count)


@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in LOSSES), ("instant", 2), ("instant", 6)])
def test_a_gradient_in_micro_batches_is_that_of_the_batch(name, count):
    """Exactly: sums in another order are all that differs. That of `instant` needs nu before the first part."""
    loss = LOSSES[name](None)
    model = moving(name, STUDENT, AUX)
    value, grads = eqx.filter_jit(gradient(loss, count=count))(model, X, KEY, COND)
    expected, whole = eqx.filter_jit(gradient(loss))(model, X, KEY, COND)
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    assert_trees_close(grads, whole, 0, 1e-11 * float(optax.tree.norm(whole)))


@pytest.mark.parametrize("spread", [mm.data_parallel, mm.fully_sharded])
@pytest.mark.parametrize("name", ["student", "instant", "instant, dropping out"])
def test_micro_batches_on_many_devices_too(name, spread):
    """Two axes of two devices, three parts on each."""
    mesh, axes = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2), ("a", "b")

    def step(loss, model, state, x, key, cond):
        return gradient(loss, axes, 3)(model, x, key, cond)

    value, grads = spread(step, mesh, axes)(LOSSES[name](axes), STUDENT, None, X, KEY, COND)
    expected, whole = eqx.filter_jit(gradient(LOSSES[name](None)))(STUDENT, X, KEY, COND)
    np.testing.assert_allclose(value, expected, rtol=1e-11)
    assert_trees_close(grads, whole, 0, 1e-11 * float(optax.tree.norm(whole)))


@pytest.mark.parametrize(("name", "count"), [("student", 1), ("instant", 2)])
def test_the_gradient_crosses_the_mesh_once_however_many_parts(name, count):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(loss, model, state, x, key):
        return gradient(loss, "data", 3)(model, x, key)

    lowered = program_of(mm.data_parallel(step, mesh), LOSSES[name]("data"), STUDENT, None, X, KEY)
    shapes = re.findall(r"stablehlo\.all_reduce.*?-> tensor<([0-9x]*)f64>", lowered, re.DOTALL)
    assert shapes.count("3x3x") == count


@pytest.mark.parametrize("name", ["student", "instant"])
def test_micro_batches_need_the_memory_of_a_part(name):
    """Temporary bytes of the compiled program, for a network whose activations outweigh its parameters."""
    player = mm.Denoiser(mm.nn.MLP((8,), width=16, depth=1, key=jax.random.key(0, impl="rbg")))
    losses = {"student": mm.student_loss(player, player), "instant": mm.instant(player)}
    x = jnp.zeros((1024, 8), jnp.float32)

    def temporary(count):
        taken: Any = eqx.filter_jit(lambda loss, player: gradient(loss, count=count)(player, x, KEY))
        return taken.lower(losses[name], player).compile().compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


def test_half_precision_is_summed_in_single():
    """1,024 parts of equal gradients: a sum in bfloat16 stands still once it is 256 times a part."""

    class Constant(eqx.Module):
        def part(self, first, total):
            return self

        def __call__(self, model, x, key, cond=None):
            return (model.weight.sum() + model.drift.sum()).astype(jnp.float32) + jnp.sum(x)

    model = Linear(jnp.ones((2, 2), jnp.bfloat16), jnp.ones(2, jnp.bfloat16))
    x = jnp.zeros((1024, 2), jnp.float32)
    _, grads = eqx.filter_jit(gradient(Constant(), count=1024))(model, x, KEY)
    assert grads.weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grads.weight.astype(jnp.float32), 1)


@pytest.mark.parametrize("count", [0, -1, True])
def test_a_number_of_micro_batches_that_is_none_is_an_error(count):
    with pytest.raises(ValueError, match=f"needs micro_batches as a whole number >= 1; got {count}"):
        gradient(mm.denoising_loss(), count=count)


def test_a_batch_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match=r"divides into 5 micro-batches on each device; got 24 .* do take 20"):
        gradient(mm.denoising_loss(), count=5)(STUDENT, X, KEY)
    with pytest.raises(ValueError, match="needs an even batch"):
        gradient(mm.instant(TEACHER), count=8)(STUDENT, X, KEY)


def test_another_loss_has_no_micro_batches():
    """Its noise would repeat in each."""
    with pytest.raises(ValueError, match="needs a loss of this library for micro_batches=2; got function"):
        gradient(lambda model, x, key, cond=None: jnp.sum(x), count=2)
    assert gradient(lambda model, x, key, cond=None: jnp.sum(x)) is not None


def test_an_axis_that_is_nowhere_is_told():
    with pytest.raises(ValueError, match=r"needs the mesh axes \('data',\) around the gradient; got \(\)"):
        gradient(mm.denoising_loss(axis_name="data"), "data")(STUDENT, X, KEY)
