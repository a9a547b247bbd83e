"""Updates that are taken where everything is finite, and otherwise leave no trace."""

import functools
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Tanh, linear
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import momentax as mm

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(1), (8, 3), jnp.float64)
TEACHER, STUDENT, AUX = (Tanh(linear(jax.random.key(i))) for i in range(3))
ONE, HUGE = (mm.Diagonal(jax.tree.map(lambda leaf, c=c: jnp.full_like(leaf, c), TEACHER)) for c in (1.0, 1e308))
LOSSES = {
    "denoising": lambda axis: mm.denoising_loss(axis_name=axis),
    "student": lambda axis: mm.moment_match(TEACHER, STUDENT, AUX, axis_name=axis).student,
    "aux": lambda axis: mm.moment_match(TEACHER, STUDENT, AUX, axis_name=axis).aux,
    "instant": lambda axis: mm.instant(TEACHER, ONE, axis_name=axis),
}
ADAM = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in LOSSES if name != "denoising"]
CLIPPED = optax.chain(optax.clip(1.0), optax.adam(1e-2))  # Makes an infinite gradient a finite one.


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Adam of optax raises a float to an integer power."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def bits(tree):
    """Every array's bytes; those of a key's data."""
    leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    data = [jax.random.key_data(leaf) if key else leaf for leaf, key in zip(leaves, keys, strict=True)]
    return [(leaf.dtype, np.asarray(leaf).tobytes()) for leaf in data]


def initial(optimizer: Any, model: Any) -> Any:
    return optimizer.init(eqx.filter(model, eqx.is_inexact_array))


@eqx.filter_jit
def update(optimizer, model, state, value, grads):
    return mm.update_if_finite(optimizer, model, state, value, grads)


def updating(optimizer, axis=None):
    def step(loss, model, state, x, key):
        TRACES.append(axis)
        value, grads = mm.value_and_grad(loss, axis)(model, x, key)
        return mm.update_if_finite(optimizer, model, state, value, grads)

    return step


TRACES = []
STEP = eqx.filter_jit(updating(ADAM))


def dyed(x, value, place=(3, 1)):
    return x.at[place].set(value)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), ADAM, optax.adamw(1e-2, weight_decay=0.3)])
def test_where_everything_is_finite_it_is_optaxs_update(optimizer):
    """Bit for bit, weight decay included."""

    @eqx.filter_jit
    def plain(model, state, grads):
        changes, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, changes), state

    model, state = expected, its_state = STUDENT, initial(optimizer, STUDENT)
    for n in range(3):
        grads = jax.tree.map(lambda leaf, n=n: jnp.cos(leaf + n), STUDENT)
        model, state, finite = update(optimizer, model, state, jnp.float64(n), grads)
        expected, its_state = plain(expected, its_state, grads)
        assert finite
    assert bits((model, state)) == bits((expected, its_state))
    assert bits(model) != bits(STUDENT)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("place", ["value", "matrix", "vector"])
def test_one_number_that_is_not_finite_leaves_model_and_state_as_they_were(bad, place):
    state = update(CLIPPED, STUDENT, initial(CLIPPED, STUDENT), jnp.float64(0), jax.tree.map(jnp.ones_like, STUDENT))[1]
    value, grads = jnp.float64(1), jax.tree.map(jnp.ones_like, STUDENT)
    if place == "value":
        value = jnp.float64(bad)
    else:
        where = (lambda m: m.net.weight) if place == "matrix" else (lambda m: m.net.drift)
        grads = eqx.tree_at(where, grads, replace_fn=lambda leaf: leaf.ravel().at[-1].set(bad).reshape(leaf.shape))
    model, after, finite = update(CLIPPED, STUDENT, state, value, grads)
    assert not finite
    assert finite.shape == ()
    assert bits((model, after)) == bits((STUDENT, state))


ODD_BITS = {  # A quiet and a signalling NaN with payloads, a negative NaN, -0, subnormals, an infinity, one.
    "float64": ("uint64", 52, [0x7FF8000000012345, 0x7FF0000000012345, 0xFFF8000000000001]),
    "float32": ("uint32", 23, [0x7FC12345, 0x7F812345, 0xFFC00001]),
    "float16": ("uint16", 10, [0x7E15, 0x7C15, 0xFE01]),
    "bfloat16": ("uint16", 7, [0x7FC1, 0x7F81, 0xFFC3]),
}


@pytest.mark.parametrize("dtype", ODD_BITS)
def test_a_skipped_update_keeps_every_bit(dtype):
    """Of NaNs with payloads, minus zeros and subnormals, in the model and in the optimiser's state."""
    carrier, mantissa, nans = ODD_BITS[dtype]
    sign = 1 << (8 * np.dtype(carrier).itemsize - 1)
    exponent = (sign - 1) >> mantissa << mantissa
    odd = np.array([*nans, sign, 1, sign | 1, exponent, 0], carrier).view(jnp.dtype(dtype))
    model = {"w": jnp.asarray(odd)}
    state = jax.tree.map(lambda leaf: model["w"] if leaf.ndim else leaf, initial(ADAM, model))
    one = {"w": jnp.ones_like(model["w"])}
    after = update(ADAM, model, state, jnp.asarray(jnp.nan, dtype), one)
    assert np.asarray(after[0]["w"]).tobytes() == odd.tobytes()
    assert bits(after[:2]) == bits((model, state))


@pytest.mark.parametrize("name", ["denoising", "instant", *SLOW[:2]])
def test_a_run_that_skips_is_the_run_that_never_saw_the_batches(name):
    """One pixel of the first, fourth and fifth; the same program runs all."""
    loss, traces, pixels = LOSSES[name](None), len(TRACES), {0: jnp.nan, 3: jnp.inf, 4: -jnp.inf}
    model, state = clean, its_state = STUDENT, initial(ADAM, STUDENT)
    for n in range(6):
        x, key = X + n / 9, jax.random.key(n)
        model, state, finite = STEP(loss, model, state, dyed(x, pixels[n]) if n in pixels else x, key)
        assert bool(finite) == (n not in pixels)
        if n not in pixels:
            clean, its_state, _ = STEP(loss, clean, its_state, x, key)
    assert bits((model, state)) == bits((clean, its_state))
    assert len(TRACES) <= traces + 1


@pytest.mark.parametrize("name", ["denoising", *SLOW])
def test_one_devices_nan_stops_all(name):
    """Every device of the mesh decides alike, and the run is the one that never saw the batch."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    loss, step = LOSSES[name]("data"), updating(ADAM, "data")

    def every(players, x, key):
        model, state = players
        model, state, finite = step(loss, model, state, x, key)
        return (model, state), finite[None]

    spread = eqx.filter_jit(jax.shard_map(every, mesh=mesh, in_specs=(P(), P("data"), P()), out_specs=(P(), P("data"))))
    ours: Any = (STUDENT, initial(ADAM, STUDENT))
    theirs: Any = ours
    for n, x in enumerate([X, dyed(X, jnp.nan), X + 0.1]):
        ours, decided = spread(ours, x, jax.random.key(n))
        np.testing.assert_array_equal(decided, [n != 1] * 4)
        if n != 1:
            theirs, _ = spread(theirs, x, jax.random.key(n))
    assert bits(ours) == bits(theirs)


@pytest.mark.parametrize("over", [mm.data_parallel, mm.fully_sharded])
def test_a_step_over_many_devices_skips(over):
    """With the arrays replicated, and in pieces; and moves where everything is finite."""
    loss, model = LOSSES["denoising"]("data"), Tanh(linear(jax.random.key(1), d=4))
    spread = over(updating(ADAM, "data"), jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,)))
    state, x = initial(ADAM, model), jnp.ones((8, 4))
    for bad in (False, True):
        after, after_state, finite = spread(loss, model, state, dyed(x, jnp.nan) if bad else x, KEY)
        assert bool(finite) != bad
        assert (bits((after, after_state)) == bits((model, state))) == bad


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays_under_plain_jit_are_chosen_and_stay_where_they_are(axis_type):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(axis_type,))
    put = NamedSharding(mesh, P("data"))
    model = {"w": jax.device_put(jnp.arange(16.0).reshape(8, 2), put)}
    grads = {"w": jax.device_put(jnp.ones((8, 2)), put)}
    spoilt = {"w": jax.device_put(jnp.ones((8, 2)).at[5, 1].set(jnp.nan), put)}
    with jax.set_mesh(mesh):
        state = jax.jit(ADAM.init)(model)
        kept, kept_state, finite = update(ADAM, model, state, jnp.float64(1), spoilt)
        moved, _, all_finite = update(ADAM, model, state, jnp.float64(1), grads)
    assert (bool(finite), bool(all_finite)) == (False, True)
    assert bits((kept, kept_state)) == bits((model, state))
    np.testing.assert_allclose(moved["w"], model["w"] - 1e-2, rtol=1e-6)
    assert kept["w"].sharding.is_equivalent_to(put, 2)


def test_of_an_ensemble_only_the_members_that_are_not_finite_stay():
    models = {"w": jnp.arange(6.0).reshape(3, 2)}
    grads = {"w": jnp.ones((3, 2)).at[1, 0].set(jnp.nan)}
    sgd = optax.sgd(0.5)
    new, _, finite = jax.jit(jax.vmap(lambda m, v, g: mm.update_if_finite(sgd, m, sgd.init(m), v, g)))(
        models, jnp.asarray([1.0, 1.0, jnp.inf]), grads
    )
    np.testing.assert_array_equal(finite, [True, False, False])
    np.testing.assert_array_equal(new["w"], [[-0.5, 0.5], [2, 3], [4, 5]])


class Chain(eqx.Module):
    """A network of as many arrays as one likes."""

    weights: list[Any]

    def __call__(self, z, logsnr, cond=None):
        return functools.reduce(lambda z, weight: jnp.tanh(weight @ z), self.weights, z)


@pytest.mark.parametrize("over", [None, mm.data_parallel, mm.fully_sharded])
def test_a_program_of_twice_the_leaves_is_twice_as_large(over):
    """Where the flag is used inside alone: at its square, a network of a hundred arrays took minutes to compile."""

    def step(loss, model, state, x, key):
        value, grads = mm.value_and_grad(loss, over and "data")(model, x, key)
        return mm.update_if_finite(ADAM, model, state, value, grads)[:2]

    def instructions(leaves):
        model = Chain([jax.ShapeDtypeStruct((4, 4), jnp.float32) for _ in range(leaves)])
        loss, x = mm.denoising_loss(axis_name=over and "data"), jax.ShapeDtypeStruct((8, 4), jnp.float32)
        state = eqx.filter_eval_shape(ADAM.init, model)
        if over is None:
            program = jax.jit(partial(step, loss)).lower(model, state, x, KEY)
        else:
            program = over(step, jax.make_mesh((2,), ("data",))).lower(loss, model, state, x, KEY)
        return str(program.compile().as_text()).count(" = ")

    assert instructions(60) < 2.1 * instructions(30)


class Root(eqx.Module):
    """A network whose value is finite at zero, and whose derivative is not."""

    scale: Any

    def __call__(self, z, logsnr, cond=None):
        return z * jnp.sqrt(self.scale)


@pytest.mark.parametrize("name", ["denoising", *SLOW])
def test_a_finite_value_with_a_gradient_that_is_not_is_skipped(name):
    model: Any = Root(jnp.zeros(()))
    sgd = optax.sgd(0.1)
    value, _ = eqx.filter_jit(mm.value_and_grad(LOSSES[name](None)))(model, X, KEY)
    assert jnp.isfinite(value)
    after, _, finite = eqx.filter_jit(updating(sgd))(LOSSES[name](None), model, sgd.init(model), X, KEY)
    assert not finite
    assert after.scale == 0


def test_a_preconditioner_that_explodes_is_skipped():
    state = initial(ADAM, STUDENT)
    after, _, finite = STEP(mm.instant(TEACHER, HUGE), STUDENT, state, X, KEY)
    assert not finite
    assert bits(after) == bits(STUDENT)


@pytest.mark.parametrize(("weight", "grad"), [(0.0, 1e30), (3.4e38, -3e38)])
def test_what_the_optimiser_makes_of_a_finite_gradient_has_to_be_finite_too(weight, grad):
    """A square that overflows in Adam's second moment, a step beyond the largest number."""
    model, grads = {"w": jnp.full(2, weight, jnp.float32)}, {"w": jnp.full(2, grad, jnp.float32)}
    optimizer = optax.adam(1e-3) if weight == 0 else optax.sgd(1.0)
    state = optimizer.init(model)
    after, after_state, finite = update(optimizer, model, state, jnp.float32(1), grads)
    assert not finite
    assert bits((after, after_state)) == bits((model, state))


def test_what_was_not_finite_before_holds_nothing_up():
    """A best value of infinity to begin with, which the optimiser is given values for; a weight that is lost."""
    plateau = optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=1))
    model = {"w": jnp.asarray([1.0, jnp.inf])}
    state = plateau.init(model)
    assert any(not jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state))
    after, state, finite = update(plateau, model, state, jnp.float64(0.25), {"w": jnp.ones(2)})
    assert finite
    np.testing.assert_array_equal(after["w"], [0.5, jnp.inf])
    assert optax.tree.get(state, "best_value") == 0.25


class Mixed(eqx.Module):
    """Leaves of every kind."""

    weight: Any
    bias: Any
    key: Any
    count: Any
    function: Any
    none: Any = None


@pytest.mark.parametrize("spoilt", [False, True])
def test_leaves_that_stay_are_handed_on(spoilt):
    """Keys, integers, functions, None, and what a `filter_spec` leaves out: not decayed either."""
    model = Mixed(jnp.ones((2, 2)), jnp.ones(2, jnp.bfloat16), jax.random.key(3), jnp.arange(2), jax.nn.silu)
    spec = eqx.tree_at(lambda spec: spec.bias, jax.tree.map(lambda _: False, model), True)
    decay = optax.chain(optax.add_decayed_weights(0.5), optax.scale(-1.0), optax.keep_params_nonnegative())
    optimizer = optax.chain(decay, optax.add_noise(0.0, 0.5, jax.random.key(1)))
    state = optimizer.init(eqx.filter(model, spec))
    grads = eqx.filter(model, spec)
    after, after_state, finite = update(optimizer, model, state, jnp.asarray(jnp.nan if spoilt else 1.0), grads)
    assert bool(finite) != spoilt
    assert (bits(after_state) == bits(state)) == spoilt
    assert after.bias.dtype == jnp.bfloat16
    np.testing.assert_array_equal(after.bias.astype(float), [1.0, 1.0] if spoilt else [0.0, 0.0])
    assert bits(eqx.tree_at(lambda m: m.bias, after, model.bias)) == bits(model)
    assert after.function is jax.nn.silu


def test_under_strict_promotion_a_half_precision_model_stays_one():
    """With a single-precision value, and gradients and moments of the model's dtype."""
    model, momentum = {"w": jnp.ones(2, jnp.bfloat16)}, optax.sgd(0.5, momentum=0.9)
    with jax.numpy_dtype_promotion("strict"):
        state = momentum.init(model)
        after, after_state, finite = update(momentum, model, state, jnp.float32(1), model)
    assert finite
    assert after["w"].dtype == jnp.bfloat16
    assert jax.tree.map(jnp.result_type, after_state) == jax.tree.map(jnp.result_type, state)


SENTENCE = r"^needs (.|\n)+; got (.|\n)+; do .+"


def test_gradients_of_another_model_are_an_error():
    state = initial(ADAM, STUDENT)
    with pytest.raises(ValueError, match=SENTENCE):
        mm.update_if_finite(ADAM, STUDENT, state, jnp.float64(1), {"w": jnp.ones(2)})
    per_example = jax.tree.map(lambda leaf: jnp.ones((8, *leaf.shape)), STUDENT)
    with pytest.raises(ValueError, match=r"shape \(3, 3\) of model.net.weight; got \(8, 3, 3\)"):
        mm.update_if_finite(ADAM, STUDENT, state, jnp.float64(1), per_example)


def test_a_state_of_another_optimiser_or_for_other_leaves_is_an_error():
    grads = jax.tree.map(jnp.ones_like, STUDENT)
    fewer = eqx.tree_at(lambda grads: grads.net.drift, grads, None)
    for state, given in [(initial(optax.sgd(0.1), STUDENT), grads), (initial(ADAM, STUDENT), fewer)]:
        with pytest.raises(ValueError, match=SENTENCE):
            mm.update_if_finite(ADAM, STUDENT, state, jnp.float64(1), given)
