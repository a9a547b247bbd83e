"""Many devices are one device: the same losses, gradients and updates."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Dropping, Tanh, linear, moving, program_of
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import momentax as mm

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (16, 3), jnp.float64)
COND = jax.random.normal(jax.random.key(2), (16, 3), jnp.float64)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i))) for i in range(3))
PRECOND = mm.Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), eqx.filter(TEACHER, eqx.is_inexact_array)))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
LOSSES = {
    "denoising": lambda axis: mm.denoising_loss(axis_name=axis),
    "student": lambda axis: mm.moment_match(TEACHER, STUDENT, AUX, axis_name=axis).student,
    "aux": lambda axis: mm.moment_match(TEACHER, AUX, STUDENT, axis_name=axis).aux,
    "instant": lambda axis: mm.instant(TEACHER, PRECOND, axis_name=axis),
    "instant, dropping out": lambda axis: mm.instant(Dropping(TEACHER), axis_name=axis),
    "joint": lambda axis: mm.joint_loss(TEACHER, axis_name=axis),
    "instant, by a difference": lambda axis: mm.instant(TEACHER, tangent=mm.central_difference, axis_name=axis),
    "instant, in reverse": lambda axis: mm.instant(TEACHER, tangent=mm.reverse_mode, axis_name=axis),
}


def mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((4,), ("data",), axis_types=(axis_type,))


def step_over(axis):
    def step(loss, model, opt_state, x, key, cond=None):
        value, grads = mm.value_and_grad(loss, axis)(model, x, key, cond)
        changes, opt_state = OPTIMIZER.update(grads, opt_state)
        return eqx.apply_updates(model, changes), opt_state, value, grads

    return step


def assert_near(ours, theirs, atol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("name", "axis_type"),
    [*((name, AxisType.Auto) for name in LOSSES), ("aux", AxisType.Explicit), ("instant", AxisType.Explicit)],
)
def test_sharded_is_whole(name, axis_type):
    """Three updates of SGD with clipping, which both see the gradient's scale; conditioning is spread too."""
    whole, spread = eqx.filter_jit(step_over(None)), mm.data_parallel(step_over("data"), mesh(axis_type))
    model = theirs = moving(name, STUDENT, AUX)
    state = their_state = OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))
    for n in range(3):
        key = jax.random.fold_in(KEY, n)
        model, state, value, grads = spread(LOSSES[name]("data"), model, state, X, key, COND)
        theirs, their_state, expected, whole_grads = whole(LOSSES[name](None), theirs, their_state, X, key, COND)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        scale = float(optax.tree.norm(whole_grads))
        assert scale > 0
        assert_near(grads, whole_grads, 1e-10 * scale)
        assert_near(model, theirs, 1e-10)


@pytest.mark.parametrize(
    ("name", "check_vma"), [*((name, False) for name in LOSSES), ("student", True), ("instant", True)]
)
def test_the_gradients_are_those_of_a_mapped_axis(name, check_vma):
    """`jax.vmap(axis_name=...)`, another path to the same collectives, whether or not replication is tracked."""
    gradient = mm.value_and_grad(LOSSES[name]("data"), "data")
    mapped = jax.vmap(gradient, in_axes=(None, 0, None), out_axes=None, axis_name="data", axis_size=4)
    model = moving(name, STUDENT, AUX)
    by_map = jax.jit(mapped)(model, X.reshape(4, 4, 3), KEY)
    spec = (P(), P("data"), P())
    by_mesh = jax.jit(jax.shard_map(gradient, mesh=mesh(), in_specs=spec, out_specs=P(), check_vma=check_vma))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), by_mesh(model, X, KEY), by_map)


@pytest.mark.parametrize("name", ["denoising", "student", "instant", "instant, by a difference"])
def test_a_loss_alone_has_the_whole_batchs_value_inside_a_mesh(name):
    """Without `value_and_grad`: nu is the mean over the mesh, and not the sum, whoever differentiates."""
    loss = LOSSES[name]("data")
    spread = jax.shard_map(
        lambda x: jax.lax.pmean(loss(STUDENT, x, KEY), "data"), mesh=mesh(), in_specs=P("data"), out_specs=P()
    )
    whole = eqx.filter_jit(LOSSES[name](None))(STUDENT, X, KEY)
    np.testing.assert_allclose(jax.jit(spread)(X), whole, rtol=1e-10)


@pytest.mark.parametrize(("name", "count"), [("denoising", 1), ("student", 1), ("aux", 1), ("instant", 2)])
def test_each_gradient_crosses_the_mesh_once(name, count):
    """All-reduces of a parameter's size in the program: one per gradient, and one more for nu."""
    spread = mm.data_parallel(step_over("data"), mesh())
    state = OPTIMIZER.init(eqx.filter(STUDENT, eqx.is_inexact_array))
    lowered = program_of(spread, LOSSES[name]("data"), STUDENT, state, X, KEY)
    shapes = re.findall(r"stablehlo\.all_reduce.*?-> tensor<([0-9x]*)f64>", lowered, re.DOTALL)
    assert shapes.count("3x3x") == count
    assert shapes.count("") <= 1


def test_without_a_mesh_the_gradient_is_equinoxs():
    loss = mm.student_loss(TEACHER, AUX)
    ours = eqx.filter_jit(mm.value_and_grad(loss))(STUDENT, X, KEY)
    theirs = eqx.filter_jit(eqx.filter_value_and_grad(loss))(STUDENT, X, KEY)
    assert eqx.tree_equal(ours, theirs)


@pytest.mark.parametrize("axis", [None, "data"])
def test_leaves_that_stay_have_no_gradient(axis):
    """And the others the one they have."""
    loss = mm.student_loss(TEACHER, AUX, rollout=mm.Rollout(axis_name=axis))
    spec = jax.tree.map(lambda leaf: leaf.ndim == 2, STUDENT)
    (value, grads), (expected, whole) = (taken(mm.value_and_grad(loss, axis, **s)) for s in ({"filter_spec": spec}, {}))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert grads.net.drift is None
    assert_near(grads.net.weight, whole.net.weight, 1e-13)


def taken(gradient):
    if gradient.axis_name is None:
        return eqx.filter_jit(gradient)(STUDENT, X, KEY)
    mapped = jax.vmap(gradient, in_axes=(None, 0, None), out_axes=None, axis_name="data")
    return jax.jit(mapped)(STUDENT, X.reshape(4, 4, 3), KEY)


def test_a_sharded_step_is_compiled_once():
    """A new model, teacher, batch and key are new data."""
    traces = []

    def step(*arguments):
        traces.append(arguments)
        return step_over("data")(*arguments)

    spread = mm.data_parallel(step, mesh())
    state = OPTIMIZER.init(eqx.filter(STUDENT, eqx.is_inexact_array))
    for n, (a, b) in enumerate([(TEACHER, AUX), (AUX, STUDENT), (STUDENT, TEACHER)]):
        spread(mm.instant(a, axis_name="data"), b, state, X + n, jax.random.key(n))
    assert len(traces) == 1


def test_a_loss_of_another_axis_is_an_error():
    """Its noise would be the same on every device."""
    with pytest.raises(ValueError, match="do build it with axis_name='data'"):
        mm.value_and_grad(mm.denoising_loss(), "data")


def test_a_mesh_without_the_axis_is_an_error():
    with pytest.raises(ValueError, match=r"needs a mesh with the axis 'batch'; got \('data',\)"):
        mm.data_parallel(step_over("batch"), mesh(), "batch")


@pytest.mark.parametrize("spread", [mm.data_parallel, mm.fully_sharded])
def test_a_batch_that_does_not_divide_is_an_error_before_compilation(spread):
    spread = spread(step_over("data"), mesh())
    state = OPTIMIZER.init(eqx.filter(STUDENT, eqx.is_inexact_array))
    with pytest.raises(ValueError, match=r"divides by the 4 devices .* got 14 examples; do take 12"):
        spread(LOSSES["aux"]("data"), STUDENT, state, X[:14], KEY)
