"""Low-rank factors: the model as it was at the start, W + s BA written out afterwards, and one copy of its weights."""

import inspect
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest

import momentax
from momentax._lora import adapters, lora, merge

SCALE = 0.5


class Conv(eqx.Module):
    """A convolution of [c_in, h, w] in Equinox's layout and one in ours, with a keyword of their own."""

    first: eqx.nn.Conv2d
    second: jax.Array
    activation: Callable[..., Any] = jax.nn.silu

    def __call__(self, z, logsnr, cond=None, *, key=None):
        h = self.activation(self.first(z) * logsnr)
        numbers = jax.lax.conv_dimension_numbers(h[None].shape, self.second.shape, ("NCHW", "HWIO", "NCHW"))
        h = jax.lax.conv_general_dilated(h[None], self.second, (1, 1), "SAME", dimension_numbers=numbers)[0]
        return h if key is None else h + jr.normal(key, h.shape)


def mlp():
    return momentax.nn.MLP((3,), width=8, depth=1, key=jr.key(0)), jr.normal(jr.key(1), (3,))


def linear():
    return eqx.nn.Sequential([eqx.nn.Linear(3, 5, key=jr.key(0)), eqx.nn.Lambda(jnp.tanh)]), jr.normal(jr.key(1), (3,))


def conv():
    first = eqx.nn.Conv2d(2, 4, 3, padding=1, key=jr.key(0))
    return Conv(first, jr.normal(jr.key(2), (3, 3, 4, 2))), jr.normal(jr.key(1), (2, 4, 4))


MODELS = {"mlp": mlp, "linear": linear, "conv": conv}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
TIME = jnp.asarray(0.7)


@eqx.filter_jit
def called(model, x):
    """Sequential takes the second argument as its `key`, which nothing in it uses."""
    return model(x) if isinstance(getattr(model, "base", model), eqx.nn.Sequential) else model(x, TIME)


def moved(student, seed):
    """The student with factors anywhere."""
    factors, frozen = eqx.partition(student, adapters(student))
    rng = np.random.default_rng(seed)
    return eqx.combine(jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), factors), frozen)


def written_out(student):
    """W + s BA in NumPy, with the matrix's sides found by hand from its shape."""

    def dense(weight, left, right):
        if left is None:
            return weight
        sides = {(4, 2, 3, 3): (8, 9), (3, 3, 4, 2): (9, 8), (4, 1, 1): (4, 1)}.get(weight.shape, weight.shape)
        assert (left.shape[0], right.shape[1]) == sides
        change = SCALE * np.asarray(left) @ np.asarray(right)
        return jnp.asarray((np.asarray(weight).reshape(sides) + change).reshape(weight.shape))

    return jax.tree.map(dense, student.base, student.left, student.right, is_leaf=lambda leaf: leaf is None)


def pointers(*models):
    """The bytes of every buffer in the models, by its address."""
    arrays = [leaf for model in models for leaf in jax.tree.leaves(model) if eqx.is_array(leaf)]
    return {array.unsafe_buffer_pointer(): array.nbytes for array in arrays}


@every_model
def test_a_student_starts_exactly_as_its_base(make):
    model, x = make()
    np.testing.assert_array_equal(called(lora(model, 2, key=jr.key(3)), x), called(model, x))


@every_model
def test_it_is_the_dense_model_with_the_product_of_its_factors_added(make):
    model, x = make()
    student = moved(lora(model, 2, key=jr.key(3), scale=SCALE), 4)
    np.testing.assert_allclose(called(student, x), called(written_out(student), x), rtol=1e-12, atol=1e-13)
    assert not np.allclose(called(student, x), called(model, x), atol=1e-3)


class Weighted(eqx.Module):
    """One weight of any shape."""

    weight: jax.Array

    def __call__(self, z):
        return z * jnp.sum(self.weight)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((5, 7), (5, 7)),
        ((3, 3, 16, 32), (144, 32)),
        ((32, 16, 3, 3), (32, 144)),
        ((1, 10, 6), (10, 6)),
        ((2, 3, 8, 6), (6, 48)),
    ],
)
def test_a_weight_of_many_axes_is_the_matrix_with_the_longest_shorter_side(shape, sides):
    student = lora(Weighted(jnp.ones(shape)), 2, key=jr.key(0))
    assert (student.left.weight.shape, student.right.weight.shape) == ((sides[0], 2), (2, sides[1]))


@every_model
def test_merging_gives_a_model_of_the_bases_own_kind_and_outputs(make):
    model, x = make()
    student = moved(lora(model, 2, key=jr.key(3)), 4)
    whole = merge(student)
    assert jax.tree.structure(whole) == jax.tree.structure(model)
    np.testing.assert_allclose(called(whole, x), called(student, x), rtol=1e-13)
    assert merge(model) is model or eqx.tree_equal(merge(model), model)


def test_the_change_of_rank_r_has_rank_r():
    model, _ = mlp()
    student = moved(lora(model, 2, key=jr.key(3)), 4)
    changes = jax.tree.map(
        lambda after, before: after - before, *map(eqx.filter, (merge(student), model), [eqx.is_array] * 2)
    )
    ranks = [np.linalg.matrix_rank(change, tol=1e-9) for change in jax.tree.leaves(changes) if change.ndim == 2]
    assert set(ranks) == {2}
    assert not any(np.any(change) for change in jax.tree.leaves(changes) if change.ndim == 1)


@every_model
def test_the_gradient_of_the_factors_is_the_dense_gradient_projected(make):
    r"""$dL/dB = s\,dW\,A^T$ and, as B is zero, $dL/dA = s\,B^T dW = 0$; the base gets none."""
    model, x = make()
    student = lora(model, 2, key=jr.key(3), scale=SCALE)

    def loss(model):
        return jnp.sum(called(model, x) ** 3)

    dense, found = eqx.filter_jit(eqx.filter_grad(loss))(model), eqx.filter_jit(eqx.filter_grad(loss))(student)
    for dw, db, da, a in zip(
        *map(jax.tree.leaves, (eqx.filter(dense, selected(student)), found.left, found.right, student.right)),
        strict=True,
    ):
        np.testing.assert_allclose(db, SCALE * dw.reshape(len(db), -1) @ a.T, rtol=1e-10, atol=1e-12)
        assert not np.any(da)
    assert any(np.any(db) for db in jax.tree.leaves(found.left))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found.base))


def selected(student):
    return jax.tree.map(lambda left: left is not None, student.left, is_leaf=lambda leaf: leaf is None)


def test_forward_mode_is_the_difference_quotient_of_the_factors_and_the_base_has_no_tangent():
    """A tangent of ones everywhere; what moves by the step is the factors only."""
    model, x = conv()
    student = moved(lora(model, 1, key=jr.key(3)), 4)
    moving, fixed = eqx.partition(student, eqx.is_inexact_array)

    @jax.jit
    def tangent(moving):
        ones = jax.tree.map(jnp.ones_like, moving)
        return jax.jvp(lambda moving: eqx.combine(moving, fixed)(x, TIME), (moving,), (ones,))[1]

    @eqx.filter_jit
    def stepped(student, step):
        factors = [jax.tree.map(lambda leaf: leaf + step, side) for side in (student.left, student.right)]
        return eqx.tree_at(lambda student: (student.left, student.right), student, factors)(x, TIME)

    there, back = (stepped(student, jnp.asarray(step)) for step in (1e-5, -1e-5))
    np.testing.assert_allclose(tangent(moving), (there - back) / 2e-5, rtol=1e-6, atol=1e-6)


def test_under_jit_and_vmap_it_is_itself():
    model, x = mlp()
    student = moved(lora(model, 2, key=jr.key(3)), 4)
    xs = jnp.stack([x, -x, 2 * x])
    found = eqx.filter_jit(lambda model, xs: jax.vmap(lambda x: model(x, TIME))(xs))(student, xs)
    np.testing.assert_allclose(found, [student(x, TIME) for x in xs], rtol=1e-12)


def test_the_arguments_are_the_bases():
    model, x = conv()
    student = lora(model, 1, key=jr.key(3))
    assert inspect.signature(student) == inspect.signature(model)
    assert "key" in inspect.signature(student).parameters
    assert "key" not in inspect.signature(lora(mlp()[0], 1, key=jr.key(3))).parameters
    np.testing.assert_array_equal(student(x, TIME, key=jr.key(5)), model(x, TIME, key=jr.key(5)))


def test_the_filter_selects_the_factors_only_wherever_they_are():
    model, _ = mlp()
    student = lora(model, 2, key=jr.key(3))
    denoiser = momentax.Denoiser(student)
    spec = adapters(denoiser)
    assert jax.tree.structure(spec) == jax.tree.structure(denoiser)
    found = jax.tree.leaves(eqx.filter(denoiser, spec))
    expected = jax.tree.leaves((student.left, student.right))
    assert len(found) == len(expected) > 0
    assert all(a is b for a, b in zip(found, expected, strict=True))
    assert isinstance(merge(denoiser).net, momentax.nn.MLP)


def test_only_the_selected_weights_have_factors():
    model, x = mlp()
    by_leaf = lora(model, 2, key=jr.key(3), filter_spec=lambda leaf: eqx.is_array(leaf) and leaf.shape == (8, 3))
    tree = eqx.tree_at(
        lambda m: m.blocks, jax.tree.map(lambda _: False, model), True, is_leaf=lambda n: isinstance(n, tuple)
    )
    by_tree = lora(model, 2, key=jr.key(3), filter_spec=tree)
    assert [left.shape for left in jax.tree.leaves(by_leaf.left)] == [(8, 2)]
    assert jax.tree.leaves(by_tree.left.first) == []
    assert len(jax.tree.leaves(by_tree.left.blocks)) == 3
    np.testing.assert_array_equal(by_tree(x, TIME), model(x, TIME))


def train_step(optimizer):
    @eqx.filter_jit
    def step(factors, frozen, state, xs):
        def loss(factors):
            return jnp.mean(jax.vmap(lambda x: eqx.combine(factors, frozen)(x, TIME))(xs) ** 2)

        value, grads = eqx.filter_value_and_grad(loss)(factors)
        with jax.numpy_dtype_promotion("standard"):
            changes, state = optimizer.update(grads, state, factors)
        return eqx.apply_updates(factors, changes), state, value

    return step


def trained(student, xs, steps):
    """The student after some steps of one jitted program that returns the factors, and the losses."""
    optimizer = optax.adam(1e-2)
    factors, frozen = eqx.partition(student, adapters(student))
    state, step, values = optimizer.init(factors), train_step(optimizer), []
    for _ in range(steps):
        factors, state, value = step(factors, frozen, state, xs)
        values.append(value)
    return eqx.combine(factors, frozen), values


def test_three_networks_of_one_teacher_are_one_teacher_and_two_pairs_of_factors():
    """Training lowers the loss and leaves the very buffers of the base, counted by their addresses."""
    teacher, x = mlp()
    student, values = trained(lora(teacher, 2, key=jr.key(3)), jnp.stack([x, -x]), 3)
    aux, _ = trained(lora(teacher, 2, key=jr.key(4)), jnp.stack([x, -x]), 1)
    assert values[2] < values[1] < values[0]
    assert pointers(student.base) == pointers(aux.base) == pointers(teacher)
    factors = [sum(pointers(eqx.filter(model, adapters(model))).values()) for model in (student, aux)]
    assert sum(pointers(teacher, student, aux).values()) == sum(pointers(teacher).values()) + sum(factors)
    assert all(0 < size < sum(pointers(teacher).values()) for size in factors)


def test_the_optimizers_state_is_that_of_the_factors():
    student = lora(mlp()[0], 1, key=jr.key(3))
    state = optax.adam(1e-3).init(eqx.filter(student, adapters(student)))
    factors = jax.tree.leaves((student.left, student.right))
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if jnp.ndim(leaf)]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in factors])


def test_a_losss_gradient_moves_the_factors():
    """Moment matching with a student and an auxiliary that are their teacher's."""
    teacher = momentax.Denoiser(mlp()[0])
    student = lora(teacher, 1, key=jr.key(3))
    loss = momentax.student_loss(teacher, moved(lora(teacher, 1, key=jr.key(4)), 5))
    grads = eqx.filter_jit(eqx.filter_grad(loss))(student, jr.normal(jr.key(6), (4, 3)), jr.key(7))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads.left))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads.base))


def test_factors_are_single_precision_at_least_and_weights_keep_their_dtype():
    model = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, linear()[0])
    student = lora(model, 2, key=jr.key(3))
    assert {leaf.dtype for leaf in jax.tree.leaves((student.left, student.right))} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(merge(student)) if eqx.is_array(leaf)} == {jnp.dtype(jnp.bfloat16)}
    assert student(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_one_factor_starts_at_zero_and_the_other_with_rows_of_unit_length():
    """6400 normal numbers: their mean square is 1/400 within 2%. Two weights of one shape start apart."""
    student = lora(eqx.nn.Sequential([Weighted(jnp.ones((64, 400)))] * 2), 16, key=jr.key(0))
    first, second = (layer.weight for layer in student.right.layers)
    assert not any(np.any(layer.weight) for layer in student.left.layers)
    np.testing.assert_allclose([np.mean(np.sum(right**2, 1)) for right in (first, second)], 1, atol=0.1)
    assert not np.any(first == second)


def test_a_narrow_weight_has_factors_of_its_shorter_side():
    student = lora(mlp()[0], 8, key=jr.key(3))
    shapes = {(a.shape, b.shape) for a, b in zip(*map(jax.tree.leaves, (student.left, student.right)), strict=True)}
    assert ((8, 3), (3, 3)) in shapes
    assert ((8, 8), (8, 8)) in shapes


def test_adapters_of_adapters_train_the_outer_and_merge_into_one():
    model, x = mlp()
    inner = moved(lora(model, 1, key=jr.key(3)), 4)
    outer = lora(inner, 1, key=jr.key(5))
    np.testing.assert_allclose(outer(x, TIME), inner(x, TIME), rtol=1e-13)
    assert not any(jax.tree.leaves(adapters(outer).base))
    assert isinstance(merge(outer), momentax.nn.MLP)
    np.testing.assert_allclose(merge(outer)(x, TIME), inner(x, TIME), rtol=1e-12)


@pytest.mark.parametrize("rank", [0, -1, 9])
def test_a_rank_that_no_weight_has_room_for_is_refused(rank):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; (use|lower|select) .+"):
        lora(mlp()[0], rank, key=jr.key(0))


@pytest.mark.parametrize("spec", [False, lambda leaf: eqx.is_array(leaf) and leaf.ndim == 1])
def test_a_filter_that_selects_no_weight_is_refused(spec):
    with pytest.raises(ValueError, match=r"^needs .+; got .+; (use|lower|select) .+"):
        lora(mlp()[0], 1, key=jr.key(0), filter_spec=spec)


def test_a_model_without_factors_has_no_adapters():
    with pytest.raises(ValueError, match=r"^needs .+; got .+; do .+"):
        adapters(mlp()[0])
